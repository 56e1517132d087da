"""physnode predict: what a fitted model says at any times, with the band that its uncertainty gives it."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from torch import Tensor

from physnode.cli.models import blaming, state_names
from physnode.cli.options import number
from physnode.cli.output import fail, handles_errors, print_json, show, table
from physnode.cli.runs import open_run, position
from physnode.data import from_arrays, write
from physnode.data.components import grouped
from physnode.errors import InputError
from physnode.fitting import FitResult, Prediction
from physnode.fitting.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["predict_command"]

_SHOWN = 12
_KINDS = (".csv", ".h5", ".png")


@handles_errors
def predict_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that physnode fit --out wrote.", show_default=False)],
    times: Annotated[
        str | None, typer.Option(help="Times as 0,1.5,3, or as first:last:number. Default: those of the data, evenly.")
    ] = None,
    t1: Annotated[float | None, typer.Option(help="Last time, beyond the data if you like.", show_default=False)] = None,
    rows: Annotated[int, typer.Option(min=2, help="Number of times, where --times does not say.")] = 201,
    trajectory: Annotated[int | None, typer.Option(help="Id of the trajectory. Default: the first of the fit.")] = None,
    band: Annotated[float, typer.Option(help="Probability inside the band.")] = 0.68,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write: .csv, .h5 or .png (a figure).", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="path/to/model.py:build, for a run of your own model. The file is executed.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Predict a trajectory of a fit, inside the data or beyond, with a band.

    The band is the uncertainty of the model's parameters and of the start, carried through the motion; measurement noise is
    not in it. It is drawn from formal errors, so it is too narrow where the residuals are correlated.

    Example: thirty seconds ahead, as a figure: physnode predict run --t1 30 --out ahead.png
    """
    if out is not None:
        if out.suffix not in _KINDS:
            raise InputError(f"--out {out}: the name must end in {', '.join(_KINDS)}")
        if out.exists() and not force:
            fail(f"{out}: already exists; --force replaces it")
    result = open_run(run, model)
    place = 0 if trajectory is None else position(result, trajectory)
    wanted = _times(times, t1, rows, result.measured.t[place])
    with blaming(None if model is None else Path(model.rpartition(":")[0])):
        found = result.predict(wanted, band=band, trajectory=place)
        names = state_names(result.model, found.y.shape[1])
    if out is not None:
        _write(out, found, names, result, place, band, force=force)
    if as_json:
        print_json(
            {
                "run": str(run),
                "trajectory": result.measured.ids[place],
                "band": band,
                "names": names,
                "t": found.t.tolist(),
                "y": found.y.tolist(),
                **{name: value.tolist() for name, value in _extras(found).items()},
                "out": None if out is None else str(out),
            }
        )
        return
    _show(found, names, result, place, band)
    if out is not None:
        show(f"written: {out}")


def _times(times: str | None, t1: float | None, rows: int, measured: Tensor) -> Tensor:
    if times is not None and t1 is not None:
        raise InputError("--times and --t1 both say when; give one of them")
    if times is None:
        first, last = float(measured[0]), float(measured[-1]) if t1 is None else t1
        if not math.isfinite(last) or last == first:
            raise InputError(f"--t1 must be a time other than the first, {first:g}; found {last:g}")
        return torch.linspace(first, last, rows, dtype=torch.float64)
    if ":" in times:
        parts = times.split(":")
        if len(parts) != 3 or not parts[2].isdecimal() or int(parts[2]) < 1:
            raise InputError(f"--times '{times}' must be first:last:number, such as 0:20:201, or times separated by commas")
        return torch.linspace(number("--times", parts[0]), number("--times", parts[1]), int(parts[2]), dtype=torch.float64)
    return torch.tensor([number("--times", part) for part in times.split(",")], dtype=torch.float64)


def _extras(found: Prediction) -> dict[str, Tensor]:
    parts = {"lower": found.lower, "upper": found.upper, "error": found.error}
    return {name: value for name, value in parts.items() if value is not None}


