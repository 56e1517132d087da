"""Operations that move entries about, or make them: they cost the compiled code nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from physnode.native.expressions import Array, Unsupported, as_array
from physnode.native.operations.made import OPERATIONS, Made, register


def _places(value: Any) -> np.ndarray[Any, Any]:
    """An array of constants as integers or booleans: places to read from."""
    if any(node.op != "const" for node in value.flat):
        raise Unsupported("it reads at places that depend on the state")
    kind = np.bool_ if value.size and value.flat[0].dtype is torch.bool else np.int64
    return np.array([node.data for node in value.flat], dtype=kind).reshape(value.shape)


@register("view", "reshape", "_unsafe_view")
def _view(made: Made, x: Array, shape: Sequence[int]) -> Array:
    return x.reshape(made.shape)


@register("expand", "squeeze", "unsqueeze")
def _expand(made: Made, x: Array, *_: Any) -> Array:
    return x.reshape(made.shape) if x.size == math.prod(made.shape) else np.broadcast_to(x, made.shape)


@register("permute", "t", "transpose")
def _permute(made: Made, x: Array, *axes: Any) -> Array:
    if len(axes) == 2:
        return np.swapaxes(x, *axes)
    return x.T if not axes else x.transpose(axes[0])


@register("slice")
def _slice(made: Made, x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


@register("select")
def _select(made: Made, x: Array, dim: int, index: int) -> Array:
    return np.asarray(x[(slice(None),) * (dim % x.ndim) + (index,)], dtype=object)


@register("cat")
def _cat(made: Made, parts: Sequence[Array], dim: int = 0) -> Array:
    return np.concatenate([made.array(part) for part in parts if part.shape != (0,)], axis=dim)


@register("stack")
def _stack(made: Made, parts: Sequence[Array], dim: int = 0) -> Array:
    return np.stack([made.array(part) for part in parts], axis=dim)


@register("split", "split_with_sizes")
def _split(made: Made, x: Array, size: int | Sequence[int], dim: int = 0) -> list[Array]:
    length = x.shape[dim]
    ends = list(range(size, length, size)) if isinstance(size, int) else list(np.cumsum(size)[:-1])
    return list(np.split(x, ends, axis=dim))


@register("unbind")
def _unbind(made: Made, x: Array, dim: int = 0) -> list[Array]:
    return [np.asarray(part, dtype=object) for part in np.moveaxis(x, dim, 0)]


@register("index_select")
def _index_select(made: Made, x: Array, dim: int, index: Array) -> Array:
    return np.take(x, _places(index), axis=dim)


@register("gather")
def _gather(made: Made, x: Array, dim: int, index: Array) -> Array:
    return np.take_along_axis(x, _places(index), axis=dim)


@register("index")
def _index(made: Made, x: Array, indices: Sequence[Array | None]) -> Array:
    return np.asarray(x[tuple(slice(None) if index is None else _places(index) for index in indices)], dtype=object)


@register("index_put")
def _index_put(made: Made, x: Array, indices: Sequence[Array | None], values: Array, accumulate: bool = False) -> Array:
    out = np.array(made.array(x), dtype=object)
    where = tuple(slice(None) if index is None else _places(index) for index in indices)
    places = np.arange(out.size).reshape(out.shape)[where]
    spread = np.broadcast_to(made.array(values), places.shape)
    flat = out.reshape(-1)
    for place, node in zip(places.ravel(), spread.ravel(), strict=True):
        flat[place] = made.graph.make("add", made.dtype, flat[place], node) if accumulate else node
    return flat.reshape(out.shape)


@register("index_add")
def _index_add(made: Made, x: Array, dim: int, index: Array, source: Array, alpha: float = 1) -> Array:
    scaled = source if alpha == 1 else made.op("mul", source, alpha)
    return _index_put(made, x, [None] * (dim % x.ndim) + [index], scaled, accumulate=True)


@register("slice_scatter")
def _slice_scatter(
    made: Made, x: Array, source: Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Array:
    out = np.array(made.array(x), dtype=object)
    out[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)] = made.array(source)
    return out


@register("select_scatter")
def _select_scatter(made: Made, x: Array, source: Array, dim: int, index: int) -> Array:
    out = np.array(made.array(x), dtype=object)
    out[(slice(None),) * (dim % x.ndim) + (index,)] = made.array(source)
    return out


@register("flip")
def _flip(made: Made, x: Array, dims: Sequence[int]) -> Array:
    return np.flip(x, tuple(dims))


@register("diagonal")
def _diagonal(made: Made, x: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    return np.diagonal(x, offset, dim1, dim2)


@register("remainder")
def _remainder(made: Made, x: Array, by: Any) -> Array:
    if made.dtype.is_floating_point or not isinstance(by, int):
        raise Unsupported("it takes a remainder")
    return as_array([made.graph.const(place % by, made.dtype) for place in _places(x).ravel()], x.shape)


@register("roll")
def _roll(made: Made, x: Array, shifts: Sequence[int], dims: Sequence[int] = ()) -> Array:
    return np.roll(x, tuple(shifts), tuple(dims)) if len(dims) else np.roll(x, shifts[0])


@register("repeat")
def _repeat(made: Made, x: Array, repeats: Sequence[int]) -> Array:
    return np.tile(x, tuple(repeats))


@register("clone", "detach", "alias", "contiguous", "lift_fresh_copy", "lift_fresh", "_to_copy")
def _same(made: Made, x: Array, *_: Any, **__: Any) -> Array:
    return made.array(x)


@register("copy")
def _copy(made: Made, x: Array, source: Array, *_: Any) -> Array:
    return np.broadcast_to(made.array(source), x.shape)


@register("full", "full_like", "zeros", "zeros_like", "ones", "ones_like", "new_zeros", "new_full", "new_ones", "scalar_tensor")
def _full(made: Made, *given: Any, value: float | None = None, **__: Any) -> Array:
    return np.broadcast_to(made.array(given[-1] if value is None else value), made.shape)


for _name in ("zeros", "zeros_like", "new_zeros", "empty_like", "new_empty", "empty"):
    OPERATIONS[_name] = lambda made, *_, **__: _full(made, value=0.0)
for _name in ("ones", "ones_like", "new_ones"):
    OPERATIONS[_name] = lambda made, *_, **__: _full(made, value=1.0)


@register("arange")
def _arange(made: Made, *given: Any, **__: Any) -> Array:
    return as_array([made.graph.const(value, made.dtype) for value in np.arange(*given)], made.shape)


@register("eye")
def _eye(made: Made, *given: Any, **__: Any) -> Array:
    return as_array([made.graph.const(value, made.dtype) for value in np.eye(*given).ravel()], made.shape)
