"""Part three: how far a solve is from the evaluations of its field, and these from the matrix products in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.tables import Figure, Table
from benchmarks.speed.contenders import Setting
from benchmarks.speed.jobs import Job, Record
from benchmarks.speed.problems import Problem, build, tolerances
from benchmarks.speed.tables import median
from benchmarks.speed.timing import rounds
from benchmarks.speed.torch_contenders import solve, torch_contenders

__all__ = ["measure", "native_evaluation", "table"]

FORWARD, BOTH = 1.5, 4.5


def native_evaluation(problem: Problem, setting: Setting) -> Callable[[], Any] | None:
    """One evaluation of the whole batch by the solve's own code; None where the solve is not compiled."""
    taped = solve(problem, setting).pieces[0].taped
    if taped is None:
        return None
    t = torch.zeros(problem.batch, dtype=torch.float64)
    return partial(taped.code.field, taped.problem, t, problem.y0)


def measure(job: Job) -> Iterator[Record]:
    """One record a batch."""
    for batch in job.batches:
        problem = build(job.case, batch)
        rtol, atol = tolerances(torch.float64)
        ours = torch_contenders()[0]
        setting = Setting(ours.method, rtol, atol, gradient=False)
        with torch.no_grad():
            evaluations = float(solve(problem, setting).stats.evaluations.double().mean())
        field = problem.field
        runs: dict[str, Callable[[], Any]] = {
            "forward": ours.prepare(problem, setting),
            "gradient": ours.prepare(problem, Setting(ours.method, rtol, atol, gradient=True)),
            "evaluation": _without_graph(_evaluation(field if job.quick else torch.compile(field), problem.y0)),
            "products": _without_graph(_products(problem.layers, batch)),
        }
        native = native_evaluation(problem, setting)
        if native is not None:
            runs["native evaluation"] = native
        estimates = {}
        for name, run in runs.items():
            run()
            begun = time.perf_counter()
            run()
            estimates[name] = time.perf_counter() - begun
        seconds = rounds(runs, estimates, job.patience)
        flops = batch * sum(2 * layer.weight.numel() for layer in problem.layers)
        told = {"part": job.part, "case": job.case, "batch": batch, "evaluated": "eager" if job.quick else "torch.compile"}
        yield {**told, "evaluations": evaluations, "flops": flops, "times": seconds}


def _evaluation(field: Callable[[Tensor, Tensor], Tensor], y: Tensor) -> Callable[[], Tensor]:
    t = torch.zeros((), dtype=y.dtype)
    return lambda: field(t, y)


def _products(layers: Sequence[nn.Linear], batch: int) -> Callable[[], None]:
    """The matrix products of one evaluation, and nothing else."""
    pairs = [(torch.randn(batch, layer.in_features).double(), layer.weight.detach().mT) for layer in layers]
    found = [torch.empty(batch, layer.out_features, dtype=torch.float64) for layer in layers]

    def run() -> None:
        for (inputs, weight), out in zip(pairs, found, strict=True):
            torch.mm(inputs, weight, out=out)

    return run


def _without_graph(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return call()

    return run


def table(records: Sequence[Record]) -> list[Table]:
    """Ratios, held to their limits."""
    chosen = [record for record in records if record["part"] == "limit" and "times" in record]
    if not chosen:
        return []
    found = Table(
        "Held: distance to the limit",
        "Three bodies with a network, float64, one thread. The limit of a solve is the time of its evaluations alone: the mean "
        "number of evaluations of a trajectory times that of one evaluation of the whole batch by "
        f"{chosen[0]['evaluated']}, or by the solve's own code where that can be had. Share of a matrix product's speed: "
        "operations in the network's matrix products a second of the forward solve, over those of `torch.mm` on the same "
        "shapes.",
        (
            "batch",
            "evaluations",
            "one evaluation, µs",
            "forward / limit",
            "forward and gradient / limit",
            "GFLOP/s forward",
            "of `torch.mm`",
        ),
    )
    for record in chosen:
        times = {name: median({"seconds": taken}) for name, taken in record["times"].items()}
        one = times.get("native evaluation", times["evaluation"])
        least = record["evaluations"] * one
        speed = record["evaluations"] * record["flops"] / times["forward"]
        found.add(
            str(record["batch"]),
            f"{record['evaluations']:.1f}",
            f"{1e6 * one:.0f}",
            Figure(times["forward"] / least, at_most=FORWARD, form=".2f"),
            Figure(times["gradient"] / least, at_most=BOTH, form=".2f"),
            f"{speed / 1e9:.2f}",
            f"{speed * times['products'] / record['flops']:.0%}",
        )
    return [found]
