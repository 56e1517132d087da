"""What rounding does to a gradient in float32, beside the float64 gradient on the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from benchmarks.accuracy.tables import Figure, Table
from benchmarks.gradients.contenders import Setting, contenders
from benchmarks.gradients.fields import layered
from benchmarks.gradients.measure import differentiate
from benchmarks.gradients.panels import Part

__all__ = ["rounding"]

METHODS = ("midpoint", "rk4", "dopri5")


def rounding(methods: Sequence[str] = METHODS, steps: int = 1000) -> Part:
    """Errors of dL/dy(0) and dL/dθ of one network."""
    table = Table(
        "Rounding in float32",
        f"{steps:,} fixed steps of [0, 10], a network of two layers of 32 on 16 states of dimension 4, L = |y(10)|². Relative "
        "errors of dL/dy(0) and dL/dθ against the float64 gradient on the same steps, from the same numbers. "
        "The symplectic adjoint's error is held below that of backpropagation (`direct`).",
        ("method", "gradient", "dL/dy(0)", "dL/dθ", "dL/dy(0), over `direct`", "dL/dθ, over `direct`"),
    )
    for method in methods:
        setting = Setting(method, (0.0, 10.0), dt=10.0 / steps)
        field, y0 = layered(4, 32, 2).float(), torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
        known = contenders(setting)
        exact = differentiate(known["direct"], deepcopy(field).double(), y0.double(), setting)
        errors: dict[str, list[float]] = {}
        for name, contender in known.items():
            found = differentiate(contender, field, y0, setting)
            errors[name] = [_off(got, wanted) for got, wanted in zip(_parts(found), _parts(exact), strict=True)]
        for name, pair in errors.items():
            ratios = [mine / theirs for mine, theirs in zip(pair, errors["direct"], strict=True)]
            limit = 1.0 if name.startswith("symplectic") else None
            held = [Figure(ratio, at_most=limit, form=".2f") for ratio in ratios]
            table.add(method, name, *map(Figure, pair), *held)
    return Part([table])


def _parts(found: tuple[Tensor, list[Tensor]]) -> tuple[Tensor, Tensor]:
    """dL/dy(0), and dL/dθ as one vector, in float64."""
    return found[0].double(), torch.cat([part.double().flatten() for part in found[1]])


def _off(got: Tensor, wanted: Tensor) -> float:
    """The norm of the error over that of the wanted."""
    return float((got - wanted).norm() / wanted.norm())
