"""The two parts of a gradient's error on an orbit that loses what it came from: van der Pol's, there and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import physnode as pn
from benchmarks.accuracy.tables import Figure, Table
from benchmarks.gradients.consistency import TOLERANCES, column_head, is_exact, package_of, plot_errors
from benchmarks.gradients.contenders import Setting, contenders
from benchmarks.gradients.extended import tangent_of_steps
from benchmarks.gradients.measure import squared
from benchmarks.gradients.panels import Column, Panel, Part, by_column
from physnode.engine.records import Trial
from physnode.engine.tableaus import BUTCHER

__all__ = ["VanDerPol", "there_and_back"]


class VanDerPol(nn.Module):
    """y'' = (0.15 - y²) y' - y, which remembers the accepted steps of torchdiffeq."""

    damping = 0.15

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[float] = []

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt."""
        x, v = y[..., :1], y[..., 1:]
        return torch.cat((v, (self.damping - x * x) * v - x), dim=-1)

    def callback_accept_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        """What torchdiffeq calls after every accepted step."""
        self.steps.append(float(dt.detach()))

    def plain(self, y: NDArray[Any]) -> NDArray[Any]:
        """dy/dt of one state."""
        return np.array([y[1], (np.longdouble(self.damping) - y[0] ** 2) * y[1] - y[0]])

    def jacobian(self, y: NDArray[Any]) -> NDArray[Any]:
        """∂f/∂y of one state."""
        zero, one = np.longdouble(0), np.longdouble(1)
        return np.array([[zero, one], [-2 * y[0] * y[1] - one, np.longdouble(self.damping) - y[0] ** 2]])


def there_and_back(tolerances: Sequence[float] = TOLERANCES) -> Part:
    """Van der Pol's orbit over T = 20 and back to its start: the converged map is the identity."""
    table = Table(
        "Consistency on van der Pol's orbit, there and back",
        "y'' = (0.15 - y²) y' - y from (2, 0) to t = 20 and back to 0, L = |y|² there, `dopri5`, rtol in the column heads, "
        "atol = rtol/1000. The converged map is the identity, so the converged gradient is 2 y(0). The gradient of the solve "
        "made is that of its step lengths alone, in extended precision and forward mode. Return error: |y - y(0)|; forward "
        "error: the gradient of the solve made against the converged one; the other rows: a gradient against that of the solve "
        "made; all relative to |y(0)| or |2 y(0)|. The way back spreads every error, of rounding too.",
        ("", *map(column_head, tolerances), "worst"),
    )
    panel = Panel("Van der Pol, there and back", "rtol", "gradient error / |2 y(0)|", log_x=True, log_y=True)
    start = torch.tensor([2.0, 0.0], dtype=torch.float64)
    columns: list[Column] = []
    worst: dict[str, float] = {}
    for tolerance in tolerances:
        ways = [Setting("dopri5", ts, rtol=tolerance, atol=tolerance / 1000) for ts in ((0.0, 20.0), (20.0, 0.0))]
        made: dict[str, tuple[Tensor, Tensor]] = {"physnode": _made(_our_steps(ways, start), start)}
        errors: Column = {}
        for name, contender in contenders(ways[0]).items():
            field, package = VanDerPol(), package_of(name)
            y0 = start.clone().requires_grad_()
            end = contender(field, contender(field, y0, ways[0]), ways[1])
            try:
                (found,) = torch.autograd.grad(squared(end), y0)
            except (AssertionError, pn.errors.GradientError):  # the solve backward needs too short steps (torchdiffeq asserts)
                errors[name] = "fails"
                continue
            if package not in made:  # the callback is told lengths without a sign; the first way ends at t = 20
                forth = int((torch.tensor(field.steps).cumsum(0) < 20 - 1e-9).sum()) + 1
                made[package] = _made([h if i < forth else -h for i, h in enumerate(field.steps)], start)
            back, exact = made[package]
            for kind, wrong, scale in (("return", back - start, start), ("forward", exact - 2 * start, 2 * start)):
                errors[f"{kind} error, {package}"] = Figure(float(wrong.norm() / scale.norm()))
            off = float((found - exact).norm() / (2 * start).norm())
            errors[name] = Figure(off)
            if is_exact(name):
                worst[name] = max(worst.get(name, 0.0), off)
        columns.append(errors)
    held: Column = {name: Figure(value, at_most=1e-10) for name, value in worst.items()}
    by_column(table, [*columns, held])
    plot_errors(panel, tolerances, columns)
    return Part([table], [panel])


def _our_steps(ways: Sequence[Setting], start: Tensor) -> list[float]:
    steps: list[float] = []

    def keep(trial: Trial) -> None:
        if bool(trial.accept.all()):
            steps.append(float(trial.t_end - trial.t))

    y = start
    with torch.no_grad():
        for way in ways:
            y = pn.solve(VanDerPol(), y, way.ts, method=way.method, controller=way.controller, observe=keep).ys[-1]
    return steps


def _made(steps: Sequence[float], start: Tensor) -> tuple[Tensor, Tensor]:
    """Where these steps lead, and the gradient of |y|² there."""
    orbit = VanDerPol()
    end, tangent = tangent_of_steps(orbit.plain, orbit.jacobian, start.tolist(), steps, BUTCHER["dopri5"])
    return tuple(torch.from_numpy(value.astype(np.float64)) for value in (end, 2 * end @ tangent))  # type: ignore[return-value]
