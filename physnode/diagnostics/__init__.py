"""Does a solution, or a fitted model, obey the physics: energy, invariants, long horizons, residuals, and figures of them;
how far a loss is off because steps are finite, and whether gradients are right."""

from __future__ import annotations

from physnode.diagnostics.audit import audit
from physnode.diagnostics.energy import EnergyDrift, energy_drift
from physnode.diagnostics.gradient_check import check_gradient
from physnode.diagnostics.gradient_report import GradientCheck, GradientRow
from physnode.diagnostics.horizon import Horizon, long_horizon
from physnode.diagnostics.invariants import InvariantDrift, invariants
from physnode.diagnostics.loss_error import LossError, loss_error
from physnode.diagnostics.observed import ObservedInvariant, observed_invariants
from physnode.diagnostics.plots import plot_energy, plot_invariants
from physnode.diagnostics.residuals import ChannelResiduals, ResidualStatistics, residual_statistics

__all__ = [
    "ChannelResiduals",
    "EnergyDrift",
    "GradientCheck",
    "GradientRow",
    "Horizon",
    "InvariantDrift",
    "LossError",
    "ObservedInvariant",
    "ResidualStatistics",
    "audit",
    "check_gradient",
    "energy_drift",
    "invariants",
    "long_horizon",
    "loss_error",
    "observed_invariants",
    "plot_energy",
    "plot_invariants",
    "residual_statistics",
]
