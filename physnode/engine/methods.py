"""The methods of integration, as values and by name."""

from __future__ import annotations

from physnode.engine.coefficients.collocation import GAUSS2, GAUSS4, GAUSS6, RADAU5
from physnode.engine.coefficients.nystrom import DPRKN6
from physnode.engine.families.base import Method
from physnode.engine.families.explicit_rk import ExplicitRungeKutta
from physnode.engine.families.gauss_radau import GaussRadau
from physnode.engine.families.implicit_rk import ImplicitRungeKutta
from physnode.engine.families.nystrom import RungeKuttaNystrom
from physnode.engine.families.splitting import Splitting
from physnode.engine.tableaus import BUTCHER, SPLITTING
from physnode.errors import InputError, name_hint

__all__ = [
    "ExplicitRungeKutta",
    "GaussRadau",
    "ImplicitRungeKutta",
    "Method",
    "RungeKuttaNystrom",
    "Splitting",
    "available",
    "bosh3",
    "dop853",
    "dopri5",
    "dopri8",
    "dprkn6",
    "euler",
    "gauss2",
    "gauss4",
    "gauss6",
    "gauss_radau15",
    "get",
    "heun",
    "kahan_li8",
    "leapfrog",
    "midpoint",
    "radau5",
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
dprkn6 = RungeKuttaNystrom(DPRKN6)
gauss_radau15 = GaussRadau()
leapfrog = Splitting(SPLITTING["leapfrog"])
yoshida4 = Splitting(SPLITTING["yoshida4"])
yoshida6 = Splitting(SPLITTING["yoshida6"])
kahan_li8 = Splitting(SPLITTING["kahan_li8"])
gauss2 = ImplicitRungeKutta(GAUSS2)
gauss4 = ImplicitRungeKutta(GAUSS4)
gauss6 = ImplicitRungeKutta(GAUSS6)
radau5 = ImplicitRungeKutta(RADAU5)

_METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        euler, midpoint, heun, rk4, bosh3, dopri5, tsit5, dop853, dopri8, leapfrog, yoshida4, yoshida6, kahan_li8,
        dprkn6, gauss_radau15, gauss2, gauss4, gauss6, radau5,
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
