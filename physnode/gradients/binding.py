"""Putting other tensors into a field for the length of one function call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from physnode.fields import VectorField

__all__ = ["with_tensors"]

T = TypeVar("T")


class _Holder(nn.Module):
    """Lets ``torch.func.functional_call`` reach a field while any function runs, not its ``forward`` alone."""

    def __init__(self, field: VectorField) -> None:
        super().__init__()
        self.field = field

    def forward(self, function: Callable[[], T]) -> T:
        return function()


def with_tensors(field: VectorField, tensors: Mapping[str, Tensor], function: Callable[[], T]) -> T:
    """``function()`` while the field's parameters of these names are ``tensors``."""
    own = dict(field.named_parameters())
    if all(own.get(name) is tensor for name, tensor in tensors.items()):
        return function()
    named = {f"field.{name}": tensor for name, tensor in tensors.items()}
    result: T = torch.func.functional_call(_Holder(field), named, (function,))
    return result
