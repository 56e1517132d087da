"""Figures of a fit: data with error bars, the fitted curve with its band, residuals over sigma."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from physnode.fitting.result import FitResult

__all__ = ["fit_figure", "save_figure"]

_MOST_CHANNELS = 6


def fit_figure(result: FitResult, trajectory: int) -> Figure:
    """One pair of panels a channel (at most six): the data and the fit above, residuals over sigma below."""
    from matplotlib.figure import Figure

    measured = result.measured
    channels = min(_MOST_CHANNELS, len(measured.names))
    figure = Figure(figsize=(9, 0.6 + 2.6 * channels), layout="constrained")
    axes = figure.subplots(2 * channels, 1, sharex=True, squeeze=False, height_ratios=[3, 1] * channels)[:, 0]
    t = measured.t[trajectory]
    sigma, residuals = result.sigma[trajectory], result.residuals[trajectory]
    curve = None
    if measured.state_columns is not None and len(t) > 1:
        fine = torch.linspace(float(t[0]), float(t[-1]), min(1000, 10 * len(t)), dtype=torch.float64)
        curve = result.predict(fine, band=None, trajectory=trajectory)
    for channel in range(channels):
        seen = measured.observed[trajectory][:, channel]
        upper, lower = axes[2 * channel], axes[2 * channel + 1]
        times, values = t[seen].numpy(), measured.values[trajectory][seen, channel].numpy()
        upper.errorbar(times, values, sigma[seen, channel].numpy(), fmt=".", markersize=3, color="black", elinewidth=0.8)
        if curve is not None and measured.state_columns is not None:
            upper.plot(curve.t.numpy(), curve.y[:, measured.state_columns[channel]].numpy(), color="tab:orange", linewidth=1)
        unit = "" if measured.units[channel] == "1" else f" [{measured.units[channel]}]"
        upper.set_ylabel(f"{measured.names[channel]}{unit}")
        lower.axhspan(-1, 1, color="0.9")
        lower.plot(times, (residuals[seen, channel] / sigma[seen, channel]).numpy(), ".", markersize=3, color="black")
        limit = max(3.0, float(np.max(np.abs(lower.get_ylim()))))
        lower.set_ylim(-limit, limit)
        lower.set_ylabel("r / σ")
    axes[-1].set_xlabel(f"t [{measured.time_unit}]")
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        FigureCanvasAgg(figure)
        figure.savefig(part, format="png", dpi=130)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
