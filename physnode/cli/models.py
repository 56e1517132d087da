"""How a model is named on the command line: a known system, or a function in a user's own file, and a learned term on top."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from physnode.cli.options import number, numbers
from physnode.data import Trajectories
from physnode.errors import DataError, InputError, PhysnodeError
from physnode.fields import SecondOrder, Sum, VectorField, as_field
from physnode.fitting.model_spec import build
from physnode.systems import System, registry

__all__ = ["Named", "blaming", "from_spec", "known_system", "learned_term", "named", "settings", "state_names"]

_LEARNED = re.compile(r"mlp:(\d{1,3})x(\d{1,5})")


@dataclass(frozen=True)
class Named:
    """A model, and the words it was named by."""

    field: VectorField
    file: Path | None
    """The user's own file, where the model comes from one."""
    spec: dict[str, Any] | None
    """How to build it again, for the run folder; None where the run folder finds that by itself."""


def settings(option: str, given: Mapping[str, str], data: Trajectories | None = None) -> dict[str, Any]:
    """Values of constants as they were typed: a number, numbers separated by commas, or ``@file`` for the data's own parameter.

    ``name=@file`` takes the parameter ``name`` of the trajectories, ``name=@file:other`` the one called ``other``.
    """
    return {name: _value(f"{option} {name}", name, text, data) for name, text in given.items()}


def named(text: str, values: Mapping[str, Any]) -> Named:
    """The model called ``text``: a system of physnode, or ``path/to/model.py:function``.

    Raises:
        InputError: no such system, function or constant.
        DataError: no such file.
    """
    if ".py" not in text:
        return Named(known_system(text, values), None, None)
    file, mark, function = text.rpartition(":")
    if not mark or not file.endswith(".py"):
        raise InputError(f"'{text}' does not say which function builds the model; write {text.split(':')[0]}:build")
    path = Path(file)
    return Named(_from_file(path, function, values), path, {"factory": text, "arguments": dict(values)})


def known_system(name: str, values: Mapping[str, Any]) -> System:
    """A system of physnode with some of its constants set.

    Raises:
        InputError: an unknown system or constant, one that must be given, or a value outside its domain.
    """
    kinds = registry()
    if name not in kinds:
        close = difflib.get_close_matches(name, kinds, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise InputError(f"there is no system '{name}'.{hint} Known: {', '.join(kinds)}; or name a file, model.py:build")
    parameters = {
        key: item for key, item in inspect.signature(kinds[name].__init__).parameters.items() if key not in ("self", "free")
    }
    for key in values:
        if key not in parameters:
            raise InputError(f"{name} has no constant '{key}'; it has {', '.join(parameters)}")
    needed = [key for key, item in parameters.items() if item.default is inspect.Parameter.empty and key not in values]
    if needed:
        raise InputError(f"{name} needs {needed[0]}: --set {needed[0]}=1,0.001 (one number a body)")
    for key, value in values.items():
        if isinstance(value, list) and isinstance(parameters[key].default, int | float):
            raise InputError(f"{key} of {name} is one number; found {len(value)}")
    typed = {key: _whole(key, value) if isinstance(parameters[key].default, int) else value for key, value in values.items()}
    return kinds[name](**typed)


def learned_term(text: str, field: VectorField, dim: int, inputs: Sequence[str] | None, seed: int) -> VectorField:
    """The learned term that ``mlp:DEPTHxWIDTH`` names, for a model of known physics; weights are drawn with ``seed``.

    It acts on the acceleration of second-order physics, and on the whole derivative otherwise.
    """
    found = _LEARNED.fullmatch(text.strip())
    if found is None:
        raise InputError(f"--learned '{text}' must be mlp:DEPTHxWIDTH, such as mlp:2x32 (two hidden layers of 32)")
    options: dict[str, Any] = {"dim": dim, "width": int(found[2]), "depth": int(found[1])}
    options["acts_on"] = "acceleration" if isinstance(field, SecondOrder) else "state"
    if inputs:
        options["inputs"] = tuple(inputs)
    return build({"learned": {**options, "generator": torch.Generator().manual_seed(seed)}})


def from_spec(spec: Mapping[str, Any], text: str) -> VectorField:
    """The model of a run whose known part comes from the user's file ``text``, with the arguments and learned term it had."""
    built = named(text, spec.get("arguments", {}))
    if built.file is None:
        raise InputError(f"--model '{text}' must name the user's own file that the fit was made with: {spec.get('factory')}")
    plus = spec.get("plus")
    return built.field if plus is None else built.field + build(plus)


def state_names(field: VectorField, dim: int) -> list[str]:
    """Names of the state components: those of the model, of its first term that has any, or y[0], y[1], ..."""
    parts = [field, *field.terms] if isinstance(field, Sum) else [field]
    for part in parts:
        try:
            labels = getattr(part, "labels", None)
        except InputError:
            continue
        if labels is not None and len(labels) == dim:
            return list(labels)
    return [f"y[{i}]" for i in range(dim)]


@contextmanager
def blaming(file: Path | None) -> Iterator[None]:
    """Turn whatever goes wrong inside the user's own file into one line that names it and the line."""
    try:
        yield
    except PhysnodeError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.lineno for frame in frames if file is not None and frame.filename == str(file.resolve())]
        if not own:
            raise
        raise InputError(f"{file}, line {own[-1]}: {type(error).__name__}: {error}") from error


