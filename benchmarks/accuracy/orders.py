"""The order that every method shows, for its steps and for its outputs between them, beside the order it declares.

The problems have closed forms, evaluated here in extended precision. Both are nonlinear and depend on time, so that no order
condition is met by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, log, log10, nan
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import physnode as pn
from benchmarks.accuracy.tables import Figure, Table
from physnode.errors import InputError
from physnode.fields import SecondOrder, VectorField
from physnode.methods import Method

__all__ = ["ShakenKepler", "Spiral", "measured_orders", "orders"]

START = 0.2
Extended = NDArray[Any]


class Spiral(VectorField):
    """u' = i (w(t) + c |u|^2) u, w = 1.2 + 0.5 cos 1.5 t, for y = (Re u + s (Im u)^2, Im u): nonlinear and time-dependent.

    |u| is constant, so u(t) = u_0 exp(i (W(t) - W(t_0) + c |u_0|^2 (t - t_0))) with W' = w.
    """

    twist, shear, length = 0.3, 0.2, 4.0
    states = ((0.8, -0.4), (-0.3, 0.6), (0.2, 1.1))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt."""
        b = y[..., 1:]
        a = y[..., :1] - self.shear * b * b
        rate = 1.2 + 0.5 * torch.cos(1.5 * t) + self.twist * (a * a + b * b)
        return torch.cat((-rate * b + 2 * self.shear * b * rate * a, rate * a), dim=-1)

    def exact(self, t: float) -> Tensor:
        """States at ``t`` of those that start at START, ``(3, 2)``."""
        y = np.asarray(self.states, dtype=np.longdouble)
        b = y[:, 1]
        a = y[:, 0] - np.longdouble(self.shear) * b * b
        now, begun = np.longdouble(t), np.longdouble(START)
        swing = np.longdouble(0.5) / np.longdouble(1.5)
        angle = np.longdouble(1.2) * (now - begun) + swing * (np.sin(1.5 * now) - np.sin(1.5 * begun))
        angle = angle + np.longdouble(self.twist) * (a * a + b * b) * (now - begun)
        c, s = np.cos(angle), np.sin(angle)
        a, b = a * c - b * s, a * s + b * c
        return _tensor(np.stack((a + np.longdouble(self.shear) * b * b, b), axis=-1))


class ShakenKepler(SecondOrder):
    """Kepler's problem in a frame that is shaken by d(t) = 0.3 (sin 1.5 t, cos t): q'' = -(q - d)/|q - d|^3 + d''.

    Free of velocity, time-dependent, and exact: Kepler's motion plus d(t). Orbits of semi-major axis 1, each eccentricity at
    eight mean anomalies, so that a point where the error of one orbit changes its sign does not bend the slope of all.
    """

    velocity_dependent = False

    def __init__(self, eccentricities: Sequence[float], length: float) -> None:
        super().__init__()
        self.eccentricities, self.length = eccentricities, length

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """dv/dt."""
        away = q - 0.3 * torch.cat((torch.sin(1.5 * t), torch.cos(t)), dim=-1)
        pushed = -0.3 * torch.cat((2.25 * torch.sin(1.5 * t), torch.cos(t)), dim=-1)
        return pushed - away / away.square().sum(-1, keepdim=True).sqrt().pow(3)

    def exact(self, t: float) -> Tensor:
        """States at ``t``, ``(8 eccentricities, 4)``."""
        e = np.tile(np.asarray(self.eccentricities, dtype=np.longdouble), 8)
        now = np.longdouble(t)
        mean = np.repeat(np.arange(8) * np.longdouble(0.7), len(self.eccentricities)) + now - np.longdouble(START)
        eccentric = mean + e * np.sin(mean)
        for _ in range(20):
            eccentric = eccentric - (eccentric - e * np.sin(eccentric) - mean) / (1 - e * np.cos(eccentric))
        root, rate = np.sqrt(1 - e * e), 1 / (1 - e * np.cos(eccentric))
        x, y = np.cos(eccentric) - e, root * np.sin(eccentric)
        vx, vy = -np.sin(eccentric) * rate, root * np.cos(eccentric) * rate
        shake = np.longdouble(0.3)
        x, y = x + shake * np.sin(1.5 * now), y + shake * np.cos(now)
        vx, vy = vx + shake * 1.5 * np.cos(1.5 * now), vy - shake * np.sin(now)
        return _tensor(np.stack((x, y, vx, vy), axis=-1))


Problem: TypeAlias = Spiral | ShakenKepler
PROBLEMS: tuple[Problem, ...] = (Spiral(), ShakenKepler((0.1, 0.2, 0.3), 4.0))
NEAR_CIRCULAR = ShakenKepler((0.0, 0.02, 0.04), 12.0)
"""For methods so accurate that on other orbits they meet round-off before their steps are short enough to show their order."""


