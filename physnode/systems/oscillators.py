"""Oscillators: linear, self-excited, driven, and two that are coupled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from physnode.fields import Domain, SecondOrder, split_state
from physnode.systems.base import NON_NEGATIVE, POSITIVE, REAL, System, matched, time_grid, uniform

__all__ = ["Duffing", "HarmonicOscillator", "HenonHeiles", "VanDerPol"]


class HarmonicOscillator(System, SecondOrder):
    """q'' = -frequency^2 q - damping q', with ``frequency`` the undamped angular frequency.

    State (displacement, velocity). The energy is per unit mass, q'^2/2 + frequency^2 q^2/2. Damping is critical at twice the
    frequency. Raises InputError for a frequency that is not positive, a negative damping, or an unknown name in ``free``.
    """

    description: ClassVar[str] = "linear oscillator with friction"
    domains: ClassVar[dict[str, Domain]] = {"frequency": POSITIVE, "damping": NON_NEGATIVE}
    units: ClassVar[dict[str, str]] = {"frequency": "rad/s", "damping": "1/s"}
    state_units: ClassVar[dict[str, str]] = {"displacement": "1", "velocity": "s-1"}

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
        """Displacement and velocity."""
        return ("displacement", "velocity")

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """-frequency^2 q - damping v, shape of ``q``."""
        return -(matched(self.frequency, q) ** 2) * q - matched(self.damping, q) * v

    def energy(self, t: Tensor, y: Tensor) -> Tensor:
        """v^2/2 + frequency^2 q^2/2 per unit mass, shape ``(*batch,)``."""
        q, v = split_state(y)
        return ((v**2 + (matched(self.frequency, y) * q) ** 2) / 2)[..., 0]

    def invariants(self, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The energy, unless there is, or may be, friction."""
        return {} if self.velocity_dependent else {"energy": self.energy(t, y)}

    def initial_states(self, n: int, seed: int = 0) -> Tensor:
        """``(n, 2)``: displacement in [-1, 1], velocity in [-1, 1] frequency."""
        speed = self.number("frequency")
        return uniform(n, (-1.0, -speed), (1.0, speed), seed)

    def exact(self, ts: Any, y0: Any, *, t0: Any = None) -> Tensor:
        """The motion at any damping: q = e^(-bt) (q0 C + (v0 + b q0) S), v = e^(-bt) (v0 C - (b v0 + w^2 q0) S).

        b is half the damping, C = cos(wd t) and S = sin(wd t)/wd with wd^2 = frequency^2 - b^2; above critical damping they
        become hyperbolic, at it S = t. ``y0 (*batch, 2)`` is the state at ``t0``, by default the first of ``ts (T,)`` or
        ``(*batch, T)``. Returns ``(*batch, T, 2)``, float64 and without gradient.
        """
        t, state = time_grid(ts, y0, t0)
        self.check_state(state)
        q, v = split_state(state)
        w, b = self.number("frequency"), self.number("damping") / 2
        root = abs((w - b) * (w + b)) ** 0.5
        if w >= b:
            decay = torch.exp(-b * t)
            even, odd = decay * torch.cos(root * t), decay * t * torch.sinc(root * t / torch.pi)
        else:
            slow = torch.exp(-(w * w / (b + root)) * t)  # b - root without cancellation
            even = slow * (1 + torch.exp(-2 * root * t)) / 2
            odd = -slow * torch.expm1(-2 * root * t) / (2 * root)
        return torch.stack((q * even + (v + b * q) * odd, v * even - (b * v + w * w * q) * odd), dim=-1)


class VanDerPol(System, SecondOrder):
    """q'' = nonlinearity (1 - q^2) q' - q: every start ends on one limit cycle; stiff for a large ``nonlinearity``.

    State (displacement, velocity), nondimensional. Raises InputError for a negative nonlinearity, or an unknown name in
    ``free``.
    """

    description: ClassVar[str] = "van der Pol oscillator: self-excited, stiff when strongly nonlinear"
    domains: ClassVar[dict[str, Domain]] = {"nonlinearity": NON_NEGATIVE}
    units: ClassVar[dict[str, str]] = {"nonlinearity": "1"}

    nonlinearity: Tensor

    def __init__(self, nonlinearity: float = 1.0, *, free: Sequence[str] = ()) -> None:
        super().__init__()
        self.declare(free, nonlinearity=nonlinearity)

    @property
    def velocity_dependent(self) -> bool:  # type: ignore[override]  # follows the nonlinearity, so it cannot be assigned
        """Whether the acceleration may depend on the velocity."""
        return self.acts("nonlinearity")

    @property
    def labels(self) -> tuple[str, ...]:
        """Displacement and velocity."""
        return ("displacement", "velocity")

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """nonlinearity (1 - q^2) v - q, shape of ``q``."""
        return matched(self.nonlinearity, q) * (1 - q * q) * v - q

    def initial_states(self, n: int, seed: int = 0) -> Tensor:
        """``(n, 2)``: displacement and velocity in [-2, 2], inside and outside the limit cycle."""
        return uniform(n, (-2.0, -2.0), (2.0, 2.0), seed)


