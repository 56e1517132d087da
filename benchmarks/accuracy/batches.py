"""Batches and precision: a trajectory does not depend on its neighbours, and float32 reaches what float64 does where it can."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import physnode as pn
from benchmarks.accuracy.reference_orbits import KNOWN
from benchmarks.accuracy.runs import registered, tensor
from benchmarks.accuracy.tables import Figure, Table
from physnode.engine.controllers import Controller
from physnode.systems import System

__all__ = ["batch_invariance", "single_precision"]


def batch_invariance(batch: int = 64) -> Table:
    """Every trajectory alone, in a batch, and in a batch of the same size among other neighbours."""
    table = Table(
        "Batch invariance",
        f"{batch} varied starts of each system, over t = 10 with 21 outputs, four of them compared; rtol 1e-8, atol 1e-10, "
        "or fixed steps of 0.05. Steps: trajectories whose counts of accepted and rejected steps alone and in the batch "
        "differ. Alone: largest difference of values between a trajectory alone and in the batch; kernels for one row and "
        "for many may round differently. Neighbours: the same, between two batches of equal size in which the other "
        "trajectories differ, at the same place.",
        ("system", "method", "steps differ", "alone", "neighbours"),
    )
    fixed = {"leapfrog", "kahan_li8", "yoshida4", "yoshida6", "rk4", "gauss2", "gauss4", "gauss6"}
    systems: tuple[System, ...] = (pn.systems.Pendulum(), pn.systems.HenonHeiles(), pn.systems.Kepler())
    for system in systems:
        for method in registered("tsit5", "dop853", "dopri8", "radau5", "dprkn6", "gauss_radau15", "kahan_li8", "gauss6"):
            controller: Controller = pn.Fixed(0.05) if method in fixed else pn.Adaptive(1e-8, 1e-10)
            table.add(type(system).__name__, method, *_compared(system, method, controller, batch))
    return table


def _compared(system: System, method: str, controller: Controller, batch: int) -> tuple[Figure, Figure, Figure]:
    starts, others = system.initial_states(batch, seed=1), system.initial_states(batch, seed=2)
    ts = torch.linspace(0.0, 10.0, 21, dtype=torch.float64)

    def solve(y0: torch.Tensor) -> pn.Solution:
        with torch.no_grad():
            return pn.solve(system, y0, ts, method=method, controller=controller)

    together = solve(starts)
    differ, alone, neighbours = 0, 0.0, 0.0
    for row in range(0, batch, max(1, batch // 4)):
        single = solve(starts[row])
        counts = [(int(s.accepted[at]), int(s.rejected[at])) for s, at in ((single.stats, ()), (together.stats, row))]
        differ += counts[0] != counts[1]
        alone = max(alone, float((single.ys - together.ys[row]).abs().max()))
        mixed = others.clone()
        mixed[row] = starts[row]
        neighbours = max(neighbours, float((solve(mixed).ys[row] - together.ys[row]).abs().max()))
    return Figure(differ, at_most=0, form=".0f"), Figure(alone, at_most=1e-11), Figure(neighbours, at_most=0.0)


def single_precision(tolerances: Sequence[float] = (1e-4, 1e-5)) -> Table:
    """The end error in float32 and float64 at the same tolerance."""
    table = Table(
        "float32",
        "Largest error of the end state in float32 and in float64 at equal tolerances, atol = rtol/100, and the ratio of "
        "accepted steps. Limit of the float32 error: twice that of float64 plus ten times rtol, since rounding moves the "
        "steps that are chosen.",
        ("system", "t", "method", "rtol", "float64 error", "float32 error", "steps, float32 / float64"),
    )
    cases: tuple[tuple[str, System, float], ...] = (
        ("pendulum pi/2", pn.systems.Pendulum(), 20.0),
        ("Kepler e = 0.6", pn.systems.Kepler(), 10.0),
        ("Duffing, driven", pn.systems.Duffing(-1.0, 1.0, 0.3, 0.5, 1.2), 20.0),
        ("Lotka-Volterra", pn.systems.LotkaVolterra(), 10.0),
    )
    for name, system, t in cases:
        start, goal = tensor(KNOWN[name].start), tensor(KNOWN[name].later[t])
        for method in registered("bosh3", "tsit5", "dop853"):
            for rtol in tolerances:
                errors, steps = [], []
                for dtype in (torch.float64, torch.float32):
                    with torch.no_grad():
                        controller = pn.Adaptive(rtol, rtol / 100)
                        sol = pn.solve(system, start.to(dtype), [0.0, t], method=method, controller=controller)
                    errors.append(float((sol.ys[-1].double() - goal).abs().max()))
                    steps.append(int(sol.stats.accepted))
                table.add(
                    name,
                    f"{t:g}",
                    method,
                    f"{rtol:g}",
                    Figure(errors[0]),
                    Figure(errors[1], at_most=float(f"{2 * errors[0] + 10 * rtol:.1e}")),
                    Figure(steps[1] / steps[0], at_most=1.25, form=".2f"),
                )
    return table
