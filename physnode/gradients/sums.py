"""Sums of many small terms that lose nothing to rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["CompensatedSum", "ParameterSums"]

_WIDENED = 2**20
"""Bytes of float32 parameters whose gradients are added up in float64: above it, one copy of them is dearer than the digits."""


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
        narrow = sum(tensor.numel() * tensor.element_size() for tensor in self.theta if tensor.dtype == torch.float32)
        widen = {torch.float32: torch.float64} if narrow <= _WIDENED else {}
        self._totals = [torch.zeros_like(tensor, dtype=widen.get(tensor.dtype, tensor.dtype)) for tensor in self.theta]

    def add(self, parts: Sequence[Tensor | None]) -> None:
        """One more term for each parameter; None for nothing."""
        for total, part in zip(self._totals, parts, strict=True):
            if part is not None:
                total += part

    def gradients(self) -> list[Tensor]:
        """The sums, in the dtypes of the parameters."""
        return [total.to(tensor.dtype) for total, tensor in zip(self._totals, self.theta, strict=True)]
