"""Orbits whose digits are known: the figure eight over a hundred periods, and the classic test problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import physnode as pn
from benchmarks.accuracy.reference_orbits import ARENSTORF_MU, KNOWN
from benchmarks.accuracy.runs import numpy_bodies, pairwise_energy, registered, run, scipy_run, tensor
from benchmarks.accuracy.tables import Figure, Table
from physnode.engine.controllers import Controller
from physnode.fields import VectorField

__all__ = ["Rotating", "figure_eight", "known_orbits"]


class Rotating(VectorField):
    """The planar restricted three-body problem in the rotating frame; masses 1 - mu at -mu and mu at 1 - mu on the x axis.

    x'' = x + 2 y' - (1 - mu) (x + mu)/r1^3 - mu (x - 1 + mu)/r2^3,   y'' = y - 2 x' - (1 - mu) y/r1^3 - mu y/r2^3.
    """

    def __init__(self, mu: float) -> None:
        super().__init__()
        self.mu = mu

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt of (x, y, vx, vy)."""
        x, height, vx, vy = y[..., :1], y[..., 1:2], y[..., 2:3], y[..., 3:]
        heavy, light = self._inverse_distances(y)
        near, far = (1 - self.mu) * heavy.pow(3), self.mu * light.pow(3)
        ax = x + 2 * vy - near * (x + self.mu) - far * (x - 1 + self.mu)
        return torch.cat((vx, vy, ax, height - 2 * vx - (near + far) * height), dim=-1)

    def invariants(self, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Jacobi's constant x^2 + y^2 + 2 (1 - mu)/r1 + 2 mu/r2 - v^2."""
        heavy, light = self._inverse_distances(y)
        squares = y.square()
        turning = squares[..., 0] + squares[..., 1] - squares[..., 2] - squares[..., 3]
        return {"Jacobi constant": turning + (2 * (1 - self.mu) * heavy + 2 * self.mu * light)[..., 0]}

    def _inverse_distances(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, height = y[..., :1], y[..., 1:2]
        squares = (x + self.mu).square() + height.square(), (x - 1 + self.mu).square() + height.square()
        return squares[0].rsqrt(), squares[1].rsqrt()


class Setting(NamedTuple):
    """A method, its steps, how the page names them, and the limit of the end error."""

    method: str
    controller: Controller
    name: str
    limit: float | None


def tight(rtol: float, atol: float | None = None, **more: float) -> tuple[Controller, str]:
    """An adaptive controller and its name; ``atol`` is a hundredth of ``rtol`` unless given."""
    atol = rtol / 100 if atol is None else atol
    extra = "".join(f", {key} {value:g}" for key, value in more.items())
    return pn.Adaptive(rtol, atol, **more), f"rtol {rtol:.0e}, atol {atol:.0e}{extra}"  # type: ignore[arg-type]


def figure_eight(periods: int = 100, settings: Sequence[str] | None = None) -> Table:
    """The choreography of three bodies, by several methods and SciPy's DOP853."""
    table = Table(
        f"Figure eight, {periods} periods",
        "Three equal masses that chase each other round a figure of eight (G = m = 1), from `ThreeBody.figure_eight()`. End "
        "error: the largest over all positions. Energy: relative, in extended precision, at the end. Time: in units of "
        "SciPy's DOP853 at rtol 1e-13 with the force written in NumPy, same run, batch of one, eager.",
        ("method", "steps", "end error", "energy error", "evaluations", "time / SciPy's"),
    )
    system, y0 = pn.systems.ThreeBody.figure_eight()
    period = system.figure_eight_period
    span = periods * period
    end, count, unit = scipy_run(numpy_bodies((1.0, 1.0, 1.0), 2), y0, span, "DOP853", 1e-13, 1e-15)
    table.add("SciPy DOP853", "rtol 1e-13, atol 1e-15", *_ends(end, y0, None), count, Figure(1.0, form=".1f"))

    def fixed(n: int) -> tuple[Controller, str]:
        return pn.Fixed(period / n), f"{n} a period"

    for method, (controller, name), limit in (
        ("kahan_li8", fixed(100), 5e-9),
        ("gauss_radau15", tight(1e-11, 1e-14), 1e-10),
        ("dop853", tight(1e-13, 1e-15), 1e-7),
        ("tsit5", tight(1e-9, 1e-11), None),
        ("leapfrog", fixed(1000), None),
        ("gauss6", fixed(50), None),
    ):
        if not registered(method) or (settings is not None and method not in settings):
            continue
        found = run(system, y0, [0.0, span], method, controller)
        table.add(
            method,
            name,
            *_ends(found.ys[-1], y0, limit),
            int(found.evaluations),
            Figure(found.seconds / unit, form=".2g"),
        )
    return table


def _ends(end: Tensor, y0: Tensor, limit: float | None) -> tuple[Figure, Figure]:
    energy = pairwise_energy(torch.stack((y0, end)), (1.0, 1.0, 1.0), 1.0, 2)
    return Figure(float((end - y0)[:6].abs().max()), at_most=limit), Figure(float(abs(energy[1] / energy[0] - 1)))


def known_orbits(names: Sequence[str] | None = None) -> Table:
    """Every orbit of the reference file by suitable methods."""
    table = Table(
        "Known orbits",
        "End states against references in quadruple precision or closed forms: largest error over all components, for the "
        "bodies of gravity over all positions (and over the whole state where it says so). Tolerances are relative to a "
        "state of order one.",
        ("orbit", "t", "method", "steps", "error", "evaluations"),
    )
    systems = pn.systems
    burrau, _ = systems.ThreeBody.pythagorean()
    pleiades = systems.NBody([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], dimensions=2)
    loop = Rotating(ARENSTORF_MU)
    closing = next(iter(KNOWN["Arenstorf"].later))
    plain: tuple[tuple[str, VectorField, float, float, float], ...] = (
        ("pendulum 0.5", systems.Pendulum(), 20.0, 1e-6, 1e-12),
        ("pendulum pi/2", systems.Pendulum(), 20.0, 1e-6, 1e-12),
        ("pendulum 3", systems.Pendulum(), 20.0, 1e-5, 1e-11),
        ("damped pendulum", systems.Pendulum(torch.pi / 3, 0.2), 20.0, 1e-6, 1e-12),
        ("Kepler e = 0.6", systems.Kepler(), 10.0, 1e-6, 1e-11),
        ("Kepler e = 0.6", systems.Kepler(), 100.0, 1e-5, 1e-10),
        ("Kepler e = 0.9", systems.Kepler(), 10.0, 1e-5, 1e-10),
        ("Kepler e = 0.9", systems.Kepler(), 100.0, 1e-4, 1e-9),
        ("Henon-Heiles", systems.HenonHeiles(), 100.0, 1e-6, 1e-11),
        ("Duffing, free", systems.Duffing(), 10.0, 1e-7, 1e-12),
        ("Duffing, driven", systems.Duffing(-1.0, 1.0, 0.3, 0.5, 1.2), 20.0, 1e-6, 1e-11),
        ("Lotka-Volterra", systems.LotkaVolterra(), 10.0, 1e-7, 1e-11),
        ("Lotka-Volterra, universal", systems.LotkaVolterra(1.3, 0.9, 1.8, 0.8), 3.0, 1e-7, 1e-11),
    )
    cases: list[tuple[str, VectorField, float, str, tuple[Controller, str], float]] = []
    sensitive = {("pendulum 3", 20.0), ("Kepler e = 0.6", 100.0)}  # two or three digits are lost on the way
    for name, system, t, loose, close in plain:
        cases.append((name, system, t, "tsit5", tight(1e-9), loose))
        cases.append((name, system, t, "dop853", tight(3e-14 if (name, t) in sensitive else 1e-13), close))
    cases += [
        ("Pleiades", pleiades, 3.0, "dop853", tight(1e-13), 1e-11),
        ("Pleiades, whole state", pleiades, 3.0, "dop853", tight(1e-13, icoeff=0.3, pcoeff=0.4), 1e-11),
        ("Pleiades, whole state", pleiades, 3.0, "gauss_radau15", tight(1e-11), 1e-11),
        ("Arenstorf", loop, closing, "dop853", tight(1e-13), 1e-7),
        ("Arenstorf", loop, closing, "tsit5", tight(1e-11), 1e-4),
        ("Arenstorf", loop, closing, "radau5", tight(1e-10), 1e-3),
        ("Burrau", burrau, 10.0, "gauss_radau15", tight(1e-11), 1e-6),
        ("Burrau", burrau, 20.0, "gauss_radau15", tight(1e-11), 1e-6),
        ("Burrau", burrau, 10.0, "dop853", tight(1e-13), 1e-6),
        ("Burrau", burrau, 20.0, "dop853", tight(1e-13), 1e-6),
    ]
    for name, system, t, method, (controller, steps), limit in cases:
        if not registered(method) or (names is not None and name not in names):
            continue
        orbit = KNOWN[name.removesuffix(", whole state")]
        start, goal = tensor(orbit.start), tensor(orbit.later[t])
        found = run(system, start, [0.0, t], method, controller)
        part = len(start) // 2 if name in ("Pleiades", "Burrau") else len(start)
        error = float((found.ys[-1] - goal)[:part].abs().max())
        table.add(name, f"{t:g}", method, steps, Figure(error, at_most=limit), int(found.evaluations))
    return table
