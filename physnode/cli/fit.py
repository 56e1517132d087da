"""physnode fit: parameters with error bars from a trajectory file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from physnode.cli.models import Named, blaming, learned_term, named, settings
from physnode.cli.options import assignments, interval, listed, mean_and_sigma, number, stepping
from physnode.cli.output import complain, fail, handles_errors, print_json, show
from physnode.data import Trajectories
from physnode.data import open as open_data
from physnode.errors import InputError, PhysnodeError
from physnode.fitting import FitResult, Validation, fit
from physnode.fitting.model_spec import describe

__all__ = ["fit_command"]

Repeated = list[str] | None
_SPLITS = ("train", "valid", "test", "all")


@handles_errors
def fit_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name of physnode systems, or path/to/model.py:build, a function that returns a field. That file is "
            "imported, so it is executed: name only files you trust.",
            show_default=False,
        ),
    ],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Trajectory file (.h5).", show_default=False)],
    free: Annotated[Repeated, typer.Option(help="Constant to fit, such as damping, or one entry: gm[1]. Repeat it.")] = None,
    fixed: Annotated[
        Repeated, typer.Option(help="Constant, or entry of one, that is held: damping, or at a value: gm[0]=1.0. Repeat it.")
    ] = None,
    constants: Annotated[
        Repeated,
        typer.Option(
            "--set",
            help="Value of a constant, where a fit of it starts: frequency=1.9, gm=1,0.001; gm=@file takes it from the "
            "parameters of the trajectory file (gm=@file:mass if the file calls it mass). For a model of your own: arguments "
            "of its function. Repeat it.",
        ),
    ] = None,
    learned: Annotated[
        str | None,
        typer.Option(help="Add a learned term: mlp:2x32 is a network with two hidden layers of 32. It starts at zero."),
    ] = None,
    learned_inputs: Annotated[
        Repeated, typer.Option(help="What the learned term sees: q (positions), v (velocities), t (time). Default: q and v.")
    ] = None,
    bounds: Annotated[
        Repeated, typer.Option(help="Limits of a constant: damping=0:1, or damping=0: with one end open. Repeat it.")
    ] = None,
    prior: Annotated[
        Repeated, typer.Option(help="What is known of a constant beforehand, mean:sigma, such as frequency=2:0.1. Repeat it.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, valid, test or all. Default: train if the file has splits, else all.")
    ] = None,
    sigma: Annotated[
        Repeated, typer.Option(help="Standard deviation of a variable, in place of the file's: angle=0.02. Repeat it.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="least_squares, adam, lbfgs, adam+lbfgs; auto: the first, or the last with a learned term.")
    ] = "auto",
    shooting: Annotated[
        str, typer.Option(help="single, multiple, auto, or a number of windows a trajectory is cut into at first.")
    ] = "auto",
    integrator: Annotated[str, typer.Option(help="Method of integration.")] = "dop853",
    native: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Solve by native code, made once in some seconds. Default: where the fit takes hundreds of gradients.",
            show_default=False,
        ),
    ] = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance of the integration. Default: 1e-8.")] = None,
    dt: Annotated[
        float | None, typer.Option(help="Step of fixed length, for leapfrog and others that have no error estimate.")
    ] = None,
    adam_steps: Annotated[int, typer.Option(min=1, help="Steps of Adam.")] = 600,
    max_iterations: Annotated[int, typer.Option(min=1, help="Iterations of least squares or L-BFGS in a stage.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the first weights of a learned term.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run: checkpoints, result, figure.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run in --out was interrupted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the page.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar (there is none in a file or a pipe).")] = False,
) -> None:
    """Fit free constants, a learned term and the start of each trajectory, and say how well each is determined.

    Errors are one standard deviation: formal ones hold for independent residuals, robust ones also for residuals that are
    correlated in time. Trajectories of the other splits are then described with everything held but their starts.

    Example: frequency and damping of a pendulum, from wrong guesses:

    physnode fit pendulum data/pendulum/pendulum.h5 --set frequency=1.9 --free frequency --free damping --out run

    Example: damping unknown, learned from the data instead:

    physnode fit pendulum data/pendulum/pendulum.h5 --free frequency --set frequency=1.9 --learned mlp:2x16 --learned-inputs v
    """
    if resume and out is None:
        raise InputError("--resume needs the folder of the run: --out RUN")
    if out is not None and out.exists() and not out.is_dir():
        fail(f"{out}: is a file; a run needs a folder of its own")
    windows = int(shooting) if shooting.isdecimal() else shooting
    if windows == 0:
        raise InputError("--shooting 0: a trajectory is at least one window")
    everything = open_data(data)
    chosen, splits = _chosen(everything, split)
    controller = stepping(integrator, rtol, None if rtol is None else _absolute(chosen, rtol), dt)
    values = settings("--set", assignments("--set", constants), everything)
    start = named(model, values)
    if learned is not None:
        start = _with_learned(start, learned, listed(learned_inputs), everything, seed)
    elif learned_inputs:
        raise InputError("--learned-inputs needs a learned term: --learned mlp:2x32")
    with _resumable(out), blaming(start.file):
        result = fit(
            start.field,
            chosen,
            free=listed(free) or None,
            fixed=_fixed(fixed),
            bounds={name: interval(f"--bounds {name}", text) for name, text in assignments("--bounds", bounds).items()},
            priors={name: mean_and_sigma(f"--prior {name}", text) for name, text in assignments("--prior", prior).items()},
            sigma={name: number("--sigma", text) for name, text in assignments("--sigma", sigma).items()} or None,
            method=method,
            shooting=windows,
            integrator=integrator,
            compile="auto" if native is None else native,
            controller=controller,
            adam_steps=adam_steps,
            max_iterations=max_iterations,
            run_folder=out,
            resume=resume,
            seed=seed,
            progress=not quiet and sys.stderr.isatty(),
            spec=start.spec,
        )
        validations = _validate(result, everything, splits)
    if as_json:
        print_json({"model": model, "data": str(data), **_facts(result, validations), "run": None if out is None else str(out)})
        return
    show(result.summary())
    if validations:
        show("", *[f"{name}: {validation}" for name, validation in validations.items()])
    if out is not None:
        show("", f"run: {out}", f"figure: {out / 'fit.png'}")


@contextmanager
def _resumable(out: Path | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        fail("interrupted" + ("" if out is None else f"; the same command with --resume goes on from {out}"), 130)


def _chosen(data: Trajectories, split: str | None) -> tuple[Trajectories, list[str]]:
    """The trajectories to fit, and the splits left to validate on."""
    there = [name for name in _SPLITS[:3] if name in data.splits]
    if split is None:
        split = "train" if "train" in there else "all"
    if split not in _SPLITS:
        raise InputError(f"--split must be one of {', '.join(_SPLITS)}; found '{split}'")
    if split == "all":
        return data, []
    if split not in there:
        raise InputError(f"--split {split}: the file has no such trajectories; it has {', '.join(there) or 'no splits'}")
    return data.split(split), [name for name in ("valid", "test") if name in there and name != split]


def _with_learned(start: Named, learned: str, inputs: list[str], data: Trajectories, seed: int) -> Named:
    term = learned_term(learned, start.field, getattr(start.field, "dim", None) or data.dim, inputs, seed)
    spec = start.spec
    if spec is not None:
        spec = {**spec, "plus": describe(term)}
    return Named(start.field + term, start.file, spec)


def _fixed(items: Repeated) -> dict[str, float] | list[str] | None:
    plain = [item for item in listed(items) if "=" not in item]
    at = {
        name: number("--fixed", text) for name, text in assignments("--fixed", [i for i in listed(items) if "=" in i]).items()
    }
    if plain and at:
        raise InputError(f"--fixed: give every held constant a value, or none; {plain[0]} has none (set it with --set)")
    return at or plain or None


def _absolute(data: Trajectories, rtol: float) -> float:
    """An absolute tolerance far below the smallest typical size of any measured component."""
    values = torch.cat([torch.where(item.observed, item.y, 0.0) for item in data]).to(torch.float64)
    sizes = values.square().mean(0).sqrt()
    return 1e-3 * rtol * float(sizes[sizes > 0].min()) if bool((sizes > 0).any()) else 1e-3 * rtol


def _validate(result: FitResult, data: Trajectories, splits: list[str]) -> dict[str, Validation]:
    found = {}
    for name in splits:
        try:
            found[name] = result.validate(data.split(name))
        except PhysnodeError as error:
            complain(f"warning: the {name} trajectories could not be described: {error}")
    return found


def _facts(result: FitResult, validations: dict[str, Validation]) -> dict[str, Any]:
    return {
        "parameters": result.parameters,
        "errors": result.errors,
        "robust_errors": result.robust_errors,
        "units": {scalar.name: scalar.unit for scalar in result.shared.free},
        "fixed": {scalar.name: scalar.start for scalar in result.shared.scalars if not scalar.free},
        "learned_weights": result.shared.size - len(result.shared.free),
        "chi2": result.chi2,
        "dof": result.dof,
        "reduced_chi2": result.reduced_chi2,
        "sigma": result.sigma_source,
        "noise": result.group_sigma,
        "converged": result.converged,
        "reason": result.reason,
        "unidentified": result.unidentified,
        "warnings": result.warnings,
        "validation": {
            name: {"reduced_chi2": item.reduced_chi2, "dof": item.dof, "per_trajectory": item.per_trajectory}
            for name, item in validations.items()
        },
    }
