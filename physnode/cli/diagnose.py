"""physnode diagnose: does a fitted model, or a set of measurements, obey the physics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from physnode.cli.models import blaming, known_system, settings, state_names
from physnode.cli.options import assignments
from physnode.cli.output import complain, fail, handles_errors, print_json, show, table
from physnode.cli.runs import is_run, open_run
from physnode.data import Trajectories, Trajectory
from physnode.data import open as open_data
from physnode.diagnostics import (
    Horizon,
    InvariantDrift,
    ObservedInvariant,
    ResidualStatistics,
    audit,
    long_horizon,
    observed_invariants,
    plot_invariants,
    residual_statistics,
)
from physnode.diagnostics.audit import quantities
from physnode.errors import InputError
from physnode.fitting import FitResult
from physnode.fitting.figures import save_figure
from physnode.solve import solve
from physnode.systems import System

__all__ = ["diagnose_command"]

_ROWS = 400
_MOST_ROWS = 20


@handles_errors
def diagnose_command(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_DATA", help="Folder that physnode fit --out wrote, or a trajectory file.", show_default=False
        ),
    ],
    system: Annotated[
        str | None, typer.Option(help="For a trajectory file: the system whose invariants are evaluated.", show_default=False)
    ] = None,
    constants: Annotated[
        list[str] | None,
        typer.Option("--set", help="A constant of the system: frequency=2, or gm=@file for the file's own. Repeat it."),
    ] = None,
    times_longer: Annotated[
        float, typer.Option(help="For a run: how many times the span of the data the long orbits cover.")
    ] = 10.0,
    model: Annotated[
        str | None,
        typer.Option(help="path/to/model.py:build, for a run of your own model. The file is executed.", show_default=False),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Figure of the drifts to write (.png).", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Check a fitted model, or the data themselves, against what physics conserves.

    For a run: energy and invariants of its known physics along the fitted orbits (friction and learned terms show as a
    change), the same orbits carried much further than the data reach, and whether the residuals look like noise.

    For a trajectory file: energy and invariants of --system at every complete row, with the errors that sigma gives them.

    Examples: physnode diagnose run --times-longer 20

    physnode diagnose data/solar_system/solar_system.h5 --system n-body --set gm=@file
    """
    if plot is not None:
        if plot.suffix != ".png":
            raise InputError(f"--plot {plot}: the name must end in .png")
        if not plot.parent.is_dir():
            fail(f"{plot}: the folder does not exist; make it first")
    if is_run(target):
        if system is not None or constants:
            raise InputError(f"{target} is a run, which knows its model; --system and --set are for trajectory files")
        with blaming(None if model is None else Path(model.rpartition(":")[0])):
            facts, drifts = _run(open_run(target, model), times_longer, quiet=as_json)
    else:
        facts, drifts = _data(target, system, constants, quiet=as_json)
    if plot is not None and drifts:
        save_figure(plot_invariants(drifts, time_unit=str(facts["time_unit"])), plot)
    elif plot is not None:
        complain(f"warning: {plot} was not written: there is no energy and no invariant to draw")
    if as_json:
        print_json({"target": str(target), **facts, "plot": str(plot) if plot is not None and drifts else None})
    elif plot is not None and drifts:
        show(f"figure: {plot}")


def _run(result: FitResult, times_longer: float, *, quiet: bool) -> tuple[dict[str, Any], dict[str, InvariantDrift]]:
    measured = result.measured
    long_enough = [i for i, t in enumerate(measured.t) if len(t) > 1]
    if not long_enough:
        fail("every trajectory of the fit has a single time, so there is no orbit to check")
    start = torch.stack([measured.t[i][0] for i in long_enough])
    end = torch.stack([measured.t[i][-1] for i in long_enough])
    share = torch.linspace(0, 1, _ROWS, dtype=torch.float64)
    ts = start.unsqueeze(-1) + (end - start).unsqueeze(-1) * share
    y0 = result.initial_states[long_enough]
    how: dict[str, Any] = {"method": result.solver.method, "controller": result.solver.controller}
    with torch.no_grad():
        solution = solve(result.model, y0, ts, on_failure="report", **how)
    if not bool(solution.ok.all()):
        complain(f"warning: {solution.failures}")
    try:
        drifts = audit(result.model, solution)
    except InputError as error:
        complain(f"warning: no energy and no invariant was checked: {error}")
        drifts = {}
    horizon = long_horizon(result.model, y0, start, end, factor=times_longer, **how)
    statistics = residual_statistics(measured.names, result.residuals, result.sigma)
    names = state_names(result.model, y0.shape[1])
    ids = [measured.ids[i] for i in long_enough]
    kept = result.model.invariants(start.unsqueeze(-1), y0)
    facts = {
        "kind": "run",
        "time_unit": measured.time_unit,
        "invariants": {name: {**_drift_facts(item, ids), "conserved": name in kept} for name, item in drifts.items()},
        "horizon": _horizon_facts(horizon, names, ids),
        "residuals": _residual_facts(statistics, measured.ids),
    }
    if not quiet:
        _show_run(facts)
    return facts, drifts


