"""Operations on each entry by itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from physnode.native.expressions import Array, Unsupported
from physnode.native.operations.made import OPERATIONS, Made, is_uniform, register

for _name in ("neg", "abs", "sqrt", "sin", "cos", "tan", "exp", "log", "tanh", "floor", "ceil", "asin", "acos", "atan", "sinh",
              "cosh", "asinh", "acosh", "atanh", "log1p", "expm1", "erf", "log2", "log10", "exp2"):  # fmt: skip
    register(_name)(lambda made, x, name=_name: made.op(name, x))
for _name, _op in (("mul", "mul"), ("maximum", "maximum"), ("minimum", "minimum"), ("atan2", "atan2"), ("hypot", "hypot")):
    register(_name)(lambda made, a, b, op=_op: made.op(op, a, b))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    register(_name)(lambda made, a, b, name=_name: made.compare(name, a, b))
for _name, _op in (("bitwise_and", "and"), ("logical_and", "and"), ("bitwise_or", "or"), ("logical_or", "or")):

    @register(_name)
    def _logic(made: Made, a: Any, b: Any, op: str = _op) -> Array:
        if made.dtype is not torch.bool:
            raise Unsupported("it computes with the bits of whole numbers")
        return made.op(op, a, b)


@register("bitwise_not", "logical_not")
def _not(made: Made, a: Array) -> Array:
    if made.dtype is not torch.bool:
        raise Unsupported("it computes with the bits of whole numbers")
    return made.op("not", a)


@register("add", "sub", "rsub")
def _add(made: Made, a: Any, b: Any, alpha: float = 1, *, name: str = "add") -> Array:
    scaled = b if alpha == 1 else made.op("mul", b, alpha)
    return made.op(name, a, scaled)


OPERATIONS["sub"] = lambda made, a, b, alpha=1: _add(made, a, b, alpha, name="sub")
OPERATIONS["rsub"] = lambda made, a, b, alpha=1: _add(made, b, a, alpha, name="sub")


@register("div")
def _div(made: Made, a: Any, b: Any, rounding_mode: str | None = None) -> Array:
    if rounding_mode is not None:  # which PyTorch does by a remainder, with other digits
        raise Unsupported("it divides to whole numbers")
    a, b = made.array(a), made.array(b)
    if 2 * b.size <= math.prod(made.shape) or (is_uniform(b) and not is_uniform(a)):  # one division, then products
        return made.op("mul", a, made.op("div", 1.0, b))
    return made.op("div", a, b)


@register("bitwise_xor", "logical_xor")
def _xor(made: Made, a: Array, b: Array) -> Array:
    if made.dtype is not torch.bool:
        raise Unsupported("it computes with the bits of whole numbers")
    return made.op("ne", a, b)


@register("addcmul")
def _addcmul(made: Made, x: Array, a: Array, b: Array, value: float = 1) -> Array:
    return _add(made, x, made.op("mul", a, b), value)


@register("addcdiv")
def _addcdiv(made: Made, x: Array, a: Array, b: Array, value: float = 1) -> Array:
    return _add(made, x, _div(made, a, b), value)


@register("lerp")
def _lerp(made: Made, a: Array, b: Array, weight: Any) -> Array:
    return made.op("add", a, made.op("mul", weight, made.op("sub", b, a)))


@register("reciprocal")
def _reciprocal(made: Made, x: Array) -> Array:
    return made.op("div", 1.0, x)


@register("rsqrt")
def _rsqrt(made: Made, x: Array) -> Array:
    return made.op("div", 1.0, made.op("sqrt", x))


@register("square")
def _square(made: Made, x: Array) -> Array:
    return made.op("mul", x, x)


@register("sigmoid")
def _sigmoid(made: Made, x: Array) -> Array:
    return made.op("sigmoid", x)


@register("softplus")
def _softplus(made: Made, x: Array, beta: float = 1, threshold: float = 20) -> Array:
    scaled = x if beta == 1 else made.op("mul", x, float(beta))
    large = made.compare("gt", scaled, float(threshold))
    small = made.op("log1p", made.op("exp", _where(made, large, 0.0, scaled)))  # no overflow where it is not taken
    return _where(made, large, x, small if beta == 1 else made.op("div", small, float(beta)))


@register("elu")
def _elu(made: Made, x: Array, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Array:
    positive = made.compare("gt", x, 0)
    below = made.op(
        "mul", made.op("expm1", made.op("mul", _where(made, positive, 0.0, x), float(input_scale))), float(alpha) * float(scale)
    )
    return _where(made, positive, made.op("mul", x, float(scale)), below)


@register("sign")
def _sign(made: Made, x: Array) -> Array:
    zero, one, minus = (made.array(value) for value in (0.0, 1.0, -1.0))
    low = made.graph.apply("where", made.dtype, made.compare("lt", x, 0), minus, zero)
    return made.graph.apply("where", made.dtype, made.compare("gt", x, 0), one, low)


@register("pow")
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
        return made.op("mul", x, safe_root(made, x))
    if abs(whole) == 0.5:
        root = made.op("sqrt", x)
        return root if whole > 0 else made.op("div", 1.0, root)
    if whole == -1.5:
        return made.op("div", 1.0, made.op("mul", x, made.op("sqrt", x)))
    return made.op("pow", x, whole)


def safe_root(made: Made, x: Array) -> Array:
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


@register("clamp", "clamp_min", "clamp_max")
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


@register("where")
def _where(made: Made, mask: Array, a: Any, b: Any) -> Array:
    return made.graph.apply("where", made.dtype, made.array(mask, torch.bool), made.array(a), made.array(b))


@register("masked_fill")
def _masked_fill(made: Made, x: Array, mask: Array, value: Any) -> Array:
    return _where(made, mask, value, x)


@register("isfinite")
def _isfinite(made: Made, x: Array) -> Array:
    return made.graph.apply("isfinite", torch.bool, x)


@register("isnan")
def _isnan(made: Made, x: Array) -> Array:
    return made.graph.apply("ne", torch.bool, x, x)


@register("isinf")
def _isinf(made: Made, x: Array) -> Array:
    size = made.graph.apply("abs", x.flat[0].dtype, x)
    return made.compare("eq", size, math.inf)
