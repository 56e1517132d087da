"""Three bodies by their masses, with the two classic starts whose digits are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from physnode.errors import InputError
from physnode.fields import Domain
from physnode.systems.base import NON_NEGATIVE, matched
from physnode.systems.n_body import PointMasses, count_bodies

__all__ = ["ThreeBody"]


class ThreeBody(PointMasses):
    """r_i'' = G sum over j of m_j (r_j - r_i)/|r_j - r_i|^3 for three bodies.

    Any consistent units; ``masses`` has three entries, none negative. Energy is the mechanical one, sum of m v^2/2 minus
    G m m/r. The motion alone knows only the products G m: leave ``gravitational_constant`` fixed when masses are free. State of
    6 * dimensions entries: all positions, then all velocities. Raises InputError for other than three non-negative masses, a
    negative constant, dimensions other than 2 or 3, or an unknown name in ``free``.
    """

    description: ClassVar[str] = "three point masses under Newtonian gravity"
    domains: ClassVar[dict[str, Domain]] = {"masses": NON_NEGATIVE, "gravitational_constant": NON_NEGATIVE}
    units: ClassVar[dict[str, str]] = {"masses": "1", "gravitational_constant": "1"}

    figure_eight_period: ClassVar[float] = 6.32591398292621167758900033

    masses: Tensor
    gravitational_constant: Tensor

    def __init__(
        self,
        masses: Sequence[float] | Tensor = (1.0, 1.0, 1.0),
        gravitational_constant: float = 1.0,
        dimensions: int = 2,
        *,
        free: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.declare(free, masses=masses, gravitational_constant=gravitational_constant)
        if count_bodies("masses", self.masses) != 3:
            raise InputError(f"ThreeBody needs three masses; found {len(self.masses)}. NBody takes any number of bodies.")
        self.arrange(3, dimensions)

    def weights(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The masses, and G times them."""
        masses = matched(self.masses, like)
        return masses, matched(self.gravitational_constant, like) * masses

    @classmethod
    def figure_eight(cls, dimensions: int = 2) -> tuple[ThreeBody, Tensor]:
        """Three equal masses that chase each other round one figure of eight, and their start ``(6 dimensions,)``.

        Starts in line; m = G = 1; after ``figure_eight_period`` the start comes back. The orbit of Chenciner and Montgomery
        (Annals of Mathematics 152, 881 (2000)), its digits refined in quadruple precision.
        """
        speed = (0.3471168881189269382427769203203, 0.53272494538803022926202798769192)
        return cls._start(
            (1.0, 1.0, 1.0),
            ((-1.0, 0.0), (1.0, 0.0), (0.0, 0.0)),
            (speed, speed, (-2 * speed[0], -2 * speed[1])),
            dimensions,
        )

    @classmethod
    def pythagorean(cls, dimensions: int = 2) -> tuple[ThreeBody, Tensor]:
        """Masses 3, 4, 5 at rest on the corners of a 3-4-5 triangle, and their start ``(6 dimensions,)``; G = 1.

        Burrau's problem (Astronomische Nachrichten 195, 113 (1913)): a series of close encounters that a float64
        integration follows to about 1e-6 until t = 20, and not much longer.
        """
        still = (0.0, 0.0)
        return cls._start((3.0, 4.0, 5.0), ((1.0, 3.0), (-2.0, -1.0), (1.0, -1.0)), (still, still, still), dimensions)

    @classmethod
    def _start(
        cls,
        masses: Sequence[float],
        positions: Sequence[tuple[float, float]],
        velocities: Sequence[tuple[float, float]],
        dimensions: int,
    ) -> tuple[ThreeBody, Tensor]:
        system = cls(masses, dimensions=dimensions)
        y0 = torch.zeros(2, 3, dimensions, dtype=torch.float64)
        y0[..., :2] = torch.tensor((positions, velocities), dtype=torch.float64)
        return system, y0.flatten()