def _drift_facts(item: InvariantDrift, ids: list[int]) -> dict[str, Any]:
    first, largest = item.value[..., 0], item.largest
    worst = int(largest.argmax())
    return {
        "start": first.tolist(),
        "end": item.value[..., -1].tolist(),
        "largest_drift": largest.tolist(),
        "largest_relative_drift": [_ratio(float(a), float(b)) for a, b in zip(largest, first, strict=True)],
        "worst_trajectory": ids[worst],
        "worst": worst,
    }


def _ratio(drift: float, start: float) -> float:
    return drift / abs(start) if start else float("nan")


def _horizon_facts(horizon: Horizon, names: list[str], ids: list[int]) -> dict[str, Any]:
    growth = horizon.growth.amax(0)
    return {
        "times_longer": horizon.factor,
        "failed": [ids[i] for i in range(len(ids)) if not bool(horizon.ok[i])],
        "why": horizon.solution.failures or None,
        "growth": {name: float(value) for name, value in zip(names, growth, strict=True)},
        "invariants": {name: _drift_facts(item, ids) for name, item in horizon.drifts.items()},
    }


def _residual_facts(statistics: ResidualStatistics, ids: tuple[int, ...]) -> dict[str, Any]:
    return {
        "channels": {
            item.name: {
                "count": item.count,
                "mean_over_sigma": item.mean,
                "rms_over_sigma": item.rms,
                "lag1_autocorrelation": item.autocorrelation,
                "durbin_watson": item.durbin_watson,
                "correlated": item.correlated,
            }
            for item in statistics.channels
        },
        "mean_square_by_trajectory": {str(number): value for number, value in zip(ids, statistics.per_trajectory, strict=True)},
        "worst_trajectory": ids[statistics.worst],
    }


def _show_run(facts: dict[str, Any]) -> None:
    if facts["invariants"]:
        lost = [name for name, item in facts["invariants"].items() if not item["conserved"]]
        show(table("along the fitted orbits (known physics)", *_drift_table(facts["invariants"]), right=_NUMBERS))
        if lost:
            show(f"not conserved by the whole model, with its friction, drive or learned term: {', '.join(lost)}")
    horizon = facts["horizon"]
    longer = f"{horizon['times_longer']:g} times as long"
    if horizon["invariants"]:
        show(table(longer, *_drift_table(horizon["invariants"]), right=_NUMBERS))
    if horizon["failed"]:
        show(f"{longer}: trajectories {', '.join(map(str, horizon['failed'][:20]))} do not get there: {horizon['why']}")
    growing = {name: value for name, value in horizon["growth"].items() if value > 2}
    if growing:
        listed = ", ".join(f"{name} {value:.3g} times" for name, value in list(growing.items())[:6])
        show(f"{longer}: the largest values grow beyond those within the data: {listed}")
    else:
        show(f"{longer}: no component grows beyond twice its largest size within the data")
    residuals = facts["residuals"]
    columns = ("channel", "number", "mean / σ", "rms / σ", "lag-1 corr.", "Durbin-Watson", "")
    rows = [
        (
            name,
            item["count"],
            f"{item['mean_over_sigma']:.3f}",
            f"{item['rms_over_sigma']:.3f}",
            f"{item['lag1_autocorrelation']:+.3f}",
            f"{item['durbin_watson']:.3f}",
            "correlated" if item["correlated"] else "",
        )
        for name, item in list(residuals["channels"].items())[:_MOST_ROWS]
    ]
    show(table("residuals (white noise: 0, 1, 0, 2)", columns, rows, right=columns[1:6]))
    if any(item["correlated"] for item in residuals["channels"].values()):
        show("correlated residuals: the model misses something smooth, and robust errors are the ones to read")
    by_trajectory = sorted(residuals["mean_square_by_trajectory"].items(), key=lambda item: -item[1])
    listed = ", ".join(f"{number}: {value:.3f}" for number, value in by_trajectory[:12])
    show(f"chi-square over number of measurements by trajectory, worst first: {listed}")


