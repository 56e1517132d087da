"""All that the known physics of a model keeps, or says about energy, evaluated in one go."""

from __future__ import annotations

import torch
from torch import Tensor

from physnode.diagnostics.invariants import InvariantDrift, known_physics
from physnode.errors import InputError
from physnode.fields import Sum, VectorField, as_field
from physnode.solution import Solution

__all__ = ["audit", "quantities"]


def quantities(field: VectorField, t: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Energy and invariants of the known physics of ``field`` at times ``t (*lead, 1)`` and states ``y (*lead, dim)``.

    Of a sum, these are those of its one term that has any: a learned term has none. The energy is there even where friction
    keeps it from being conserved; its change is then what friction took. Each value has the leading axes of ``y``.

    Raises:
        InputError: the field knows neither an energy nor an invariant, or several terms do.
    """
    known = _known(field, t, y)
    energy = getattr(known, "energy", None)
    found = {"energy": energy(t, y)} if callable(energy) else {}
    return {**found, **known.invariants(t, y)}


def audit(field: object, solution: Solution) -> dict[str, InvariantDrift]:
    """Energy and invariants of the known physics of ``field`` along ``solution``, by name; see :func:`quantities`.

    Raises:
        InputError: as :func:`quantities`.
    """
    states = solution.ys.detach()
    times = solution.ts.to(states.dtype).expand(states.shape[:-1]).unsqueeze(-1)
    with torch.no_grad():
        found = quantities(as_field(field), times, states)
    return {name: InvariantDrift(name, solution.ts, value) for name, value in found.items()}


def _known(field: VectorField, t: Tensor, y: Tensor) -> VectorField:
    terms = [term for term in field.terms if isinstance(term, VectorField)] if isinstance(field, Sum) else [field]
    if any(hasattr(term, "energy") for term in terms):
        return known_physics(field)
    keeping = [term for term in terms if term.invariants(t, y)]
    if not keeping:
        raise InputError(f"{type(field).__name__} has no energy and no invariant; pass a system that has one")
    if len(keeping) != 1:
        raise InputError(f"{type(field).__name__} has {len(keeping)} terms with invariants; pass the one that is meant")
    return keeping[0]
