"""Predators and prey: the standard set-up for finding unknown terms, and a conserved quantity that is no energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from physnode.fields import Domain
from physnode.systems.base import NON_NEGATIVE, System, matched, uniform

__all__ = ["LotkaVolterra"]


class LotkaVolterra(System):
    """x' = prey_growth x - predation x y, y' = -predator_death y + predator_growth x y.

    State (prey, predators), both positive, nondimensional. Every orbit closes round the rest point
    (predator_death/predator_growth, prey_growth/predation). Raises InputError for a negative constant or an unknown name in
    ``free``.
    """

    description: ClassVar[str] = "Lotka-Volterra predators and prey"
    domains: ClassVar[dict[str, Domain]] = dict.fromkeys(
        ("prey_growth", "predation", "predator_death", "predator_growth"), NON_NEGATIVE
    )
    units: ClassVar[dict[str, str]] = dict.fromkeys(domains, "1")

    prey_growth: Tensor
    predation: Tensor
    predator_death: Tensor
    predator_growth: Tensor

    def __init__(
        self,
        prey_growth: float = 1.5,
        predation: float = 1.0,
        predator_death: float = 3.0,
        predator_growth: float = 1.0,
        *,
        free: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.declare(
            free,
            prey_growth=prey_growth,
            predation=predation,
            predator_death=predator_death,
            predator_growth=predator_growth,
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Prey and predators."""
        return ("prey", "predators")

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Rates of change, shape of ``y (*batch, 2)``."""
        prey, predators = y[..., :1], y[..., 1:]
        prey_rate = matched(self.prey_growth, y) - matched(self.predation, y) * predators
        predator_rate = matched(self.predator_growth, y) * prey - matched(self.predator_death, y)
        return torch.cat((prey_rate, predator_rate), dim=-1) * y

    def invariants(self, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """predator_growth x - predator_death ln x + predation y - prey_growth ln y, NaN where a population is negative."""
        prey, predators = y[..., :1], y[..., 1:]
        x_part = matched(self.predator_growth, y) * prey - matched(self.predator_death, y) * torch.log(prey)
        y_part = matched(self.predation, y) * predators - matched(self.prey_growth, y) * torch.log(predators)
        return {"volterra": (x_part + y_part)[..., 0]}

    def initial_states(self, n: int, seed: int = 0) -> Tensor:
        """``(n, 2)``: both populations in [0.5, 4]."""
        return uniform(n, (0.5, 0.5), (4.0, 4.0), seed)
