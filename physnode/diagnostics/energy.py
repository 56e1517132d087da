"""The energy along a solution, and how far it drifts."""

from __future__ import annotations

import torch

from physnode.diagnostics.invariants import InvariantDrift, known_physics
from physnode.errors import InputError
from physnode.fields import as_field
from physnode.solution import Solution

__all__ = ["EnergyDrift", "energy_drift"]

EnergyDrift = InvariantDrift
"""The energy as a quantity that should stay: ``value``, ``drift``, ``relative`` and ``largest``."""


def energy_drift(field: object, solution: Solution) -> EnergyDrift:
    """The energy of ``field`` along ``solution``, in the field's own units of energy.

    For a sum, the energy is that of its known physics: its change then shows what the other terms put in or take out, next
    to the error of the integrator. Damping shows as a loss, too.

    Raises:
        InputError: the field has no energy, or more than one term of a sum has.
    """
    known = known_physics(as_field(field))
    states = solution.ys.detach()
    times = solution.ts.to(states.dtype).expand(states.shape[:-1]).unsqueeze(-1)
    energy = known.energy
    if not callable(energy):
        raise InputError(f"{type(known).__name__}.energy must be a method of (t, y)")
    with torch.no_grad():
        value = energy(times, states)
    return EnergyDrift("energy", solution.ts, value)
