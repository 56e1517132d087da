"""The pair 5(4)7M of Dormand & Prince, J. Comput. Appl. Math. 6 (1980) 19, with its dense output of order 4.

The dense output is Shampine's, Math. Comp. 46 (1986) 135, in the form of the program DOPRI5: Hairer, Norsett & Wanner,
*Solving Ordinary Differential Equations I*, 2nd ed., table II.5.2 and section II.6.
"""

from __future__ import annotations

from physnode.engine.coefficients.butcher_tableau import ButcherTableau, ContinuousExtension
from physnode.engine.coefficients.hermite import hermite_weights

__all__ = ["DOPRI5"]

_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_CORRECTION = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)

DOPRI5 = ButcherTableau(
    name="dopri5",
    order=5,
    c=_C,
    a=_A,
    b=_B,
    error=(_ERROR,),
    error_order=4,
    extension=ContinuousExtension(order=4, weights=hermite_weights(_B, (_CORRECTION,))),
    reference="Dormand & Prince, J. Comput. Appl. Math. 6 (1980) 19",
)
