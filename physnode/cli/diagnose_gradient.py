"""physnode diagnose gradient: are the gradients of a fit right, and are its steps fine enough for its data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from physnode.cli.models import blaming
from physnode.cli.output import complain, fail, handles_errors, print_json, show
from physnode.cli.runs import open_run, position
from physnode.data import open as open_data
from physnode.diagnostics import GradientCheck, LossError, check_gradient, loss_error
from physnode.engine.controllers import Adaptive
from physnode.errors import GradientError, InputError
from physnode.fitting import FitResult
from physnode.fitting.measurements import Measurements, Windows, cut
from physnode.fitting.setup import measure
from physnode.solve import solve

__all__ = ["diagnose_gradient_command"]

_LIMIT = 0.1
"""How far steps may move chi-square, which grows by 1 where a parameter is off by one standard error."""


@handles_errors
def diagnose_gradient_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that physnode fit --out wrote.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Trajectory file to use in place of the data of the fit. The start of each trajectory is estimated.",
            show_default=False,
        ),
    ] = None,
    trajectory: Annotated[
        int | None,
        typer.Option(
            help="Id of the trajectory. Default: the first for gradients, all together for chi-square.", show_default=False
        ),
    ] = None,
    gradient: Annotated[
        list[str] | None,
        typer.Option(
            help="Gradient to check: aca, symplectic, direct or continuous. Repeat it. Default: all.", show_default=False
        ),
    ] = None,
    directions: Annotated[int, typer.Option(min=0, help="Directions of the finite differences; 0 for none.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="How often each gradient is timed.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the directions and of the weights.")] = 0,
    model: Annotated[
        str | None,
        typer.Option(help="path/to/model.py:build, for a run of your own model. The file is executed.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the page.")] = False,
) -> None:
    """Check the gradients behind a fit, and whether its steps are fine enough for its data.

    Gradients by the fitted parameters and the start of a trajectory are held against a float64 reference and against finite
    differences, with the method and the tolerances of the run. At the end of a fit the gradient of chi-square is zero, and
    nothing can be compared with zero. So the measured points get random weights w, and Σ w (predicted - measured) / sigma is
    differentiated: what one more draw of the noise would make of it. Exit status 1 if a gradient is wrong.

    Then the error that finite steps add to chi-square is estimated. A parameter that is off by one standard error raises
    chi-square by 1, so an error below 0.1 is harmless; the rtol that reaches this is named.

    Example: physnode diagnose gradient run --gradient aca --gradient symplectic
    """
    result = open_run(run, model)
    if result.measured.state_columns is None:
        fail(
            f"{run} compares functions of the state (observe=), which a run folder does not hold; use pn.check_gradient instead"
        )
    with blaming(None if model is None else Path(model.rpartition(":")[0])):
        case = _of_run(result, trajectory) if data is None else _of_file(result, data, trajectory)
        one = case.only(case.first)
        check = _check(result, one, gradient, directions, repeats, seed)
        error = _loss_error(result, case)
    facts = {
        "run": str(run),
        "data": None if data is None else str(data),
        "method": error.method.name,
        "gradient": _gradient_facts(check, one),
        "chi2": _chi2_facts(error, case),
    }
    if as_json:
        print_json(facts)
    else:
        _show(check, facts)
    try:
        check.raise_if_wrong()
    except GradientError as wrong:
        fail(wrong)


@dataclass(frozen=True)
class _Case:
    """Measured trajectories and where each starts."""

    measured: Measurements
    y0: Tensor

    @cached_property
    def windows(self) -> Windows:
        """The measurements as padded rows, one a trajectory."""
        return cut(self.measured, [(0, len(t) - 1) for t in self.measured.t])

    @property
    def first(self) -> int:
        """Position of the first trajectory that moves and was measured."""
        for place, (t, seen) in enumerate(zip(self.measured.t, self.measured.observed, strict=True)):
            if len(t) > 1 and bool(seen[1:].any()):
                return place
        fail(f"nothing was measured after the start of trajectory {', '.join(map(str, self.measured.ids[:6]))}")

    def only(self, place: int) -> _Case:
        """One trajectory alone."""
        own: dict[str, Any] = {
            name: (getattr(self.measured, name)[place],) for name in ("t", "values", "observed", "sigma", "ids")
        }
        return _Case(replace(self.measured, **own), self.y0[place : place + 1])

    def residuals(self, ys: Tensor) -> Tensor:
        """(predicted - measured) / sigma, 0 where nothing was measured."""
        assert self.measured.state_columns is not None
        off = (ys[..., list(self.measured.state_columns)] - self.windows.values) / self.windows.sigma
        return torch.where(self.windows.mask, off, 0.0)


def _of_run(result: FitResult, trajectory: int | None) -> _Case:
    case = _Case(replace(result.measured, sigma=result.sigma), result.initial_states)
    return case if trajectory is None else case.only(position(result, trajectory))


def _of_file(result: FitResult, path: Path, trajectory: int | None) -> _Case:
    """The trajectories of a file, with starts that are estimated while the model is held."""
    data = open_data(path)
    if trajectory is not None:
        data = data.select(ids=[trajectory])
    found = result.validate(data)
    if not found.converged:
        complain("warning: the starts of these trajectories could not be estimated well")
    measured = measure(result.model, data, result.observe, result.initial_states[:1], result.settings.get("sigma"))
    if measured.sigma is None:  # the fit has a level for each group, or validate would have refused
        names, group = measured.groups
        levels = torch.tensor([result.group_sigma[name] for name in names], dtype=torch.float64)[group]
        measured = replace(measured, sigma=tuple(levels.expand(values.shape) for values in measured.values))
    return _Case(measured, found.initial_states)


def _check(
    result: FitResult, one: _Case, gradients: list[str] | None, directions: int, repeats: int, seed: int
) -> GradientCheck:
    """``check_gradient`` of Σ w (predicted - measured) / sigma, by what the fit moved.

    The sum is linear in the states: in a sum of squares the curvature would bury the slope, and with it the finite
    differences, where sigma is tiny.
    """
    fitted = result.shared.unpack(result.x[: result.shared.size])
    for name, parameter in result.model.named_parameters():
        parameter.requires_grad_(name in fitted)
    weights = torch.randn(one.windows.values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return check_gradient(
        result.model,
        one.y0,
        one.measured.t[0],
        loss=lambda ys: (weights * one.residuals(ys)).sum(),
        gradients=gradients or None,
        finite_differences=directions,
        repeats=repeats,
        seed=seed,
        method=result.solver.method,
        controller=result.solver.controller,
    )


def _loss_error(result: FitResult, case: _Case) -> LossError:
    """What finite steps add to chi-square."""
    with torch.no_grad():
        solution = solve(
            result.model, case.y0, case.windows.t, t0=case.windows.t[:, 0],
            method=result.solver.method, controller=result.solver.controller, dense=True,
        )  # fmt: skip
    return loss_error(solution, lambda ys: case.residuals(ys).square().sum())


def _gradient_facts(check: GradientCheck, one: _Case) -> dict[str, Any]:
    return {
        "trajectory": one.measured.ids[0],
        "measurements": one.measured.rows_used,
        "variables": check.variables,
        "steps": check.steps,
        "rows": [asdict(row) for row in check.rows],
        "note": check.note or None,
        "wrong": check.wrong,
        "ok": check.ok,
    }


def _chi2_facts(error: LossError, case: _Case) -> dict[str, Any]:
    size = max(abs(error.estimate), float(error.per_step.square().sum().sqrt()))  # what cancels here may not at the next fit
    worst = int(error.parts.abs().argmax())
    wanted, why = _rtol_for(error)
    return {
        "trajectories": case.measured.ids,
        "measurements": case.measured.rows_used,
        "value": error.loss,
        "estimated_error": error.estimate,
        "size_of_error": size,
        "worst_trajectory": case.measured.ids[worst],
        "error_of_worst": float(error.parts[worst]),
        "limit": _LIMIT,
        "fine_enough": max(size, error.rounding) <= _LIMIT,
        "rtol": error.rtol,
        "rtol_for_limit": wanted,
        "why_no_rtol": why,
    }


def _rtol_for(error: LossError) -> tuple[float | None, str | None]:
    """The rtol that reaches the limit, rounded down to one digit; or None, and why there is none."""
    try:
        wanted = error.rtol_for(_LIMIT)
        power = 10.0 ** math.floor(math.log10(wanted))
        rounded = float(f"{math.floor(wanted / power) * power:.0e}")
        Adaptive(rounded).check(error.method, torch.float64)
    except InputError as why:
        return None, str(why)
    return rounded, None


def _show(check: GradientCheck, facts: dict[str, Any]) -> None:
    gradient, chi2 = facts["gradient"], facts["chi2"]
    steps = "fixed steps" if chi2["rtol"] is None else f"rtol {chi2['rtol']:g}"
    where = f"trajectory {gradient['trajectory']}, {gradient['measurements']} measurements"
    show(f"gradients along {where}, by {facts['method']}, {steps}", str(check), "")
    ids = chi2["trajectories"]
    listed = ", ".join(map(str, ids[:12])) + (", ..." if len(ids) > 12 else "")
    show(f"chi-square     {chi2['value']:.6g} over {chi2['measurements']} measurements, trajectory {listed}")
    most = f", of which trajectory {chi2['worst_trajectory']} {chi2['error_of_worst']:+.2g}" if len(ids) > 1 else ""
    size = f"{chi2['estimated_error']:+.2g}{most}, {chi2['size_of_error']:.2g} without cancelling"
    show(f"its error      {size}; harmless below {_LIMIT:g}", f"tolerance      {_advice(chi2)}")


def _advice(chi2: dict[str, Any]) -> str:
    fine, wanted = chi2["fine_enough"], chi2["rtol_for_limit"]
    verdict = f"{'fine enough' if fine else 'too coarse'} for these data"
    if wanted is None:
        return f"{verdict}; {chi2['why_no_rtol']}"
    return f"rtol {chi2['rtol']:g} is {verdict}; about {wanted:g} {'would do' if fine else 'is needed, so fit again'}"
