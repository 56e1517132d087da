"""physnode data: look at trajectory files, check them, and make them from tables of measurements."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from physnode.cli.output import complain, handles_errors, print_json, show, table
from physnode.data import Report, info, read_csv, validate, write
from physnode.errors import DataError, InputError

app = typer.Typer(
    no_args_is_help=True,
    help="Look at trajectory files (HDF5), check them, and make them from tables of measurements.",
)

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Trajectory files (.h5).", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


@app.command("info")
@handles_errors
def info_command(files: Files, as_json: AsJson = False) -> None:
    """Say what each FILE holds: trajectories, times, variables with units, parameters, origin.

    Reads no measured values. Exit status 1 if a file cannot be used.
    """
    found, refused = [], False
    for path in files:
        try:
            found.append(info(path))
        except DataError as error:
            complain(f"error: {error}")
            refused = True
    if as_json:
        print_json({"files": found})
    else:
        for item in found:
            show_info(item)
    if refused:
        raise typer.Exit(1)


@app.command("validate")
@handles_errors
def validate_command(
    files: Files,
    quick: Annotated[bool, typer.Option("--quick", help="Leave the measured values unread.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as failure too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check each FILE against the schema and list everything that is wrong, with its place and its cure.

    Exit status 0 if there is no error (with --strict: no warning either), 1 otherwise.
    """
    reports = [validate(path, quick=quick) for path in files]
    good = [report.ok and not (strict and report.findings) for report in reports]
    if as_json:
        print_json(
            {
                "ok": all(good),
                "files": [
                    {"path": report.path, "ok": fine, "findings": [item.as_dict() for item in report.findings]}
                    for report, fine in zip(reports, good, strict=True)
                ],
            }
        )
    else:
        for report in reports:
            _show_report(report)
    if not all(good):
        raise typer.Exit(1)


