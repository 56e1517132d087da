"""Runge-Kutta methods that have a name in torchdiffeq and none among physnode's methods."""

from __future__ import annotations

from physnode.engine.tableaus import ButcherTableau, ContinuousExtension

__all__ = ["FEHLBERG2", "HEUN3", "RK4_38"]

FEHLBERG2 = ButcherTableau(
    name="fehlberg2",
    order=2,
    c=(0.0, 1 / 2, 1.0),
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    error=((-1 / 512, 0.0, 1 / 512),),
    error_order=1,
    extension=ContinuousExtension(order=2, weights=((1.0, -511 / 512), (0.0, 255 / 256), (0.0, 1 / 512))),
    reference="Fehlberg, NASA Technical Report R-315 (1969), RK1(2)",
)

HEUN3 = ButcherTableau(
    name="heun3",
    order=3,
    c=(0.0, 1 / 3, 2 / 3),
    a=((), (1 / 3,), (0.0, 2 / 3)),
    b=(1 / 4, 0.0, 3 / 4),
    extension=ContinuousExtension(order=2, weights=((1.0, -3 / 4), (0.0, 0.0), (0.0, 3 / 4))),
    reference="Heun, Z. Math. Phys. 45 (1900) 23",
)

RK4_38 = ButcherTableau(
    name="rk4, 3/8 rule",
    order=4,
    c=(0.0, 1 / 3, 2 / 3, 1.0),
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    # the cubic that meets all conditions of order 3 at every point of the step
    extension=ContinuousExtension(
        order=3, weights=((1.0, -15 / 8, 1.0), (0.0, 15 / 8, -3 / 2), (0.0, 3 / 8, 0.0), (0.0, -3 / 8, 1 / 2))
    ),
    reference="Kutta, Z. Math. Phys. 46 (1901) 435; Hairer, Norsett & Wanner I, 2nd ed., table II.1.2",
)
