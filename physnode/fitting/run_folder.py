"""The folder of a run: what was asked, how far it got, and what came out.

    config.json             model, settings, versions, and a fingerprint of the data
    stage-00.safetensors    unknowns and optimiser memory of each stage, replaced whole at every checkpoint
    metrics.jsonl           one line a recorded iteration
    model.safetensors       the fitted weights and constants
    result.json             parameters, errors, verdicts
    result.safetensors      covariances, initial states, data and residuals
    fit.png                 data, fit and residuals of the first trajectory

Every file is written beside its place and moved there, so that a killed run leaves whole files only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from physnode.engine.controllers import Adaptive, Controller, Fixed
from physnode.errors import FitError, InputError
from physnode.fields import VectorField, as_field
from physnode.fitting.measurements import Measurements, Observe
from physnode.fitting.model_spec import build
from physnode.fitting.parameters import Scalar, Shared
from physnode.fitting.problem import Solver
from physnode.fitting.training import Training

if TYPE_CHECKING:
    from physnode.fitting.result import FitResult

__all__ = ["RunFolder", "load", "save"]

_FORMAT = 1


class RunFolder:
    """The files of one run while it is under way."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path, self.resume = path, resume
        self.stages: dict[str, int] = {}

    def begin(self, config: dict[str, Any], measured: Measurements) -> None:
        """Write the configuration, or, when resuming, hold it against the one that is there.

        Raises:
            InputError: the folder holds a run and ``resume`` was not asked for.
            FitError: the run to resume was made with other settings or other data.
        """
        wanted = json.loads(json.dumps({"format": _FORMAT, "data": fingerprint(measured), **config}, default=str))
        there = self.path / "config.json"
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; a run needs a folder of its own")
        for part in self.path.glob(".*.part"):  # a killed run may leave the file it was writing
            part.unlink(missing_ok=True)
        if there.exists():
            if not self.resume:
                raise InputError(
                    f"{self.path} already holds a run; choose another folder, delete it, or resume it (resume=True, --resume)"
                )
            before = _read_json(there)
            changed = [key for key in wanted if before.get(key) != wanted[key]]
            if changed:
                raise FitError(
                    f"{self.path} holds a run with another {' and '.join(changed)}; resume with what it was started with, or "
                    "choose another folder"
                )
            return
        if self.path.exists() and any(self.path.iterdir()):
            raise InputError(f"{self.path} holds files that are no run; choose another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        versions = {name: version(name) for name in ("physnode", "torch", "numpy", "scipy")}
        _write_json(there, {**wanted, "versions": versions})

    def start(self, x: Tensor) -> Tensor:
        """Where the run starts: kept at once, since weights drawn at random would be others in the run that goes on."""
        saved = self.finished("start")
        if saved is not None and saved.x.shape == x.shape:
            return saved.x
        self.checkpoint("start", Training(x), finished=True)
        return x

    def checkpoint(self, stage: str, training: Training, *, finished: bool) -> None:
        """Keep the state of one stage."""
        tensors = {"x": training.x, **{f"state.{name}": value for name, value in training.state.items()}}
        note = {
            "stage": stage,
            "step": training.step,
            "finished": finished,
            "done": training.done,
            "reason": training.reason,
            "history": list(training.history),
        }
        _write_tensors(self._file(stage), tensors, note)
        if finished:
            self._metrics(training)

    def finished(self, stage: str) -> Training | None:
        """The end of a stage, if an earlier run got there."""
        found = self._read(stage)
        return found[0] if found is not None and found[1] else None

    def interrupted(self, stage: str) -> Training | None:
        """The last checkpoint of a stage that was not finished."""
        found = self._read(stage)
        return found[0] if found is not None and not found[1] else None

    def conclude(self, result: FitResult) -> None:
        """Write the result."""
        save(result, self.path)

    def _file(self, stage: str) -> Path:
        number = self.stages.setdefault(stage, len(self.stages))
        return self.path / f"stage-{number:02d}.safetensors"

    def _read(self, stage: str) -> tuple[Training, bool] | None:
        file = self._file(stage)
        if not self.resume or not file.exists():
            return None
        tensors, note = _read_tensors(file)
        if note.get("stage") != stage:
            raise FitError(f"{file} belongs to the stage {note.get('stage')!r}, not {stage!r}; start again in another folder")
        state = {name.removeprefix("state."): value for name, value in tensors.items() if name != "x"}
        training = Training(tensors["x"], note["step"], state, tuple(note["history"]), note["done"], note["reason"])
        return training, bool(note["finished"])

    def _metrics(self, training: Training) -> None:
        lines = "".join(json.dumps(entry) + "\n" for entry in training.history)
        before = self.path / "metrics.jsonl"
        text = before.read_text() if before.exists() else ""
        if lines and lines not in text:
            _atomic(before, lambda part: part.write_text(text + lines))


def save(result: FitResult, folder: Path) -> Path:
    """Write a result into ``folder``, which ``load`` opens; returns the folder."""
    from physnode.fitting.figures import fit_figure, save_figure

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous().clone() for name, value in result.model.state_dict().items()}
    _write_tensors(folder / "model.safetensors", state, {})
    tensors: dict[str, Tensor] = {
        "x": result.x,
        "covariance": result.covariance,
        "robust_covariance": result.robust_covariance,
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
    _write_tensors(folder / "result.safetensors", {name: value.contiguous().clone() for name, value in tensors.items()}, {})
    _write_json(folder / "result.json", _facts(result))
    if not (folder / "config.json").exists():
        config = {"format": _FORMAT, "data": fingerprint(measured), "settings": result.settings, "model": result.spec}
        _write_json(folder / "config.json", config)
    save_figure(fit_figure(result, 0), folder / "fit.png")
    return folder


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
    facts, config = _read_json(path / "result.json"), _read_json(path / "config.json")
    if facts.get("format") != _FORMAT:
        raise InputError(f"{path} has format {facts.get('format')!r}; this version of physnode reads format {_FORMAT}")
    spec = config.get("model")
    if model is not None:
        field = as_field(model)
    elif spec is not None:
        field = build(spec)
    else:
        raise InputError(f"{path} holds a model that physnode cannot build by itself; pass it as load(folder, model=...)")
    field = field.to(torch.float64)
    state, _ = _read_tensors(path / "model.safetensors")
    try:
        field.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the model does not fit the weights in {path}: {str(error).splitlines()[-1].strip()}") from error
    tensors, _ = _read_tensors(path / "result.safetensors")
    try:
        return _restored(facts, tensors, field, observe, spec)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged: result.json and result.safetensors do not hold what they should ({error!r})"
        ) from error


def _restored(
    facts: dict[str, Any], tensors: dict[str, Tensor], field: VectorField, observe: Observe | None, spec: dict[str, Any] | None
) -> FitResult:
    """The result that ``save`` took apart."""
    from physnode.fitting.result import FitResult

    count = facts["trajectories"]
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
        "format": _FORMAT,
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


def _solver(facts: dict[str, Any]) -> Solver:
    options = facts["controller"]
    controller: Controller = Fixed(options["fixed"]) if "fixed" in options else Adaptive(**options)
    return replace(Solver(), method=facts["method"], gradient=facts["gradient"], controller=controller)


def _plain(value: float) -> float | str:
    """JSON has no infinity and no NaN: they are written as words."""
    return value if math.isfinite(value) else str(value)


def _number(value: float | str) -> float:
    return float(value)


def _atomic(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _atomic(path, lambda part: part.write_text(json.dumps(content, indent=2, default=str, allow_nan=False) + "\n"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a run's file: found {type(content).__name__}, needed an object")
    return content


def _write_tensors(path: Path, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
    text = {"note": json.dumps(note)}
    plain = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    _atomic(path, lambda part: save_file(plain, part, metadata=text))


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("note", "{}"))
        return load_file(path), note
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged or missing: {error}") from error
