"""The two figures: error against time for everyone, and time against size for this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed import growth
from benchmarks.speed.jobs import Record
from benchmarks.speed.problems import CASES

__all__ = ["draw_growth", "draw_work_precision"]

COLORS = {
    "physnode": "C0",
    "physnode, eager": "C9",
    "torchdiffeq": "C1",
    "torchode": "C2",
    "diffrax": "C3",
    "gradsolve, warm replay": "C4",
    "SciPy": "C7",
    "REBOUND": "C5",
}
"""One for each contender, in all panels; its methods differ in their lines."""


def draw_work_precision(records: Sequence[Record], path: Path) -> bool:
    """A panel for each case and batch; False if there is nothing to draw."""
    panels: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        if record["part"] == "work-precision" and record.get("points"):
            panels.setdefault((record["case"], record["batch"]), []).append(record)
    if not panels:
        return False
    drawing, axes = _sheet(len(panels))
    shown: dict[str, Any] = {}
    for axis, ((case, batch), found) in zip(axes, panels.items(), strict=True):
        drawn: list[str] = []
        for record in found:
            name = record["contender"]
            style = "--" if name in drawn else "-"
            drawn.append(name)
            points = sorted(record["points"])
            (curve,) = axis.plot(
                [seconds for *_, seconds in points],
                [error for _, error, _ in points],
                style,
                color=COLORS.get(name, "k"),
                marker="o",
                markersize=3,
                linewidth=1,
            )
            shown.setdefault(f"{name}, {record['method']}", curve)
        _finish(axis, f"{CASES[case].title}, batch {batch}", "seconds, forward", "error of the outputs")
    drawing.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=2 * len(panels), fontsize=8)
    _save(drawing, path)
    return True


def draw_growth(records: Sequence[Record], path: Path) -> bool:
    """A panel for each thing that grows, with a line in proportion; False if there is nothing to draw."""
    known = growth.series(records)
    if not known:
        return False
    drawing, axes = _sheet(len(known))
    for axis, (name, (sizes, seconds)) in zip(axes, known.items(), strict=True):
        axis.plot(sizes, seconds, color="C0", marker="o", markersize=3, linewidth=1, label="physnode")
        axis.plot(sizes, [seconds[-1] * size / sizes[-1] for size in sizes], "--", color="0.4", label="in proportion")
        axis.legend(fontsize=8)
        _finish(axis, f"Time against {name}", name, "seconds, forward and gradient")
    _save(drawing, path)
    return True


def _sheet(panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(4.6 * panels, 4.6), layout="constrained")
    return drawing, list(drawing.subplots(1, panels, squeeze=False).flat)


def _finish(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)


def _save(drawing: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