def _from_file(path: Path, function: str, values: Mapping[str, Any]) -> VectorField:
    if not path.is_file():
        raise DataError(
            f"{path}: {'is a directory' if path.is_dir() else 'no such file'}; a model is a Python file and a function"
        )
    spec = importlib.util.spec_from_file_location("physnode_user_model", path.resolve())
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported; a model is a Python file")
    module = importlib.util.module_from_spec(spec)
    with blaming(path):
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise InputError(f"{path}, line {error.lineno}: {error.msg}") from error
        except SystemExit as error:
            raise InputError(
                f"{path} ends the program when it is imported; guard that with if __name__ == '__main__'"
            ) from error
        factory = getattr(module, function, None)
        if not callable(factory):
            offered = [
                name for name, item in vars(module).items() if inspect.isfunction(item) and item.__module__ == module.__name__
            ]
            raise InputError(f"{path} has no function '{function}'; it has {', '.join(offered) or 'none'}")
        try:
            inspect.signature(factory).bind(**values)
        except TypeError as error:
            raise InputError(
                f"{path}: {function} cannot be called with --set {', '.join(values) or '(nothing)'}: {error}"
            ) from error
        field = factory(**values)
    try:
        return as_field(field)
    except InputError as error:
        raise InputError(f"{path}: {function} must return a field: {error}") from error


def _value(what: str, name: str, text: str, data: Trajectories | None) -> float | list[Any]:
    if not text.startswith("@"):
        return numbers(what, text) if "," in text else number(what, text)
    source, _, other = text.partition(":")
    if source != "@file":
        raise InputError(f"{what}={text}: write @file, or @file:NAME for a parameter that the file calls otherwise")
    wanted = other or name
    found = [item.parameters.get(wanted) for item in data] if data is not None else []
    known = [item for item in found if item is not None]
    if not known:
        there = ", ".join(data[0].parameters) if data is not None and len(data) else ""
        raise InputError(f"{what}={text}: the file has no parameter '{wanted}'; it has {there or 'none'}")
    if len(known) < len(found) or any(not torch.equal(item, known[0]) for item in known):
        raise InputError(f"{what}={text}: '{wanted}' differs between trajectories; set it to one value")
    value: float | list[Any] = known[0].tolist()
    return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, list) or value != int(value):
        raise InputError(f"{name} must be a whole number; found {value}")
    return int(value)
