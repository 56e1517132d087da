"""physnode simulate: a trajectory file from a known system."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from physnode.cli.data import show_info
from physnode.cli.models import known_system, settings
from physnode.cli.options import assignments, mean_and_sigma, number, numbers, shares, stepping
from physnode.cli.output import handles_errors, print_json, show
from physnode.data import Gaps, Trajectories, info, simulate, write
from physnode.diagnostics import audit
from physnode.engine.controllers import Adaptive, Controller
from physnode.errors import InputError
from physnode.solve import solve
from physnode.systems import System

__all__ = ["simulate_command"]

Repeated = list[str] | None


@handles_errors
def simulate_command(
    context: typer.Context,
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help="A name of physnode systems.", show_default=False)],
    output: Annotated[Path, typer.Option("--out", "-o", help="Trajectory file to write (.h5).", show_default=False)],
    n: Annotated[int | None, typer.Option("-n", help="Number of trajectories. Default: 1, or one for each --y0.")] = None,
    t0: Annotated[float, typer.Option(help="First time.")] = 0.0,
    t1: Annotated[float, typer.Option(help="Last time.")] = 10.0,
    rows: Annotated[int, typer.Option(help="Times in a trajectory.")] = 200,
    constants: Annotated[
        Repeated, typer.Option("--set", help="A constant: frequency=2.0, or gm=1,0.001 for several bodies. Repeat it.")
    ] = None,
    y0: Annotated[
        Repeated, typer.Option(help="Start state, all components separated by commas. Repeat it. Default: drawn by --seed.")
    ] = None,
    noise: Annotated[
        Repeated, typer.Option(help="Standard deviation of the errors of a variable: angle=0.02. Repeat it.")
    ] = None,
    missing: Annotated[
        Repeated, typer.Option(help="Share of missing values, of all variables (0.05) or of one (angle=0.05). Repeat it.")
    ] = None,
    irregular: Annotated[bool, typer.Option("--irregular", help="Random times instead of even ones.")] = False,
    gaps: Annotated[str | None, typer.Option(help="Fewest and most gaps in a trajectory, such as 2:3.")] = None,
    gap_length: Annotated[str | None, typer.Option(help="Shortest and longest gap, such as 1:3, in the time unit.")] = None,
    split: Annotated[str | None, typer.Option(help="Shares of train,valid,test, such as 0.5,0.2,0.3; dealt at random.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn: the same seed gives the same file.")] = 0,
    unit: Annotated[Repeated, typer.Option(help="Unit of time or of a variable: time=d, position=km. Repeat it.")] = None,
    integrator: Annotated[str, typer.Option(help="Method of integration.")] = "dop853",
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance of the integration. Default: 1e-10.")] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance. Default: 1e-12.")] = None,
    dt: Annotated[
        float | None, typer.Option(help="Step of fixed length, for leapfrog and others that have no error estimate.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="What the data are, in a few words.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Simulate a known system as an instrument would see it, and write a trajectory file.

    The file keeps the constants, the exact start states, the standard deviations and all that is needed to make it again. It
    is described as physnode data info does, and the energy of the motion without noise is checked.

    Example: ten swings, half of them for training:

    physnode simulate pendulum --out swings.h5 -n 10 --t1 20 --set frequency=2 --noise angle=0.02 --split 0.5,0.2,0.3
    """
    field = known_system(system, settings("--set", assignments("--set", constants)))
    if (gaps is None) != (gap_length is None):
        raise InputError("--gaps and --gap-length go together; one of them is missing")
    given = stepping(integrator, rtol, atol, dt)
    controller = (
        given
        if dt is not None and given is not None
        else Adaptive(1e-10 if rtol is None else rtol, 1e-12 if atol is None else atol)
    )
    found = simulate(
        field,
        n=n,
        t0=t0,
        t1=t1,
        rows=rows,
        irregular=irregular,
        gaps=None if gaps is None or gap_length is None else _gaps(gaps, gap_length),
        noise={name: number("--noise", value) for name, value in assignments("--noise", noise).items()},
        missing=_missing(missing),
        y0=_start(y0),
        split=None if split is None else shares("--split", split),
        seed=seed,
        method=integrator,
        controller=controller,
        units=assignments("--unit", unit),
        title=title,
        attributes={"system": system},
    )
    written = write(output, found, overwrite=force, history=_command_line(context, output))
    facts = {**info(written), "path": str(output)}
    drifts = _drifts(field, found, integrator, controller)
    if as_json:
        print_json({**facts, "drift": drifts})
        return
    show_info(facts)
    for name, item in drifts.items():
        kind = "relative drift" if item["relative"] else "drift"
        kept = "largest" if item["conserved"] else "not conserved here; largest"
        show(f"{name} of the motion without noise: {kept} {kind} {item['largest']:.3g}")


def _drifts(field: System, found: Trajectories, integrator: str, controller: Controller) -> dict[str, Any]:
    """Energy and invariants along the exact motion of each trajectory; empty where the system has neither."""
    y0 = torch.stack([torch.cat([item.initial[name].reshape(-1) for name in item.variables]) for item in found])
    longest = max(found.lengths)
    ts = np.stack([np.pad(item.t.numpy(), (0, longest - len(item)), mode="edge") for item in found])
    solution = solve(field, y0, ts, method=integrator, controller=controller)
    try:
        drifts = audit(field, solution)
    except InputError:
        return {}
    conserved = field.invariants(solution.ts[..., :1], y0)
    facts = {}
    for name, drift in drifts.items():
        # a momentum of zero has no size to compare a drift with
        relative = bool((drift.value[..., 0].abs() > 1e-9 * drift.value.abs().amax(-1).clamp(min=1e-30)).all())
        size = drift.relative if relative else drift.drift
        facts[name] = {"largest": float(size.abs().max()), "relative": relative, "conserved": name in conserved}
    return facts


def _gaps(count: str, length: str) -> Gaps:
    low, high = mean_and_sigma("--gaps", count)
    if low != int(low) or high != int(high):
        raise InputError(f"--gaps '{count}' must be two whole numbers, such as 2:3")
    return Gaps((int(low), int(high)), mean_and_sigma("--gap-length", length))


def _missing(items: Repeated) -> float | dict[str, float]:
    if items and len(items) == 1 and "=" not in items[0]:
        return number("--missing", items[0])
    return {name: number("--missing", value) for name, value in assignments("--missing", items).items()}


def _start(items: Repeated) -> list[list[float]] | None:
    if not items:
        return None
    states = [numbers("--y0", item) for item in items]
    if len({len(state) for state in states}) > 1:
        raise InputError(
            f"--y0 was given states of {', '.join(str(len(state)) for state in states)} components; they must agree"
        )
    return states


def _command_line(context: typer.Context, output: Path) -> str:
    """The command as typed, for the file's history, without the folders of this machine."""
    words = context.find_root().obj or ["simulate"]
    return "physnode " + " ".join(shlex.quote(word.replace(str(output), output.name)) for word in words)
