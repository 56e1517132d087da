"""Operations that add up, or compare, several entries: reductions, norms and products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from physnode.native.expressions import Array, Unsupported
from physnode.native.operations.elementwise import safe_root
from physnode.native.operations.made import Made, is_uniform, register

_DENSE = 32
"""Entries from which on a uniform matrix is multiplied by a loop over it."""


@register("sum")
def _sum(made: Made, x: Array, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
    return made.fold("add", x, dim, keepdim)


@register("mean")
def _mean(made: Made, x: Array, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
    total = made.fold("add", x, dim, keepdim)
    return made.op("div", total, float(x.size // max(1, total.size)))


for _name, _op in (("prod", "mul"), ("amax", "maximum"), ("amin", "minimum"), ("any", "or"), ("all", "and")):

    @register(_name)
    def _folded(made: Made, x: Array, dim: Any = None, keepdim: bool = False, dtype: Any = None, *, op: str = _op) -> Array:
        return made.fold(op, x, dim, keepdim)


@register("cumsum")
def _cumsum(made: Made, x: Array, dim: int, dtype: Any = None) -> Array:
    return _running(made, "add", x, dim)


@register("cumprod")
def _cumprod(made: Made, x: Array, dim: int, dtype: Any = None) -> Array:
    return _running(made, "mul", x, dim)


def _running(made: Made, name: str, x: Array, dim: int) -> Array:
    moved = np.moveaxis(made.array(x), dim, -1)
    parts = [moved[..., 0]]
    for place in range(1, moved.shape[-1]):
        parts.append(made.op(name, parts[-1], moved[..., place]))
    return np.moveaxis(np.stack(parts, -1), -1, dim)


@register("linalg_vector_norm")
def _norm(made: Made, x: Array, order: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
    if order != 2:
        raise Unsupported(f"it takes a norm of order {order}")
    return safe_root(made, made.fold("add", made.op("mul", x, x), dim, keepdim))


@register("mm", "bmm", "mv", "dot")
def _product(made: Made, a: Array, b: Array) -> Array:
    if b.ndim == 1:
        return _product(made, a.reshape(-1, a.shape[-1]), b.reshape(-1, 1)).reshape(made.shape)
    if a.ndim == 3:
        return np.stack([_product(made, left, right) for left, right in zip(a, b, strict=True)])
    dense = a.shape[1] * max(a.shape[0] if is_uniform(a) else 0, b.shape[1] if is_uniform(b) else 0) >= _DENSE
    if dense and is_uniform(b) and not is_uniform(a):
        matrix = np.ascontiguousarray(b.T)
        return np.stack([made.graph.product(matrix, list(row), made.dtype) for row in a])
    if dense and is_uniform(a) and not is_uniform(b):
        return np.stack([made.graph.product(a, list(column), made.dtype) for column in b.T], axis=-1)
    total = made.op("mul", a[:, :1], b[:1])
    for place in range(1, a.shape[1]):
        total = made.op("add", total, made.op("mul", a[:, place : place + 1], b[place : place + 1]))
    return total


@register("addmm", "addmv")
def _addmm(made: Made, c: Array, a: Array, b: Array, beta: float = 1, alpha: float = 1) -> Array:
    product = _product(made, a, b)
    scaled = product if alpha == 1 else made.op("mul", product, alpha)
    return made.op("add", scaled, c if beta == 1 else made.op("mul", c, beta))


@register("linalg_cross")
def _cross(made: Made, a: Array, b: Array, dim: int = -1) -> Array:
    a, b = (np.moveaxis(value, dim, 0) for value in np.broadcast_arrays(a, b))
    turns = ((1, 2), (2, 0), (0, 1))
    parts = [made.op("sub", made.op("mul", a[i], b[j]), made.op("mul", a[j], b[i])) for i, j in turns]
    return np.moveaxis(np.stack(parts), 0, dim)
