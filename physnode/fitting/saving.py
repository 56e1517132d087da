"""Writing a result into a folder, as JSON and safetensors: nothing in it is executed when it is read."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from physnode.engine.controllers import Adaptive, Fixed
from physnode.fitting.figures import fit_figure, save_figure
from physnode.fitting.measurements import Measurements
from physnode.fitting.problem import Solver
from physnode.fitting.storage import FORMAT, write_json, write_tensors

if TYPE_CHECKING:
    from physnode.fitting.result import FitResult

__all__ = ["fingerprint", "save"]


def save(result: FitResult, folder: Path) -> Path:
    """Write a result into ``folder``, which ``load`` opens; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous().clone() for name, value in result.model.state_dict().items()}
    write_tensors(folder / "model.safetensors", state, {})
    tensors: dict[str, Tensor] = {
        "x": result.x,
        "covariance": result.covariance,
        "robust_covariance": result.robust_covariance,
        "finite_variances": result.finite_variances,
        "null_directions": result.null_directions,
        "initial_states": result.initial_states,
        **{f"shared.{name}": value for name, value in result.shared.tensors.items()},
    }
    measured = result.measured
    for i in range(len(measured.t)):
        tensors |= {
            f"data.{i}.t": measured.t[i],
            f"data.{i}.values": measured.values[i],
            f"data.{i}.observed": measured.observed[i],
            f"data.{i}.sigma": result.sigma[i],
            f"data.{i}.residuals": result.residuals[i],
        }
    write_tensors(folder / "result.safetensors", {name: value.contiguous().clone() for name, value in tensors.items()}, {})
    write_json(folder / "result.json", _facts(result))
    if not (folder / "config.json").exists():
        config = {"format": FORMAT, "data": fingerprint(measured), "settings": result.settings, "model": result.spec}
        write_json(folder / "config.json", config)
    save_figure(fit_figure(result, 0), folder / "fit.png")
    return folder


def fingerprint(measured: Measurements) -> str:
    """A hash of everything measured."""
    digest = hashlib.sha256("\0".join((*measured.names, *measured.units, measured.time_unit)).encode())
    for group in (measured.t, measured.values, measured.observed, measured.sigma or ()):
        for tensor in group:
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _facts(result: FitResult) -> dict[str, Any]:
    measured = result.measured
    return {
        "format": FORMAT,
        "parameters": result.parameters,
        "errors": {name: _plain(value) for name, value in result.errors.items()},
        "robust_errors": {name: _plain(value) for name, value in result.robust_errors.items()},
        "reduced_chi2": _plain(result.reduced_chi2),
        "chi2": _plain(result.chi2),
        "dof": _plain(result.dof),
        "converged": result.converged,
        "reason": result.reason,
        "warnings": result.warnings,
        "unidentified": result.unidentified,
        "sigma_source": result.sigma_source,
        "group_sigma": result.group_sigma,
        "absolute_sigma": result.absolute_sigma,
        "names": result.names,
        "scalars": [
            {**asdict(scalar), "lower": _plain(scalar.lower), "upper": _plain(scalar.upper)} for scalar in result.shared.scalars
        ],
        "weights": result.shared.weights,
        "states_free": result.states_free,
        "trajectories": len(measured.t),
        "ids": measured.ids,
        "channels": measured.names,
        "units": measured.units,
        "time_unit": measured.time_unit,
        "state_columns": measured.state_columns,
        "solver": _solver_facts(result.solver),
        "settings": result.settings,
        "history": result.history,
    }


def _solver_facts(solver: Solver) -> dict[str, Any]:
    controller = solver.controller
    options: dict[str, Any]
    if isinstance(controller, Fixed):
        options = {"fixed": controller.dt}
    elif isinstance(controller, Adaptive):
        options = {
            "rtol": controller.rtol,
            "atol": None if controller.atol is None else controller.atol.tolist(),
            "per_trajectory": controller.per_trajectory,
        }
    else:
        options = {}
    return {
        "method": solver.method if isinstance(solver.method, str) else solver.method.name,
        "gradient": solver.gradient if isinstance(solver.gradient, str) else solver.gradient.name,
        "controller": options,
    }


def _plain(value: float) -> float | str:
    """JSON has no infinity and no NaN: they are written as words."""
    return value if math.isfinite(value) else str(value)
