"""The methods of integration, as values and by name."""

from __future__ import annotations

from physnode.engine.families.base import Method
from physnode.engine.families.explicit_rk import ExplicitRungeKutta
from physnode.engine.families.splitting import Splitting
from physnode.engine.tableaus import BUTCHER, SPLITTING
from physnode.errors import InputError, name_hint

__all__ = [
    "ExplicitRungeKutta",
    "Method",
    "Splitting",
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

euler = ExplicitRungeKutta(BUTCHER["euler"])
midpoint = ExplicitRungeKutta(BUTCHER["midpoint"])
heun = ExplicitRungeKutta(BUTCHER["heun"])
rk4 = ExplicitRungeKutta(BUTCHER["rk4"])
bosh3 = ExplicitRungeKutta(BUTCHER["bosh3"])
dopri5 = ExplicitRungeKutta(BUTCHER["dopri5"])
tsit5 = ExplicitRungeKutta(BUTCHER["tsit5"])
dop853 = ExplicitRungeKutta(BUTCHER["dop853"])
dopri8 = ExplicitRungeKutta(BUTCHER["dopri8"])
dopri8.prefers_restep = True  # its extension is a cubic
leapfrog = Splitting(SPLITTING["leapfrog"])
yoshida4 = Splitting(SPLITTING["yoshida4"])
yoshida6 = Splitting(SPLITTING["yoshida6"])
kahan_li8 = Splitting(SPLITTING["kahan_li8"])

_METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        euler, midpoint, heun, rk4, bosh3, dopri5, tsit5, dop853, dopri8, leapfrog, yoshida4, yoshida6, kahan_li8
    )
}  # fmt: skip


def available() -> dict[str, Method]:
    """Every method by name."""
    return dict(_METHODS)


def get(method: str | Method) -> Method:
    """The method itself, or the one of that name.

    Raises:
        InputError: an unknown name; the message lists the known ones.
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, str) and method in _METHODS:
        return _METHODS[method]
    hint = name_hint(method, _METHODS)
    raise InputError(f"unknown method {method!r}.{hint} Known methods: {', '.join(_METHODS)}")
