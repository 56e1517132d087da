"""NaN, infinities and zeros of both signs inside a field: handed on as PyTorch does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import physnode as pn
from physnode.native import codes
from physnode.native.library import Start

D = torch.float64
TS = [0.0, 0.25, 0.5]


NAN_LATER = {
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "maximum, other way": lambda x: torch.maximum(torch.zeros_like(x), x),
    "minimum": lambda x: torch.minimum(torch.ones_like(x), x),
    "clamp": lambda x: x.clamp(0.0, 1.0),
    "relu": functional.relu,
    "tanh": torch.tanh,
    "amax": lambda x: x.amax(-1, keepdim=True) + 0 * torch.ones_like(x),
    "where": lambda x: torch.where(x > 0, x, -x),
    "where that hides it": lambda x: torch.where(torch.isnan(x), 0.3, x),
    "comparison": lambda x: (x != x).double() + (x < 1).double() + 2 * (x >= 1).double(),
    "power": lambda x: x**2 + x**0 + x**-1,
    "sign": torch.sign,
}


def test_not_a_number_is_handed_on_as_pytorch_does(help: Any) -> None:
    """NaN and infinities made inside the field, not at its start."""
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.4, -0.0, 0.0], dtype=D)

    def field(t: Tensor, y: Tensor) -> Tensor:
        x = torch.where(t > 0.2, values, 0.5).expand(*y.shape[:-1], 6)
        return torch.cat([function(x) for function in NAN_LATER.values()], -1)

    y0 = torch.zeros(2, 6 * len(NAN_LATER), dtype=D)
    found, wanted = (
        pn.solve(field, y0, TS, compile=compile, on_failure="report", method="euler", controller=pn.Fixed(0.25))
        for compile in (True, False)
    )
    assert torch.equal(found.status, wanted.status)
    code = next(iter(_codes(field)))
    t, y = torch.full((2,), 0.3, dtype=D), torch.full_like(y0, 0.1)
    says = code.compiled.field(_start(code, t, y))
    names = [name for name in NAN_LATER for _ in range(6)]
    for name, mine, other in zip(names, says[0], field(t.unsqueeze(-1), y)[0], strict=True):
        assert torch.equal(mine, other) or (torch.isnan(mine) and torch.isnan(other)), (name, mine, other)


def _codes(field: Any) -> list[Any]:
    return list(codes._codes[field].made.values())


def _start(code: Any, t: Tensor, y: Tensor) -> Any:
    given = {"number": torch.tensor(0.25, dtype=D), "limit": torch.tensor(1)}
    tensors = tuple((value if kind == "other" else given[kind]).detach() for kind, value in code.reads)
    return Start(y, t, t, t, t.unsqueeze(-1), y.new_empty(len(y), 0), tensors)
