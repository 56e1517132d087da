"""Opening a run folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from physnode.engine.controllers import Adaptive, Controller, Fixed
from physnode.errors import InputError
from physnode.fields import VectorField, as_field
from physnode.fitting.measurements import Measurements, Observe
from physnode.fitting.model_spec import build
from physnode.fitting.parameters import Scalar, Shared
from physnode.fitting.problem import Solver
from physnode.fitting.result import FitResult
from physnode.fitting.storage import FORMAT, read_json, read_tensors

__all__ = ["load"]


def load(
    folder: str | Path, *, model: VectorField | Callable[[Tensor, Tensor], Tensor] | None = None, observe: Observe | None = None
) -> FitResult:
    """Open a run folder.

    Args:
        folder: what ``fit(..., run_folder=...)`` or ``result.save`` wrote.
        model: the model, built as it was for the fit, where it is not made of physnode's own systems and learned terms; its
            parameters are overwritten by the fitted ones.
        observe: the observation function of the fit, if there was one.

    Raises:
        InputError: no finished run there, a damaged file, or a model that cannot be built from the folder.
    """
    path = Path(folder)
    if not (path / "result.json").exists():
        found = "holds a run that has not ended; resume it" if (path / "config.json").exists() else "holds no run"
        raise InputError(f"{path} {found}")
    facts, config = read_json(path / "result.json"), read_json(path / "config.json")
    if facts.get("format") != FORMAT:
        raise InputError(f"{path} has format {facts.get('format')!r}; this version of physnode reads format {FORMAT}")
    spec = config.get("model")
    if model is not None:
        field = as_field(model)
    elif spec is not None:
        field = build(spec)
    else:
        raise InputError(f"{path} holds a model that physnode cannot build by itself; pass it as load(folder, model=...)")
    field = field.to(torch.float64)
    state, _ = read_tensors(path / "model.safetensors")
    try:
        field.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the model does not fit the weights in {path}: {str(error).splitlines()[-1].strip()}") from error
    tensors, _ = read_tensors(path / "result.safetensors")
    try:
        return _restored(facts, tensors, field, observe, spec)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged: result.json and result.safetensors do not hold what they should ({error!r})"
        ) from error


def _restored(
    facts: dict[str, Any], tensors: dict[str, Tensor], field: VectorField, observe: Observe | None, spec: dict[str, Any] | None
) -> FitResult:
    """The result that ``save`` took apart."""
    count = facts["trajectories"]
    _check_lengths(facts, tensors)
    shared = Shared(
        tuple(
            Scalar(**{**item, "lower": _number(item["lower"]), "upper": _number(item["upper"])}) for item in facts["scalars"]
        ),
        tuple(facts["weights"]),
        {name.removeprefix("shared."): value for name, value in tensors.items() if name.startswith("shared.")},
    )
    sigma = tuple(tensors[f"data.{i}.sigma"] for i in range(count))
    measured = Measurements(
        names=tuple(facts["channels"]),
        units=tuple(facts["units"]),
        t=tuple(tensors[f"data.{i}.t"] for i in range(count)),
        values=tuple(tensors[f"data.{i}.values"] for i in range(count)),
        observed=tuple(tensors[f"data.{i}.observed"] for i in range(count)),
        sigma=sigma if facts["sigma_source"] == "given" else None,
        state_columns=None if facts["state_columns"] is None else tuple(facts["state_columns"]),
        ids=tuple(facts["ids"]),
        time_unit=facts["time_unit"],
    )
    return FitResult(
        model=field,
        shared=shared,
        x=tensors["x"],
        names=tuple(facts["names"]),
        covariance=tensors["covariance"],
        robust_covariance=tensors["robust_covariance"],
        finite_variances=tensors["finite_variances"],
        null_directions=tensors["null_directions"],
        initial_states=tensors["initial_states"],
        states_free=facts["states_free"],
        measured=measured,
        sigma=sigma,
        sigma_source=facts["sigma_source"],
        group_sigma=facts["group_sigma"],
        residuals=tuple(tensors[f"data.{i}.residuals"] for i in range(count)),
        chi2=_number(facts["chi2"]),
        dof=_number(facts["dof"]),
        absolute_sigma=facts["absolute_sigma"],
        converged=facts["converged"],
        reason=facts["reason"],
        warnings=tuple(facts["warnings"]),
        unidentified=tuple(facts["unidentified"]),
        history=tuple(facts["history"]),
        solver=_solver(facts["solver"]),
        settings=facts["settings"],
        observe=observe,
        spec=spec,
    )


def _check_lengths(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    unknowns, channels = len(tensors["x"]), tensors["data.0.values"].shape[1]
    for key, needed in (("names", unknowns), ("channels", channels), ("units", channels), ("ids", facts["trajectories"])):
        if not isinstance(facts[key], list) or len(facts[key]) != needed:
            raise ValueError(f"{key} should list {needed}")


def _solver(facts: dict[str, Any]) -> Solver:
    options = facts["controller"]
    controller: Controller = Fixed(options["fixed"]) if "fixed" in options else Adaptive(**options)
    return replace(Solver(), method=facts["method"], gradient=facts["gradient"], controller=controller)


def _number(value: float | str) -> float:
    return float(value)
