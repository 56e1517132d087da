"""Whether a stated limit of memory is obeyed, and what obeying it costs: long solves within a small part of Direct's bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

import physnode as pn
from benchmarks.accuracy.tables import Figure, Table
from benchmarks.gradients.contenders import Setting, ours
from benchmarks.gradients.fields import layered
from benchmarks.gradients.measure import MIB, Cost, cost, differentiate, interleaved, paired_ratio
from benchmarks.gradients.panels import Panel, Part
from physnode.errors import GradientError
from physnode.gradients import Gradient
from physnode.gradients.storage import GradientCost

__all__ = ["PERCENTS", "Long", "long_solves", "memory_limit"]

PERCENTS = (50, 20, 5, 2, 1)
STEPS_A_UNIT = 305
"""How many steps a unit of time the adaptive solve takes."""
HELD_AT, SLOWER = 5, 3.0
"""The percentage of Direct's bytes at which the limit must be obeyed, and at how many times Direct's time."""


class Ring(nn.Module):
    """Masses in a ring of springs, r = q_{i+1} - q_i with force k r + b r³ (Fermi, Pasta, Ulam, Tsingou): physics alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.hardening = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt."""
        q, v = y.chunk(2, dim=-1)
        stretch = q.roll(-1, -1) - q
        force = self.stiffness * stretch + self.hardening * stretch.pow(3)
        return torch.cat((v, force - force.roll(1, -1)), dim=-1)


@dataclass(frozen=True)
class Long:
    """One long solve."""

    name: str
    field: nn.Module
    y0: Tensor
    setting: Setting


def long_solves(steps: int = 5000) -> list[Long]:
    """A network by fixed steps, and physics alone by adaptive ones."""
    generator = torch.Generator().manual_seed(2)
    starts, rings = torch.randn(16, 4, generator=generator), 0.5 * torch.randn(4, 64, generator=generator)
    fixed = Setting("midpoint", (0.0, 20.0), dt=20.0 / steps)
    adaptive = Setting("heun", (0.0, steps / STEPS_A_UNIT), rtol=1e-5, atol=1e-5)
    return [
        Long("network, fixed steps", layered(4, 64, 2), starts.double(), fixed),
        Long("rings, adaptive steps", Ring(), rings.double(), adaptive),
    ]


def memory_limit(solves: Sequence[Long] | None = None, percents: Sequence[int] = PERCENTS, repeats: int = 2) -> Part:
    """Direct against ``pn.SymplecticAdjoint(storage=pn.Storage(limit=...))``."""
    table = Table(
        "Within a limit of memory",
        "`pn.SymplecticAdjoint(storage=pn.Storage(limit=...))` with limits that are parts of the most bytes that `direct` has "
        "alive on the same solve; float64, one output, L = |y|² there; a network of two layers of 64 on 16 states of dimension "
        "4, four rings of 32 masses. Kept: what `sol.stats.gradient` says was chosen. Peak over limit: 1 or less is obeyed; "
        "refused: an error before the solve is done says that the limit is too low. Evaluations going back are of the whole "
        "batch. Time: seconds of `direct`, then ratios of medians to it, contenders in turn, and the least and most in one "
        f"round. Held: every limit is obeyed, and at {HELD_AT} % of `direct` takes no more than {SLOWER:g} times its time.",
        ("solve", "limit", "steps", "kept", "MiB at the peak", "over the limit", "going back", "time", "in one round"),
    )
    panel = Panel("Time within a limit of memory", "limit, % of the bytes of direct", "time / time of direct", log_x=True)
    for case in long_solves() if solves is None else solves:
        panel.add(case.name, percents, _rows(table, case, percents, repeats))
    return Part([table], [panel])


def _rows(table: Table, case: Long, percents: Sequence[int], repeats: int) -> list[float]:
    """One solve: its rows, and the ratios of its times."""
    direct, taken = _cost(case, pn.Direct())
    found: dict[int, tuple[Cost, GradientCost]] = {}
    runs: dict[str, Callable[[], Any]] = {"direct": partial(_run, case, pn.Direct())}
    for percent in percents:
        gradient = pn.SymplecticAdjoint(storage=pn.Storage(limit=direct.peak * percent // 100))
        try:
            found[percent] = _cost(case, gradient)
        except GradientError:
            continue
        runs[f"{percent} %"] = partial(_run, case, gradient)
    seconds = interleaved(runs, repeats)
    steps, median = f"{taken.steps:,}", f"{statistics.median(seconds['direct']):.2f} s"
    table.add(case.name, "`direct`", steps, taken.kept, Figure(direct.peak / MIB, form=".2f"), "–", 0, median, "–")
    ratios = []
    for percent in percents:
        held = SLOWER if percent == HELD_AT else None
        if percent not in found:
            refused = "refused" if held is None else Figure(nan, at_most=1.0)
            table.add(case.name, f"{percent} %", steps, "–", "–", refused, "–", "–", "–")
            ratios.append(nan)
            continue
        measured, kept = found[percent]
        spread = paired_ratio(seconds[f"{percent} %"], seconds["direct"])
        ratios.append(spread.ratio)
        table.add(
            case.name,
            f"{percent} %",
            steps,
            kept.kept if kept.kept != "checkpoints" else f"{kept.states:,} checkpoints",
            Figure(measured.peak / MIB, form=".2f"),
            Figure(measured.peak / (direct.peak * percent // 100), at_most=1.0, form=".2f"),
            measured.backward,
            Figure(spread.ratio, at_most=held, form=".2f"),
            str(spread),
        )
    return ratios


def _run(case: Long, gradient: Gradient) -> None:
    differentiate(ours(gradient), case.field, case.y0, case.setting)


def _cost(case: Long, gradient: Gradient) -> tuple[Cost, GradientCost]:
    """The cost of one gradient, and what the storage policy chose."""
    chosen: list[GradientCost] = []

    def end(field: nn.Module, y0: Tensor, how: Setting) -> Tensor:
        sol = pn.solve(field, y0, how.ts, method=how.method, controller=how.controller, gradient=gradient)
        assert sol.stats.gradient is not None
        chosen.append(sol.stats.gradient)
        ys: Tensor = sol.ys
        return ys[..., -1, :]

    return cost(end, case.field, case.y0, case.setting), chosen[0]
