"""Start states for several bodies that stay bound and apart: nested, near-circular orbits in Jacobi coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from physnode.systems.base import uniform

__all__ = ["nested_orbits"]

_SPACING = 6.0


def nested_orbits(gm: Tensor, dimensions: int, n: int, seed: int) -> Tensor:
    """``(n, 2 * bodies * dimensions)`` states in the frame of the centre of mass, for attractions ``gm (bodies,)``.

    Body k goes round the common centre of those before it, the first pair about one length unit apart, each further orbit
    wider by six mutual Hill radii: beyond the two-planet limit of 2 sqrt(3) (Gladman, Icarus 106, 247 (1993)), with room for
    several. That gap varies by 10 %, eccentricities are at most a tenth of it, and of 0.06; phases are uniform, and in space
    the orbits tilt by up to 0.1 rad.
    """
    bodies, total = len(gm), gm.cumsum(0)
    # where nothing inside weighs anything, any centre will do: the plain mean
    share = torch.where(total > 0, gm, torch.ones_like(gm))
    outer = torch.cat((gm[:1] * 0, gm[:-1])) + gm
    gaps = _SPACING * (outer / (3 * total.clamp(min=torch.finfo(torch.float64).tiny))) ** (1 / 3)
    calm = min([0.6, *gaps[2:].tolist()]) / 20  # a speed off by x makes an eccentricity of 2 x

    place = torch.zeros(n, bodies, dimensions, dtype=torch.float64)
    speed = torch.zeros_like(place)
    radius = torch.ones(n, dtype=torch.float64)
    low, high = (0.9, 1 - calm, 0.0, -0.1, 0.0), (1.1, 1 + calm, 2 * torch.pi, 0.1, 2 * torch.pi)
    draws = uniform(n, low * bodies, high * bodies, seed).view(n, bodies, 5)
    for k in range(1, bodies):
        stretch, pace, phase, tilt, node = draws[:, k].unbind(-1)
        radius = radius * (stretch if k == 1 else 1 + stretch * gaps[k])
        circular = pace * torch.sqrt(total[k] / radius)
        sine, cosine = torch.sin(phase), torch.cos(phase)
        for target, size, x, y in ((place, radius, cosine, sine), (speed, circular, -sine, cosine)):
            centre = (share[:k, None] * target[:, :k]).sum(1) / share[:k].sum()
            # a small tilt about the line of nodes, as a shear
            lift = torch.tan(tilt) * (y * torch.cos(node) - x * torch.sin(node))
            target[:, k] = centre + (size * torch.stack((x, y, lift))).mT[:, :dimensions]
    weight = gm if total[-1] > 0 else share
    for target in (place, speed):
        target -= (weight[:, None] * target).sum(1, keepdim=True) / weight.sum()
    return torch.cat((place.flatten(1), speed.flatten(1)), dim=-1)
