"""Two bodies: the relative motion about a centre of attraction, and every kind of conic it can follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from physnode.errors import InputError
from physnode.fields import Domain, SecondOrder, split_state
from physnode.systems.base import POSITIVE, System, matched, time_grid, uniform
from physnode.systems.kepler_motion import propagate
from physnode.systems.vectors import angular_momentum, axes, components, length

__all__ = ["Kepler"]


class Kepler(System, SecondOrder):
    """r'' = -gm r/|r|^3: the vector from one body to the other, with gm = G(m1 + m2).

    State (position, velocity), each with ``dimensions`` (2 or 3) entries; any consistent units, gm in length^3/time^2.
    Raises InputError for gm <= 0, for another number of dimensions, or an unknown name in ``free``.
    """

    description: ClassVar[str] = "two-body problem, relative motion on a conic"
    domains: ClassVar[dict[str, Domain]] = {"gm": POSITIVE}
    units: ClassVar[dict[str, str]] = {"gm": "1"}
    velocity_dependent = False

    gm: Tensor

    def __init__(self, gm: float = 1.0, dimensions: int = 2, *, free: Sequence[str] = ()) -> None:
        super().__init__()
        self.axes = axes(dimensions)
        self.dimensions = dimensions
        self.declare(free, gm=gm)

    @property
    def labels(self) -> tuple[str, ...]:
        """position[x], ..., velocity[x], ..."""
        return tuple(f"{kind}[{axis}]" for kind in ("position", "velocity") for axis in self.axes)

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """-gm q/|q|^3, shape of ``q``."""
        return -matched(self.gm, q) * q / length(q).pow(3)

    def energy(self, t: Tensor, y: Tensor) -> Tensor:
        """v^2/2 - gm/r per reduced mass, shape ``(*batch,)``: -gm/(2a) on a conic of semi-major axis a."""
        q, v = split_state(y)
        r = length(q)
        return ((v * v).sum(-1, keepdim=True) / 2 - matched(self.gm, y) / r)[..., 0]

    def eccentricity_vector(self, t: Tensor, y: Tensor) -> Tensor:
        """v x (r x v)/gm - r/|r|, shape ``(*batch, dimensions)``: towards pericentre, as long as the eccentricity."""
        q, v = split_state(y)
        gm = matched(self.gm, y)
        r = length(q)
        return ((v * v).sum(-1, keepdim=True) / gm - 1 / r) * q - (q * v).sum(-1, keepdim=True) / gm * v

    def invariants(self, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Energy, angular momentum (per reduced mass) and the components of the eccentricity vector."""
        q, v = split_state(y)
        return {
            "energy": self.energy(t, y),
            **angular_momentum(q, v, self.axes),
            **components("eccentricity", self.eccentricity_vector(t, y), self.axes),
        }

    def initial_states(self, n: int, seed: int = 0) -> Tensor:
        """``(n, 2 dimensions)`` states on ellipses: semi-major axis in [0.7, 1.3] length units, eccentricity in [0, 0.7].

        Eccentric anomaly, orientation and (in space) the cosine of the inclination are uniform as well.
        """
        a, e, anomaly, turn, node, tilt = uniform(
            n, (0.7, 0.0, 0.0, 0.0, 0.0, -1.0), (1.3, 0.7, *(2 * torch.pi,) * 3, 1.0), seed
        ).unbind(-1)
        gm = self.number("gm")
        minor, rate = torch.sqrt(1 - e**2), torch.sqrt(gm / a) / (1 - e * torch.cos(anomaly))
        along, across = torch.cos(turn), torch.sin(turn)
        plane = []
        for x, y in (
            (a * (torch.cos(anomaly) - e), a * minor * torch.sin(anomaly)),
            (-rate * torch.sin(anomaly), rate * minor * torch.cos(anomaly)),
        ):
            x, y = x * along - y * across, x * across + y * along
            if self.dimensions == 3:
                lift, flat = y * torch.sqrt(1 - tilt**2), y * tilt
                plane += [x * torch.cos(node) - flat * torch.sin(node), x * torch.sin(node) + flat * torch.cos(node), lift]
            else:
                plane += [x, y]
        return torch.stack(plane, dim=-1)

    def exact(self, ts: Any, y0: Any, *, t0: Any = None) -> Tensor:
        """The motion on the conic through ``y0``, by universal variables: eccentricity below, at and above one.

        ``y0 (*batch, 2 dimensions)`` is the state at ``t0``, by default the first of ``ts (T,)`` or ``(*batch, T)``.
        Returns ``(*batch, T, 2 dimensions)``, float64 and without gradient. On a line (no angular momentum) it holds up
        to the collision. Raises InputError for a start at the centre of attraction.
        """
        elapsed, state = time_grid(ts, y0, t0)
        self.check_state(state)
        q, v = split_state(state)
        if bool((q == 0).all(-1).any()):
            raise InputError("two bodies cannot start in the same place; found a position of zero in y0. Move it away.")
        out = propagate(self.number("gm"), elapsed.numpy(), q.numpy(), v.numpy())
        return torch.cat([torch.from_numpy(part) for part in out], dim=-1)
