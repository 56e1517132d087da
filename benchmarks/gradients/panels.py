"""What a part of the benchmark gives: tables, and the panels of the one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.accuracy.tables import Figure, Table

__all__ = ["Column", "Panel", "Part", "by_column", "draw"]

Column = dict[str, Figure | str]
"""Cells of one column by the names of their rows."""

_COLORS = {
    "network, fixed steps": "C6",
    "rings, adaptive steps": "C9",
    "direct": "C0",
    "aca": "C1",
    "symplectic": "C2",
    "symplectic, steps kept": "C8",
    "continuous": "C3",
    "torchdiffeq `odeint`": "C4",
    "torchdiffeq `odeint_adjoint`": "C5",
}


@dataclass
class Line:
    """One curve."""

    name: str
    x: list[float]
    y: list[float]
    dashed: bool


@dataclass
class Panel:
    """One set of axes."""

    title: str
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    lines: list[Line] = field(default_factory=list)

    def add(self, name: str, x: Sequence[float], y: Sequence[float], *, dashed: bool = False) -> None:
        """One curve; a name that is a gradient's has that gradient's colour in all panels."""
        self.lines.append(Line(name, list(x), list(y), dashed))


@dataclass
class Part:
    """One part of the page."""

    tables: list[Table] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)


def by_column(table: Table, columns: Sequence[Column], *first: str) -> None:
    """Rows of ``table`` named as in ``columns``, one cell of each; ``first`` are cells in front of the name."""
    names = dict.fromkeys(name for column in columns for name in column)
    for name in names:
        table.add(*first, name, *(column.get(name, "–") for column in columns))


def draw(panels: Sequence[Panel], path: Path) -> None:
    """All panels in a grid of three columns; colours mean the same in all."""
    from matplotlib.figure import Figure as Drawing
    from matplotlib.ticker import NullLocator

    across = min(3, max(1, len(panels)))
    down = -(-len(panels) // across)
    drawing = Drawing(figsize=(4.6 * across, 3.9 * down), layout="constrained")
    axes: Any = drawing.subplots(down, across, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        for line in panel.lines:
            style = {"linestyle": "--", "color": "0.4", "marker": ""} if line.dashed else {"marker": "o", "markersize": 3}
            if line.name in _COLORS:
                style["color"] = _COLORS[line.name]
            axis.plot(line.x, line.y, label=line.name.replace("`", ""), linewidth=1, **style)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.x_label, fontsize=9)
        axis.set_ylabel(panel.y_label, fontsize=9)
        if panel.log_x:
            axis.set_xscale("log")
        values = sorted({x for line in panel.lines for x in line.x})
        if len(values) <= 5 and values[0] >= 1:  # so few that each has its tick
            axis.set_xticks(values, [f"{x:g}" for x in values])
            axis.xaxis.set_minor_locator(NullLocator())
        if panel.log_y:
            axis.set_yscale("log")
        axis.tick_params(labelsize=8)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    shown = {
        line.name.replace("`", ""): curve
        for panel, axis in zip(panels, axes.flat, strict=False)
        for line, curve in zip(panel.lines, axis.lines, strict=True)
    }
    drawing.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=5, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