@app.command("import")
@handles_errors
def import_command(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="TABLE...", help="Tables of text (CSV).", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Trajectory file to write (.h5).", show_default=False)],
    time_unit: Annotated[
        str, typer.Option(help="Unit of time: s, ms, us, ns, min, h or d; with a factor for years: '365.25 d'.")
    ],
    unit: Annotated[
        list[str] | None, typer.Option(help="Unit of a variable, as x=arcsec or 'v=km s-1'; 1 if dimensionless. Repeat it.")
    ] = None,
    column_map: Annotated[
        list[str] | None,
        typer.Option("--map", help="A variable and its column(s): speed=vz, position=x,y. Default: every unused column."),
    ] = None,
    sigma: Annotated[
        list[str] | None, typer.Option(help="Column(s) of one standard deviation of a variable: x=x_err. Repeat it.")
    ] = None,
    time: Annotated[str, typer.Option(help="Column of the time.")] = "time",
    time_zero: Annotated[float, typer.Option(help="Time in the table that becomes 0.")] = 0.0,
    trajectory: Annotated[str | None, typer.Option(help="Column that tells trajectories apart.")] = None,
    observation: Annotated[
        list[str] | None, typer.Option(help="Variable that is measured but is no part of the state. Repeat it.")
    ] = None,
    input_: Annotated[list[str] | None, typer.Option("--input", help="Variable that drives the system. Repeat it.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option(help="Variable that is constant within a trajectory. Repeat it.")
    ] = None,
    instrument: Annotated[
        list[str] | None,
        typer.Option(help="Column of instrument names; or, given once for each TABLE, their names."),
    ] = None,
    join: Annotated[bool, typer.Option("--join", help="All tables are one trajectory: merge rows by time.")] = False,
    names: Annotated[str | None, typer.Option(help="Column names, if the tables have none: t,x,y.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Lines to leave out at the top of each table.")] = 0,
    title: Annotated[str | None, typer.Option(help="What the data are, in a few words.")] = None,
    source: Annotated[str | None, typer.Option(help="Where they come from: 'observed: instrument'.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make one trajectory file from TABLEs: text with a line of column names and one row for each time.

    Each table is one trajectory, or several told apart by --trajectory, or all are one with --join. Units are never
    guessed. Empty cells, nan and - are missing values.

    Example: positions and velocities of one star, times in decimal years:

    physnode data import pos.csv vel.csv -o star.h5 --join --time t --time-unit '365.25 d' --time-zero 2000
    --unit x=arcsec --unit 'vz=km s-1' --sigma x=x_err --sigma vz=vz_err --observation x --observation vz
    """
    found = read_csv(
        files,
        units=_single("--unit", unit),
        time_unit=time_unit,
        time=time,
        trajectory=trajectory,
        columns=_pairs("--map", column_map) if column_map else None,
        sigma=_pairs("--sigma", sigma),
        observations=observation or (),
        inputs=input_ or (),
        parameters=parameter or (),
        instrument=_instrument(instrument, len(files)),
        join=join,
        time_zero=time_zero,
        names=names.split(",") if names else None,
        skip=skip,
        title=title,
        source=source,
    )
    written = write(output, found, overwrite=force, history=_command_line(context))
    facts = info(written)
    facts["path"] = str(output)
    if as_json:
        print_json(facts)
    else:
        show_info(facts)


def show_info(item: dict[str, Any]) -> None:
    """Tables of what ``info`` found."""
    length, step, time = item["length"], item["time"]["step"], item["time"]
    unit = time["unit"]
    rows = [
        ("title", item["title"]),
        ("source", item["source"]),
        *([("system", item["system"])] if item["system"] else []),
        ("trajectories", item["trajectories"]),
        ("rows", f"{item['rows']} ({_range(length)} in a trajectory)"),
        ("time", f"{time['min']:.10g} to {time['max']:.10g} {unit}"),
        *([("time step", f"{_range(step)} {unit}")] if step else []),
        *(
            [("splits", ", ".join(f"{count} {name}" for name, count in item["splits"].items()))]
            if set(item["splits"]) - {"none"}
            else []
        ),
        *[(f"axis {dim}", ", ".join(labels[:20])) for dim, labels in item["axes"].items()],
        ("file", f"schema {item['schema_version']}, {item['storage']['bytes']} bytes, read by HDF5 {item['storage']['hdf5']}"),
        ("content_sha256", item["content_sha256"]),
    ]
    show(table(item["path"], ("", ""), rows))
    variables = [
        (
            name,
            facts["role"],
            facts["unit"],
            " x ".join(f"{dim} ({size})" for dim, size in facts["axes"].items()),
            ", ".join(what for what in ("sigma", "mask", "instrument") if facts[what]),
        )
        for name, facts in item["variables"].items()
    ]
    show(table("measured", ("variable", "role", "unit", "axes", "with"), variables))
    if item["parameters"]:
        parameters = [(n, f"{f['min']:.10g}", f"{f['max']:.10g}", f["unit"]) for n, f in item["parameters"].items()]
        show(table("parameters", ("name", "min", "max", "unit"), parameters, right=("min", "max")))


def _show_report(report: Report) -> None:
    if [item.object for item in report.findings if item.rule == "S01"] == ["file"] and len(report.findings) == 1:
        complain(f"error: {report.path}: {report.findings[0].message}")
        return
    if report.findings:
        rows = [
            (
                item.rule,
                item.severity,
                item.object,
                item.trajectory,
                item.row,
                item.message + (f" (found {item.value})" if item.value is not None else ""),
                item.cure,
            )
            for item in report.findings
        ]
        show(table(report.path, ("rule", "severity", "object", "trajectory", "row", "what is wrong", "cure"), rows))
    show(str(report).splitlines()[0])


def _range(spread: dict[str, float]) -> str:
    if spread["min"] == spread["max"]:
        return f"{spread['min']:.6g}"
    return f"{spread['min']:.6g} to {spread['max']:.6g}, median {spread['median']:.6g}"


def _single(option: str, items: list[str] | None) -> dict[str, str]:
    out: dict[str, str] = {}
    for item in items or []:
        name, mark, value = item.partition("=")
        if not mark or not name.strip() or not value.strip():
            raise InputError(f"{option} '{item}' must be NAME=VALUE")
        if name.strip() in out:
            raise InputError(f"{option} names '{name.strip()}' twice")
        out[name.strip()] = value.strip()
    return out


def _pairs(option: str, items: list[str] | None) -> dict[str, str | list[str]]:
    return {
        name: [part.strip() for part in value.split(",")] if "," in value else value
        for name, value in _single(option, items).items()
    }


def _instrument(items: list[str] | None, files: int) -> str | list[str] | None:
    if not items:
        return None
    if len(items) == 1:
        return items[0]
    if len(items) != files:
        raise InputError(f"--instrument was given {len(items)} times for {files} tables; once for each, or one column")
    return items


def _command_line(context: typer.Context) -> str:
    """The command as typed, for the file's history; only names of files, not the folders of this machine."""
    parts: list[str] = []
    for name, value in context.params.items():
        if value in (None, False, [], ()) or name in ("files", "output", "as_json", "force"):
            continue
        option = {"column_map": "--map", "input_": "--input"}.get(name, f"--{name.replace('_', '-')}")
        items = value if isinstance(value, list | tuple) else [value]
        parts.extend(option if item is True else f"{option} {shlex.quote(str(item))}" for item in items)
    files = " ".join(shlex.quote(Path(path).name) for path in context.params["files"])
    return f"physnode data import {files} -o {shlex.quote(Path(context.params['output']).name)} {' '.join(parts)}"
