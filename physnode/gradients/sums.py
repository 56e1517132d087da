"""Sums of many small terms that lose nothing to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from physnode.torch_internals import in_transform

__all__ = ["CompensatedSum", "ParameterSums"]

_HALVES = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_SINGLES = {torch.float32: torch.float64, torch.complex64: torch.complex128}
_LARGE = 2**20
"""Bytes of parameters above which one more copy of their gradients is dearer than the digits, or the time, that it saves."""


class CompensatedSum:
    """A tensor to which changes much smaller than itself are added: what rounding cuts off waits for the next change.

    Source: Kahan, Further remarks on reducing truncation errors, CACM 8 (1965).
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._lost = torch.zeros_like(value)

    def add(self, change: Tensor) -> None:
        """``value`` plus ``change``."""
        owed = change + self._lost
        end = self.value + owed
        self._lost = owed - (end - self.value)
        self.value = end


class ParameterSums:
    """The gradient of each parameter, added up in place."""

    def __init__(self, theta: Sequence[Tensor]) -> None:
        self.theta = tuple(theta)
        self._large = sum(tensor.numel() * tensor.element_size() for tensor in self.theta) > _LARGE
        wider = _HALVES if self._large else {**_HALVES, **_SINGLES}
        self._totals = [torch.zeros_like(tensor, dtype=wider.get(tensor.dtype, tensor.dtype)) for tensor in self.theta]

    def sunk(self) -> AbstractContextManager[Any]:
        """Within the context, large parameters that a graph reads have their gradients added up read by read, as they come.

        Autograd would first add up all that a graph owes to a parameter, in memory of its own.
        """
        return _Sunk(self.theta, self._totals) if self._large else nullcontext()

    def add(self, parts: Sequence[Tensor | None]) -> None:
        """One more term for each parameter; None for nothing."""
        for total, part in zip(self._totals, parts, strict=True):
            if part is not None:
                total += part

    def gradients(self) -> list[Tensor]:
        """The sums, in the dtypes of the parameters."""
        return [total.to(tensor.dtype) for total, tensor in zip(self._totals, self.theta, strict=True)]


class _Sink(torch.autograd.Function):
    """A parameter as one operation reads it; its gradient goes into the total and no further."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, total: Tensor) -> Tensor:
        ctx.total = total
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.total.add_(grads[0])
        return None, None


class _Sunk(TorchFunctionMode):
    """Puts a sink in the place of each parameter wherever a torch function reads it with a graph."""

    def __init__(self, theta: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
        super().__init__()
        self._table = {id(tensor): (tensor, total) for tensor, total in zip(theta, totals, strict=True)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled() and not in_transform():
            args, kwargs = pytree.tree_map(self._sunk, (args, kwargs))
        return func(*args, **kwargs)

    def _sunk(self, value: Any) -> Any:
        found = self._table.get(id(value))
        return value if found is None else _Sink.apply(*found)  # type: ignore[no-untyped-call]
