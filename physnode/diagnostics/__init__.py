"""Does a solution, or a fitted model, obey the physics: energy, invariants, and figures of them."""

from __future__ import annotations

from physnode.diagnostics.energy import EnergyDrift, energy_drift
from physnode.diagnostics.invariants import InvariantDrift, invariants
from physnode.diagnostics.plots import plot_energy, plot_invariants

__all__ = ["EnergyDrift", "InvariantDrift", "energy_drift", "invariants", "plot_energy", "plot_invariants"]
