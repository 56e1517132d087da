"""What each gradient costs on networks of the size that people train: energies of two waves, and two continuous flows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.accuracy.tables import Figure, Table
from benchmarks.gradients.contenders import Setting, contenders
from benchmarks.gradients.fields import cahn_hilliard, gas, kdv, miniboone
from benchmarks.gradients.measure import MIB, Cost, cost, differentiate, interleaved
from benchmarks.gradients.panels import Part

__all__ = ["Case", "cases", "networks"]

SHARE = 0.2
"""The part of ACA's peak that the symplectic adjoint may take at the KdV shape with dop853."""


@dataclass(frozen=True)
class Case:
    """One network and how it is solved."""

    name: str
    field: nn.Module
    y0: Tensor
    setting: Setting
    rounds: int
    held: bool = False
    """Whether the symplectic adjoint is held to its share of ACA's bytes."""


def cases(*, batch: int = 200, samples: int = 1000) -> list[Case]:
    """Shapes of Matsubara, Miyatake, Yaguchi, NeurIPS 2021, sections 5.1 and 5.2."""
    wave, drops = kdv(batch), cahn_hilliard(batch // 5)
    found = [
        Case(f"KdV energy, batch {batch}, dop853, 1 step", *wave, Setting("dop853", (0.0, 1e-3), dt=1e-3), 3, held=True),
        Case(f"KdV energy, batch {batch}, dopri8, 1 step", *wave, Setting("dopri8", (0.0, 1e-3), dt=1e-3), 2),
    ]
    for method in ("dop853", "dopri8"):
        setting = Setting(method, (0.0, 2.5e-4), dt=5e-5)
        found.append(Case(f"Cahn-Hilliard energy, batch {batch // 5}, {method}, 5 steps", *drops, setting, 2))
    flowing = Setting("dopri5", (0.0, 1.0), rtol=1e-5, atol=1e-5, per_trajectory=False)
    found.append(Case(f"GAS flow, batch {samples}, dopri5, 1e-5", *gas(samples), flowing, 3))
    found.append(Case(f"MINIBOONE flow, batch {samples}, dopri5, 1e-5", *miniboone(samples), flowing, 1))
    return found


def networks(chosen: Sequence[Case] | None = None) -> Part:
    """Seconds, bytes and evaluations of every gradient on every case."""
    threads = torch.get_num_threads()
    table = Table(
        "Networks",
        "float32. Energies: u_t = S ∇E(u) on 50 points, three convolutions with 200 channels, random orthogonal weights; fixed "
        "steps, torchdiffeq's too. Flows: FFJORD's fields with Hutchinson's divergence, GAS 160 × 3 tanh and MINIBOONE 860 × 2 "
        "softplus, random weights and data, steps shared by the batch. L = |y|² at the end, gradients of y(0) and of the "
        "network. Peak: the most bytes of tensors alive at once. Evaluations are of the whole batch; `direct` makes the "
        f"accepted steps again before it returns. Seconds on {threads} thread{'s' * (threads > 1)}: medians of forward and "
        "backward together, contenders in turn; ratios to `aca` of these medians, and the least and most in one round. "
        f"`symplectic` is held to {SHARE:g} of the peak of `aca` on KdV with dop853.",
        ("case", "gradient", "seconds", "over `aca`", "in one round", "MiB at the peak", "over `aca`", "evaluations"),
    )
    for case in cases() if chosen is None else chosen:
        costs, seconds = _measured(case)
        for name, found in costs.items():
            ratio = found.peak / costs["aca"].peak
            rounds = [mine / theirs for mine, theirs in zip(seconds[name], seconds["aca"], strict=True)]
            table.add(
                case.name,
                name,
                Figure(statistics.median(seconds[name]), form=".2f"),
                Figure(statistics.median(seconds[name]) / statistics.median(seconds["aca"]), form=".2f"),
                f"{min(rounds):.2f} to {max(rounds):.2f}",
                Figure(found.peak / MIB, form=".1f"),
                Figure(ratio, at_most=SHARE if case.held and name == "symplectic" else None, form=".3f"),
                f"{found.forward} + {found.backward}",
            )
    return Part([table])


def _measured(case: Case) -> tuple[dict[str, Cost], dict[str, list[float]]]:
    """Costs, and seconds of every round; counting bytes costs microseconds an operation, so that round is timed too."""
    costs: dict[str, Cost] = {}
    seconds: dict[str, list[float]] = {}
    known = contenders(case.setting)
    for name, contender in known.items():
        begun = time.perf_counter()
        costs[name] = cost(contender, case.field, case.y0, case.setting)
        seconds[name] = [time.perf_counter() - begun]

    def run(name: str) -> None:
        differentiate(known[name], case.field, case.y0, case.setting)

    more = interleaved({name: lambda name=name: run(name) for name in known}, case.rounds - 1)  # type: ignore[misc]
    return costs, {name: [*first, *more[name]] for name, first in seconds.items()}
