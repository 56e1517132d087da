"""``odeint_adjoint``: by default the exact replay of the steps, a step's memory at a time; on request a backward solve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from physnode.compat.torchdiffeq.continuous import BackwardOptions, solve_with_backward_solve
from physnode.compat.torchdiffeq.event_search import until_event
from physnode.compat.torchdiffeq.interface import solve_problem
from physnode.compat.torchdiffeq.problem import Problem
from physnode.errors import InputError

__all__ = ["find_parameters", "odeint_adjoint"]


def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """:func:`odeint` with the memory of one step instead of all.

    By default the backward pass makes the recorded steps again, one at a time (``physnode.ACA``), which gives the exact
    gradient. If any of ``adjoint_rtol``, ``adjoint_atol``, ``adjoint_method`` or ``adjoint_options`` is given, or ``func`` has
    a callback for the backward pass, the adjoint equation is solved backward instead, from each output time to the one before.

    Args:
        func: an ``nn.Module``, unless ``adjoint_params`` is given.
        y0, t, rtol, atol, method, options, event_fn: as for :func:`odeint`.
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: those of the backward solve; by default the forward ones,
            without ``norm``. ``adjoint_options["norm"]`` is ``"seminorm"`` or a function of (t, y, adj_y, *params).
        adjoint_params: tensors whose gradient the backward solve finds; by default ``func.parameters()``. The replay finds all
            that ``func`` reads by itself; tensors named here that it does not read get zeros.

    Raises:
        InputError: ``func`` is no module and ``adjoint_params`` is not given; or another ``adjoint_method`` and ``options``
            without ``adjoint_options``.
    """
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise InputError(
            "func must be an instance of nn.Module to specify the adjoint parameters; alternatively they can be specified "
            "explicitly via the `adjoint_params` argument (an empty tuple if there are none)"
        )
    if adjoint_method is not None and adjoint_method != method and options is not None and adjoint_options is None:
        raise InputError(
            "adjoint_options cannot be inferred from options, since adjoint_method differs from method; give them too"
        )
    wanted = find_parameters(func) if adjoint_params is None else tuple(adjoint_params)
    params = tuple(tensor for tensor in wanted if tensor.requires_grad)
    asked = any(value is not None for value in (adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options))
    heard = any(hasattr(func, f"callback_{word}_adjoint") for word in ("step", "accept_step", "reject_step"))
    if (asked or heard) and event_fn is None:
        kept = {} if options is None else {word: value for word, value in options.items() if word != "norm"}
        backward = BackwardOptions(
            rtol if adjoint_rtol is None else adjoint_rtol,
            atol if adjoint_atol is None else adjoint_atol,
            method if adjoint_method is None else adjoint_method,
            kept if adjoint_options is None else dict(adjoint_options),
            params,
            None if options is None else options.get("norm"),
            adjoint_params is not None,
        )
        return solve_with_backward_solve(Problem.of(func, y0, t), rtol, atol, method, options, backward)
    if event_fn is not None:
        return until_event(func, y0, t, event_fn, rtol=rtol, atol=atol, method=method, options=options, gradient="aca")
    problem = Problem.of(func, y0, t)
    return solve_problem(replace(problem, y0=_with_zeros(problem.y0, params)), rtol, atol, method, options, gradient="aca")


def find_parameters(module: object) -> list[Tensor]:
    """The parameters of a module; also those of a replica made by ``DataParallel``, which ``parameters()`` does not show."""
    if not isinstance(module, nn.Module):
        raise InputError(f"parameters are those of an nn.Module; found {type(module).__name__}")
    if not getattr(module, "_is_replica", False):
        return list(module.parameters())
    found: dict[int, Tensor] = {}
    for part in module.modules():
        for value in part.__dict__.values():
            if isinstance(value, Tensor) and value.requires_grad:
                found.setdefault(id(value), value)
    return list(found.values())


def _with_zeros(y: Tensor, params: tuple[Tensor, ...]) -> Tensor:
    """``y`` itself, tied to ``params`` by the sum of none of their entries, so that unused ones get zeros and not None."""
    if not (params and torch.is_grad_enabled()):
        return y
    for param in params:
        nothing = param.reshape(-1)[:0].sum()
        y = y + (nothing.real if nothing.is_complex() else nothing).to(y)
    return y
