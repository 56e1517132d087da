"""Point masses under Newton's law: the field whose evaluation decides how fast a solve in celestial mechanics is.

Three forms of the same sum, chosen by measurement (three bodies in space, float64, one thread, microseconds for one state /
1024 states): over pairs, batch first 15 / 80; over pairs, batch last 21 / 47; over the full matrix 17 / 460, but under
``torch.compile`` the full matrix fuses into one kernel, 18 / 47, while the pairs keep their matrix product, 20 / 65.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from physnode.errors import InputError
from physnode.fields import Domain, SecondOrder, split_state
from physnode.systems.base import NON_NEGATIVE, System, matched
from physnode.systems.hierarchies import nested_orbits
from physnode.systems.vectors import angular_momentum, axes, components, length

__all__ = ["NBody", "PointMasses"]

_MANY_ROWS = 128


class PointMasses(System, SecondOrder):
    """r_i'' = sum over j of gm_j (r_j - r_i)/|r_j - r_i|^3, without softening.

    State: all positions, then all velocities, each ``(bodies, dimensions)`` flattened. A subclass says where the weights
    come from. Gradients of any order are finite as long as no two bodies meet, and a body may weigh nothing.
    """

    velocity_dependent = False

    first: Tensor
    second: Tensor
    incidence: Tensor
    itself: Tensor

    @abstractmethod
    def weights(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(the weights m of energy and momentum, the attractions gm), each ``(n,)``, in the dtype of ``like``."""

    def arrange(self, bodies: int, dimensions: int) -> None:
        """Set the number of bodies and axes. Raises InputError for fewer than two bodies, or axes other than 2 or 3."""
        if bodies < 2:
            raise InputError(f"{type(self).__name__} needs at least two bodies; found {bodies}.")
        self.axes = axes(dimensions)
        self.bodies, self.dimensions = bodies, dimensions
        first, second = torch.tensor(list(combinations(range(bodies), 2))).unbind(-1)
        pair = torch.arange(len(first))
        incidence = torch.zeros(bodies, len(first), bodies, dtype=torch.float64)
        incidence[first, pair, second] = 1.0
        incidence[second, pair, first] = -1.0
        # incidence @ gm is the (bodies, pairs) matrix that turns (r_j - r_i)/|r_j - r_i|^3 of pairs into accelerations
        for name, table in (
            ("first", first.clone()),
            ("second", second.clone()),
            ("incidence", incidence.view(-1, bodies)),
            ("itself", torch.eye(bodies, dtype=torch.bool)),
        ):
            self.register_buffer(name, table, persistent=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """position[0,x], position[0,y], ..., velocity[0,x], ..."""
        return tuple(
            f"{kind}[{body},{axis}]" for kind in ("position", "velocity") for body in range(self.bodies) for axis in self.axes
        )

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """The Newtonian accelerations, shape of ``q (*batch, bodies * dimensions)``."""
        gm = self.weights(q)[1]
        # a matrix product may be rounded to TF32 or bfloat16 by a user's settings in float32; sums are not
        if torch.compiler.is_compiling() or gm.dim() > 1 or q.dtype != torch.float64:
            return self._over_matrix(q, gm)
        attraction = torch.mv(matched(self.incidence, q), gm).view(self.bodies, -1)
        if q.numel() < _MANY_ROWS * q.shape[-1]:
            return self._over_pairs(q, attraction)
        return self._over_pairs_batch_last(q, attraction)

    def _over_matrix(self, q: Tensor, gm: Tensor) -> Tensor:
        r = torch.unflatten(q, -1, (self.bodies, self.dimensions))
        apart = r.unsqueeze(-3) - r.unsqueeze(-2)
        # one on the diagonal, where the separation is zero: no infinity, and so no NaN in any derivative
        distance = ((apart * apart).sum(-1) + self.itself).sqrt()
        return ((gm.unsqueeze(-2) / distance.pow(3)).unsqueeze(-1) * apart).sum(-2).flatten(-2)

    def _over_pairs(self, q: Tensor, attraction: Tensor) -> Tensor:
        r = torch.unflatten(q, -1, (self.bodies, self.dimensions))
        apart = r.index_select(-2, self.second) - r.index_select(-2, self.first)
        pull = apart / length(apart).pow(3)
        return (attraction @ pull).flatten(-2)

    def _over_pairs_batch_last(self, q: Tensor, attraction: Tensor) -> Tensor:
        r = q.reshape(-1, q.shape[-1]).mT.contiguous().view(self.bodies, self.dimensions, -1)
        apart = r.index_select(0, self.second) - r.index_select(0, self.first)
        # not vector_norm: over an axis that is not the last it runs six times slower
        pull = apart / (apart * apart).sum(1, keepdim=True).sqrt().pow(3)
        return (attraction @ pull.flatten(1)).view(q.shape[-1], -1).mT.reshape(q.shape)

    def energy(self, t: Tensor, y: Tensor) -> Tensor:
        """sum of m v^2/2 minus sum over pairs of m_i gm_j/r_ij, shape ``(*batch,)``."""
        r, v = self._bodies(y)
        m, gm = self.weights(y)
        apart = r.index_select(-2, self.second) - r.index_select(-2, self.first)
        bond = m.index_select(-1, self.first) * gm.index_select(-1, self.second)
        kinetic = (m * (v * v).sum(-1)).sum(-1) / 2
        return kinetic - (bond / length(apart)[..., 0]).sum(-1)

    def invariants(self, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Energy, momentum, angular momentum, and the centre of mass at time zero, R - V t.

        The last is undefined (NaN) if no body has weight.
        """
        r, v = self._bodies(y)
        m = self.weights(y)[0].unsqueeze(-1)
        momentum, total = (m * v).sum(-2), m.sum(-2)
        turning = angular_momentum(r, m * v, self.axes)
        centre = ((m * r).sum(-2) - momentum * t.to(y.dtype)) / total
        return {
            "energy": self.energy(t, y),
            **components("momentum", momentum, self.axes),
            **{name: value.sum(-1) for name, value in turning.items()},
            **components("centre_of_mass", centre, self.axes),
        }

    def initial_states(self, n: int, seed: int = 0) -> Tensor:
        """``(n, 2 bodies dimensions)`` hierarchies of near-circular orbits, in the frame of the centre of mass.

        Body k goes round the common centre of the bodies before it (Jacobi coordinates), the innermost at about one length
        unit, each next one six mutual Hill radii further out, which keeps the orbits from crossing for many revolutions.
        Phases are uniform, speeds within 3 % of circular, and in space the orbits are tilted by up to 0.1 rad.
        """
        gm = self.weights(self.incidence)[1].detach().double().cpu()
        return nested_orbits(gm, self.dimensions, n, seed)

    def _bodies(self, y: Tensor) -> tuple[Tensor, Tensor]:
        q, v = split_state(y)
        shape = (self.bodies, self.dimensions)
        return torch.unflatten(q, -1, shape), torch.unflatten(v, -1, shape)


class NBody(PointMasses):
    """Bodies of known or unknown attraction gm = G m, in any consistent units: gm in length^3/time^2.

    ``gm`` has one entry a body, none negative; zero is a test particle. G and m are never told apart by the motion, so
    energy and angular momentum are weighted with gm, which makes them G times the mechanical ones. State of
    2 * bodies * dimensions entries: all positions, then all velocities. Raises InputError for a gm that is no list of at least
    two non-negative numbers, for dimensions other than 2 or 3, or an unknown name in ``free``.
    """

    description: ClassVar[str] = "Newtonian point masses by their gravitational parameters"
    domains: ClassVar[dict[str, Domain]] = {"gm": NON_NEGATIVE}
    units: ClassVar[dict[str, str]] = {"gm": "1"}

    gm: Tensor

    def __init__(self, gm: Sequence[float] | Tensor, dimensions: int = 3, *, free: Sequence[str] = ()) -> None:
        super().__init__()
        self.declare(free, gm=gm)
        self.arrange(count_bodies("gm", self.gm), dimensions)

    def weights(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """gm as both: weight and attraction."""
        gm = matched(self.gm, like)
        return gm, gm


def count_bodies(name: str, value: Tensor) -> int:
    """Length of a list with one entry a body. Raises InputError for anything but a list."""
    if value.dim() != 1:
        raise InputError(f"{name} must be a list with one number a body; found shape {tuple(value.shape)}.")
    return len(value)
