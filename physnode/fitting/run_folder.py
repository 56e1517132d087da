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

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from physnode.errors import FitError, InputError
from physnode.fitting.measurements import Measurements
from physnode.fitting.saving import fingerprint, save
from physnode.fitting.storage import FORMAT, atomic, read_json, read_tensors, write_json, write_tensors
from physnode.fitting.training import Training

if TYPE_CHECKING:
    from physnode.fitting.result import FitResult

__all__ = ["RunFolder"]


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
        wanted = json.loads(json.dumps({"format": FORMAT, "data": fingerprint(measured), **config}, default=str))
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
            changed = _differences(read_json(there), wanted)
            if changed:
                raise FitError(
                    f"{self.path} holds a run that was started otherwise: {'; '.join(changed)}. Resume with what it was "
                    "started with, or choose another folder"
                )
            return
        if self.path.exists() and any(self.path.iterdir()):
            raise InputError(f"{self.path} holds files that are no run; choose another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        versions = {name: version(name) for name in ("physnode", "torch", "numpy", "scipy")}
        write_json(there, {**wanted, "versions": versions})

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
        write_tensors(self._file(stage), tensors, note)
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
        tensors, note = read_tensors(file)
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
            atomic(before, lambda part: part.write_text(text + lines))


def _differences(before: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What a run to be resumed has otherwise, in words."""
    words = {"data": "other data", "model": "another model"}
    found = [words.get(key, key) for key in wanted if key != "settings" and before.get(key) != wanted[key]]
    old, new = before.get("settings"), wanted.get("settings")
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        found += [f"{name} {json.dumps(old.get(name))[:60]}, now {json.dumps(new.get(name))[:60]}" for name in names]
    elif old != new:
        found.append("other settings")
    return found
