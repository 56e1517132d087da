"""The plane pendulum with linear friction: the system on which most claims of this field are made."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from physnode.errors import InputError
from physnode.fields import Domain, SecondOrder
from physnode.systems.base import NON_NEGATIVE, POSITIVE, System, matched, time_grid, uniform
from physnode.systems.elliptic import Array, amplitude, incomplete_integral

__all__ = ["Pendulum"]


class Pendulum(System, SecondOrder):
    """q'' = -frequency^2 sin q - damping q', with q the angle from the downward vertical.

    State (angle, angular velocity): rad and rad/s where ``frequency``, the small-amplitude angular frequency sqrt(g/l), is in
    rad/s and ``damping`` in 1/s. The energy is per unit m l^2: q'^2/2 + frequency^2 (1 - cos q); friction takes
    damping q'^2 from it per unit time. ``free`` names the constants that are to be fitted. Raises InputError for a
    frequency that is not positive, a negative damping, or an unknown name.
    """

    description: ClassVar[str] = "plane pendulum with linear friction"
    domains: ClassVar[dict[str, Domain]] = {"frequency": POSITIVE, "damping": NON_NEGATIVE}
    units: ClassVar[dict[str, str]] = {"frequency": "rad/s", "damping": "1/s"}
    state_units: ClassVar[dict[str, str]] = {"angle": "rad", "angular_velocity": "rad s-1"}

    frequency: Tensor
    damping: Tensor

    def __init__(self, frequency: float = 1.0, damping: float = 0.0, *, free: Sequence[str] = ()) -> None:
        super().__init__()
        self.declare(free, frequency=frequency, damping=damping)

    @property
    def velocity_dependent(self) -> bool:  # type: ignore[override]  # follows the damping, so it cannot be assigned
        """Whether the acceleration may depend on the velocity: damping is non-zero, or is to be fitted."""
        return self.acts("damping")

    @property
    def labels(self) -> tuple[str, ...]:
        """Angle and angular velocity."""
        return ("angle", "angular_velocity")

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """-frequency^2 sin q - damping v, shape of ``q``."""
        return -(matched(self.frequency, q) ** 2) * torch.sin(q) - matched(self.damping, q) * v

    def energy(self, t: Tensor, y: Tensor) -> Tensor:
        """v^2/2 + frequency^2 (1 - cos q) per unit m l^2, shape ``(*batch,)``."""
        q, v = y[..., :1], y[..., 1:]
        # 2 sin^2(q/2) is 1 - cos q without the cancellation that small swings suffer
        return (v**2 / 2 + 2 * (matched(self.frequency, y) * torch.sin(q / 2)) ** 2)[..., 0]

    def invariants(self, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The energy, unless there is, or may be, friction."""
        return {} if self.velocity_dependent else {"energy": self.energy(t, y)}

    def initial_states(self, n: int, seed: int = 0) -> Tensor:
        """``(n, 2)`` swings of up to about 2.5 rad: angle in [-2, 2], angular velocity in [-1, 1] frequency."""
        speed = self.number("frequency")
        return uniform(n, (-2.0, -speed), (2.0, speed), seed)

    def exact(self, ts: Any, y0: Any, *, t0: Any = None) -> Tensor:
        """The undamped motion in Jacobi's elliptic functions, from any start: swinging, turning over, or on the separatrix.

        With k^2 = v0^2/(4 w^2) + sin^2(q0/2) (w the frequency): for k < 1, sin(q/2) = k sn(w t + u0 | k^2); for k > 1,
        q/2 = am(k w t + u0 | 1/k^2); k = 1 is their common limit, sin(q/2) = tanh(w t + u0) (Lawden, Elliptic Functions
        and Applications, chapter 5). All are evaluated from 1 - k^2, which is known to full relative accuracy.

        ``y0 (*batch, 2)`` is the state at ``t0``, by default the first of ``ts (T,)`` or ``(*batch, T)``. Returns
        ``(*batch, T, 2)``, float64 and without gradient. Raises InputError where damping is not zero.
        """
        if self.number("damping") != 0:
            raise InputError(
                f"the exact solution is for damping = 0; found {self.number('damping')}. Integrate the damped pendulum instead."
            )
        elapsed, state = time_grid(ts, y0, t0)
        self.check_state(state)
        w = self.number("frequency")
        t, q0, v0 = np.broadcast_arrays(w * elapsed.numpy(), *(state[..., i : i + 1].numpy() for i in (0, 1)))
        turns = np.round(q0 / (2 * pi))
        # a start with negative velocity is the mirror image of one with positive velocity
        sign = np.where(v0 < 0, -1.0, 1.0)
        half, rate = sign * (q0 - 2 * pi * turns) / 2, np.abs(v0) / (2 * w)
        m1 = (np.cos(half) - rate) * (np.cos(half) + rate)
        k = np.hypot(np.sin(half), rate)
        over = m1 < 0
        angle, speed = np.where(
            over,
            _turning_over(t, half, np.where(over, k, 1.0), np.where(over, m1, 0.0)),
            _swinging(t, half, rate, k, np.where(over, 1.0, m1)),
        )
        return torch.from_numpy(np.stack((2 * (sign * angle + pi * turns), 2 * w * sign * speed), axis=-1))


def _swinging(t: Array, half: Array, rate: Array, k: Array, m1: Array) -> tuple[Array, Array]:
    """q/2 and v/(2 w) at w t, below the separatrix and on it (m1 = 1 - k^2 >= 0)."""
    u = t + incomplete_integral(np.arctan2(np.sin(half), rate), m1)
    phi = amplitude(u, m1)
    # on the separatrix cn = dn = 1/cosh u, which the rounded amplitude near pi/2 no longer holds
    fading = 1 / np.cosh(np.minimum(np.abs(u), 700.0))
    cn = np.where(m1 == 0, fading, np.cos(phi))
    dn = np.where(m1 == 0, fading, np.hypot(np.cos(phi), np.sqrt(m1) * np.sin(phi)))
    return np.arctan2(k * np.sin(phi), dn), k * cn


def _turning_over(t: Array, half: Array, k: Array, m1: Array) -> tuple[Array, Array]:
    """q/2 and v/(2 w) at w t, above the separatrix (m1 = 1 - k^2 < 0)."""
    small = -m1 / k**2  # 1 - 1/k^2
    phi = amplitude(k * t + incomplete_integral(half, small), small)
    return phi, k * np.hypot(np.cos(phi), np.sqrt(small) * np.sin(phi))
