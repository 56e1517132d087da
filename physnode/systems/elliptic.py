"""Jacobi's amplitude for a complementary parameter that may be tiny: the pendulum near its separatrix.

SciPy's ``ellipj`` and ``ellipkinc`` take m itself. Near m = 1 a double keeps nothing of 1 - m, and ``ellipj`` changes to a
first-order expansion in it, which is wrong by order one after a few time units. Both functions here take m1 = 1 - m, which
the pendulum knows to full relative accuracy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import elliprf

__all__ = ["amplitude", "incomplete_integral"]

Array = NDArray[np.float64]

_HALVINGS = 14


def incomplete_integral(phi: Array, m1: Array) -> Array:
    """F(phi | 1 - m1), the integral of 1/sqrt(1 - m sin^2) from 0 to phi, for |phi| <= pi/2.

    F = sin(phi) RF(cos^2 phi, 1 - m sin^2 phi, 1), with Carlson's symmetric integral (DLMF 19.25.5); the middle argument is
    cos^2 phi + m1 sin^2 phi, which does not cancel.
    """
    sine, cosine = np.sin(phi), np.cos(phi)
    value: Array = sine * elliprf(cosine**2, cosine**2 + m1 * sine**2, 1.0)
    return value


def amplitude(u: Array, m1: Array) -> Array:
    """am(u | 1 - m1), the inverse of F, for real u and 0 <= m1 <= 1; it grows beyond pi/2 with u.

    Descending arithmetic-geometric means (Abramowitz and Stegun 16.4). The arc sine of that recursion loses digits
    where its argument is near one (five at m1 = 1e-24), so it is taken as an arc tangent, whose second argument follows from
    a_n^2 - c_n^2 = b_n^2 without cancellation.
    """
    u, m1 = np.broadcast_arrays(u, m1)
    limit: Any = m1 == 0.0
    a = np.ones_like(m1)
    b = np.sqrt(np.where(limit, 1.0, m1))
    ladder = []
    for _ in range(_HALVINGS):
        c = (a - b) / 2
        a, b = (a + b) / 2, np.sqrt(a * b)
        ladder.append((a, b, c))
    phi = 2.0**_HALVINGS * a * u
    for a, b, c in reversed(ladder):
        sine, cosine = np.sin(phi), np.cos(phi)
        phi = (phi + np.arctan2(c * sine, np.hypot(a * cosine, b * sine))) / 2
    value: Array = np.where(limit, 2 * np.arctan(np.tanh(u / 2)), phi)  # the Gudermannian, at the separatrix itself
    return value