def _show(found: Prediction, names: list[str], result: FitResult, place: int, band: float) -> None:
    shown = torch.linspace(0, len(found.t) - 1, min(_SHOWN, len(found.t))).round().long().tolist()
    columns = [f"t [{result.measured.time_unit}]", *[part for name in names[:6] for part in (name, "±")]]
    half = (found.upper - found.y) if found.upper is not None else torch.zeros_like(found.y)
    rows = [
        [f"{float(found.t[i]):.6g}", *[f"{float(v):.6g}" for k in range(len(names[:6])) for v in (found.y[i, k], half[i, k])]]
        for i in shown
    ]
    for row in rows:  # errors need two digits, not six
        row[2::2] = [f"{float(cell):.2g}" for cell in row[2::2]]
    show(table(f"trajectory {result.measured.ids[place]}, {band:.0%} band", columns, rows, right=columns))
    left = []
    if len(shown) < len(found.t):
        left.append(f"{len(shown)} of {len(found.t)} times")
    if len(names) > 6:
        left.append(f"6 of {len(names)} components")
    if left:
        show(f"{' and '.join(left)} are shown; --out FILE.csv or --json gives all")


def _write(out: Path, found: Prediction, names: list[str], result: FitResult, place: int, band: float, *, force: bool) -> None:
    if out.suffix == ".png":
        _needs_folder(out)
        save_figure(_figure(found, names, result, place, band), out)
    elif out.suffix == ".csv":
        _needs_folder(out)
        _replace(out, lambda part: part.write_text(_csv(found, names), encoding="utf-8"))
    else:
        _write_h5(out, found, names, result, force=force)


def _csv(found: Prediction, names: list[str]) -> str:
    extras = _extras(found)
    head = ["time", *names, *[f"{name}_{kind}" for kind in extras for name in names]]
    body = torch.cat((found.t.unsqueeze(-1), found.y, *extras.values()), dim=1).tolist()
    quoted = [f'"{name}"' if "," in name else name for name in head]
    return "\n".join([",".join(quoted), *[",".join(repr(value) for value in row) for row in body]]) + "\n"


def _write_h5(out: Path, found: Prediction, names: list[str], result: FitResult, *, force: bool) -> None:
    order = found.t.argsort()
    groups = grouped(names)
    units = dict.fromkeys((group.name for group in groups), "1") | {"time": result.measured.time_unit}
    columns = result.measured.state_columns
    for channel, unit in enumerate(result.measured.units):
        if columns is not None:
            units[names[columns[channel]].split("[")[0]] = unit
    # no error where the start is known exactly: a sigma of zero would say that nothing else may happen there
    error = found.error[order] if found.error is not None and bool((found.error > 0).all()) else None
    written = from_arrays(
        found.t[order].numpy(),
        {group.name: group.of(found.y[order]) for group in groups},
        sigma=None if error is None else {group.name: group.of(error) for group in groups},
        units=units,
        labels={group.name: dict(group.axes) for group in groups if group.axes},
        title="prediction of a fitted model",
        source="predicted: physnode predict",
    )
    write(out, written, overwrite=force, history=f"physnode predict --out {out.name}")


def _figure(found: Prediction, names: list[str], result: FitResult, place: int, band: float) -> Figure:
    from matplotlib.figure import Figure

    count = min(6, len(names))
    figure = Figure(figsize=(9, 0.8 + 2.2 * count), layout="constrained")
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    order = found.t.argsort()
    t, measured, columns = found.t[order].numpy(), result.measured, result.measured.state_columns or ()
    for component, axis in enumerate(axes):
        if found.lower is not None and found.upper is not None:
            lower, upper = found.lower[order, component].numpy(), found.upper[order, component].numpy()
            axis.fill_between(t, lower, upper, color="tab:orange", alpha=0.35, linewidth=0, label=f"{band:.0%} band")
        axis.plot(t, found.y[order, component].numpy(), color="tab:orange", linewidth=1, label="model")
        if component in columns:
            channel = columns.index(component)
            seen = measured.observed[place][:, channel]
            values = measured.values[place][seen, channel].numpy()
            axis.plot(measured.t[place][seen].numpy(), values, ".", markersize=3, color="black", label="data")
        axis.set_ylabel(names[component])
    axes[0].legend(loc="upper right", ncols=3, fontsize="small")
    axes[-1].set_xlabel(f"t [{measured.time_unit}]")
    return figure


def _needs_folder(out: Path) -> None:
    if not out.parent.is_dir():
        fail(f"{out}: the folder does not exist; make it first")


def _replace(out: Path, fill: Callable[[Path], object]) -> None:
    part = out.with_name(f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        fill(part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
