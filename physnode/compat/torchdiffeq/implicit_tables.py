"""Implicit Runge-Kutta methods that have a name in torchdiffeq, for fixed steps."""

from __future__ import annotations

from decimal import Decimal, localcontext
from math import sqrt

from physnode.engine.coefficients.collocation import GAUSS2, GAUSS4, GAUSS6, collocation
from physnode.engine.coefficients.implicit_tableau import ImplicitTableau
from physnode.engine.tableaus import ContinuousExtension

__all__ = ["IMPLICIT"]

_HNW2 = "Hairer & Wanner, Solving Ordinary Differential Equations II, 2nd ed., section IV.5"
with localcontext() as _context:
    _context.prec = 50
    _6 = Decimal(6).sqrt()
    _ONE = Decimal(1)
    _EULER = collocation("implicit_euler", 1, [_ONE], _HNW2)
    _RADAU3 = collocation("radauIIA3", 3, [_ONE / 3, _ONE], _HNW2)
    _RADAU5 = collocation("radauIIA5", 5, [(4 - _6) / 10, (4 + _6) / 10, _ONE], _HNW2)

_TRAPEZOID = ImplicitTableau(
    name="trapezoid",
    order=2,
    c=(0.0, 1.0),
    a=((0.0, 0.0), (1 / 2, 1 / 2)),
    b=(1 / 2, 1 / 2),
    extension=ContinuousExtension(order=2, weights=((1.0, -1 / 2), (0.0, 1 / 2))),
    reference="Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, 2nd ed., section II.7",
)

_G = 1 - sqrt(1 / 2)
_SDIRK2 = ImplicitTableau(
    name="sdirk2",
    order=2,
    c=(_G, 1.0),
    a=((_G, 0.0), (1 - _G, _G)),
    b=(1 - _G, _G),
    # both conditions of order 2 at every point of the step, by two stages
    extension=ContinuousExtension(
        order=2, weights=((1 / (1 - _G), -1 / (2 * (1 - _G))), (1 - 1 / (1 - _G), 1 / (2 * (1 - _G))))
    ),
    reference="Alexander, SIAM J. Numer. Anal. 14 (1977) 1006",
)

_MIDDLE = 2 - sqrt(2)
_W, _D = sqrt(2) / 4, 1 - sqrt(1 / 2)
_TRBDF2 = ImplicitTableau(
    name="trbdf2",
    order=2,
    c=(0.0, _MIDDLE, 1.0),
    a=((0.0, 0.0, 0.0), (_D, _D, 0.0), (_W, _W, _D)),
    b=(_W, _W, _D),
    extension=ContinuousExtension(order=2, weights=((1.0, -(_W + _D)), (0.0, _W), (0.0, _D))),
    reference="Hosea & Shampine, Appl. Numer. Math. 20 (1996) 21",
)

IMPLICIT: dict[str, ImplicitTableau] = {
    "implicit_euler": _EULER,
    "implicit_midpoint": GAUSS2,
    "trapezoid": _TRAPEZOID,
    "radauIIA3": _RADAU3,
    "radauIIA5": _RADAU5,
    "gl4": GAUSS4,
    "gl6": GAUSS6,
    "sdirk2": _SDIRK2,
    "trbdf2": _TRBDF2,
}
"""By torchdiffeq's names."""
