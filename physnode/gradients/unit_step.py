"""A step of length h from t as a step of length one, so that its derivatives by t and by h are those by tensors of its field.

The step of y' = f(t, y) from t to t + h is the step from 0 to 1 of dy/ds = h f(t + s h, y), for every Runge-Kutta and splitting
method. For q'' = a(t, q, v) it is that of d²q/ds² = h² a(t + s h, q, u / h) with the velocity u = h v, so that the drift stays
the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from physnode.engine.field_function import FieldFunction
from physnode.fields import split_state

__all__ = ["UnitStep"]


class UnitStep(FieldFunction):
    """The scaled field ``g(s, u)`` of steps from ``t`` of lengths ``h``, ``(B,)`` each in float64."""

    def __init__(self, f: FieldFunction, t: Tensor, h: Tensor) -> None:
        self.__dict__.update(f.__dict__)
        self._f, self._t, self._h = f, t, h

    def __call__(self, s: Tensor, u: Tensor) -> Tensor:
        """du/ds, ``(B, dim)``."""
        h = self._length(u)
        if not self.drift_is_identity:
            return h * self._f(self._at(s), u)
        rate = self._f(self._at(s), self.out_of(u))
        return torch.cat((split_state(u)[1], h * h * split_state(rate)[1]), dim=-1)

    def drift(self, s: Tensor, p: Tensor) -> Tensor:
        """dq/ds of a field that splits."""
        return self._length(p) * self._f.drift(self._at(s), p)

    def kick(self, s: Tensor, q: Tensor) -> Tensor:
        """dp/ds of a field that splits, d²q/ds² of one of second order."""
        h = self._length(q)
        force = self._f.kick(self._at(s), q)
        return h * h * force if self.drift_is_identity else h * force

    def into(self, y: Tensor) -> Tensor:
        """The state ``u`` for ``y``."""
        if not self.drift_is_identity:
            return y
        q, v = split_state(y)
        return torch.cat((q, self._length(y) * v), dim=-1)

    def out_of(self, u: Tensor, rows: Tensor | None = None) -> Tensor:
        """The state ``y`` for ``u``, of all trajectories or of ``rows``; velocities are zero in a step of no length."""
        if not self.drift_is_identity:
            return u
        q, scaled = split_state(u)
        h = self._length(u)
        h = h if rows is None else h[rows]
        return torch.cat((q, scaled / torch.where(h != 0, h, 1.0)), dim=-1)

    def _at(self, s: Tensor) -> Tensor:
        return self._t + s * self._h

    def _length(self, like: Tensor) -> Tensor:
        return self._h.to(like.dtype).unsqueeze(-1)
