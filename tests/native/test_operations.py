"""Every operation for which native code is known: values and derivatives as PyTorch has them, also at kinks, zeros and NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.nn import functional

import physnode as pn
from physnode.native.operations import OPERATIONS

D = torch.float64
OPTIONS = {"method": "euler", "controller": pn.Fixed(0.25)}
TS = [0.0, 0.25, 0.5]
WEIGHTS = torch.tensor([[0.3, -0.2, 0.5, 0.1], [0.7, 0.4, -0.6, 0.2], [-0.1, 0.8, 0.3, -0.5]], dtype=D)
PLACES = torch.tensor([2, 0, 3, 1])
MASK = torch.tensor([True, False, True, True])


def elementwise(t: Tensor, y: Tensor, c: Tensor) -> list[Tensor]:
    """Of y in (0.1, 0.9)."""
    return [
        y.neg().abs(), y.sqrt(), y.sin(), y.cos(), y.tan(), y.exp(), y.log(), y.tanh(), (4 * y).floor() * y,
        (4 * y).ceil() * y, y.asin(), y.acos(), y.atan(), y.sinh(), y.cosh(), y.asinh(), (1 + y).acosh(), y.atanh(),
        y.log1p(), y.expm1(), y.erf(), y.log2(), y.log10(), y.exp2(), y.reciprocal(), y.rsqrt(), y.square(), y.sigmoid(),
        y.sign() * y, y - 0.4, 1.3 - y, torch.atan2(y, c), torch.hypot(y, c), y**c, y**3, y**-2, y**0.5, y**-0.5, y**1.5,
        y**-1.5, y**0.3, 2.0**y, y**0, y**17, torch.maximum(y, c), torch.minimum(y, c), y.clamp(0.3, 0.6), y.clamp(min=0.4),
        y.clamp(max=c), torch.lerp(y, c, 0.3), torch.addcmul(y, c, y, value=0.4), torch.addcdiv(y, c, y, value=0.4),
        torch.add(y, c, alpha=2.5), torch.sub(y, c, alpha=0.7), torch.rsub(y, c, alpha=0.3),
        y / c, c / y, y / 1.7, 2.1 / y, torch.where(y > c, y, c * y),
        torch.where((y < 0.5) & ~(y == c) | (y >= 0.8), y, -c), torch.where((y <= 0.5) ^ (y != c), y, c),
        y.masked_fill(y > 0.5, 0.2) * c, torch.where(torch.isfinite(y / (c - c)), y, c), torch.isnan(y).double() + y,
        torch.isinf(y).to(D) * c, (y > 0.4).double() * y, (3 * y).long().double() * c, t * y, torch.sin(3 * t) * c,
        functional.softplus(y), functional.gelu(y), functional.silu(y), functional.relu(y - 0.5), functional.elu(y - 0.5),
        functional.leaky_relu(y - 0.5), functional.logsigmoid(y),
    ]  # fmt: skip


def arrangements(t: Tensor, y: Tensor, c: Tensor) -> list[Tensor]:
    """Sums, views, joins, gathers and products, each of the shape of y."""
    batch = y.shape[:-1]
    outer = y.unsqueeze(-1) * c
    flat = outer.reshape(-1, 4, 4)
    padded = torch.zeros_like(y)
    padded[..., 1:3] = y[..., :2] * c[:2]
    padded[..., 0] = y[..., 3]
    padded[..., MASK] += 0.1 * y[..., MASK]
    total = torch.zeros_like(y).index_add(-1, torch.tensor([0, 0, 3, 1]), y * c)
    cross = torch.linalg.cross(y[..., :3], c[:3].expand_as(y[..., :3]))
    left, right = y.split([1, 3], dim=-1)
    first, *others = y.unbind(-1)
    square = (y @ WEIGHTS.T).unsqueeze(-1) * (WEIGHTS * c)
    return [
        outer.sum(-1), outer.mean(-2), outer.prod(-1), outer.amax(-1), outer.amin(-2),
        outer.sum((-1, -2), keepdim=True)[..., 0] * y, torch.where((y > 0.4).any(-1, keepdim=True), y, c),
        torch.where((y > 0.4).all(-1, keepdim=True), y, c), y.cumsum(-1), y.cumprod(-1),
        torch.linalg.vector_norm(outer, dim=-1), y / y.norm(dim=-1, keepdim=True), padded, total,
        torch.cat((cross, y[..., :1]), -1), torch.cat((right, left), -1), torch.stack((first * c[0], *others), -1),
        y.flip(-1), y.roll(1, -1), y.roll((1,), (-1,)), y[..., PLACES], torch.gather(y, -1, PLACES.expand_as(y)),
        y.index_select(-1, PLACES), torch.take_along_dim(y, PLACES.expand_as(y), -1),
        y[..., 1::2].repeat(*[1] * len(batch), 2), y.reshape(*batch, 2, 2).mT.reshape(y.shape),
        torch.einsum("...i,ji->...j", y, WEIGHTS).sum(-1, keepdim=True) * y,
        functional.linear(y, WEIGHTS, c[:3])[..., [0, 1, 2, 0]], (WEIGHTS.T @ (WEIGHTS @ y.unsqueeze(-1))).squeeze(-1),
        square.sum(-2), torch.softmax(y * c, -1), torch.log_softmax(y, -1), torch.logsumexp(y, -1, keepdim=True) * c,
        torch.eye(4, dtype=D)[1] * y, torch.arange(4, dtype=D) * y, torch.full_like(y, 0.3) * c, y.new_ones(4) * y,
        torch.outer(c, c)[1] * y, torch.diff(torch.cat((y, y[..., :1]), -1)), torch.triu(outer).sum(-1),
        torch.diagonal(outer, dim1=-2, dim2=-1), torch.baddbmm(flat, flat, flat).reshape(outer.shape)[..., 0],
        flat.bmm(flat).reshape(outer.shape)[..., 1], y.movedim(-1, 0).movedim(0, -1), y.clone() * c,
    ]  # fmt: skip


def together(parts: Callable[..., list[Tensor]], c: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return sum((0.01 * math.cos(1.0 + 3 * k) * part for k, part in enumerate(parts(t, y, c))), 0 * y)

    return field


@pytest.mark.parametrize("parts", [elementwise, arrangements])
def test_values_and_derivatives(parts: Callable[..., list[Tensor]], help: Any) -> None:
    c = torch.tensor([0.31, 0.62, 0.47, 0.83], dtype=D, requires_grad=True)
    y0 = 0.25 + 0.5 * torch.rand(9, 4, dtype=D)
    help.agree(together(parts, c), y0, TS, [c], **OPTIONS)


def test_each_operation_by_itself(help: Any) -> None:
    """The same without a compiler in between: what a sum of all might hide is seen in a field with many outputs."""
    c = torch.tensor([0.31, 0.62, 0.47, 0.83], dtype=D, requires_grad=True)
    for parts in (elementwise, arrangements):
        count = len(parts(torch.zeros(1, 1, dtype=D), torch.full((1, 4), 0.4, dtype=D), c))

        def field(t: Tensor, y: Tensor, parts: Any = parts) -> Tensor:
            found = parts(t, y[..., :4], c)
            return torch.cat([torch.zeros_like(y[..., :4]), *(part.expand_as(y[..., :4]) for part in found)], -1)

        y0 = torch.cat((0.25 + 0.5 * torch.rand(3, 4, dtype=D), torch.zeros(3, 4 * count, dtype=D)), -1)
        wanted = pn.solve(field, y0, [0.0, 0.25], **OPTIONS).ys.detach()
        found = pn.solve(field, y0, [0.0, 0.25], compile=True, **OPTIONS).ys.detach()
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)


def kinks(t: Tensor, y: Tensor) -> Tensor:
    x = y - 0.5 * t * 0
    parts = [
        x.abs(), x.clamp(min=0), x.clamp(-1, 0), functional.relu(x), torch.maximum(x, torch.zeros_like(x)), torch.sign(x),
        torch.minimum(x, -x), (x * x) ** 1.5, x * torch.linalg.vector_norm(x, dim=-1, keepdim=True),
        torch.amax(torch.stack((x, 2 * x), -1), -1), functional.leaky_relu(x), functional.elu(x),
        torch.where(x > 0, x, 2 * x), x**2,
    ]  # fmt: skip
    return sum((0.1 + 0.05 * k) * part for k, part in enumerate(parts))


def test_derivatives_at_kinks_and_zeros(help: Any) -> None:
    y0 = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.5, -1.0], [-0.0, 0.0]], dtype=D)
    help.agree(kinks, y0, TS, **OPTIONS)


def test_no_known_operation_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry of the table is used by these fields, or is another name of one that is."""
    from physnode.native import lowering

    used: set[str] = set()

    class Noted(dict):  # type: ignore[type-arg]
        def get(self, name: str, default: Any = None) -> Any:
            used.add(name)
            return super().get(name, default)

    monkeypatch.setattr(lowering, "OPERATIONS", Noted(OPERATIONS))
    c = torch.full((4,), 0.4, dtype=D)
    for field, size in ((together(elementwise, c), 4), (together(arrangements, c), 4), (kinks, 2)):
        pn.solve(field, torch.full((2, size), 0.4, dtype=D), TS, compile=True, **OPTIONS)
    table = core_aten_decompositions()
    decomposed = {str(operation).split(".")[1] for operation in table}  # they reach the table as something else
    other_names = {
        "reshape",
        "contiguous",
        "lift_fresh",
        "logical_and",
        "logical_or",
        "logical_xor",
        "empty",
        "addmv",
        "stack",
        "alias",
    }
    assert set(OPERATIONS) - used - decomposed - other_names == set()
