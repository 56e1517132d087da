"""How well ``pn.diagnostics.loss_error`` knows the error that finite steps make in a loss, in one run.

    python -m benchmarks.loss_error [--out docs/loss_error.md] [--starts 20]

Some minutes. Every estimate is held against the loss of a solve at a tolerance of 1e-13.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import physnode as pn
from benchmarks.accuracy.tables import Figure, Table, page
from physnode.diagnostics import LossError, loss_error

TIGHT = pn.Adaptive(1e-13, 1e-15)
METHODS = ("tsit5", "dopri5", "dop853", "bosh3", "heun", "radau5")
TOLERANCES = (1e-4, 1e-6, 1e-8)
COSTLY = {"heun": 1e-4, "bosh3": 1e-6, "radau5": 1e-6}  # the tightest tolerance of methods whose steps get too many


@dataclass(frozen=True)
class Problem:
    """Starts of one system, and measurements that it does not fit: the loss is away from its minimum."""

    name: str
    field: pn.VectorField
    y0: Tensor
    ts: Tensor
    exact: Tensor
    data: Tensor

    @classmethod
    def of(cls, name: str, field: pn.VectorField, y0: Tensor, end: float, count: int) -> Problem:
        """Solve once to 1e-13."""
        ts = torch.linspace(0, end, count, dtype=torch.float64)
        with torch.no_grad():
            exact = pn.solve(field, y0, ts, method="dop853", controller=TIGHT).ys
        ripple = 0.1 * torch.sin(torch.arange(exact.numel(), dtype=torch.float64)).reshape(exact.shape)
        return cls(name, field, y0, ts, exact, exact + ripple + 0.1)

    def alone(self, start: int) -> Problem:
        """One of the starts."""
        one = slice(start, start + 1)
        return replace(self, y0=self.y0[one], exact=self.exact[one], data=self.data[one])

    def losses(self, ys: Tensor) -> Tensor:
        """Mean squared distance of each trajectory to its shifted data, ``(starts,)``."""
        return (ys - self.data).square().mean((-1, -2))

    def found(self, method: str, rtol: float) -> tuple[LossError, Tensor, float, float]:
        """The estimate, the true errors ``(starts,)``, and the seconds of the solve and of the estimate."""
        begun = time.perf_counter()
        with torch.no_grad():
            sol = pn.solve(self.field, self.y0, self.ts, method=method, controller=pn.Adaptive(rtol, rtol / 100), dense=True)
        solved = time.perf_counter()
        error = loss_error(sol, lambda ys: self.losses(ys).sum())
        true = self.losses(sol.ys) - self.losses(self.exact)
        return error, true, solved - begun, time.perf_counter() - solved

    def reached(self, method: str, rtol: float, share: float) -> float:
        """The true error at the tolerance that is advised for ``share`` of the present one, over the wanted error."""
        error = self.found(method, rtol)[0]
        wanted = share * max(abs(error.estimate), float(error.per_step.square().sum().sqrt()))
        advised = error.rtol_for(wanted)
        with torch.no_grad():
            sol = pn.solve(self.field, self.y0, self.ts, method=method, controller=pn.Adaptive(advised, advised / 100))
        return abs(float((self.losses(sol.ys) - self.losses(self.exact)).sum())) / wanted


def learned(starts: int, weight: float, seed: int = 0) -> tuple[pn.VectorField, Tensor]:
    """A damped pendulum with a network of 2 x 16, weights of the size ``weight`` over the root of inputs; and its starts."""
    generator = torch.Generator().manual_seed(seed)
    term = pn.nn.Residual(2, 16, 2)
    with torch.no_grad():
        for layer in (module for module in term.modules() if isinstance(module, nn.Linear)):
            drawn = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
            layer.weight.copy_(weight * drawn / layer.weight.shape[1] ** 0.5)
            layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=generator, dtype=torch.float64))
    spread = torch.linspace(-1.5, 1.5, starts, dtype=torch.float64)
    speeds = torch.rand(starts, generator=generator, dtype=torch.float64) - 0.5
    return pn.systems.Pendulum(1.0, 0.1) + term, torch.stack((spread, speeds), -1)


def problems(starts: int) -> Iterator[Problem]:
    """Swings of all sizes, three bodies near the figure of eight, learned fields."""
    generator = torch.Generator().manual_seed(0)
    angles = torch.linspace(0.5, 2.8, starts, dtype=torch.float64) * (1 - 2 * (torch.arange(starts) % 2))
    speeds = torch.rand(starts, generator=generator, dtype=torch.float64) - 0.5
    yield Problem.of("pendulum", pn.systems.Pendulum(), torch.stack((angles, speeds), -1), 20.0, 81)
    bodies, eight = pn.systems.ThreeBody.figure_eight()
    near = eight + 0.01 * torch.randn(starts, 12, generator=generator, dtype=torch.float64)
    yield Problem.of("three bodies", bodies, near, 8.0, 81)
    yield Problem.of("learned", *learned(starts, 1.0), 10.0, 41)
    yield Problem.of("learned, rough", *learned(starts, 2.5), 10.0, 41)


def rms(values: Tensor) -> float:
    """Root mean square."""
    return float(values.square().mean().sqrt())


def estimates(chosen: list[Problem]) -> Table:
    """Estimate and indicator against the true errors."""
    table = Table(
        "Estimate and indicator",
        "Root mean squares over the starts, and the ratios of those of the estimate and of the indicator to that of the true "
        "errors; the distance of estimate and truth, over the truth; the share of the starts whose indicator is below half of "
        "the error; seconds of the solve without gradient and of the estimate. The limits are those the estimate and, for the "
        "first four methods, the indicator are held to, except for the rough field.",
        (
            "system", "method", "rtol", "steps", "true error", "estimate / true", "distance / true", "indicator / true",
            "too small", "solve, s", "estimate, s",
        ),
    )  # fmt: skip
    for problem in chosen:
        for method in METHODS:
            for rtol in TOLERANCES:
                if rtol < COSTLY.get(method, 0.0):
                    continue
                error, true, solving, estimating = problem.found(method, rtol)
                assert error.indicator_parts is not None
                held = problem.name != "learned, rough"
                ratio, seen = rms(error.parts) / rms(true), rms(error.indicator_parts) / rms(true)
                bounded = held and method in METHODS[:4]
                table.add(
                    problem.name,
                    method,
                    f"{rtol:.0e}",
                    int((error.per_step != 0).sum(-1).amax()),
                    f"{rms(true):.1e}",
                    Figure(ratio, 2.0, 0.5, ".3f") if held else f"{ratio:.3f}",
                    f"{rms(error.parts - true) / rms(true):.3f}",
                    Figure(seen, 50.0, 0.5, ".3g") if bounded else f"{seen:.3g}",
                    f"{float((error.indicator_parts < 0.5 * true.abs()).double().mean()):.0%}",
                    f"{solving:.2f}",
                    f"{estimating:.2f}",
                )
    return table


def advice(chosen: list[Problem]) -> Table:
    """What ``rtol_for`` brings, start by start."""
    table = Table(
        "The tolerance for a wanted error",
        "Each start is solved alone, its loss error estimated, and `rtol_for` asked for a tenth and a hundredth of it: the "
        "larger of the estimate and of the root sum of squares of its parts. Reached over wanted, at the advised tolerance: "
        "median, tenth and ninetieth percentile, and the share of the starts above 3.",
        ("system", "method", "rtol", "wanted", "median", "10 %", "90 %", "above 3"),
    )
    for problem in chosen:
        for method, rtol in (("tsit5", 1e-6), ("dopri5", 1e-6), ("dop853", 1e-6), ("bosh3", 1e-5)):
            for share in (0.1, 0.01):
                ratios = torch.tensor([problem.alone(i).reached(method, rtol, share) for i in range(len(problem.y0))])
                low, middle, high = (f"{float(ratios.quantile(q)):.2f}" for q in (0.1, 0.5, 0.9))
                above = f"{float((ratios > 3).double().mean()):.0%}"
                table.add(problem.name, method, f"{rtol:.0e}", f"{share:g}", middle, low, high, above)
    return table


def main() -> None:
    """Measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, help="the page; by default it is printed")
    parser.add_argument("--starts", type=int, default=20, help="trajectories of each system")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = list(problems(options.starts))
    found = [estimates(chosen), advice(chosen)]
    written = page(
        "# The error of a loss\n\nWritten by `python -m benchmarks.loss_error`, in one run; do not edit. "
        "`pn.diagnostics.loss_error` estimates how far a loss is off because steps are finite. Here each of "
        f"{options.starts} starts of a system has a loss of its own, the mean squared distance to its true motion shifted by "
        "0.1 and a ripple, so that it is away from its minimum; the truth is `dop853` at rtol 1e-13. atol is rtol / 100.\n\n"
        "Systems: a pendulum from 0.5 to 2.8 rad over 20 time units; three bodies within 0.01 of the figure of eight over 8; a "
        "damped pendulum with a network of 2 x 16 tanh units over 10, weights of size 1 and, for the rough one, 2.5 over the "
        "root of the number of inputs. float64, one thread of a busy machine (compare seconds with "
        f"each other only), PyTorch {torch.__version__.split('+')[0]}.",
        found,
    )
    if options.out is None:
        print(written)
    else:
        options.out.write_text(written)


if __name__ == "__main__":
    main()
