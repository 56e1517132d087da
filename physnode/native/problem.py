"""What native code is made for: a field, how it is solved, and which of its tensors want a gradient."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from types import MethodType
from typing import Any

from torch import Tensor

from physnode.engine.controllers import Controller
from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.engine.readout import ReadOut
from physnode.fields import FunctionField, Sum
from physnode.native.tracing import split_arguments
from physnode.states import StructuredField

__all__ = ["Problem", "members", "owner_of", "tensors_of"]


@dataclass(frozen=True)
class Problem:
    """What a code is made for."""

    f: FieldFunction
    method: Method
    controller: Controller
    read: ReadOut
    y0: Tensor
    """``(B, dim)``."""
    theta: tuple[Tensor, ...]
    """Tensors that a gradient is wanted of."""
    differentiable: bool
    max_steps: int
    read_by: dict[int, tuple[list[Tensor], tuple[Tensor, ...]]] = field(default_factory=dict, compare=False)
    """What all trajectories share, as a code reads it, by the id of the code."""

    @cached_property
    def named(self) -> dict[str, Tensor]:
        """Parameters and buffers of the field by name."""
        return members(self.f)

    @cached_property
    def arguments(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Arguments that each trajectory has of its own, ``(B, ...)``, and those that all share."""
        if self.f.args is None:
            return {}, {}
        own, shared = split_arguments(self.f.args, self.f.batch)
        return {name: value.reshape(len(self.y0), *value.shape[len(self.f.batch) :]) for name, value in own.items()}, shared

    @cached_property
    def key(self) -> Hashable:
        """Problems of one key are served by one code, as long as what the field holds beside tensors stays as it is."""
        own, shared = self.arguments
        names = {id(tensor): name for name, tensor in self.named.items()}
        return (
            owner_of(self.f)[1],
            self.y0.shape[-1],
            self.y0.dtype,
            len(self.f.batch),
            self.method,
            self.controller.structure,
            self.read,
            self.differentiable,
            frozenset(names.get(id(tensor), id(tensor)) for tensor in self.theta if not self.is_argument(tensor)),
            tuple((name, tuple(value.shape[1:]), value.dtype, value.requires_grad) for name, value in own.items()),
            tuple((name, _kind(value), names.get(id(value)), _twin(shared, name)) for name, value in shared.items()),
            tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in self.named.items()),
        )

    def is_argument(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of ``args``."""
        return self.f.args is not None and any(value is tensor for value in self.f.args.constants.values())


def _kind(value: Any) -> Hashable:
    """What of a shared argument is built into the code."""
    if isinstance(value, Tensor):
        built_in = None if value.is_floating_point() else tuple(value.reshape(-1).tolist())  # places to read from
        return tuple(value.shape), value.dtype, value.requires_grad, built_in
    return repr(value)


def _twin(shared: dict[str, Any], name: str) -> str | None:
    """The first argument that is the same tensor as the one of this name."""
    value = shared[name]
    return next((other for other, same in shared.items() if same is value), None) if isinstance(value, Tensor) else None


def owner_of(f: FieldFunction) -> tuple[Any, Hashable]:
    """What a field was made from, which outlives the solve, and how it was made."""
    owner: Any = f.field
    how: list[Hashable] = []
    while isinstance(owner, FunctionField | StructuredField | Sum):
        if isinstance(owner, Sum):  # a sum that is written in the call is another one each time; its terms are not
            first, *others = owner.terms
            how.append((type(owner), *(id(term.function if isinstance(term, FunctionField) else term) for term in others)))
            owner = first
        elif isinstance(owner, StructuredField):
            how.append(owner.adapter.structure)
            owner = owner.field
        else:
            how.append("function")
            owner = owner.function
    if isinstance(owner, MethodType):
        how.append(owner.__func__)
        owner = owner.__self__
    return owner, tuple(how)


def tensors_of(f: FieldFunction) -> tuple[Tensor, ...]:
    """Parameters and arguments that want a gradient."""
    given = () if f.args is None else f.args.constants.values()
    found = [*f.field.parameters(), *(value for value in given if isinstance(value, Tensor))]
    return tuple({id(tensor): tensor for tensor in found if tensor.requires_grad}.values())


def members(f: FieldFunction) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(f.field.named_parameters()), **dict(f.field.named_buffers())}
