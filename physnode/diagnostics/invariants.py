"""How well a solution keeps what the exact motion conserves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.errors import InputError
from physnode.fields import Sum, VectorField, as_field
from physnode.solution import Solution

__all__ = ["InvariantDrift", "invariants", "known_physics"]


@dataclass(frozen=True)
class InvariantDrift:
    """One conserved quantity along a solution."""

    name: str
    t: Tensor
    """Times, ``(T,)`` or ``(*batch, T)``."""
    value: Tensor
    """``(*batch, T)``."""

    @property
    def drift(self) -> Tensor:
        """Value minus its first one, ``(*batch, T)``."""
        return self.value - self.value[..., :1]

    @property
    def relative(self) -> Tensor:
        """The drift over the size of the first value; the drift itself where that is zero."""
        first = self.value[..., :1].abs()
        return self.drift / torch.where(first > 0, first, 1.0)

    @property
    def largest(self) -> Tensor:
        """The largest absolute drift of each trajectory, ``(*batch,)``; NaN times (a failed trajectory) are left out."""
        return torch.nan_to_num(self.drift.abs(), nan=0.0).amax(-1)


def invariants(field: object, solution: Solution) -> dict[str, InvariantDrift]:
    """Every quantity that ``field`` declares to be conserved, along ``solution``.

    ``field`` may be another one than the solution's own, such as the known physics of a sum.

    Raises:
        InputError: the field declares no invariants.
    """
    known = as_field(field)
    states = solution.ys.detach()
    times = solution.ts.to(states.dtype).expand(states.shape[:-1]).unsqueeze(-1)
    with torch.no_grad():
        found = known.invariants(times, states)
    if not found:
        raise InputError(
            f"{type(known).__name__} declares no invariants; a sum with a learned term or with damping has none. Pass its "
            "known, conservative term to see what the rest does to them"
        )
    return {name: InvariantDrift(name, solution.ts, value) for name, value in found.items()}


def known_physics(field: VectorField) -> VectorField:
    """The term of a sum that has an energy, or the field itself.

    Raises:
        InputError: there is none, or more than one.
    """
    terms = [term for term in field.terms if hasattr(term, "energy")] if isinstance(field, Sum) else []
    if hasattr(field, "energy") and not terms:
        return field
    if len(terms) == 1 and isinstance(terms[0], VectorField):
        return terms[0]
    raise InputError(f"{type(field).__name__} has {len(terms) or 'no'} terms with an energy; pass the one that is meant")
