"""The price of the symplectic adjoint's small memory where stages are kept: its time beside that of ACA."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

import physnode as pn
from benchmarks.accuracy.tables import Figure, Table
from benchmarks.gradients.contenders import Setting, ours
from benchmarks.gradients.fields import cahn_hilliard, gas, kdv, layered
from benchmarks.gradients.measure import MIB, cost, differentiate, interleaved, paired_ratio
from benchmarks.gradients.panels import Part

__all__ = ["stored_stages"]

HELD = 1.05
"""How much longer than ACA's the gradient with stored stages may take."""


def stored_stages(rounds: int = 7, *, batch: int = 40, samples: int = 500) -> Part:
    """``SymplecticAdjoint`` with stages kept over ``ACA``."""
    table = Table(
        "Stages kept, against ACA",
        '`pn.SymplecticAdjoint(storage=pn.Storage(keep="stages"))` evaluates each stage once on the way back, as `aca` does, '
        f"and has one evaluation's graph alive instead of a step's. Time: ratio of medians of {rounds} rounds, the two in "
        "turn, and the least and most in one round. Evaluations forward and going back, and MiB at the peak, for both.",
        ("case", "time over `aca`", "in one round", "evaluations", "of `aca`", "MiB", "of `aca`"),
    )
    starts = torch.randn(256, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cases: list[tuple[str, nn.Module, Tensor, Setting]] = [
        (f"KdV energy, batch {batch}, dop853, 1 step", *kdv(batch), Setting("dop853", (0.0, 1e-3), dt=1e-3)),
        (
            f"Cahn-Hilliard energy, batch {batch // 5}, dopri5, 5 steps",
            *cahn_hilliard(batch // 5),
            Setting("dopri5", (0.0, 2.5e-4), dt=5e-5),
        ),
        (f"GAS flow, batch {samples}, dopri5, 3 steps", *gas(samples), Setting("dopri5", (0.0, 1.0), dt=1 / 3)),
        ("network 128 × 2, batch 256, dopri5, 30 steps", layered(4, 128, 2), starts, Setting("dopri5", (0.0, 1.0), dt=1 / 30)),
    ]
    pair = {"stages": ours(pn.SymplecticAdjoint(storage=pn.Storage(keep="stages"))), "aca": ours("aca")}
    for name, field, y0, setting in cases:
        costs = {who: cost(contender, field, y0, setting) for who, contender in pair.items()}
        runs = {who: partial(differentiate, contender, field, y0, setting) for who, contender in pair.items()}
        seconds = interleaved(runs, rounds)
        spread = paired_ratio(seconds["stages"], seconds["aca"])
        evaluations = [f"{costs[who].forward} + {costs[who].backward}" for who in pair]
        sizes = [Figure(costs[who].peak / MIB, form=".1f") for who in pair]
        table.add(name, Figure(spread.ratio, at_most=HELD, form=".2f"), str(spread), *evaluations, *sizes)
    return Part([table])
