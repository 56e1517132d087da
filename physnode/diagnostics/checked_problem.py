"""One solve and its loss as a function of all that it is differentiated by, on copies of what the user gave."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from physnode.errors import InputError
from physnode.fields import FunctionField, SecondOrder, SeparableHamiltonian
from physnode.gradients import Gradient
from physnode.signals import Signal
from physnode.solution import Solution
from physnode.solve import solve

__all__ = ["Calls", "Problem"]


class Calls:
    """How often a field was evaluated, each time for the whole batch."""

    def __init__(self) -> None:
        self.number = 0

    def count(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, counted."""

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.number += 1
            return function(*args, **kwargs)

        return counted

    def watch(self, field: nn.Module) -> None:
        """Count calls of ``field``, and of the halves that splitting methods call."""
        field.register_forward_pre_hook(lambda *_: setattr(self, "number", self.number + 1))
        halves = ("kick",) if isinstance(field, SecondOrder) else ("drift", "kick")
        for half in halves if isinstance(field, SecondOrder | SeparableHamiltonian) else ():
            setattr(field, half, self.count(getattr(field, half)))


@dataclass
class Problem:
    """A field, a start, constants and a loss that nobody else holds."""

    field: nn.Module
    y0: Any
    ts: Any
    args: Mapping[str, Any] | None
    loss: Callable[[Any], Tensor] | None
    data: Tensor | None
    options: dict[str, Any]
    dtype: torch.dtype
    calls: Calls

    @classmethod
    def of(cls, field: Any, y0: Any, ts: Any, args: Any, loss: Any, data: Any, options: dict[str, Any]) -> Problem:
        """Copies of what the user gave.

        Raises:
            InputError: the field cannot be copied, or both ``loss`` and ``data`` are given.
        """
        if loss is not None and data is not None:
            raise InputError("give loss or data, not both; data makes the loss half the mean square of ys - data")
        states = pytree.tree_map(_as_tensor, y0) if not _is_numbers(y0) else _as_tensor(y0)
        leaves = pytree.tree_leaves(states)
        if not leaves:
            raise InputError(f"y0 holds no tensor; found {y0!r}")
        target = None if data is None else torch.as_tensor(data).detach()
        given = None if args is None else {name: _own(value) for name, value in args.items()}
        times = ts.detach() if isinstance(ts, Tensor) else ts
        start, dtype = pytree.tree_map(_start, states), leaves[0].dtype.to_real()
        return cls(_copy(field), start, times, given, loss, target, options, dtype, Calls())

    def double(self) -> Problem:
        """The same in float64."""
        args = None if self.args is None else {name: _doubled(value) for name, value in self.args.items()}
        data = None if self.data is None else self.data.double()
        y0 = pytree.tree_map(_doubled, self.y0)
        field = copy.deepcopy(self.field).double()
        return Problem(field, y0, self.ts, args, self.loss, data, self.options, torch.float64, Calls())

    def counted(self) -> Problem:
        """The same, with its evaluations counted in ``calls``."""
        other = Problem(
            copy.deepcopy(self.field), self.y0, self.ts, self.args, self.loss, self.data, self.options, self.dtype, Calls()
        )
        other.calls.watch(other.field)
        return other

    @property
    def variables(self) -> dict[str, Tensor]:
        """All that the loss is differentiated by: parameters of the field, the parts of y0, args that require a gradient."""
        found: dict[str, Tensor] = {name: p for name, p in self.field.named_parameters() if p.requires_grad}
        for path, leaf in pytree.tree_flatten_with_path(self.y0)[0]:
            found[f"y0{pytree.keystr(path)}"] = leaf
        for name, value in (self.args or {}).items():
            tensor = value.values if isinstance(value, Signal) else value
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                found[f"args[{name!r}]"] = tensor
        return found

    def solve(self, gradient: Gradient, **change: Any) -> Solution:
        """The solve, with another controller or the like where ``change`` says so."""
        return solve(self.field, self.y0, self.ts, args=self.args, gradient=gradient, **{**self.options, **change})

    def value(self, sol: Solution) -> Tensor:
        """The loss, or half the mean square of the states, or of their distance to the data; NaN states are left out."""
        if self.loss is not None:
            value: Tensor = self.loss(sol.ys)
            return value
        states = sol.flat
        if self.data is not None and self.data.shape != states.shape:
            raise InputError(
                f"data must have the shape of the states, {tuple(states.shape)}; found {tuple(self.data.shape)}. Use loss= for "
                "data of another shape"
            )
        target = 0.0 if self.data is None else self.data.to(states)
        there = torch.isfinite(states.detach())
        return 0.5 * torch.where(there, states - target, 0.0).square().sum() / there.sum()

    def gradient(self, gradient: Gradient, **change: Any) -> tuple[Tensor, list[Tensor], Solution]:
        """The loss and its derivatives by each of the variables, in their order."""
        variables = list(self.variables.values())
        sol = self.solve(gradient, **change)
        value = self.value(sol)
        return value.detach(), derivatives(value, variables), sol

    def moved(self, directions: list[Tensor], step: float) -> Problem:
        """The same with every variable moved ``step`` times its direction."""
        other = self.double()
        with torch.no_grad():
            for variable, direction in zip(other.variables.values(), directions, strict=True):
                variable += step * direction
        return other


def derivatives(value: Tensor, variables: list[Tensor]) -> list[Tensor]:
    """d value / d variable for each; zeros for what it does not depend on.

    Raises:
        InputError: the loss is not one number, or depends on none of them.
    """
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise InputError("the loss must be one number that depends on sol.ys, a tensor of shape ()")
    found = torch.autograd.grad(value.sum(), variables, allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for v, g in zip(variables, found, strict=True)]


def _copy(field: Any) -> nn.Module:
    if not callable(field):
        raise InputError(f"a field must be a function, an nn.Module or a VectorField of (t, y); found {type(field).__name__}")
    module = field if isinstance(field, nn.Module) else FunctionField(field)
    try:
        made = copy.deepcopy(module)
    except RuntimeError as problem:
        raise InputError(
            f"check_gradient works on a copy of the field, and {type(field).__name__} cannot be copied: {problem}. Make its "
            "tensors parameters or buffers, and compute what depends on them in forward"
        ) from None
    for parameter in made.parameters():
        parameter.grad = None
    return made


def _is_numbers(y0: Any) -> bool:
    return isinstance(y0, list | tuple) and not any(isinstance(leaf, Tensor | np.ndarray) for leaf in pytree.tree_leaves(y0))


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    return torch.as_tensor(array if array.dtype.kind == "c" else array.astype(np.float64))


def _own(value: Any) -> Any:
    """A copy without history that requires a gradient if the original does."""
    if isinstance(value, Signal):
        made = copy.copy(value)
        made.values = value.values.detach().clone().requires_grad_(value.values.requires_grad)
        return made
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _start(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def _doubled(value: Any) -> Any:
    if isinstance(value, Signal):
        made = copy.copy(value)
        made.values = _doubled(value.values)
        return made
    if not isinstance(value, Tensor) or not (value.dtype.is_floating_point or value.dtype.is_complex):
        return value
    wide = torch.complex128 if value.dtype.is_complex else torch.float64
    return value.detach().to(wide, copy=True).requires_grad_(value.requires_grad)
