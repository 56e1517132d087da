"""Are residuals noise: their size in standard deviations, and whether neighbours in time agree.

For residuals z_1 ... z_n of one channel in units of sigma, in order of time: lag-1 autocorrelation
r = Σ z_i z_(i+1) / Σ z_i², and the statistic d = Σ (z_(i+1) - z_i)² / Σ z_i² of Durbin and Watson (Biometrika 37, 409 (1950)),
near 2 (1 - r). White noise has r within a few 1/sqrt(n) of 0 and d near 2; a model that misses something smooth has r near 1
and d near 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.errors import InputError

__all__ = ["ChannelResiduals", "ResidualStatistics", "residual_statistics"]


@dataclass(frozen=True)
class ChannelResiduals:
    """Residuals of one measured scalar over all trajectories, in units of sigma."""

    name: str
    count: int
    mean: float
    rms: float
    """Root mean square: 1 for a model that reaches the noise, if sigma is right."""
    autocorrelation: float
    """Between neighbours in time of the same trajectory; NaN where no trajectory has two."""
    durbin_watson: float

    @property
    def correlated(self) -> bool:
        """Whether the autocorrelation is more than three times what white noise of this length shows."""
        return abs(self.autocorrelation) > 3 / math.sqrt(max(1, self.count))


@dataclass(frozen=True)
class ResidualStatistics:
    """What the residuals of a fit look like."""

    channels: tuple[ChannelResiduals, ...]
    per_trajectory: tuple[float, ...]
    """Mean square of residual over sigma in each trajectory: its chi-square over its number of measurements."""

    @property
    def worst(self) -> int:
        """Position of the trajectory that is described worst."""
        known = [-math.inf if math.isnan(value) else value for value in self.per_trajectory]
        return known.index(max(known))


def residual_statistics(names: Sequence[str], residuals: Sequence[Tensor], sigma: Sequence[Tensor]) -> ResidualStatistics:
    """Statistics of ``residuals``, one tensor ``(n_i, C)`` a trajectory in order of time, NaN where nothing was measured.

    Args:
        names: one name for each of the C channels.
        residuals: measured minus predicted.
        sigma: one standard deviation of each, same shapes.

    Raises:
        InputError: no trajectory, or shapes that do not agree.
    """
    if not residuals or len(residuals) != len(sigma):
        raise InputError(f"needed: residuals and sigma of the same trajectories; found {len(residuals)} and {len(sigma)}")
    for item, spread in zip(residuals, sigma, strict=True):
        if item.ndim != 2 or item.shape != spread.shape or item.shape[1] != len(names):
            raise InputError(
                f"residuals and sigma must have shape (n, {len(names)}); found {tuple(item.shape)} and {tuple(spread.shape)}"
            )
    scaled = [item / spread for item, spread in zip(residuals, sigma, strict=True)]
    return ResidualStatistics(
        tuple(_channel(name, [item[:, i] for item in scaled]) for i, name in enumerate(names)),
        tuple(float(item[~item.isnan()].square().mean()) for item in scaled),
    )


def _channel(name: str, parts: Sequence[Tensor]) -> ChannelResiduals:
    seen = [part[~part.isnan()] for part in parts]
    everything = torch.cat(seen)
    power = float(everything.square().sum())
    pairs = [(part[:-1], part[1:]) for part in seen if len(part) > 1]
    if not pairs or power == 0:
        autocorrelation = durbin_watson = math.nan
    else:
        autocorrelation = sum(float((before * after).sum()) for before, after in pairs) / power
        durbin_watson = sum(float((after - before).square().sum()) for before, after in pairs) / power
    count = len(everything)
    return ChannelResiduals(
        name,
        count,
        float(everything.mean()) if count else math.nan,
        math.sqrt(power / count) if count else math.nan,
        autocorrelation,
        durbin_watson,
    )
