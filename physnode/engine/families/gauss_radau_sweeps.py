"""The equations of a Gauss-Radau step: seven accelerations that depend on each other through the path they make.

Unknown are d_i = F_i - F_0, i = 1..7 (:mod:`physnode.engine.coefficients.gauss_radau`), with F_i the acceleration at node i of
the path that the d themselves give. A sweep evaluates F_1, ..., F_7 in turn; what it finds at one node, by how much d_i must
move, is carried to the nodes after it along Newton's polynomial, which vanishes at the nodes before. This is the corrector of
Everhart's integrator written in accelerations instead of divided differences, and it contracts by about (h/T)² a sweep.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.engine.coefficients.gauss_radau import tables
from physnode.engine.families.base import JacobianVector
from physnode.engine.field_function import FieldFunction
from physnode.fields import split_state

__all__ = ["RadauPath", "Solved", "weigh"]

_SWEEPS = 60
_UNSEEN = 0.02
"""A change below this many units in the last place of the acceleration is not worth another sweep."""


@dataclass(frozen=True)
class Solved:
    """What the sweeps have found."""

    d: Tensor
    """``(7, B, n)``."""
    sweeps: Tensor
    """How many each trajectory took, ``(B,)``."""
    solved: Tensor
    """Whether its corrections died out, ``(B,)`` bool."""


def weigh(row: Tensor, d: Tensor) -> Tensor:
    """Σ_j row_j d_j, shape ``(..., n)``, for ``row (7,)`` and ``d (7, ..., n)``."""
    return torch.mv(d.reshape(len(d), -1).mT, row).view(d.shape[1:])


class RadauPath:
    """The path of one step: states and accelerations at its nodes, for the whole batch."""

    def __init__(self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, force: Tensor | None = None) -> None:
        """``force`` is the acceleration at the start, where it is known."""
        self.f, self.y = f, y
        self.table = tables(y.dtype, y.device)
        # positions alone are enough where the acceleration is declared to ignore the velocity
        self.positions_only = isinstance(f, FieldFunction) and f.splits
        self.q, self.v = split_state(y)
        span = t_end - t
        self.h = span.to(y.dtype).unsqueeze(-1)
        self.h2 = self.h * self.h
        self.times = [t, *(t + node * span for node in self.table.nodes)]
        self.first = self.q if self.positions_only else y
        self.force = self.acceleration(0, self.first) if force is None else force
        self.base_q, self.base_v = self.base(self.v, self.force)

    def acceleration(self, i: int, point: Tensor) -> Tensor:
        """F at node i, ``(B, n)``, from the position, or from position and velocity, there."""
        if self.positions_only:
            return self.f.kick(self.times[i], point)
        return split_state(self.f(self.times[i], point))[1]

    def base(self, v: Tensor, force: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """How far positions and velocities at the nodes are moved by velocity and acceleration of the start."""
        shape = (7, *[1] * v.ndim)
        c, half = self.table.c.view(shape), self.table.half.view(shape)
        to_q = c * (self.h * v) + half * (self.h2 * force)
        to_v = () if self.positions_only else (c * (self.h * force)).unbind(0)
        return to_q.unbind(0), to_v

    def displacement(self, i: int, base_q: tuple[Tensor, ...], base_v: tuple[Tensor, ...], d: Tensor) -> Tensor:
        """The point at node i less the start: small terms are added up before the large one."""
        dq = base_q[i - 1] + self.h2 * weigh(self.table.position[i - 1], d)
        if self.positions_only:
            return dq
        return torch.cat((dq, base_v[i - 1] + self.h * weigh(self.table.velocity[i - 1], d)), dim=-1)

    def point(self, i: int, d: Tensor) -> Tensor:
        """Where node i is evaluated."""
        return self.first if i == 0 else self.first + self.displacement(i, self.base_q, self.base_v, d)

    def sweep(self, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One correction of all nodes: d again, by how much it was corrected, and the accelerations, each ``(7, B, n)``."""
        forces, moves = [], []
        for i in range(1, 8):
            force = self.acceleration(i, self.point(i, d))
            move = force - self.force - d[i - 1]
            if i < 7:
                d = torch.addcmul(d, self.table.extrapolate[i - 1], move)
            forces.append(force)
            moves.append(move)
        found = torch.stack(forces)
        return found - self.force, torch.stack(moves), found

    def solve(self, d: Tensor) -> Solved:
        """Sweep from a guess ``d`` until, for each trajectory, no correction is left that could be seen.

        A trajectory that has got there is frozen, so that it does not depend on its neighbours. One whose corrections no
        longer shrink has reached the rounding of its accelerations if they are small, and is unsolved if they are not.
        """
        resolution = torch.finfo(d.dtype).eps
        noise = resolution**0.6
        running = torch.ones_like(self.h[:, 0], dtype=torch.bool)
        solved, sweeps = ~running, torch.zeros_like(running, dtype=torch.int64)
        before, worse = torch.full_like(self.h[:, 0], torch.inf), sweeps
        for number in range(_SWEEPS):
            found, moves, forces = self.sweep(d)
            everyone = bool(running.all())
            d = found if everyone else torch.where(running.unsqueeze(-1), found, d)
            sweeps = sweeps + running
            size = forces.abs().amax((0, 2)).clamp(min=torch.finfo(d.dtype).tiny)
            move = moves.abs().amax((0, 2)) / size
            # the first correction is that of a guess, and says nothing of how fast they shrink
            rate = (move / before).clamp(max=1.0) if number else torch.ones_like(move)
            stalled = ((move >= 0.5 * before) & (move <= 64 * resolution)) | ((move >= before) & (move <= noise))
            done = (move * rate <= _UNSEEN * resolution) | stalled
            worse = worse + ~(move < before)
            solved = solved | (running & done)
            running = running & ~done & (worse < 3) & torch.isfinite(move)
            if not bool(running.any()):
                break
            before = torch.where(move > 0, move, before)
        return Solved(d, sweeps, solved)

    def tangent(self, jvp: JacobianVector, d: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Changes of velocity, F_0 and d, for directions ``tangents (P, B, dim)`` of the start: the same sweeps, linearised."""
        dq, dv = split_state(tangents)
        start = dq if self.positions_only else tangents
        points = [self.point(i, d) for i in range(8)]
        _, force = jvp(lambda x: self.acceleration(0, x), points[0], start)
        base_q, base_v = self.base(dv, force)
        change = torch.zeros(7, *force.shape, dtype=force.dtype, device=force.device)
        before = torch.inf
        for _ in range(_SWEEPS):
            moves, forces = [], []
            for i in range(1, 8):
                along = start + self.displacement(i, base_q, base_v, change)
                _, found = jvp(lambda x, i=i: self.acceleration(i, x), points[i], along)  # type: ignore[misc]
                move = found - force - change[i - 1]
                change = torch.addcmul(change, self.table.extrapolate[i - 1].unsqueeze(1), move)
                moves.append(move)
                forces.append(found)
            left = _largest(torch.stack(moves), torch.stack(forces))
            if left <= torch.finfo(force.dtype).eps or (left >= 0.5 * before and left < 1e-3):
                break
            before = left
        return dv, force, change

    def adjoint(self, d: Tensor, weight: Tensor) -> Tensor:
        """ψ ``(7, B, n)`` with ψ = weight + Lᵀ ψ, L the change of the F_i with the d_j: the sweeps transposed, last node first.

        The residual r = weight - (1 - L)ᵀ ψ is carried along and dies out at the rate of the sweeps. Parameters are left
        alone: the weights ψ are what their gradient is accumulated with, once.
        """
        psi, r, before = torch.zeros_like(weight), weight, torch.inf
        for _ in range(_SWEEPS):
            for i in reversed(range(1, 8)):
                move = weigh(self.table.extrapolate[i - 1, :, 0, 0], r)
                back = self._back(i, self.point(i, d), move)
                step = torch.zeros_like(r)
                step[i - 1] = move
                psi, r = psi + step, r - step + self.to_d(i, back)
            left = _largest(r, psi)
            if left <= torch.finfo(d.dtype).eps or (left >= 0.5 * before and left < 1e-3):
                break
            before = left
        return psi

    def to_d(self, i: int, back: Tensor) -> Tensor:
        """The cotangent of a point at node i as that of d, ``(7, B, n)``."""
        shape = (7, 1, 1)
        if self.positions_only:
            return self.table.position[i - 1].view(shape) * (self.h2 * back)
        q, v = split_state(back)
        to_v = self.table.velocity[i - 1].view(shape) * (self.h * v)
        return torch.addcmul(to_v, self.table.position[i - 1].view(shape), self.h2 * q)

    def _back(self, i: int, point: Tensor, weight: Tensor) -> Tensor:
        with torch.enable_grad():
            x = point.detach().requires_grad_()
            force = self.acceleration(i, x)
            if not force.requires_grad:
                return torch.zeros_like(point)
            (back,) = torch.autograd.grad(force, x, weight, allow_unused=True)
        return torch.zeros_like(point) if back is None else back


def _largest(part: Tensor, whole: Tensor) -> float:
    """The largest entry of ``part (7, ..., n)`` against that of ``whole``, over the trajectories."""
    tiny = torch.finfo(whole.dtype).tiny
    ratio = part.abs().amax((0, -1)) / whole.abs().amax((0, -1)).clamp(min=tiny)
    return float(ratio.nan_to_num(0.0).amax())
