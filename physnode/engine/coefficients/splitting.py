"""Leapfrog and its symmetric compositions of order 4, 6 and 8."""

from __future__ import annotations

from physnode.engine.coefficients.splitting_tableau import SplittingTableau

__all__ = ["KAHAN_LI8", "LEAPFROG", "YOSHIDA4", "YOSHIDA6"]

LEAPFROG = SplittingTableau.composition("leapfrog", 2, (1.0,), "Verlet, Phys. Rev. 159 (1967) 98")

# The triple jump, also in Suzuki 1990 and Forest & Ruth 1990.
YOSHIDA4 = SplittingTableau.composition(
    "yoshida4",
    4,
    (1 / (2 - 2 ** (1 / 3)), -(2 ** (1 / 3)) / (2 - 2 ** (1 / 3))),
    "Yoshida, Phys. Lett. A 150 (1990) 262",
)

# w3, w2, w1, w0 of the article, with more digits than it prints: Hairer, Lubich & Wanner, *Geometric Numerical
# Integration*, 2nd ed., section V.3.2.
YOSHIDA6 = SplittingTableau.composition(
    "yoshida6",
    6,
    (
        0.78451361047755726381949763,
        0.23557321335935813368479318,
        -1.17767998417887100694641568,
        1.31518632068391121888424973,
    ),
    "Yoshida, Phys. Lett. A 150 (1990) 262, solution A",
)

KAHAN_LI8 = SplittingTableau.composition(
    "kahan_li8",
    8,
    (
        0.13020248308889008087881763,
        0.56116298177510838456196441,
        -0.38947496264484728640807860,
        0.15884190655515560089621075,
        -0.39590389413323757733623154,
        0.18453964097831570709183254,
        0.25837438768632204729397911,
        0.29501172360931029887096624,
        -0.60550853383003451169892108,
    ),
    "Kahan & Li, Math. Comp. 66 (1997) 1089, scheme s17odr8a",
)
