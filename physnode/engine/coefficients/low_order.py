"""Runge-Kutta methods of order 1 to 4, known by short fractions."""

from __future__ import annotations

from physnode.engine.coefficients.butcher_tableau import ButcherTableau, ContinuousExtension
from physnode.engine.coefficients.hermite import hermite_weights

__all__ = ["BOSH3", "EULER", "HEUN", "MIDPOINT", "RK4"]

EULER = ButcherTableau(
    name="euler",
    order=1,
    c=(0.0,),
    a=((),),
    b=(1.0,),
    extension=ContinuousExtension(order=1, weights=((1.0,),)),
    reference="Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, 2nd ed., section II.1",
)

MIDPOINT = ButcherTableau(
    name="midpoint",
    order=2,
    c=(0.0, 1 / 2),
    a=((), (1 / 2,)),
    b=(0.0, 1.0),
    extension=ContinuousExtension(order=2, weights=((1.0, -1.0), (0.0, 1.0))),
    reference="Runge, Math. Ann. 46 (1895) 167",
)

HEUN = ButcherTableau(
    name="heun",
    order=2,
    c=(0.0, 1.0),
    a=((), (1.0,)),
    b=(1 / 2, 1 / 2),
    error=((-1 / 2, 1 / 2),),  # against Euler's step
    error_order=1,
    extension=ContinuousExtension(order=2, weights=((1.0, -1 / 2), (0.0, 1 / 2))),
    reference="Heun, Z. Math. Phys. 45 (1900) 23",
)

_BOSH3_B = (2 / 9, 1 / 3, 4 / 9)
BOSH3 = ButcherTableau(
    name="bosh3",
    order=3,
    c=(0.0, 1 / 2, 3 / 4),
    a=((), (1 / 2,), (0.0, 3 / 4)),
    b=_BOSH3_B,
    error=((-5 / 72, 1 / 12, 1 / 9, -1 / 8),),
    error_order=2,
    extension=ContinuousExtension(order=3, weights=hermite_weights(_BOSH3_B)),
    reference="Bogacki & Shampine, Appl. Math. Lett. 2 (1989) 321",
)

# The cubic through the four stages of rk4 is in Hairer, Norsett & Wanner I, 2nd ed., section II.6.
_RK4_WEIGHTS = ((1.0, -3 / 2, 2 / 3), (0.0, 1.0, -2 / 3), (0.0, 1.0, -2 / 3), (0.0, -1 / 2, 2 / 3))
RK4 = ButcherTableau(
    name="rk4",
    order=4,
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    extension=ContinuousExtension(order=3, weights=_RK4_WEIGHTS),
    reference="Kutta, Z. Math. Phys. 46 (1901) 435",
)