class Duffing(System, SecondOrder):
    """q'' = -damping q' - stiffness q - cubic_stiffness q^3 + drive cos(drive_frequency t).

    State (displacement, velocity), nondimensional. A negative stiffness with a positive cubic one makes two wells. The energy
    is that of the free motion. Raises InputError for a negative damping or an unknown name in ``free``.
    """

    description: ClassVar[str] = "Duffing oscillator: cubic spring, friction and a periodic drive"
    domains: ClassVar[dict[str, Domain]] = {
        "stiffness": REAL,
        "cubic_stiffness": REAL,
        "damping": NON_NEGATIVE,
        "drive": REAL,
        "drive_frequency": NON_NEGATIVE,
    }
    units: ClassVar[dict[str, str]] = dict.fromkeys(domains, "1")

    stiffness: Tensor
    cubic_stiffness: Tensor
    damping: Tensor
    drive: Tensor
    drive_frequency: Tensor

    def __init__(
        self,
        stiffness: float = 1.0,
        cubic_stiffness: float = 1.0,
        damping: float = 0.0,
        drive: float = 0.0,
        drive_frequency: float = 1.0,
        *,
        free: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.declare(
            free,
            stiffness=stiffness,
            cubic_stiffness=cubic_stiffness,
            damping=damping,
            drive=drive,
            drive_frequency=drive_frequency,
        )

    @property
    def velocity_dependent(self) -> bool:  # type: ignore[override]  # follows the damping, so it cannot be assigned
        """Whether the acceleration may depend on the velocity: damping is non-zero, or is to be fitted."""
        return self.acts("damping")

    @property
    def labels(self) -> tuple[str, ...]:
        """Displacement and velocity."""
        return ("displacement", "velocity")

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """drive cos(drive_frequency t) - stiffness q - cubic_stiffness q^3 - damping v, shape of ``q``."""
        spring = (matched(self.stiffness, q) + matched(self.cubic_stiffness, q) * q * q) * q
        drive = matched(self.drive, q) * torch.cos(matched(self.drive_frequency, q) * t)
        return drive - spring - matched(self.damping, q) * v

    def energy(self, t: Tensor, y: Tensor) -> Tensor:
        """v^2/2 + stiffness q^2/2 + cubic_stiffness q^4/4, shape ``(*batch,)``; the drive's work is not in it."""
        q, v = split_state(y)
        square = q * q
        spring = matched(self.stiffness, y) * square / 2 + matched(self.cubic_stiffness, y) * square * square / 4
        return (v * v / 2 + spring)[..., 0]

    def invariants(self, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The energy, unless there is, or may be, friction or a drive."""
        return {} if self.acts("damping") or self.acts("drive") else {"energy": self.energy(t, y)}

    def initial_states(self, n: int, seed: int = 0) -> Tensor:
        """``(n, 2)``: displacement in [-1.5, 1.5], velocity in [-1, 1]."""
        return uniform(n, (-1.5, -1.0), (1.5, 1.0), seed)


class HenonHeiles(System, SecondOrder):
    """x'' = -x - 2 coupling x y, y'' = -y - coupling (x^2 - y^2): from order to chaos as the energy grows.

    State (x, y, x', y'), nondimensional; H = (x'^2 + y'^2 + x^2 + y^2)/2 + coupling (x^2 y - y^3/3). With coupling 1 the motion
    can escape above H = 1/6; 1/12 is mostly regular, 1/8 mixed (Henon and Heiles, Astronomical Journal 69, 73 (1964)).
    Raises InputError for an unknown name in ``free``.
    """

    description: ClassVar[str] = "Henon-Heiles: two coupled oscillators, chaotic at high energy"
    domains: ClassVar[dict[str, Domain]] = {"coupling": REAL}
    units: ClassVar[dict[str, str]] = {"coupling": "1"}
    velocity_dependent = False

    coupling: Tensor

    def __init__(self, coupling: float = 1.0, *, free: Sequence[str] = ()) -> None:
        super().__init__()
        self.declare(free, coupling=coupling)

    @property
    def labels(self) -> tuple[str, ...]:
        """Both positions, then both velocities."""
        return ("position[x]", "position[y]", "velocity[x]", "velocity[y]")

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """(-x - 2 c x y, -y - c (x^2 - y^2)), shape of ``q``."""
        x, y = q[..., :1], q[..., 1:]
        return -q - matched(self.coupling, q) * torch.cat((2 * x * y, (x - y) * (x + y)), dim=-1)

    def energy(self, t: Tensor, y: Tensor) -> Tensor:
        """H, shape ``(*batch,)``."""
        a, b = y[..., :1], y[..., 1:2]
        cubic = matched(self.coupling, y) * b * (a * a - b * b / 3)
        return ((y * y).sum(-1, keepdim=True) / 2 + cubic)[..., 0]

    def invariants(self, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The energy."""
        return {"energy": self.energy(t, y)}

    def initial_states(self, n: int, seed: int = 0) -> Tensor:
        """``(n, 4)`` bound states for coupling 1: every entry in [-0.25, 0.25], so that H < 1/6."""
        return uniform(n, (-0.25,) * 4, (0.25,) * 4, seed)
