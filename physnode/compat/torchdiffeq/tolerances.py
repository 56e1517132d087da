"""rtol and atol in all the forms that are allowed, and the norm by which errors are measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from physnode.compat.torchdiffeq.errors import ArgumentError
from physnode.compat.torchdiffeq.problem import Problem
from physnode.engine.controllers import Adaptive
from physnode.engine.families.base import Method
from physnode.errors import InputError

__all__ = ["AdaptiveSteps", "adaptive_steps", "per_component", "state_norm"]

Norm = Callable[[Tensor], Tensor]


class AdaptiveSteps(Adaptive):
    """``physnode.Adaptive`` that takes rtol down to the spacing of the state's numbers.

    torchdiffeq's default, 1e-7 for single precision too, is just there: steps are then chosen by what rounding leaves of the
    error estimate, which the compensated sum of the states makes workable.
    """

    def check(self, method: Method, dtype: torch.dtype) -> None:
        """Refuse half precision with tolerances it cannot meet; warn of others that no dtype can meet.

        Raises:
            InputError: with the smallest useful rtol.
        """
        rtol, _ = self.tolerances(dtype)
        eps = torch.finfo(dtype).eps
        if 0 < rtol < eps / 2:
            words = f"rtol={rtol:g} is below what {dtype} can resolve ({eps:.2g})"
            if eps > 1e-4:
                raise InputError(f"{words}; raise rtol, or solve in float32")
            warnings.warn(f"{words}; rtol={eps:.2g} is used", stacklevel=6)
            self.rtol = eps


def per_component(tolerance: Any, name: str, problem: Problem) -> float | Tensor:
    """One number, or one per entry of the flat state ``(dim,)`` in float64.

    ``tolerance`` is a number, a tensor that broadcasts to the state, or one entry for each part of a tuple state.

    Raises:
        ArgumentError: a tolerance that requires a gradient, or another number of entries than parts.
        InputError: a tensor that does not broadcast to the state.
    """
    if any(isinstance(part, Tensor) and part.requires_grad for part in pytree.tree_leaves(tolerance)):
        raise ArgumentError(f"{name} cannot require gradient; pass {name}.detach()")
    if isinstance(tolerance, Tensor) and tolerance.numel() == 1:
        return float(tolerance)
    if isinstance(tolerance, int | float):
        return float(tolerance)
    parts = (problem.state,) if not problem.is_tuple else problem.state
    entries = tuple(tolerance) if problem.is_tuple else (tolerance,)
    if len(entries) != len(parts):
        raise ArgumentError(
            f"{name} has {len(entries)} entries for a state of {len(parts)} parts; give one number, or one a part"
        )
    columns = []
    for entry, part in zip(entries, parts, strict=True):
        value = torch.as_tensor(entry, dtype=torch.float64, device=part.device)
        try:
            column = value.expand(part.shape) if value.shape != (part.numel(),) else value.reshape(part.shape)
        except RuntimeError:
            raise InputError(
                f"{name} of shape {tuple(value.shape)} does not broadcast to the state {tuple(part.shape)}"
            ) from None
        columns.append(column.reshape(-1).repeat_interleave(2) if part.is_complex() else column.reshape(-1))
    return torch.cat(columns)


def state_norm(problem: Problem, norm: Callable[[Any], Any] | None) -> Norm | None:
    """The error norm ``(B, dim) -> (B,)``: the caller's, the largest RMS over the parts of a tuple, or None for the RMS."""
    adapter = problem.adapter
    if norm is not None:

        def own(errors: Tensor) -> Tensor:
            found = [torch.as_tensor(norm(adapter.unflatten(row))).abs().to(errors) for row in errors]
            return torch.stack([value.reshape(()) for value in found])

        return own
    if not problem.is_tuple:
        return None

    def largest(errors: Tensor) -> Tensor:
        parts = [part.reshape(len(part), -1).abs().square().mean(1) for part in adapter.unflatten(errors) if part.numel()]
        return torch.stack(parts).amax(0).sqrt()

    return largest


def adaptive_steps(problem: Problem, rtol: Any, atol: Any, norm: Callable[[Any], Any] | None, **limits: Any) -> AdaptiveSteps:
    """The controller for any tolerances: a relative one per component is moved into the norm.

    |e| / (a_i + r_i |y|) = (1 / w_i) |e| / (a_i / w_i + r |y|) with r the largest of r_i and w_i = r_i / r.
    """
    relative, absolute = per_component(rtol, "rtol", problem), per_component(atol, "atol", problem)
    measure = state_norm(problem, norm)
    if isinstance(relative, float):
        return AdaptiveSteps(relative, absolute, norm=measure, **limits)
    largest = float(relative.max())
    if largest <= 0:
        return AdaptiveSteps(largest, absolute, norm=measure, **limits)
    weights = (relative / largest).clamp(min=1e-12)  # a part without a relative tolerance: one far below its resolution

    def weighted(errors: Tensor) -> Tensor:
        scaled = errors / weights.to(errors)
        return scaled.square().mean(-1).sqrt() if measure is None else measure(scaled)

    return AdaptiveSteps(largest, absolute / weights, norm=weighted, **limits)
