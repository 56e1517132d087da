"""The error of a gradient in its two parts: that of the forward solve, and what the gradient itself adds.

The first is the converged gradient minus the exact gradient of the solve that was made; the second, the inconsistency, is
the gradient minus that exact gradient. A gradient without the second leads an optimizer to a minimum of the loss it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, nan, sqrt

import torch
from torch import Tensor, nn

import physnode as pn
from benchmarks.accuracy.tables import Figure, Table
from benchmarks.gradients.contenders import PEERS, Setting, contenders
from benchmarks.gradients.measure import differentiate, squared
from benchmarks.gradients.panels import Column, Panel, Part, by_column

__all__ = ["RATES", "TOLERANCES", "Growth", "column_head", "identity_limit", "is_exact", "linear", "package_of", "plot_errors"]

TOLERANCES = tuple(10.0**-power for power in range(3, 11))
RATES = (0.2, -0.2, 0.3)
SPAN = 5.0


class Growth(nn.Module):
    """dz/dt = k z."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dz/dt."""
        return self.rate * y


def identity_limit(steps: int) -> float:
    """How far rounding may move an exact gradient of a solve of that many steps."""
    return 1e-14 * sqrt(max(1.0, steps / 1000))


def is_exact(name: str) -> bool:
    """Whether the gradient of that name is exact for the steps taken."""
    return name not in PEERS and name != "continuous"


def linear(tolerances: Sequence[float] = TOLERANCES, rates: Sequence[float] = RATES) -> Part:
    """dz/dt = k z with L = z(T)²."""
    table = Table(
        "Consistency on dz/dt = k z",
        f"L = z({SPAN:g})², z(0) = 1, `dopri5` in float64, rtol = atol in the column heads, each contender on its own accepted "
        "steps. z at the end is linear in z(0) on any steps, so dL/dz(0) of the solve made is 2 z²/z(0), without a reference. "
        "Forward error: how far that is from the converged gradient 2 exp(2 k T); the other rows: how far a gradient is from "
        "it; both relative to the gradient of the solve made. Held to 1e-14, times √(N/1000) beyond N = 1000 "
        "steps, at every tolerance.",
        ("k", "", *map(column_head, tolerances), "worst over its limit"),
    )
    panel = Panel("Gradient error on dz/dt = -0.2 z", "rtol = atol", "relative to the gradient", log_x=True, log_y=True)
    start = torch.ones(1, dtype=torch.float64)
    for rate in rates:
        field, converged = Growth(rate), 2 * exp(2 * rate * SPAN)
        columns: list[Column] = []
        worst: dict[str, float] = {}
        for tolerance in tolerances:
            setting = Setting("dopri5", (0.0, SPAN), rtol=tolerance, atol=tolerance)
            steps = _steps_taken(field, start, setting)
            errors: Column = {}
            for name, contender in contenders(setting).items():
                made = 2 * float(squared(contender(field, start, setting).detach()))
                found, _ = differentiate(contender, field, start, setting)
                errors[f"forward error, {package_of(name)}"] = Figure(abs(converged - made) / made)
                off = abs(float(found) - made) / made
                errors[name] = Figure(off)
                if is_exact(name):
                    worst[name] = max(worst.get(name, 0.0), off / identity_limit(steps))
            columns.append(errors)
        held: Column = {name: Figure(ratio, at_most=1.0, form=".2f") for name, ratio in worst.items()}
        by_column(table, [*columns, held], f"{rate:+g}")
        if rate == -0.2:
            plot_errors(panel, tolerances, columns)
    return Part([table], [panel])


def plot_errors(panel: Panel, tolerances: Sequence[float], columns: Sequence[Column]) -> None:
    """One curve a row, but for the errors of returning; forward errors are dashed."""
    for name in columns[-1]:
        if "return" not in name:
            values = [cell.value if isinstance(cell, Figure) else nan for cell in (column[name] for column in columns)]
            panel.add(name, tolerances, [max(value, 1e-17) for value in values], dashed="forward" in name)


def column_head(tolerance: float) -> str:
    """1e-3 and the like."""
    return f"{tolerance:.0e}".replace("e-0", "e-")


def package_of(name: str) -> str:
    """Whose steps a contender takes."""
    return "torchdiffeq" if name in PEERS else "physnode"


def _steps_taken(field: nn.Module, start: Tensor, setting: Setting) -> int:
    with torch.no_grad():
        sol = pn.solve(field, start, setting.ts, method=setting.method, controller=setting.controller)
    return int(sol.stats.accepted.max())
