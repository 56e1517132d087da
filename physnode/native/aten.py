"""What each operation of PyTorch is in scalar expressions.

A tensor of one trajectory is an object array of nodes, so that whatever only moves numbers about (views, joins, gathers by known
places) is NumPy's own operation and costs the compiled code nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from physnode.native.expressions import Array, Graph, Unsupported, as_array

__all__ = ["OPERATIONS", "Made"]

_DENSE = 32
"""Entries from which on a uniform matrix is multiplied by a loop over it."""


class Made:
    """What an operation is told: the graph, and the dtype and shape that it makes."""

    def __init__(self, graph: Graph, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self.graph, self.dtype, self.shape = graph, dtype, shape

    def array(self, value: Any, dtype: torch.dtype | None = None) -> Array:
        """A number or an array as an array of a dtype, by default the one that is made."""
        dtype = self.dtype if dtype is None else dtype
        if not isinstance(value, np.ndarray):
            return as_array([self.graph.const(value, dtype)], ())
        return self.graph.apply("cast", dtype, value) if any(n.dtype is not dtype for n in value.flat) else value

    def op(self, name: str, *values: Any, data: Any = None) -> Array:
        """An elementwise operation in the dtype that is made."""
        return self.graph.apply(name, self.dtype, *(self.array(value) for value in values), data=data)

    def compare(self, name: str, a: Any, b: Any) -> Array:
        """A comparison in the dtype that both sides share."""
        common = _common(a, b)
        return self.graph.apply(name, torch.bool, self.array(a, common), self.array(b, common))

    def fold(self, name: str, value: Array, axes: Sequence[int] | int | None, keep: bool) -> Array:
        """One number from all along some axes, added up (or the like) in their order."""
        value = self.array(value)
        chosen = _axes(axes, value.ndim)
        rest = [axis for axis in range(value.ndim) if axis not in chosen]
        flat = value.transpose(*rest, *chosen).reshape(*(value.shape[axis] for axis in rest), -1)
        if flat.shape[-1] == 0:
            total = self.array(0 if name == "add" else 1)
            total = np.broadcast_to(total, flat.shape[:-1])
        else:
            total = flat[..., 0]
        for place in range(1, flat.shape[-1]):
            total = self.op(name, total, flat[..., place])
        total = np.asarray(total, dtype=object)
        return np.expand_dims(total, tuple(chosen)) if keep else total


Operation = Callable[..., Any]
OPERATIONS: dict[str, Operation] = {}


def _register(*names: str) -> Callable[[Operation], Operation]:
    def keep(function: Operation) -> Operation:
        for name in names:
            OPERATIONS[name] = function
        return function

    return keep


def _common(*values: Any) -> torch.dtype:
    dtypes = [value.flat[0].dtype for value in values if isinstance(value, np.ndarray) and value.size]
    if not dtypes:
        return torch.float64
    found = dtypes[0]
    for dtype in dtypes[1:]:
        found = torch.promote_types(found, dtype)
    if not found.is_floating_point and any(isinstance(value, float) for value in values):
        return torch.float64
    return found


def _axes(axes: Sequence[int] | int | None, ndim: int) -> list[int]:
    if axes is None or (not isinstance(axes, int) and not len(axes)):
        return list(range(ndim))
    return sorted({axis % max(1, ndim) for axis in ([axes] if isinstance(axes, int) else axes)})


def _places(value: Any) -> np.ndarray[Any, Any]:
    """An array of constants as integers or booleans: places to read from."""
    if any(node.op != "const" for node in value.flat):
        raise Unsupported("it reads at places that depend on the state")
    kind = np.bool_ if value.size and value.flat[0].dtype is torch.bool else np.int64
    return np.array([node.data for node in value.flat], dtype=kind).reshape(value.shape)


for _name in ("neg", "abs", "sqrt", "sin", "cos", "tan", "exp", "log", "tanh", "floor", "ceil", "asin", "acos", "atan", "sinh",
              "cosh", "asinh", "acosh", "atanh", "log1p", "expm1", "erf", "log2", "log10", "exp2"):  # fmt: skip
    _register(_name)(lambda made, x, name=_name: made.op(name, x))
for _name, _op in (("mul", "mul"), ("maximum", "maximum"), ("minimum", "minimum"), ("atan2", "atan2"), ("hypot", "hypot")):
    _register(_name)(lambda made, a, b, op=_op: made.op(op, a, b))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _register(_name)(lambda made, a, b, name=_name: made.compare(name, a, b))
for _name, _op in (("bitwise_and", "and"), ("logical_and", "and"), ("bitwise_or", "or"), ("logical_or", "or")):

    @_register(_name)
    def _logic(made: Made, a: Any, b: Any, op: str = _op) -> Array:
        if made.dtype is not torch.bool:
            raise Unsupported("it computes with the bits of whole numbers")
        return made.op(op, a, b)


@_register("bitwise_not", "logical_not")
def _not(made: Made, a: Array) -> Array:
    if made.dtype is not torch.bool:
        raise Unsupported("it computes with the bits of whole numbers")
    return made.op("not", a)


@_register("add", "sub", "rsub")
def _add(made: Made, a: Any, b: Any, alpha: float = 1, *, name: str = "add") -> Array:
    scaled = b if alpha == 1 else made.op("mul", b, alpha)
    return made.op(name, a, scaled)


OPERATIONS["sub"] = lambda made, a, b, alpha=1: _add(made, a, b, alpha, name="sub")
OPERATIONS["rsub"] = lambda made, a, b, alpha=1: _add(made, b, a, alpha, name="sub")


@_register("div")
def _div(made: Made, a: Any, b: Any, rounding_mode: str | None = None) -> Array:
    if rounding_mode == "floor":
        return made.op("floor", made.op("div", a, b))
    if rounding_mode is not None:
        raise Unsupported("it divides with truncation")
    a, b = made.array(a), made.array(b)
    if 2 * b.size <= math.prod(made.shape) or (_uniform(b) and not _uniform(a)):  # one division, then products
        return made.op("mul", a, made.op("div", 1.0, b))
    return made.op("div", a, b)


@_register("bitwise_xor", "logical_xor")
def _xor(made: Made, a: Array, b: Array) -> Array:
    if made.dtype is not torch.bool:
        raise Unsupported("it computes with the bits of whole numbers")
    return made.op("ne", a, b)


@_register("addcmul")
def _addcmul(made: Made, x: Array, a: Array, b: Array, value: float = 1) -> Array:
    return _add(made, x, made.op("mul", a, b), value)


@_register("addcdiv")
def _addcdiv(made: Made, x: Array, a: Array, b: Array, value: float = 1) -> Array:
    return _add(made, x, _div(made, a, b), value)


@_register("lerp")
def _lerp(made: Made, a: Array, b: Array, weight: Any) -> Array:
    return made.op("add", a, made.op("mul", weight, made.op("sub", b, a)))


@_register("reciprocal")
def _reciprocal(made: Made, x: Array) -> Array:
    return made.op("div", 1.0, x)


@_register("rsqrt")
def _rsqrt(made: Made, x: Array) -> Array:
    return made.op("div", 1.0, made.op("sqrt", x))


@_register("square")
def _square(made: Made, x: Array) -> Array:
    return made.op("mul", x, x)


@_register("sigmoid")
def _sigmoid(made: Made, x: Array) -> Array:
    return made.op("div", 1.0, made.op("add", 1.0, made.op("exp", made.op("neg", x))))


@_register("sign")
def _sign(made: Made, x: Array) -> Array:
    zero, one, minus = (made.array(value) for value in (0.0, 1.0, -1.0))
    low = made.graph.apply("where", made.dtype, made.compare("lt", x, 0), minus, zero)
    return made.graph.apply("where", made.dtype, made.compare("gt", x, 0), one, low)


@_register("pow")
def _pow(made: Made, base: Any, exponent: Any) -> Array:
    if isinstance(exponent, np.ndarray) and exponent.size == 1 and exponent.flat[0].op == "const":
        exponent = exponent.flat[0].data
    if isinstance(exponent, np.ndarray):
        return made.op("pow", base, exponent)
    x, whole = made.array(base), float(exponent)
    if whole == int(whole) and 1 <= abs(whole) <= 16:
        power = _whole_power(made, x, int(abs(whole)))
        return power if whole > 0 else made.op("div", 1.0, power)
    if whole == 0:
        return np.broadcast_to(made.array(1.0), x.shape)
    if whole == 1.5:  # whose derivative is finite at zero, that of the root is not
        return made.op("mul", x, _root(made, x))
    if abs(whole) == 0.5:
        root = made.op("sqrt", x)
        return root if whole > 0 else made.op("div", 1.0, root)
    if whole == -1.5:
        return made.op("div", 1.0, made.op("mul", x, made.op("sqrt", x)))
    return made.op("pow", x, whole)


def _root(made: Made, x: Array) -> Array:
    """The square root, with the derivative zero at zero."""
    zero = made.compare("eq", x, 0)
    root = made.op("sqrt", made.graph.apply("where", made.dtype, zero, made.array(1.0), x))
    return made.graph.apply("where", made.dtype, zero, made.array(0.0), root)


def _whole_power(made: Made, x: Array, exponent: int) -> Array:
    if exponent == 1:
        return x
    half = _whole_power(made, x, exponent // 2)
    squared = made.op("mul", half, half)
    return made.op("mul", squared, x) if exponent % 2 else squared


@_register("clamp", "clamp_min", "clamp_max")
def _clamp(made: Made, x: Array, low: Any = None, high: Any = None) -> Array:
    x = made.array(x)
    for bound, beyond, open_end in ((low, "lt", -math.inf), (high, "gt", math.inf)):
        if bound is None or (isinstance(bound, float) and bound == open_end):
            continue
        limit = made.array(bound)  # not a maximum, which shares the derivative on the bound: there it is that of x
        out = made.compare(beyond, x, limit)
        if any(node.op != "const" for node in limit.flat):
            out = made.graph.apply("or", torch.bool, out, made.compare("ne", limit, limit))
        x = made.graph.apply("where", made.dtype, out, limit, x)
    return x


OPERATIONS["clamp_max"] = lambda made, x, high: _clamp(made, x, None, high)


@_register("where")
def _where(made: Made, mask: Array, a: Any, b: Any) -> Array:
    return made.graph.apply("where", made.dtype, made.array(mask, torch.bool), made.array(a), made.array(b))


@_register("masked_fill")
def _masked_fill(made: Made, x: Array, mask: Array, value: Any) -> Array:
    return _where(made, mask, value, x)


@_register("isfinite")
def _isfinite(made: Made, x: Array) -> Array:
    return made.graph.apply("isfinite", torch.bool, x)


@_register("isnan")
def _isnan(made: Made, x: Array) -> Array:
    return made.graph.apply("ne", torch.bool, x, x)


@_register("isinf")
def _isinf(made: Made, x: Array) -> Array:
    size = made.graph.apply("abs", x.flat[0].dtype, x)
    return made.compare("eq", size, math.inf)


@_register("sum")
def _sum(made: Made, x: Array, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
    return made.fold("add", x, dim, keepdim)


@_register("mean")
def _mean(made: Made, x: Array, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
    total = made.fold("add", x, dim, keepdim)
    return made.op("div", total, float(x.size // max(1, total.size)))


@_register("prod")
def _prod(made: Made, x: Array, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
    return made.fold("mul", x, dim, keepdim)


@_register("amax")
def _amax(made: Made, x: Array, dim: Any = None, keepdim: bool = False) -> Array:
    return made.fold("maximum", x, dim, keepdim)


@_register("amin")
def _amin(made: Made, x: Array, dim: Any = None, keepdim: bool = False) -> Array:
    return made.fold("minimum", x, dim, keepdim)


@_register("any")
def _any(made: Made, x: Array, dim: Any = None, keepdim: bool = False) -> Array:
    return made.fold("or", x, dim, keepdim)


@_register("all")
def _all(made: Made, x: Array, dim: Any = None, keepdim: bool = False) -> Array:
    return made.fold("and", x, dim, keepdim)


def _running(made: Made, name: str, x: Array, dim: int) -> Array:
    moved = np.moveaxis(made.array(x), dim, -1)
    parts = [moved[..., 0]]
    for place in range(1, moved.shape[-1]):
        parts.append(made.op(name, parts[-1], moved[..., place]))
    return np.moveaxis(np.stack(parts, -1), -1, dim)


@_register("cumsum")
def _cumsum(made: Made, x: Array, dim: int, dtype: Any = None) -> Array:
    return _running(made, "add", x, dim)


@_register("cumprod")
def _cumprod(made: Made, x: Array, dim: int, dtype: Any = None) -> Array:
    return _running(made, "mul", x, dim)


@_register("linalg_vector_norm")
def _norm(made: Made, x: Array, order: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
    if order != 2:
        raise Unsupported(f"it takes a norm of order {order}")
    return _root(made, made.fold("add", made.op("mul", x, x), dim, keepdim))


@_register("mm", "bmm", "mv", "dot")
def _product(made: Made, a: Array, b: Array) -> Array:
    if b.ndim == 1:
        return _product(made, a.reshape(-1, a.shape[-1]), b.reshape(-1, 1)).reshape(made.shape)
    if a.ndim == 3:
        return np.stack([_product(made, left, right) for left, right in zip(a, b, strict=True)])
    dense = a.shape[1] * max(a.shape[0] if _uniform(a) else 0, b.shape[1] if _uniform(b) else 0) >= _DENSE
    if dense and _uniform(b) and not _uniform(a):
        matrix = np.ascontiguousarray(b.T)
        return np.stack([made.graph.product(matrix, list(row), made.dtype) for row in a])
    if dense and _uniform(a) and not _uniform(b):
        return np.stack([made.graph.product(a, list(column), made.dtype) for column in b.T], axis=-1)
    total = made.op("mul", a[:, :1], b[:1])
    for place in range(1, a.shape[1]):
        total = made.op("add", total, made.op("mul", a[:, place : place + 1], b[place : place + 1]))
    return total


def _uniform(a: Array) -> bool:
    return all(node.uniform for node in a.flat)


@_register("addmm", "addmv")
def _addmm(made: Made, c: Array, a: Array, b: Array, beta: float = 1, alpha: float = 1) -> Array:
    product = _product(made, a, b)
    scaled = product if alpha == 1 else made.op("mul", product, alpha)
    return made.op("add", scaled, c if beta == 1 else made.op("mul", c, beta))


@_register("view", "reshape", "_unsafe_view")
def _view(made: Made, x: Array, shape: Sequence[int]) -> Array:
    return x.reshape(made.shape)


@_register("expand", "squeeze", "unsqueeze")
def _expand(made: Made, x: Array, *_: Any) -> Array:
    return x.reshape(made.shape) if x.size == math.prod(made.shape) else np.broadcast_to(x, made.shape)


@_register("permute", "t", "transpose")
def _permute(made: Made, x: Array, *axes: Any) -> Array:
    if len(axes) == 2:
        return np.swapaxes(x, *axes)
    return x.T if not axes else x.transpose(axes[0])


@_register("slice")
def _slice(made: Made, x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


@_register("select")
def _select(made: Made, x: Array, dim: int, index: int) -> Array:
    return np.asarray(x[(slice(None),) * (dim % x.ndim) + (index,)], dtype=object)


@_register("cat")
def _cat(made: Made, parts: Sequence[Array], dim: int = 0) -> Array:
    return np.concatenate([made.array(part) for part in parts if part.shape != (0,)], axis=dim)


@_register("stack")
def _stack(made: Made, parts: Sequence[Array], dim: int = 0) -> Array:
    return np.stack([made.array(part) for part in parts], axis=dim)


@_register("split", "split_with_sizes")
def _split(made: Made, x: Array, size: int | Sequence[int], dim: int = 0) -> list[Array]:
    length = x.shape[dim]
    ends = list(range(size, length, size)) if isinstance(size, int) else list(np.cumsum(size)[:-1])
    return list(np.split(x, ends, axis=dim))


@_register("unbind")
def _unbind(made: Made, x: Array, dim: int = 0) -> list[Array]:
    return [np.asarray(part, dtype=object) for part in np.moveaxis(x, dim, 0)]


@_register("index_select")
def _index_select(made: Made, x: Array, dim: int, index: Array) -> Array:
    return np.take(x, _places(index), axis=dim)


@_register("gather")
def _gather(made: Made, x: Array, dim: int, index: Array) -> Array:
    return np.take_along_axis(x, _places(index), axis=dim)


@_register("index")
def _index(made: Made, x: Array, indices: Sequence[Array | None]) -> Array:
    return np.asarray(x[tuple(slice(None) if index is None else _places(index) for index in indices)], dtype=object)


@_register("index_put")
def _index_put(made: Made, x: Array, indices: Sequence[Array | None], values: Array, accumulate: bool = False) -> Array:
    out = np.array(made.array(x), dtype=object)
    where = tuple(slice(None) if index is None else _places(index) for index in indices)
    places = np.arange(out.size).reshape(out.shape)[where]
    spread = np.broadcast_to(made.array(values), places.shape)
    flat = out.reshape(-1)
    for place, node in zip(places.ravel(), spread.ravel(), strict=True):
        flat[place] = made.graph.make("add", made.dtype, flat[place], node) if accumulate else node
    return flat.reshape(out.shape)


@_register("index_add")
def _index_add(made: Made, x: Array, dim: int, index: Array, source: Array, alpha: float = 1) -> Array:
    scaled = source if alpha == 1 else made.op("mul", source, alpha)
    return _index_put(made, x, [None] * (dim % x.ndim) + [index], scaled, accumulate=True)


@_register("slice_scatter")
def _slice_scatter(
    made: Made, x: Array, source: Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Array:
    out = np.array(made.array(x), dtype=object)
    out[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)] = made.array(source)
    return out


@_register("select_scatter")
def _select_scatter(made: Made, x: Array, source: Array, dim: int, index: int) -> Array:
    out = np.array(made.array(x), dtype=object)
    out[(slice(None),) * (dim % x.ndim) + (index,)] = made.array(source)
    return out


@_register("flip")
def _flip(made: Made, x: Array, dims: Sequence[int]) -> Array:
    return np.flip(x, tuple(dims))


@_register("diagonal")
def _diagonal(made: Made, x: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    return np.diagonal(x, offset, dim1, dim2)


@_register("remainder")
def _remainder(made: Made, x: Array, by: Any) -> Array:
    if made.dtype.is_floating_point or not isinstance(by, int):
        raise Unsupported("it takes a remainder")
    return as_array([made.graph.const(place % by, made.dtype) for place in _places(x).ravel()], x.shape)


@_register("roll")
def _roll(made: Made, x: Array, shifts: Sequence[int], dims: Sequence[int] = ()) -> Array:
    return np.roll(x, tuple(shifts), tuple(dims)) if len(dims) else np.roll(x, shifts[0])


@_register("repeat")
def _repeat(made: Made, x: Array, repeats: Sequence[int]) -> Array:
    return np.tile(x, tuple(repeats))


@_register("clone", "detach", "alias", "contiguous", "lift_fresh_copy", "lift_fresh", "_to_copy")
def _same(made: Made, x: Array, *_: Any, **__: Any) -> Array:
    return made.array(x)


@_register("copy")
def _copy(made: Made, x: Array, source: Array, *_: Any) -> Array:
    return np.broadcast_to(made.array(source), x.shape)


@_register(
    "full", "full_like", "zeros", "zeros_like", "ones", "ones_like", "new_zeros", "new_full", "new_ones", "scalar_tensor"
)
def _full(made: Made, *given: Any, value: float | None = None, **__: Any) -> Array:
    return np.broadcast_to(made.array(given[-1] if value is None else value), made.shape)


for _name in ("zeros", "zeros_like", "new_zeros", "empty_like", "new_empty", "empty"):
    OPERATIONS[_name] = lambda made, *_, **__: _full(made, value=0.0)
for _name in ("ones", "ones_like", "new_ones"):
    OPERATIONS[_name] = lambda made, *_, **__: _full(made, value=1.0)


@_register("arange")
def _arange(made: Made, *given: Any, **__: Any) -> Array:
    return as_array([made.graph.const(value, made.dtype) for value in np.arange(*given)], made.shape)


@_register("eye")
def _eye(made: Made, *given: Any, **__: Any) -> Array:
    return as_array([made.graph.const(value, made.dtype) for value in np.eye(*given).ravel()], made.shape)


@_register("linalg_cross")
def _cross(made: Made, a: Array, b: Array, dim: int = -1) -> Array:
    a, b = (np.moveaxis(value, dim, 0) for value in np.broadcast_arrays(a, b))
    turns = ((1, 2), (2, 0), (0, 1))
    parts = [made.op("sub", made.op("mul", a[i], b[j]), made.op("mul", a[j], b[i])) for i, j in turns]
    return np.moveaxis(np.stack(parts), 0, dim)
