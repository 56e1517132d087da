"""Methods of integration as values: ``pn.methods.tsit5`` is what ``method="tsit5"`` names."""

from __future__ import annotations

from physnode.engine.methods import (
    Method,
    available,
    bosh3,
    dop853,
    dopri5,
    dopri8,
    euler,
    get,
    heun,
    kahan_li8,
    leapfrog,
    midpoint,
    rk4,
    tsit5,
    yoshida4,
    yoshida6,
)

__all__ = [
    "Method",
    "available",
    "bosh3",
    "dop853",
    "dopri5",
    "dopri8",
    "euler",
    "get",
    "heun",
    "kahan_li8",
    "leapfrog",
    "midpoint",
    "rk4",
    "tsit5",
    "yoshida4",
    "yoshida6",
]
