"""States that are more than one real tensor: dictionaries, tuples, complex numbers.

The engine knows one real tensor ``(*batch, dim)``. An adapter lays the parts of a structured state side by side on the last
axis, complex parts as pairs (real, imaginary), and gives a field, an event condition or a reader of results the structure
back. Nothing is copied that a view can show, and gradients pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from physnode.calling import Args, takes, with_args
from physnode.errors import InputError
from physnode.fields import Hamiltonian, SecondOrder, VectorField

__all__ = ["StateAdapter", "StructuredField"]


@dataclass(frozen=True)
class _Leaf:
    """One tensor of a structured state, without the axes that all of them share."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Real numbers that it holds."""
        return prod(self.shape) * (2 if self.dtype.is_complex else 1)


class StateAdapter:
    """Turns a structured state into one real tensor and back; made by :meth:`of` or :meth:`whole`.

    ``batch`` holds the leading axes that all parts share, ``dim`` the length of the joined last axis, ``dtype`` its dtype.
    """

    def __init__(
        self, spec: pytree.TreeSpec, leaves: Sequence[_Leaf], batch: tuple[int, ...], *, one_trajectory: bool, cast: bool
    ) -> None:
        self._spec, self._leaves = spec, tuple(leaves)
        self.batch = batch
        self.dim = sum(leaf.size for leaf in leaves)
        self.dtype = leaves[0].dtype.to_real()
        self.one_trajectory = one_trajectory
        self._cast = cast

    @classmethod
    def of(cls, y0: Any) -> StateAdapter | None:
        """The adapter for states like ``y0``, or None where ``y0`` is plain: a real tensor, an array, a list of numbers.

        Structured are dictionaries, named tuples, tuples and lists that hold tensors (nested as you like), and anything
        complex. Each part has shape ``(*batch, dim_i)``; the leading axes are the same for all.

        Raises:
            InputError: parts of different precision, device or leading axes, or a part that is no floating-point tensor.
        """
        if isinstance(y0, Tensor | np.ndarray):
            if not (y0.is_complex() if isinstance(y0, Tensor) else y0.dtype.kind == "c"):
                return None
        elif not _is_structured(y0):
            return None
        return cls._from(y0, one_trajectory=False, cast=False)

    @classmethod
    def whole(cls, y0: Any) -> StateAdapter:
        """The adapter that takes all of ``y0``, parts of any shape, as one trajectory ``(dim,)``.

        Fields and conditions then see a time without axes, and a derivative of another floating-point dtype is converted.

        Raises:
            InputError: parts of different precision or device, or a part that is no floating-point tensor.
        """
        return cls._from(y0, one_trajectory=True, cast=True)

    @classmethod
    def _from(cls, y0: Any, *, one_trajectory: bool, cast: bool) -> StateAdapter:
        found, spec = pytree.tree_flatten_with_path(y0)
        if not found:
            raise InputError(f"y0 holds no tensor; found {y0!r}")
        leaves, leading = [], []
        for path, value in found:
            name = pytree.keystr(path)
            part = _as_tensor(value, f"y0{name}")
            if part.ndim == 0 and not one_trajectory:
                raise InputError(f"y0{name} has no axes; every part of a state has shape (*batch, dim)")
            leading.append((name, () if one_trajectory else tuple(part.shape[:-1]), part.dtype.to_real(), part.device))
            leaves.append(_Leaf(name, tuple(part.shape) if one_trajectory else tuple(part.shape[-1:]), part.dtype))
        first, batch, dtype, device = leading[0]
        for name, other, other_dtype, other_device in leading[1:]:
            if other != batch:
                raise InputError(
                    f"the parts of y0 share their leading axes; found {batch} in y0{first} and {other} in y0{name}. "
                    "Give each the shape (*batch, dim)"
                )
            if other_dtype != dtype:
                raise InputError(
                    f"the parts of y0 have one precision; found {dtype} in y0{first} and {other_dtype} in y0{name}. "
                    "Convert them to one, for example with .double()"
                )
            if other_device != device:
                raise InputError(f"y0{first} is on {device} but y0{name} on {other_device}; move one of them")
        if not sum(leaf.size for leaf in leaves):
            raise InputError("y0 has no entries; a state needs at least one")
        return cls(spec, leaves, batch, one_trajectory=one_trajectory, cast=cast)

    @property
    def structure(self) -> Hashable:
        """What adapters have in common that differ in the batch alone."""
        return str(self._spec), tuple(self._leaves), self.one_trajectory

    def flatten(self, state: Any) -> Tensor:
        """One real tensor ``(*batch, dim)`` from a state like the one the adapter was made for.

        Raises:
            InputError: another structure, or a part of another shape or dtype; the message names the part.
        """
        return self._joined(state, "y0")

    def unflatten(self, y: Tensor) -> Any:
        """The structured state from ``y`` ``(*axes, dim)``; each part gets the same ``axes``, in a solution ``(*batch, T)``."""
        axes, start = y.shape[:-1], 0
        parts = []
        for leaf in self._leaves:
            part = y[..., start : start + leaf.size]
            start += leaf.size
            if leaf.dtype.is_complex:
                pairs = part.reshape((*axes, *leaf.shape, 2))
                parts.append(torch.complex(pairs[..., 0], pairs[..., 1]))
            else:
                parts.append(part.reshape((*axes, *leaf.shape)))
        return pytree.tree_unflatten(parts, self._spec)

    def joined(self, states: Any, *axes: Any) -> Tensor:
        """One real tensor ``(*axes, dim)`` from states with further axes, such as a solution's ``(*batch, T)``."""
        shape: list[int] = []
        for axis in axes:
            shape.extend(axis if isinstance(axis, tuple) else (axis,))
        return self._joined(states, "the states", shape)

    def field(self, field: Callable[..., Any]) -> StructuredField:
        """``field(t, state[, args])`` as a field of the flat state; the parameters of a module stay visible.

        Raises:
            InputError: ``field`` cannot be called; later, it returns something that is not shaped like the state.
        """
        if not callable(field):
            raise InputError(f"a field must be a function or an nn.Module of (t, state); found {type(field).__name__}")
        if isinstance(field, SecondOrder | Hamiltonian) and not self.one_trajectory:
            raise InputError(
                f"{type(field).__name__} takes a state of one tensor (*batch, dim); found a structured one. Join its parts "
                "with torch.cat(parts, dim=-1), or wrap the field in a function of the structured state"
            )
        return StructuredField(self, field)

    def function(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``function(t, state[, args])``, an event condition for example, as a function of the flat state."""

        def flat(t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
            return with_args(function, args, self.time(t), self.unflatten(y))

        return flat

    def state_map(self, function: Callable[..., Any]) -> Callable[..., Tensor]:
        """``function(t, state[, args])`` that returns a state, a jump for example, as a map of flat states."""

        def flat(t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
            return self._joined(with_args(function, args, self.time(t), self.unflatten(y)), "the new state", y.shape[:-1])

        return flat

    def time(self, t: Tensor) -> Tensor:
        """The time as a field sees it: ``(*batch, 1)``, or without axes where all is one trajectory."""
        return t.reshape(()) if self.one_trajectory else t

    def derivative(self, value: Any, axes: Sequence[int]) -> Tensor:
        """What a field returned as one real tensor ``(*axes, dim)``, checked part by part."""
        return self._joined(value, "the field's result", axes)

    def __repr__(self) -> str:
        parts = ", ".join(f"{leaf.name or 'y'}: {leaf.shape} {leaf.dtype}" for leaf in self._leaves)
        return f"StateAdapter({parts}; batch {self.batch}, dim {self.dim})"

    def _joined(self, state: Any, what: str, axes: Sequence[int] | None = None) -> Tensor:
        axes = self.batch if axes is None else axes
        parts = []
        for leaf, value in zip(self._leaves, self._values(state, what), strict=True):
            part = self._checked(value, leaf, what, tuple(axes))
            pairs = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
            parts.append(pairs.reshape(*axes, leaf.size))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _values(self, state: Any, what: str) -> list[Any]:
        """The parts of ``state`` in the adapter's order; a list passes for a tuple."""
        kind = self._spec.type
        if kind in (tuple, list) and isinstance(state, tuple | list):
            state = kind(state)
        try:
            return self._spec.flatten_up_to(state)
        except ValueError:
            names = ", ".join(leaf.name for leaf in self._leaves) or "one tensor"
            raise InputError(
                f"{what} must have the structure of y0 ({names}); found {_outline(state)}. Return one part for each"
            ) from None

    def _checked(self, value: Any, leaf: _Leaf, what: str, axes: tuple[int, ...]) -> Tensor:
        part = value if isinstance(value, Tensor) else None
        if part is None:
            if what != "y0":
                raise InputError(f"{what}{leaf.name} must be a tensor; found {type(value).__name__}")
            part = _as_tensor(value, what + leaf.name)
        if tuple(part.shape) != (*axes, *leaf.shape):
            raise InputError(f"{what}{leaf.name} must have shape {(*axes, *leaf.shape)}; found {tuple(part.shape)}")
        if part.dtype != leaf.dtype:
            lossless = leaf.dtype.is_complex or not part.dtype.is_complex
            if not (self._cast and lossless):
                raise InputError(
                    f"{what}{leaf.name} must be {leaf.dtype}, like the state; found {part.dtype}. Convert it with .to()"
                )
            part = part.to(leaf.dtype)
        return part


class StructuredField(VectorField):
    """A field of structured states as one of flat states ``(*batch, dim)``."""

    def __init__(self, adapter: StateAdapter, field: Callable[..., Any]) -> None:
        super().__init__()
        self.adapter = adapter
        self.field = field

    @property
    def reads_args(self) -> bool:
        """Whether the wrapped field does."""
        return takes(self.field, 3)

    def forward(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """The derivative of the flat state.

        Raises:
            InputError: the wrapped field returned another structure, shape or dtype; the message names the part.
        """
        value: Any = with_args(self.field, args, self.adapter.time(t), self.adapter.unflatten(y))
        return self.adapter.derivative(value, y.shape[:-1])

    def invariants(self, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Those of the wrapped field, if it declares any."""
        declared = getattr(self.field, "invariants", None)
        return {} if declared is None else declared(t, self.adapter.unflatten(y))


def _is_structured(y0: Any) -> bool:
    """Whether a state that is no tensor and no array is a tree of them, and not a plain list of numbers."""
    if isinstance(y0, dict) or (isinstance(y0, tuple) and hasattr(y0, "_fields")):
        return True
    leaves = pytree.tree_leaves(y0)
    if not isinstance(y0, list | tuple):  # a registered node of the user's own, or a number
        return len(leaves) != 1 or leaves[0] is not y0
    return any(isinstance(leaf, Tensor | complex) for leaf in leaves)


def _as_tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        if not (value.dtype.is_floating_point or value.dtype.is_complex):
            raise InputError(
                f"{name} must be a floating-point or complex tensor; found {value.dtype}. Convert it with .double()"
            )
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiuc":
        raise InputError(f"{name} must hold numbers; found {type(value).__name__}")
    return torch.as_tensor(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64))


def _outline(state: Any) -> str:
    """The structure of a value in a few words."""
    if isinstance(state, dict):
        return f"a dict with the keys {list(state)}"
    if isinstance(state, tuple | list):
        return f"a {type(state).__name__} of {len(state)}"
    return f"one tensor of shape {tuple(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
