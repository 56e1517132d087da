"""The pair RKN 6(4) of Dormand & Prince, Comput. Math. Appl. 13 (1987) 937, with the dense output published beside it.

The family of the pair is that of Dormand, El-Mikkawy & Prince, IMA J. Numer. Anal. 7 (1987) 235. The position inside a step
has order 6; the velocity is its derivative and has order 5, which is what the two share.
"""

from __future__ import annotations

from math import sqrt

from physnode.engine.coefficients.nystrom_tableau import NystromTableau

__all__ = ["DPRKN6"]

_R = sqrt(8581)
_B3 = (84119543 + 366727 * _R) / 409622616
_B4 = (84119543 - 366727 * _R) / 409622616
_V3 = (389225579 + 96856 * _R) / 1024056540
_V4 = (389225579 - 96856 * _R) / 1024056540
_B = (329 / 4212, 0.0, _B3, _B4, 200 / 17901, 0.0)
_VELOCITY_B = (329 / 4212, 0.0, _V3, _V4, 2000 / 17901, 1 / 20)


def _third(r: float) -> tuple[float, ...]:
    """The extension's row of the third node; that of the fourth has the other sign of the root."""
    return (
        0.0,
        18 * (81356461 + 25954829 * r) / 22529243880,
        (22190560391 - 1109665151 * r) / 22529243880,
        -6 * (4929647204 - 156109769 * r) / 22529243880,
        1800 * (5860823 - 152228 * r) / 22529243880,
    )


DPRKN6 = NystromTableau(
    name="dprkn6",
    order=6,
    c=(0.0, (209 - _R) / 900, (209 - _R) / 450, (209 + _R) / 450, 9 / 10, 1.0),
    a=(
        (),
        ((26131 - 209 * _R) / 810000,),
        ((26131 - 209 * _R) / 607500, (26131 - 209 * _R) / 303750),
        (
            (980403512254 + 7781688431 * _R) / 11694469921875,
            -(1262884486208 + 15385481287 * _R) / 11694469921875,
            (7166233891441 + 78694563299 * _R) / 46777879687500,
        ),
        (
            -9 * (329260 + 3181 * _R) / 27040000,
            27 * (35129 + 3331 * _R) / 13520000,
            -27 * (554358343 + 31040327 * _R) / 464060480000,
            153 * (8555257 - 67973 * _R) / 2745920000,
        ),
        _B[:-1],
    ),
    b=_B,
    velocity_b=_VELOCITY_B,
    error=(
        329 / 4212 - (2701 + 23 * _R) / 4563,
        (9829 + 131 * _R) / 9126,
        _B3 - 5 * (1798 + 17 * _R) / 9126,
        _B4,
        200 / 17901,
        0.0,
    ),
    velocity_error=(
        329 / 4212 - 115 / 2106,
        0.0,
        _V3 - (84119543 + 366727 * _R) / 256014135,
        _V4 - (84119543 - 366727 * _R) / 256014135,
        2000 / 17901 - 6950 / 17901,
        1 / 20 + 1 / 10,
    ),
    error_order=4,
    extension=(
        (2106 / 4212, -5244 / 4212, 6386 / 4212, -3819 / 4212, 900 / 4212),
        (0.0,) * 5,
        _third(_R),
        _third(-_R),
        (0.0, 39000 / 17901, -124000 / 17901, 130200 / 17901, -45000 / 17901),
        (0.0, -117 / 110, 757 / 220, -823 / 220, 15 / 11),
    ),
    extension_order=5,
    reference="Dormand & Prince, Comput. Math. Appl. 13 (1987) 937",
)
