"""What PyTorch knows of its own transforms and does not say in public: all such names stand here, and a test tries each.

``torch.func`` transforms wrap tensors, level by level: ``vmap`` hides an axis, ``grad`` and ``jvp`` follow a value. A solve
looks beneath the wrappers, since its loop ends when the data say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack, temporarily_restore_interpreter_stack

__all__ = [
    "current_level",
    "in_forward_mode",
    "in_transform",
    "inside_transforms",
    "is_mapped",
    "is_wrapped",
    "map_axis",
    "mapped_axis",
    "outside_transforms",
    "transforms_differentiate",
    "unwrapped",
    "without_forward_mode",
]

_functorch = torch._C._functorch


def in_transform() -> bool:
    """Whether a ``torch.func`` transform is at work."""
    return _functorch.peek_interpreter_stack() is not None


def transforms_differentiate() -> bool:
    """Whether one of the transforms at work is more than a ``vmap``."""
    stack = _functorch.get_interpreter_stack() or ()
    return any(layer.key() != _functorch.TransformType.Vmap for layer in stack)


def in_forward_mode() -> bool:
    """Whether operations carry tangents on, by ``torch.func`` or by dual tensors."""
    return bool(torch.autograd.forward_ad._current_level >= 0) and torch._C._is_fwd_grad_enabled()


def without_forward_mode() -> AbstractContextManager[Any]:
    """A context in which operations carry no tangents on."""
    context: AbstractContextManager[Any] = torch.autograd.forward_ad._set_fwd_grad_enabled(False)
    return context


def current_level() -> int:
    """The level of the innermost transform at work; 0 for none."""
    return int(_functorch.maybe_current_level() or 0)


def is_wrapped(value: Tensor) -> bool:
    """Whether a transform has wrapped the tensor."""
    return bool(_functorch.is_functorch_wrapped_tensor(value))


def is_mapped(value: Tensor) -> bool:
    """Whether the outermost wrapper of the tensor is that of a ``vmap``."""
    return bool(_functorch.is_batchedtensor(value))


def unwrapped(value: Tensor) -> Tensor:
    """The tensor beneath its outermost wrapper."""
    inner: Tensor = _functorch.get_unwrapped(value)
    return inner


def mapped_axis(value: Tensor) -> tuple[Tensor, int, int]:
    """The tensor beneath a mapped one, its hidden axis, and the level of the ``vmap`` that hides it."""
    level = int(_functorch.maybe_get_level(value))
    inner, axis = _functorch._unwrap_batched(value, level)
    return inner, int(axis or 0), level


def map_axis(value: Tensor, level: int) -> Tensor:
    """The tensor as the ``vmap`` of that level shows it, its first axis hidden."""
    mapped: Tensor = _functorch._add_batch_dim(value, 0, level)
    return mapped


@contextmanager
def outside_transforms() -> Iterator[list[Any]]:
    """No transform is at work within the context; it gives those that are at work around it."""
    with temporarily_clear_interpreter_stack() as stack:
        yield stack


def inside_transforms(stack: list[Any]) -> AbstractContextManager[Any]:
    """The transforms that :func:`outside_transforms` gave are at work again within the context."""
    context: AbstractContextManager[Any] = temporarily_restore_interpreter_stack(stack)
    return context