_NUMBERS = ("at the start", "at the end", "largest drift", "relative")


def _drift_table(found: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    rows: list[tuple[object, ...]] = []
    for name, item in list(found.items())[:_MOST_ROWS]:
        worst = item["worst"]
        numbers = (item["start"], item["end"], item["largest_drift"], item["largest_relative_drift"])
        rows.append((name, *[f"{values[worst]:.4g}" for values in numbers], item["worst_trajectory"]))
    return ("quantity", *_NUMBERS, "worst trajectory"), rows


def _data(
    target: Path, system: str | None, constants: list[str] | None, *, quiet: bool
) -> tuple[dict[str, Any], dict[str, InvariantDrift]]:
    data = open_data(target)
    if system is None:
        named = data.attributes.get("system")
        hint = f" (the file says: {named})" if named else ""
        raise InputError(f"{target} is a trajectory file; name the system whose invariants are meant: --system NAME{hint}")
    field = known_system(system, settings("--set", assignments("--set", constants), data))
    columns = _columns(field, data)
    sample = field.initial_states(1)
    quantities(field, torch.zeros_like(sample[:, :1]), sample)  # refuses a system that has nothing to evaluate
    found: dict[int, dict[str, ObservedInvariant]] = {}
    for item in data:
        try:
            found[item.id] = _observed(field, item, columns)
        except InputError as error:
            complain(f"warning: trajectory {item.id} is left out: {error}")
    if not found:
        fail(f"{target}: no trajectory could be evaluated")
    unit = data.units["time"]
    facts: dict[str, Any] = {
        "kind": "data",
        "time_unit": unit,
        "system": system,
        "trajectories": {
            str(number): {
                name: {
                    "rows": len(item.value),
                    "mean": item.mean,
                    "scatter": item.scatter,
                    "change": item.change,
                    "reduced_chi2": item.reduced_chi2,
                }
                for name, item in items.items()
            }
            for number, items in found.items()
        },
    }
    if not quiet:
        _show_data(facts)
    first = next(iter(found.values()))
    return facts, {name: item.drift for name, item in first.items()}


def _columns(field: System, data: Trajectories) -> list[int]:
    """Which column of the data is each component of the system's state: by name, else by order."""
    if set(field.labels) <= set(data.names):
        return [data.names.index(label) for label in field.labels]
    if len(field.labels) == data.dim:
        return list(range(data.dim))
    raise InputError(
        f"the data hold {data.dim} state components ({', '.join(data.names[:6])}) but the system has {field.dim} "
        f"({', '.join(field.labels[:6])})"
    )


def _observed(field: System, item: Trajectory, columns: list[int]) -> dict[str, ObservedInvariant]:
    sigma = None if item.sigma is None else item.sigma[:, columns]
    return observed_invariants(field, item.t, item.y[:, columns], item.observed[:, columns], sigma)


def _show_data(facts: dict[str, Any]) -> None:
    rows = [
        (number, name, item["rows"], *[f"{item[key]:.5g}" for key in ("mean", "scatter", "change", "reduced_chi2")])
        for number, items in facts["trajectories"].items()
        for name, item in items.items()
    ]
    columns = ("trajectory", "quantity", "rows", "mean", "scatter", "change", "reduced chi-square")
    show(table(f"{facts['system']} on the data", columns, rows[: 3 * _MOST_ROWS], right=columns[2:]))
    if len(rows) > 3 * _MOST_ROWS:
        show(f"{3 * _MOST_ROWS} of {len(rows)} lines are shown; --json gives all")
    show("change: last third of the rows minus the first. reduced chi-square: near 1 if constant, nan without sigma.")
