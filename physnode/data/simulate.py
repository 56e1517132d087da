"""Simulated datasets: a known system seen as an instrument would see it, with the truth kept beside the noise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physnode.data import schema
from physnode.data.build import from_arrays
from physnode.data.components import Group, grouped
from physnode.data.sampling import Gaps, sample_times
from physnode.data.table import Array
from physnode.data.trajectories import Trajectories
from physnode.data.units import unit_fault
from physnode.engine import methods
from physnode.engine.controllers import Adaptive, Controller, Fixed
from physnode.engine.families.base import Method
from physnode.errors import InputError
from physnode.fields import VectorField, as_field
from physnode.solve import solve

__all__ = ["simulate"]

_NOISE, _TIMES, _SPLIT = 1, 2, 3  # streams of random numbers that do not depend on each other


def simulate(
    system: Any,
    *,
    n: int | None = None,
    ts: Any = None,
    t0: float = 0.0,
    t1: float | None = None,
    rows: int | None = None,
    irregular: bool = False,
    gaps: Gaps | None = None,
    noise: Mapping[str, float] | None = None,
    missing: float | Mapping[str, float] = 0.0,
    decimals: Mapping[str, int] | None = None,
    y0: Any = None,
    split: Sequence[float] | None = None,
    seed: int = 0,
    method: str | Method = "dop853",
    controller: Controller | None = None,
    names: Sequence[str] | None = None,
    units: Mapping[str, str] | None = None,
    title: str | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Trajectories:
    """Trajectories of ``system`` with measurement noise, missing values and gaps, and all that is needed to make them again.

    Each trajectory starts at its first time, where its exact state is kept as ``initial``. The constants of the system are
    kept as parameters, the noise as ``sigma``.

    Args:
        system: a :class:`physnode.systems.System`, or any field; then give ``y0``, and ``names`` unless it has ``labels``.
        n: number of trajectories, by default 1 or as many as ``y0`` has.
        ts: output times: ``(T,)`` for all, or one array a trajectory. Or give ``t1`` and ``rows`` instead.
        t0, t1, rows: ``rows`` times from ``t0`` to ``t1``, evenly spaced, or uniformly random if ``irregular`` (the first at
            ``t0``).
        gaps: stretches of time without rows; only together with ``t1`` and ``rows``.
        noise: ``{variable: standard deviation}`` of independent normal errors, in the variable's unit.
        missing: probability that a row lacks a variable, one for all or by variable. No row lacks all of them.
        decimals: ``{variable or "time": number}`` of decimals that are recorded. Rounding also makes the stored numbers the
            same on machines whose arithmetic differs in the last bits.
        y0: start states ``(n, dim)`` or ``(dim,)``; by default the system's own ``initial_states(n, seed)``.
        split: shares of train, valid and test, such as ``(0.5, 0.2, 0.3)``; trajectories are dealt at random.
        seed: of everything that is drawn. No global generator is touched, and a trajectory stays the same if ``n`` grows, as
            far as start states do.
        method, controller: as in :func:`physnode.solve`; by default relative tolerance 1e-10, absolute 1e-12.
        names: names of the state components, such as ``("angle", "rate")`` or ``("position[x]", "position[y]")``.
        units: units of "time" (default s), of variables and of constants; by default as the system says, else 1.
        title, attributes: for the file, such as ``attributes={"license": "CC0-1.0"}``.

    Returns:
        Trajectories; states are in ``y`` in the order of the system's own state.

    Raises:
        InputError: arguments that contradict each other, or name a variable that does not exist.
        SolveError: a trajectory could not be integrated.
    """
    field = as_field(system)
    start = _start_states(field, y0, n, seed)
    count = len(start)
    groups = grouped(_names(field, names, start.shape[1]))
    times = _times(ts, t0, t1, rows, irregular, gaps, count, seed, (decimals or {}).get(schema.TIME))
    levels = _by_variable("noise", noise or {}, groups)
    chances = _by_variable(
        "missing", missing if isinstance(missing, Mapping) else dict.fromkeys(_heads(groups), missing), groups
    )
    places = {name: int(value) for name, value in (decimals or {}).items()}
    _by_variable("decimals", {name: value for name, value in places.items() if name != schema.TIME}, groups)
    if any(not 0 < value < math.inf for value in levels.values()):
        raise InputError(f"noise must be positive standard deviations; leave a variable out to keep it exact; found {levels}")
    if any(not 0 <= value < 1 for value in chances.values()):
        raise InputError(f"missing must be probabilities from 0 to below 1; found {chances}")
    chosen, control = methods.get(method), controller if controller is not None else Adaptive(1e-10, 1e-12)

    with torch.no_grad():
        longest = max(len(item) for item in times)
        padded = np.stack([np.pad(item, (0, longest - len(item)), mode="edge") for item in times])
        clean = solve(field, start, padded, t0=padded[:, 0], method=chosen, controller=control).ys
    values: dict[str, list[Array]] = {group.name: [] for group in groups}
    for index, item in enumerate(times):
        generator = np.random.default_rng([seed, _NOISE, index])
        seen = _observed(generator, len(item), groups, chances)
        for column, group in enumerate(groups):
            measured = np.array(group.of(clean[index, : len(item)]))
            if group.name in levels:
                measured = measured + levels[group.name] * generator.standard_normal(measured.shape)
            if group.name in places:
                measured = np.round(measured, places[group.name])
            measured[~seen[:, column]] = np.nan
            values[group.name].append(measured)

    constants = _constants(field, count, groups)
    config = {
        "system": type(field).__name__,
        "constants": {name: value[0].tolist() for name, value in constants.items()},
        "n": count,
        "times": "given" if ts is not None else {"t0": t0, "t1": t1, "rows": rows, "irregular": irregular},
        "gaps": None if gaps is None else asdict(gaps),
        "noise": levels,
        "missing": chances,
        "decimals": places,
        "start_states": "given" if y0 is not None else "system",
        "split": None if split is None else list(split),
    }
    return from_arrays(
        times,
        values,
        sigma=levels,
        parameters=constants,
        initial={group.name: group.of(start) for group in groups},
        units=_units(field, groups, list(constants), units or {}),
        labels=_labels(groups, constants),
        split=None if split is None else _split(split, count, seed),
        title=title if title is not None else f"simulated: {getattr(field, 'description', '') or type(field).__name__}",
        source=f"simulated: {type(field).__module__}.{type(field).__qualname__} {_version()}",
        attributes={
            "system": type(field).__name__,
            "generator_name": "physnode.data.simulate",
            "generator_version": _version(),
            "generator_seed": int(seed),
            "generator_config": json.dumps(config),
            "integrator": chosen.name,
            **_accuracy(control),
            **(attributes or {}),
        },
    )


def _start_states(field: VectorField, y0: Any, n: int | None, seed: int) -> Tensor:
    if n is not None and n < 1:
        raise InputError(f"n must be at least 1; found {n}")
    if y0 is None:
        offered = getattr(field, "initial_states", None)
        if offered is None:
            raise InputError(f"{type(field).__name__} offers no start states; give y0 of shape (n, dim)")
        start: Tensor = offered(1 if n is None else n, seed).detach()
        return start.to(torch.float64)
    start = torch.as_tensor(np.asarray(y0, dtype=np.float64)) if not isinstance(y0, Tensor) else y0.detach().to(torch.float64)
    if start.ndim == 1:
        start = start.expand(1 if n is None else n, -1)
    if start.ndim != 2 or 0 in start.shape:
        raise InputError(f"y0 must have shape (n, dim) or (dim,); found {tuple(start.shape)}")
    if n is not None and len(start) != n:
        raise InputError(f"y0 holds {len(start)} start states, but n is {n}; give one of them")
    return start.contiguous()


def _names(field: VectorField, names: Sequence[str] | None, dim: int) -> Sequence[str]:
    found = names if names is not None else getattr(field, "labels", None)
    if found is None:
        raise InputError(f"{type(field).__name__} does not name its state; give names, one for each of the {dim} components")
    if len(found) != dim:
        raise InputError(f"there are {len(found)} names for {dim} components of the state: {', '.join(found[:12])}")
    return list(found)


def _times(
    ts: Any,
    t0: float,
    t1: float | None,
    rows: int | None,
    irregular: bool,
    gaps: Gaps | None,
    count: int,
    seed: int,
    decimals: int | None,
) -> list[Array]:
    if (ts is None) == (t1 is None and rows is None):
        raise InputError("give the times as ts, or else t1 and rows" + ("; found both" if ts is not None else ""))
    if ts is not None:
        if irregular or gaps is not None:
            raise InputError("irregular and gaps choose times; with ts the times are given, so leave them out")
        single = not isinstance(ts, list | tuple) or not len(ts) or np.ndim(ts[0]) == 0
        pieces = [ts] * count if single and np.ndim(ts) < 2 else list(ts)
        found = [np.asarray(piece, dtype=np.float64) for piece in pieces]
        if len(found) != count or any(piece.ndim != 1 or not len(piece) for piece in found):
            raise InputError(f"ts must be one array of times, or one for each of the {count} trajectories")
    else:
        if t1 is None or rows is None:
            raise InputError("t1 and rows go together; one of them is missing")
        if rows < 2 or not (math.isfinite(t0) and math.isfinite(t1) and t1 > t0):
            raise InputError(f"needed: at least 2 rows, and t1 after t0; found {rows} rows from {t0:g} to {t1:g}")
        draws = [np.random.default_rng([seed, _TIMES, index]) for index in range(count)]
        found = [sample_times(draw, t0, t1, rows, irregular=irregular, gaps=gaps) for draw in draws]
    if decimals is not None:
        found = [np.round(piece, decimals) for piece in found]
        if ts is None:
            found = [np.unique(piece) for piece in found]
    for piece in found:
        if not (np.isfinite(piece).all() and (np.diff(piece) > 0).all()):
            raise InputError(
                "times must be finite and increase within a trajectory; sort them, drop repeats or keep more decimals"
            )
    return found


def _heads(groups: Sequence[Group]) -> list[str]:
    return [group.name for group in groups]


def _by_variable(what: str, given: Mapping[str, float], groups: Sequence[Group]) -> dict[str, float]:
    unknown = [name for name in given if name not in _heads(groups)]
    if unknown:
        raise InputError(f"{what} names '{unknown[0]}', which is no variable; there are {', '.join(_heads(groups))}")
    return {name: float(value) for name, value in given.items()}


def _observed(generator: np.random.Generator, rows: int, groups: Sequence[Group], chances: Mapping[str, float]) -> Array:
    """Which variable is measured in which row, ``(rows, variables)`` bool; at least one in each."""
    chance = np.array([chances.get(group.name, 0.0) for group in groups])
    seen = generator.random((rows, len(groups))) >= chance
    empty = ~seen.any(1)
    seen[empty, generator.integers(0, len(groups), int(empty.sum()))] = True
    return np.asarray(seen)


def _constants(field: VectorField, count: int, groups: Sequence[Group]) -> dict[str, Array]:
    """Values of the field's own constants, repeated for each trajectory."""
    taken = {*_heads(groups), *(axis for group in groups for axis in group.axes)}
    found = {name: value.detach().cpu().double().numpy() for name, value in field.named_parameters(recurse=False)}
    return {name: np.repeat(value[None], count, axis=0) for name, value in found.items() if name not in taken}


