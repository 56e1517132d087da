"""Two-body motion in universal variables: one formula for ellipse, parabola, hyperbola, and fall along a line.

With s the regularised time (dt = r ds) and beta = 2 mu/r - v^2, which is minus twice the energy and changes sign at the
parabola without any function becoming singular (Stumpff 1959; Wisdom and Hernandez, MNRAS 453, 3015 (2015), section 2):

    t = r0 G1 + (r0 . v0) G2 + mu G3,        r = r0 G0 + (r0 . v0) G1 + mu G2,        G_n(beta, s) = s^n c_n(beta s^2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["propagate"]

Array = NDArray[np.float64]

_SERIES_TERMS = 11
_MAX_DOUBLINGS = 200
_MAX_ITERATIONS = 200


def stumpff(x: Array) -> tuple[Array, Array, Array, Array]:
    """c0, c1, c2, c3 with c_n(x) = sum over j of (-x)^j/(n + 2j)!; near zero, where closed forms cancel, by series."""
    small = np.abs(x) < 1.0
    near = np.where(small, x, 0.0)
    c2, c3 = np.zeros_like(x), np.zeros_like(x)
    for j in range(_SERIES_TERMS, 0, -1):
        c2 = (1.0 - near * c2) / ((2 * j - 1) * (2 * j))
        c3 = (1.0 - near * c3) / ((2 * j) * (2 * j + 1))
    far = np.where(small, 1.0, x)
    root = np.sqrt(np.abs(far))
    with np.errstate(over="ignore", invalid="ignore"):
        c0_far = np.where(far > 0, np.cos(root), np.cosh(root))
        c1_far = np.where(far > 0, np.sin(root), np.sinh(root)) / root
        c2 = np.where(small, c2, (1.0 - c0_far) / far)
        c3 = np.where(small, c3, (1.0 - c1_far) / far)
        return np.where(small, 1.0 - x * c2, c0_far), np.where(small, 1.0 - x * c3, c1_far), c2, c3


def propagate(gm: float, elapsed: Array, position: Array, velocity: Array) -> tuple[Array, Array]:
    """Position and velocity ``(..., T, d)`` at ``elapsed (..., T)`` after the start ``(..., d)``, for gm > 0 and r0 > 0.

    Whole revolutions of a bound orbit are taken off first, so that no accuracy is lost but what the period itself has.
    Kepler's equation for s is monotone (dt/ds = r > 0): Newton's method inside a bracket, with bisection where it leaves it.
    """
    r0 = np.linalg.norm(position, axis=-1)[..., None]
    radial = np.sum(position * velocity, axis=-1)[..., None]
    beta = 2 * gm / r0 - np.sum(velocity * velocity, axis=-1)[..., None]
    t, r0, radial, beta = np.broadcast_arrays(elapsed, r0, radial, beta)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        period = 2 * np.pi * gm / np.maximum(beta, 0.0) ** 1.5
        # fmod is exact; the remainder of a small negative time by a huge period would not be
        part = np.where(np.isfinite(period), np.fmod(t, period), t)
        t = np.where(np.abs(part) > period / 2, part - np.sign(part) * period, part)
    direction = np.where(t < 0, -1.0, 1.0)  # the past is the future of the reversed velocity
    s = _anomaly(gm, np.abs(t), r0, direction * radial, beta) * direction

    c0, c1, c2, _ = stumpff(beta * s * s)
    g1, g2 = s * c1, s * s * c2
    r = r0 * c0 + radial * g1 + gm * g2
    f, g = 1.0 - gm * g2 / r0, r0 * g1 + radial * g2
    f_rate, g_rate = -gm * g1 / (r * r0), 1.0 - gm * g2 / r
    here, speed = position[..., None, :], velocity[..., None, :]
    return f[..., None] * here + g[..., None] * speed, f_rate[..., None] * here + g_rate[..., None] * speed


def _anomaly(gm: float, t: Array, r0: Array, radial: Array, beta: Array) -> Array:
    """The s >= 0 at which r0 G1 + radial G2 + gm G3 = t >= 0."""

    def excess(s: Array) -> tuple[Array, Array]:
        c0, c1, c2, c3 = stumpff(beta * s * s)
        with np.errstate(over="ignore", invalid="ignore"):
            value = s * (r0 * c1 + s * (radial * c2 + s * gm * c3)) - t
            slope = r0 * c0 + s * (radial * c1 + s * gm * c2)
        # an overflowing trial lies far beyond the root, whatever the sign of inf - inf
        return np.where(np.isfinite(value), value, np.inf), slope

    low, high = np.zeros_like(t), np.maximum(t / r0, np.finfo(float).tiny)
    for _ in range(_MAX_DOUBLINGS):
        short = excess(high)[0] < 0
        if not short.any():
            break
        low, high = np.where(short, high, low), np.where(short, 2 * high, high)
    s = (low + high) / 2
    for _ in range(_MAX_ITERATIONS):
        value, slope = excess(s)
        low, high = np.where(value < 0, s, low), np.where(value >= 0, s, high)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            trial = s - value / slope
        trial = np.where((trial > low) & (trial < high), trial, (low + high) / 2)
        # settled: the bracket is one rounding wide, or the step no longer changes the anomaly
        if np.all((np.abs(trial - s) <= 2e-16 * s) | (value == 0)):
            return np.where(value == 0, s, trial)
        s = np.where(value == 0, s, trial)
    return s
