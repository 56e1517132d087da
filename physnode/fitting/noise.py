"""Noise levels where the data give none: one for each group of channels, from the residuals themselves.

Maximum likelihood for independent normal noise of unknown size: fit, set each group's standard deviation to the root mean
square of its residuals, and fit again until it stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from physnode.fitting.measurements import Measurements, Windows

__all__ = ["group_rms", "on_windows", "spread"]

_FLOOR = 1e-7


def spread(measured: Measurements) -> Tensor:
    """Where estimation starts: the spread of each group's measured values about their mean, ``(groups,)``."""
    values = torch.cat(list(measured.values))
    observed = torch.cat(list(measured.observed))
    mean = values.sum(0) / observed.sum(0).clamp(min=1)
    return _grouped(measured, torch.where(observed, values - mean, 0.0), observed, floor=0.0).clamp(min=1e-300)


def group_rms(measured: Measurements, residuals: Sequence[Tensor], unknowns: float) -> Tensor:
    """Root mean square residual of each group, with the unknowns of the fit shared out among all measurements."""
    stacked = torch.cat(list(residuals))
    observed = torch.cat(list(measured.observed))
    scale = torch.cat([values.abs() for values in measured.values]).amax()
    found = _grouped(measured, torch.where(observed, stacked, 0.0), observed, floor=_FLOOR * float(scale))
    count = int(observed.sum())
    return found * math.sqrt(count / max(1.0, count - unknowns))


def on_windows(windows: Windows, measured: Measurements, levels: Tensor | None) -> Tensor:
    """Standard deviations on windows ``(S, T, C)``: the noise level of each group, or, without any, what the data say."""
    if levels is None:
        return windows.sigma
    _, group = measured.groups
    return levels[group].expand(windows.sigma.shape)


def _grouped(measured: Measurements, values: Tensor, observed: Tensor, floor: float) -> Tensor:
    names, group = measured.groups
    squares = torch.zeros(len(names), dtype=torch.float64).index_add(0, group, values.square().sum(0))
    counts = torch.zeros(len(names), dtype=torch.float64).index_add(0, group, observed.sum(0).to(torch.float64))
    return (squares / counts.clamp(min=1)).sqrt().clamp(min=floor)