def _labels(groups: Sequence[Group], constants: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    labels: dict[str, dict[str, Any]] = {group.name: dict(group.axes) for group in groups if group.axes}
    bodies = next((group.axes["body"] for group in groups if "body" in group.axes), None)
    for name, value in constants.items():
        if bodies is not None and value.shape[1:] == (len(bodies),):
            labels[name] = {"body": bodies}
    return labels


def _units(field: VectorField, groups: Sequence[Group], constants: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    own = {**getattr(field, "units", {}), **getattr(field, "state_units", {})}
    known = [*_heads(groups), *constants]
    unknown = [name for name in given if name not in (schema.TIME, *known)]
    if unknown:
        raise InputError(f"units names '{unknown[0]}'; there are time, {', '.join(known)}")
    return {schema.TIME: given.get(schema.TIME, "s")} | {name: given.get(name) or _stored(own.get(name, "1")) for name in known}


def _stored(unit: str) -> str:
    """A unit such as ``rad/s`` in the form files use, ``rad s-1``; any other is left to the check of units."""
    if unit_fault(unit) is None or unit.count("/") != 1:
        return unit
    above, below = (part.strip() for part in unit.split("/"))
    inverse = " ".join(f"{word}-1" for word in below.split())
    return inverse if above == "1" else f"{above} {inverse}"


def _split(shares: Sequence[float], count: int, seed: int) -> list[str]:
    words = ("train", "valid", "test")
    if len(shares) not in (2, 3) or any(share < 0 for share in shares) or not math.isclose(sum(shares), 1.0, abs_tol=1e-9):
        raise InputError(f"split needs the shares of train, valid and test, which add up to 1; found {tuple(shares)}")
    exact = [share * count for share in (shares if len(shares) == 3 else (shares[0], 0.0, shares[1]))]
    sizes = [math.floor(size + 1e-9) for size in exact]
    for index in sorted(range(3), key=lambda i: sizes[i] - exact[i])[: count - sum(sizes)]:
        sizes[index] += 1
    if any(size == 0 < share for size, share in zip(sizes, exact, strict=True)):
        raise InputError(f"{count} trajectories are too few for the shares {tuple(shares)}: one of them gets none")
    dealt = [word for word, size in zip(words, sizes, strict=True) for _ in range(size)]
    order = np.random.default_rng([seed, _SPLIT]).permutation(count)
    return [dealt[int(place)] for place in order]


def _accuracy(controller: Controller) -> dict[str, float]:
    """Tolerances for the provenance; a step of fixed length stands for itself."""
    if isinstance(controller, Fixed):
        return {"integrator_step": controller.dt}
    if isinstance(controller, Adaptive):
        rtol, atol = controller.tolerances(torch.float64)
        return {"integrator_rtol": float(rtol), "integrator_atol": float(atol.max())}
    return {}


def _version() -> str:
    try:
        return version("physnode")
    except PackageNotFoundError:
        return "unknown"
