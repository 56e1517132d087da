"""Conserved quantities evaluated on measurements themselves: no solve, no fit, only the data and a law."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.diagnostics.audit import quantities
from physnode.diagnostics.invariants import InvariantDrift
from physnode.errors import InputError
from physnode.fields import as_field

__all__ = ["ObservedInvariant", "observed_invariants"]


@dataclass(frozen=True)
class ObservedInvariant:
    """One quantity at the complete rows of one measured trajectory."""

    name: str
    t: Tensor
    """``(m,)``"""
    value: Tensor
    """``(m,)``"""
    error: Tensor | None
    """``(m,)``: one standard deviation, from those of the measurements; None where they have none."""

    @property
    def mean(self) -> float:
        """Mean, weighted by the errors where they are known."""
        if self.error is None:
            return float(self.value.mean())
        weight = self.error**-2
        return float((weight * self.value).sum() / weight.sum())

    @property
    def scatter(self) -> float:
        """Standard deviation over the rows."""
        return float(self.value.std()) if len(self.value) > 1 else math.nan

    @property
    def change(self) -> float:
        """Mean of the last third of the rows minus that of the first."""
        third = max(1, len(self.value) // 3)
        return float(self.value[-third:].mean() - self.value[:third].mean())

    @property
    def reduced_chi2(self) -> float:
        """chi-square over m - 1 of the claim that it is constant: near 1 if the errors are right, NaN without errors."""
        if self.error is None or len(self.value) < 2:
            return math.nan
        return float((((self.value - self.mean) / self.error) ** 2).sum()) / (len(self.value) - 1)

    @property
    def drift(self) -> InvariantDrift:
        """The same, as a drift from its first row, for a figure."""
        return InvariantDrift(self.name, self.t, self.value)


def observed_invariants(
    field: object, t: Tensor, y: Tensor, observed: Tensor | None = None, sigma: Tensor | None = None
) -> dict[str, ObservedInvariant]:
    """Energy and invariants of the known physics of ``field`` on one measured trajectory.

    Args:
        field: a system, or a sum with one.
        t: times ``(n,)``.
        y: measured states ``(n, dim)``, components in the order of the field's state.
        observed: ``(n, dim)``, False where a value is missing; rows that lack any are left out.
        sigma: ``(n, dim)``, one standard deviation of each value; independent errors are assumed. Each component is displaced
            by its own, up and down, and the larger changes are added in quadrature: where a quantity has an extremum, as the
            energy at rest, its slope would say that it is known exactly.

    Raises:
        InputError: no complete row, or the field has neither an energy nor an invariant.
    """
    complete = torch.ones(len(t), dtype=torch.bool) if observed is None else observed.all(-1)
    if not bool(complete.any()):
        raise InputError("no row of the trajectory has every component of the state; an invariant needs them all")
    times, states = t[complete].to(torch.float64), y[complete].detach().to(torch.float64)
    known, at = as_field(field), times.unsqueeze(-1)
    with torch.no_grad():
        found = quantities(known, at, states)
        if sigma is None or bool(sigma[complete].isnan().any()):
            return {name: ObservedInvariant(name, times, value, None) for name, value in found.items()}
        push = torch.diag_embed(sigma[complete].to(torch.float64)).movedim(-1, 0)  # (dim, m, dim): one component at a time
        sides = torch.stack((states + push, states - push))
        moved = quantities(known, at.expand(*sides.shape[:-1], 1), sides)
    changes = {name: (moved[name] - value).abs().amax(0).square().sum(0).sqrt() for name, value in found.items()}
    return {
        name: ObservedInvariant(name, times, value, changes[name] if bool((changes[name] > 0).all()) else None)
        for name, value in found.items()
    }
