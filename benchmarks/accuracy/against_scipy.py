"""Against SciPy at equal tolerances: the same pairs with the same controller should cost and err the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import physnode as pn
from benchmarks.accuracy.reference_orbits import KNOWN
from benchmarks.accuracy.runs import NumpyField, Values, registered, run, scipy_run, tensor
from benchmarks.accuracy.tables import Figure, Table
from physnode.fields import VectorField

__all__ = ["explicit_pairs", "stiff"]

TOLERANCES = (1e-4, 1e-6, 1e-8, 1e-10, 1e-12)


def explicit_pairs(tolerances: Sequence[float] = TOLERANCES) -> Table:
    """dopri5 against RK45 and dop853 against DOP853, which are the same coefficients."""
    shown = ", ".join(f"{rtol:.0e}" for rtol in tolerances)
    table = Table(
        "Against SciPy at equal tolerances",
        f"rtol {shown}, atol = rtol/1000. Ratios physnode / SciPy, smallest and largest over the tolerances; errors are norms "
        "of the end state's error against the known digits.",
        ("system", "method", "evaluations, least", "evaluations, most", "error, least", "error, most"),
    )
    eight, start = pn.systems.ThreeBody.figure_eight()
    period = eight.figure_eight_period
    cases: list[tuple[str, VectorField, Tensor, float, Tensor]] = [
        (name, system, tensor(KNOWN[name].start), t, tensor(KNOWN[name].later[t]))
        for name, system, t in (
            ("pendulum 3", pn.systems.Pendulum(), 20.0),
            ("Kepler e = 0.6", pn.systems.Kepler(), 10.0),
            ("Henon-Heiles", pn.systems.HenonHeiles(), 100.0),
            ("Lotka-Volterra", pn.systems.LotkaVolterra(), 10.0),
        )
    ]
    cases.append(("figure eight", eight, start, period, start))
    for name, system, y0, t, goal in cases:
        for ours, theirs in (("dopri5", "RK45"), ("dop853", "DOP853")):
            cost, error = [], []
            for rtol in tolerances:
                found = run(system, y0, [0.0, t], ours, pn.Adaptive(rtol, rtol / 1000))
                end, count, _ = scipy_run(system, y0, t, theirs, rtol, rtol / 1000)
                cost.append(int(found.evaluations) / count)
                error.append(float((found.ys[-1] - goal).norm() / (end - goal).norm()))
            table.add(
                name,
                f"{ours} / {theirs}",
                Figure(min(cost), at_least=0.85, form=".3f"),
                Figure(max(cost), at_most=1.15, form=".3f"),
                Figure(min(error), form=".2f"),
                Figure(max(error), at_most=2.0, form=".2f"),
            )
    return table


class StiffVanDerPol(VectorField):
    """x' = v, v' = mu (1 - x^2) v - x, with one mu a trajectory, ``(B, 1)``."""

    def __init__(self, mu: Tensor) -> None:
        super().__init__()
        self.register_buffer("mu", mu)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt."""
        x, v = y[..., :1], y[..., 1:]
        return torch.cat((v, self.get_buffer("mu") * (1 - x * x) * v - x), dim=-1)


class Robertson(VectorField):
    """a' = -k1 a + k3 b c, b' = k1 a - k3 b c - k2 b^2, c' = k2 b^2, with one (k1, k2, k3) a trajectory, ``(B, 3)``."""

    def __init__(self, rates: Tensor) -> None:
        super().__init__()
        self.register_buffer("rates", rates)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt."""
        k = self.get_buffer("rates")
        first, second, third = k[..., :1], k[..., 1:2], k[..., 2:]
        a, b, c = y[..., :1], y[..., 1:2], y[..., 2:]
        gain, loss = first * a - third * b * c, second * b * b
        return torch.cat((-gain, gain - loss, loss), dim=-1)


def _van_der_pol(mu: float) -> tuple[NumpyField, NumpyField]:
    def field(t: float, y: Values) -> Values:
        return np.array([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])

    def jacobian(t: float, y: Values) -> Values:
        return np.array([[0.0, 1.0], [-2 * mu * y[0] * y[1] - 1, mu * (1 - y[0] ** 2)]])

    return field, jacobian


def _robertson(k1: float, k2: float, k3: float) -> tuple[NumpyField, NumpyField]:
    def field(t: float, y: Values) -> Values:
        gain, loss = k1 * y[0] - k3 * y[1] * y[2], k2 * y[1] ** 2
        return np.array([-gain, gain - loss, loss])

    def jacobian(t: float, y: Values) -> Values:
        gain, loss = np.array([k1, -k3 * y[2], -k3 * y[1]]), np.array([0.0, 2 * k2 * y[1], 0.0])
        return np.stack((-gain, gain - loss, loss))

    return field, jacobian


def stiff(batch: int = 64) -> Table:
    """radau5 in a batch of different parameters, against SciPy's Radau one trajectory at a time."""
    table = Table(
        "Stiff systems, a batch of different parameters",
        f"{batch} trajectories: van der Pol with mu from 500 to 2000 over t = 2000, and Robertson's reaction with rates "
        "within a factor of two of the usual ones over t = 1e5. Evaluations as each code counts them, without SciPy's "
        "Jacobians, which are given in closed form; ratios physnode / SciPy. Errors: norm at the end of four of the "
        "trajectories, relative to SciPy's Radau at rtol 1e-11.",
        ("system", "rtol, atol", "evaluations, median ratio", "largest ratio", "error, physnode", "error, SciPy"),
    )
    if not registered("radau5"):
        return table
    mu = torch.linspace(500.0, 2000.0, batch, dtype=torch.float64).unsqueeze(-1)
    generator = torch.Generator().manual_seed(3)
    factor = 2.0 ** (2 * torch.rand(batch, 3, generator=generator, dtype=torch.float64) - 1)
    rates = tensor((0.04, 3e7, 1e4)) * factor
    for name, field, y0, t, rtol, atol, parameters, make in (
        ("van der Pol", StiffVanDerPol(mu), (2.0, 0.0), 2000.0, 1e-6, 1e-8, mu, _van_der_pol),
        ("Robertson", Robertson(rates), (1.0, 0.0, 0.0), 1e5, 1e-6, 1e-10, rates, _robertson),
    ):
        start = tensor(y0)
        found = run(field, start.expand(batch, -1), [0.0, t], "radau5", pn.Adaptive(rtol, atol))
        ratios, ours, theirs = [], [], []
        for row in range(batch):
            plain, jacobian = make(*parameters[row].tolist())
            end, count, _ = scipy_run(plain, start, t, "Radau", rtol, atol, jacobian)
            ratios.append(int(found.evaluations[row]) / count)
            if row % (batch // 4) == 0:
                goal, _, _ = scipy_run(plain, start, t, "Radau", 1e-11, 1e-14, jacobian)
                ours.append(float((found.ys[row, -1] - goal).norm() / goal.norm()))
                theirs.append(float((end - goal).norm() / goal.norm()))
        table.add(
            name,
            f"{rtol:g}, {atol:g}",
            Figure(float(np.median(ratios)), at_most=2.0, form=".2f"),
            Figure(max(ratios), form=".2f"),
            Figure(max(ours), at_most=float(f"{max(2 * max(theirs), 10 * rtol):.1e}")),
            Figure(max(theirs)),
        )
    return table
