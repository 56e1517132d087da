"""What a fit needs before it starts: what is compared, where it begins, how large things are, and what it must refuse."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from physnode.data.trajectories import Trajectories
from physnode.engine.controllers import Adaptive
from physnode.engine.field_function import FieldFunction
from physnode.engine.tracing import trace
from physnode.errors import CompileWarning, InputError, name_hint
from physnode.fields import SecondOrder, VectorField, split_state
from physnode.fitting.measurements import Measurements, Observe, channels_of
from physnode.fitting.parameters import Prior, Shared
from physnode.fitting.problem import Problem, learned_terms, returned_widths
from physnode.fitting.starts import StateGuess, has_exact_start, known_starts, state_dim, state_labels

__all__ = [
    "calibrate",
    "default_controller",
    "first_states",
    "measure",
    "read_priors",
    "refuse_hidden_parameters",
    "state_scale",
    "with_code",
]


def measure(
    model: VectorField,
    data: Trajectories,
    observe: Observe | None,
    guesses: Tensor | None,
    sigma: Mapping[str, float] | None,
    *,
    known: bool = False,
) -> Measurements:
    """What of ``data`` is compared with what of ``model``; first rows that serve as ``known`` starts are left out."""
    labels = state_labels(model)
    dim = int(guesses.shape[-1]) if guesses is not None else state_dim(model)
    exact_start = known and not all(has_exact_start(item) for item in data)
    if observe is None:
        return channels_of(data, dim=dim, labels=labels, sigma=sigma, exact_start=exact_start)
    returned = returned_widths(observe, dim if dim is not None else data.dim)
    return channels_of(data, dim=dim, labels=labels, returned=returned, sigma=sigma, exact_start=exact_start)


def first_states(
    model: VectorField, measured: Measurements, data: Trajectories, guesses: Tensor | None, *, known: bool, noisy: bool
) -> Tensor:
    """Initial states ``(trajectories, dim)`` where the fit starts: guesses, exact starts, or read off the data."""
    count = len(measured.t)
    if guesses is not None:
        if guesses.ndim != 2 or len(guesses) != count:
            raise InputError(f"initial_states must have shape ({count}, dim); found {tuple(guesses.shape)}")
        bad = (~torch.isfinite(guesses).all(-1)).nonzero().flatten().tolist()
        if bad:
            raise InputError(
                f"the guess of trajectory {measured.ids[bad[0]]} in initial_states is not finite: {guesses[bad[0]].tolist()}"
            )
        return guesses.clone()
    dim = state_dim(model) or data.dim
    if isinstance(model, SecondOrder) and dim % 2:
        raise InputError(
            f"{type(model).__name__} moves positions and velocities, and the data hold {data.dim} components "
            f"({', '.join(measured.names)}); say which they are with a class attribute such as "
            'labels = ("displacement", "velocity"), positions first'
        )
    if known:
        return known_starts(data, measured.state_columns, dim, noisy=noisy)
    guess = StateGuess(measured, dim, model)
    return torch.stack([guess.at(i, 0) for i in range(count)])


def state_scale(measured: Measurements, starts: Tensor, dim: int) -> Tensor:
    """Root mean square of each component over the data, or of the guesses where it is not measured."""
    scale = starts.square().mean(0).sqrt()
    if measured.state_columns is not None:
        values, observed = torch.cat(list(measured.values)), torch.cat(list(measured.observed))
        rms = (values.square().sum(0) / observed.sum(0).clamp(min=1)).sqrt()
        scale = scale.index_put((torch.tensor(measured.state_columns),), rms)
    typical = scale[scale > 0].mean() if bool((scale > 0).any()) else torch.tensor(1.0, dtype=torch.float64)
    return torch.where(scale > 0, scale, typical)


def default_controller(scale: Tensor, *, learned: bool) -> Adaptive:
    """Tolerances far below the noise of most data, and measured by the size of each component, ``scale (dim,)``."""
    rtol = 1e-6 if learned else 1e-8
    return Adaptive(rtol=rtol, atol=1e-3 * rtol * scale)


def calibrate(model: VectorField, shared: Shared, measured: Measurements, starts: Tensor, dim: int) -> Tensor | None:
    """Set the input and output scales of learned terms from the data; returns the states where their size is measured."""
    terms = learned_terms(model) if shared.weights else []
    if not terms:
        return None
    if measured.state_columns is None:
        visited = starts
    else:
        guess = StateGuess(measured, dim, model)
        visited = torch.cat([guess.along(i) for i in range(len(measured.t))])
    with torch.no_grad():
        rate = model(visited.new_zeros(len(visited), 1), visited).square().mean(0).sqrt()
    for term in terms:
        set_scales = getattr(term, "calibrate", None)
        if callable(set_scales):
            own = split_state(rate)[1] if isinstance(term, SecondOrder) else rate
            set_scales(visited, torch.where(own > 0, own, rate.mean().clamp(min=1e-300)))
    stride = max(1, len(visited) // 2000)
    return visited[::stride].clone()


def refuse_hidden_parameters(model: VectorField, starts: Tensor) -> None:
    """Refuse a model that reads trainable tensors which are no parameters of it: they would silently stay where they are."""
    point = starts[:1]
    found = trace(FieldFunction(model, (1,), point.dtype), point.new_zeros(1), point).theta
    own = {id(parameter) for parameter in model.parameters()}
    hidden = [tensor for tensor in found if id(tensor) not in own]
    if hidden:
        raise InputError(
            f"the model reads a tensor of shape {tuple(hidden[0].shape)} that requires a gradient but is no parameter of it, "
            "so the fit could not move it. Make it an nn.Parameter of an nn.Module, or detach it if it is a constant"
        )


def read_priors(shared: Shared, priors: Mapping[str, tuple[float, float]]) -> dict[str, Prior]:
    """Normal priors by name. Raises InputError for what is no free physical constant, and for what is no (mean, sigma)."""
    names = [scalar.name for scalar in shared.free]
    found: dict[str, Prior] = {}
    for name, pair in priors.items():
        if name not in names:
            hint = name_hint(name, names)
            raise InputError(
                f'priors names "{name}", which is not a free physical constant.{hint} Free: {", ".join(names) or "none"}'
            )
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(f"the prior of {name} must be a pair (mean, standard deviation); found {pair!r}")
        found[name] = Prior(float(pair[0]), float(pair[1]))
        if not found[name].sigma > 0:
            raise InputError(f"the prior of {name} needs a positive standard deviation; found {pair[1]}")
    return found


def with_code(problem: Problem, x: Tensor, *, needed: bool) -> Problem:
    """The problem with native code for its solves made already, or, where there can be none, solved by the eager driver.

    If it was ``needed``, a warning says why there is none.
    """
    with warnings.catch_warnings(record=not needed) as found:
        if not needed:
            warnings.simplefilter("always", CompileWarning)
        problem.solve(x)
        problem.loss(x.detach().requires_grad_())
    for warning in found or ():
        if not issubclass(warning.category, CompileWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    missing = not needed and any(issubclass(warning.category, CompileWarning) for warning in found or ())
    return replace(problem, solver=replace(problem.solver, compile=False)) if missing else problem
