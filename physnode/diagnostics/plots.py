"""Figures of conserved quantities; they are made, not shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from physnode.diagnostics.invariants import InvariantDrift

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_energy", "plot_invariants"]


def plot_invariants(found: Mapping[str, InvariantDrift], *, time_unit: str = "") -> Figure:
    """Relative drift of each quantity against time (absolute where it starts at zero), one line a trajectory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 1.8 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, item) in zip(axes, found.items(), strict=True):
        relative = item.relative.reshape(-1, item.relative.shape[-1])
        times = item.t.expand(item.value.shape).reshape(relative.shape)
        for t, drift in zip(times, relative, strict=True):
            axis.plot(t.numpy(), drift.numpy(), linewidth=1)
        axis.set_ylabel(name)
        axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes[0].set_title("relative drift")
    axes[-1].set_xlabel(f"t [{time_unit}]" if time_unit else "t")
    return figure


def plot_energy(drift: InvariantDrift, *, time_unit: str = "") -> Figure:
    """The relative drift of the energy against time."""
    return plot_invariants({"energy": drift}, time_unit=time_unit)
