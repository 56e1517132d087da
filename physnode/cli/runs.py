"""Run folders as commands see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from physnode.cli.models import blaming, from_spec
from physnode.cli.output import fail
from physnode.errors import InputError
from physnode.fitting import FitResult, load

__all__ = ["is_run", "open_run", "position"]


def is_run(path: Path) -> bool:
    """Whether ``path`` is a folder, which only a run can be."""
    return path.is_dir()


def open_run(path: Path, model: str | None) -> FitResult:
    """The result in a run folder; ends the command with one line where there is none.

    ``model`` names the user's own file again, ``model.py:build``, for a run whose model physnode does not know.
    """
    if not path.exists():
        fail(f"{path}: no such run folder; physnode fit --out {path} makes one")
    if not path.is_dir():
        fail(f"{path}: is a file; a run is the folder that physnode fit --out wrote")
    spec = _spec(path)
    if not spec and model is None and (path / "result.json").exists():
        fail(f"{path}: physnode does not know how to build the model of this run; name it: --model path/to/model.py:build")
    if "factory" in spec and model is None:
        fail(
            f"{path}: the model came from {spec['factory']}, which is not run without being asked; "
            f"run it again with --model {spec['factory']}"
        )
    if model is None:
        try:
            return load(path)
        except InputError as error:
            fail(error)
    if spec and "factory" not in spec:
        raise InputError(f"{path} knows how to build its model, which is made of physnode's own parts; leave --model out")
    field = from_spec(spec, model)
    with blaming(Path(model.rpartition(":")[0])):
        try:
            return load(path, model=field)
        except InputError as error:
            fail(error)


def position(result: FitResult, trajectory: int) -> int:
    """Position of the trajectory with this id among those of the fit.

    Raises:
        InputError: the fit has no such trajectory.
    """
    ids = result.measured.ids
    if trajectory not in ids:
        listed = ", ".join(map(str, ids[:20])) + (", ..." if len(ids) > 20 else "")
        raise InputError(f"the fit has no trajectory {trajectory}; it was made on {listed}")
    return ids.index(trajectory)


def _spec(path: Path) -> dict[str, Any]:
    """How the model was named; empty where the folder does not say."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    spec = config.get("model") if isinstance(config, dict) else None
    return spec if isinstance(spec, dict) else {}