def orders(methods: Sequence[Method] | None = None) -> Table:
    """The table of orders; by default of every method there is."""
    table = Table(
        "Orders",
        "Fixed steps; the slope of the error (root mean square over trajectories) against the step on log-log axes, through "
        "the last points of a ladder of steps before round-off, about a decade apart. Steps: over a span of 4, or 12 above "
        "order 8. Outputs: inside one step, at four fractions of it, by the continuous extension and by a step of their own "
        "(re-step); the local error is O(h^(q+1)) for outputs of order q. Methods that take any field are shown on a twisted "
        "spiral, those that need an acceleration free of velocity on Kepler's problem in a shaken frame. Evaluations are "
        "counted, per step.",
        ("method", "order", "measured", "errors between", "dense output", "measured", "re-step measured", "evaluations a step"),
    )
    for method in methods or list(pn.methods.available().values()):
        problem = problem_for(method)
        if problem is None:
            table.add(method.name, method.order, Figure(nan, at_least=method.order), *["no problem fits"] + ["–"] * 4)
            continue
        found, errors, evaluations = measured_orders(method, problem)
        slack = max(0.2, 0.05 * method.order)
        dense, again = output_order(method, problem, "interpolate"), output_order(method, problem, "restep")
        q = method.extension_order
        table.add(
            method.name,
            method.order,
            Figure(found, at_least=method.order - slack, at_most=method.order + slack, form=".2f"),
            f"{max(errors):.0e} and {min(errors):.0e}",
            "–" if q is None else q,
            "–" if q is None else Figure(dense, at_least=q - max(0.2, 0.05 * q), form=".2f"),
            Figure(again, at_least=method.order - slack, form=".2f"),
            Figure(evaluations, form=".1f"),
        )
    return table


def problem_for(method: Method) -> Problem | None:
    """The first problem that the method takes."""
    for problem in PROBLEMS if method.order <= 8 else (*PROBLEMS[:-1], NEAR_CIRCULAR):
        try:
            pn.solve(problem, problem.exact(START), [START, START + 0.01], method=method, controller=pn.Fixed(0.01))
        except InputError:
            continue
        return problem
    return None


def measured_orders(method: Method, problem: Problem) -> tuple[float, list[float], float]:
    """Slope of the end error against the step, the errors it was read from, and field evaluations a step."""
    length = problem.length
    goal = problem.exact(START + length)
    spent: list[tuple[int, float]] = [(0, 0.0)]

    def error(h: float) -> float:
        sol = _run(problem, [START, START + length], h, method)
        spent.append((int(sol.stats.accepted.max()), float(sol.stats.evaluations.double().mean())))
        return _rms(sol.ys[:, -1] - goal)

    last = 6000 if method.order == 1 else 400
    ratio = min(2.0, 10 ** (1 / method.order))
    counts = [6 if method.order > 8 else 8]
    while counts[-1] * ratio <= last:
        counts.append(ceil(counts[-1] * ratio))
    sizes, errors = _last_points(error, [length / n for n in counts], floor=3e-14)
    (n, few), (m, many) = spent[-2:]
    return _slope(sizes, errors), errors, (many - few) / (m - n)


def output_order(method: Method, problem: Problem, read_out: str) -> float:
    """Order of outputs inside one step: the slope of their local error less one; NaN where there is no such read-out."""
    q = method.extension_order if read_out == "interpolate" else method.order
    if q is None:
        return nan

    def error(h: float) -> float:
        times = [START + fraction * h for fraction in (0.15, 0.4, 0.7, 0.85)]
        sol = _run(problem, [*times, START + h], h, method, t0=START, read_out=read_out)
        return _rms(sol.ys[:, :-1] - torch.stack([problem.exact(t) for t in times], dim=1))

    first, ratio = (1.7 if method.order > 8 else 1.0), min(2.0, 10 ** (1 / (q + 1)))
    sizes, errors = _last_points(error, [first / ratio**k for k in range(16)], floor=2e-15)
    return _slope(sizes, errors) - 1


def _last_points(error: Callable[[float], float], sizes: Sequence[float], floor: float) -> tuple[list[float], list[float]]:
    """The last four steps of a falling ladder whose errors are above ``floor``, and those errors."""
    points: list[tuple[float, float]] = []
    for size in sizes:
        found = error(size)
        if found < floor:
            break
        if found == found:  # a trajectory that failed at a long step says nothing of the order
            points.append((size, found))
    return [size for size, _ in points[-4:]], [value for _, value in points[-4:]]


def _run(problem: VectorField, ts: list[float], h: float, method: Method, **more: Any) -> pn.Solution:
    start = problem.exact(START)  # type: ignore[operator]
    with torch.no_grad():
        return pn.solve(problem, start, ts, method=method, controller=pn.Fixed(h), on_failure="report", **more)


def _slope(sizes: Sequence[float], errors: Sequence[float]) -> float:
    if len(sizes) < 2:
        return nan
    return float(np.polyfit([log(size) for size in sizes], [log10(error) * log(10) for error in errors], 1)[0])


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def _tensor(values: Extended) -> Tensor:
    return torch.from_numpy(values.astype(np.float64))
