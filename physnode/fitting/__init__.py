"""Fitting models to trajectories: unknowns, residuals, minimisation, errors, and what comes out."""

from __future__ import annotations

from physnode.fitting.fit import fit
from physnode.fitting.loading import load
from physnode.fitting.prediction import Prediction, Validation
from physnode.fitting.result import Derived, FitResult

__all__ = ["Derived", "FitResult", "Prediction", "Validation", "fit", "load"]
