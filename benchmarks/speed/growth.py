"""Part four: how time grows with the batch, the steps and the parameters, this package alone."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.accuracy.tables import Figure, Table
from benchmarks.speed.contenders import Setting
from benchmarks.speed.jobs import Job, Record
from benchmarks.speed.problems import Problem, build, tolerances
from benchmarks.speed.tables import median
from benchmarks.speed.timing import rounds
from benchmarks.speed.torch_contenders import solve, torch_contenders

__all__ = ["LIMITS", "measure", "series", "table"]

HORIZONS = (1.0, 2.0, 4.0, 8.0)
WIDTHS = (16, 32, 64, 128, 256)
FIXED_BATCH = 64
LIMITS = {"batch": 1.05, "steps": 1.1, "parameters": 1.1}


def measure(job: Job) -> Iterator[Record]:
    """One record a point; the points of a series are timed in turn."""
    widths, horizons = (WIDTHS[:3], HORIZONS[:3]) if job.quick else (WIDTHS, HORIZONS)
    yield from _series(job, "batch", {batch: build(job.case, batch) for batch in job.batches})
    # a pendulum is no harder later than sooner, and its steps are not those of close encounters
    longer = [build("pendulum-network", FIXED_BATCH, horizon=horizon) for horizon in horizons]
    yield from _series(job, "steps", {_steps(problem): problem for problem in longer})
    wider = [build(job.case, FIXED_BATCH, width=width) for width in widths]
    yield from _series(job, "parameters", {sum(p.numel() for p in problem.parameters): problem for problem in wider})


def _steps(problem: Problem) -> float:
    """The mean number of steps."""
    rtol, atol = tolerances(torch.float64)
    with torch.no_grad():
        stats = solve(problem, Setting("dopri5", rtol, atol, gradient=False)).stats
    return float((stats.accepted + stats.rejected).double().mean())


def _series(job: Job, name: str, problems: dict[float, Problem]) -> Iterator[Record]:
    ours = torch_contenders()[0]
    rtol, atol = tolerances(torch.float64)
    runs, estimates = {}, {}
    for size, problem in problems.items():
        run = ours.prepare(problem, Setting(ours.method, rtol, atol, gradient=True))
        run()
        begun = time.perf_counter()
        run()
        runs[f"{size!r}"], estimates[f"{size!r}"] = run, time.perf_counter() - begun
    for size_told, seconds in rounds(runs, estimates, job.patience).items():
        yield {"part": job.part, "case": job.case, "series": name, "size": float(size_told), "seconds": seconds}


def series(records: Sequence[Record]) -> dict[str, tuple[list[float], list[float]]]:
    """Sizes and median seconds by what grows."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for record in records:
        if record["part"] == "scaling" and "series" in record:
            sizes, seconds = found.setdefault(record["series"], ([], []))
            sizes.append(record["size"])
            seconds.append(median(record))
    return found


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms; NaN from one point."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]) if len(sizes) > 1 else math.nan


def table(records: Sequence[Record]) -> list[Table]:
    """Times and exponents, held to their limits."""
    known = series(records)
    if not known:
        return []
    found = Table(
        "Held: growth",
        "Forward and gradient, float64, one thread, dopri5 at rtol 1e-6, atol 1e-9: time against the batch and the parameters "
        f"(three bodies with networks of growing width, batch {FIXED_BATCH}) and against the mean number of steps (the "
        f"pendulum over growing spans, batch {FIXED_BATCH}). Exponent: the slope of log time against log size.",
        ("against", "sizes", "milliseconds", "exponent"),
    )
    for name, (sizes, seconds) in known.items():
        found.add(
            name,
            " / ".join(f"{size:,.0f}" for size in sizes),
            " / ".join(f"{1e3 * taken:.3g}" for taken in seconds),
            Figure(exponent(sizes, seconds), at_most=LIMITS[name], form=".2f"),
        )
    return [found]
