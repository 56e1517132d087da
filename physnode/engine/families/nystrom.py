"""Explicit Runge-Kutta-Nystrom methods for q'' = a(t, q): one loop over a Nystrom table, forward and transposed.

    k_i = a(t + c_i h, q + c_i h v + h² Σ_{j<i} a_ij k_j),    q += h v + h² Σ b_i k_i,    v += h Σ b'_i k_i

Velocities are not formed inside a step, which is what makes these cheaper than Runge-Kutta methods of their order where a
force does not depend on velocity. Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, II.14.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from physnode.engine.coefficients.nystrom_tableau import NystromTableau
from physnode.engine.families.base import JacobianVector, Method, Step, VectorJacobian
from physnode.engine.families.explicit_rk import combine
from physnode.engine.field_function import FieldFunction
from physnode.errors import InputError
from physnode.fields import SecondOrder, split_state

__all__ = ["RungeKuttaNystrom"]


class RungeKuttaNystrom(Method):
    """The method of one Nystrom table, for a ``SecondOrder`` field whose acceleration is declared free of velocity.

    Its continuous extension is a polynomial in θ, x(t + θh) = x + h Σ_m θ^m K_m: the stages of a step are the coefficients
    K_m ``(B, dim)``, positions first, then velocities.
    """

    def __init__(self, tableau: NystromTableau) -> None:
        self.tableau = tableau
        self.name = tableau.name
        self.order = tableau.order
        self.error_order = tableau.error_order if tableau.error else None
        self.extension_order = tableau.extension_order or None
        self.evaluations = tableau.stages - int(tableau.first_same_as_last)
        # columns over the powers θ, θ², ...: what a k_i adds to the position (times h) and to the velocity
        self._position = [(0.0, *row) for row in tableau.extension]
        self._velocity = [(*((m + 2.0) * value for m, value in enumerate(row)), 0.0) for row in tableau.extension]

    def check(self, f: FieldFunction) -> None:
        """Refuse a field that is not q'' = a(t, q)."""
        if f.splits and f.drift_is_identity:
            return
        kind = type(f.field).__name__
        if isinstance(f.field, SecondOrder):
            found = f"the acceleration of {kind} is declared to depend on velocity (damping, or a learned term that reads v)"
            others = '"gauss_radau15" or an explicit Runge-Kutta method such as "dop853"'
        elif f.splits:
            found = f"{kind} moves by q' = dT/dp, which is not the momentum itself"
            others = 'a splitting such as "kahan_li8", or an explicit Runge-Kutta method such as "dop853"'
        else:
            found = f"{kind} is not a SecondOrder field"
            others = 'an explicit Runge-Kutta method such as "tsit5" or "dop853"'
        raise InputError(
            f"{self.name} integrates q'' = a(t, q), a SecondOrder field whose acceleration ignores the velocity; {found}. Use "
            f"{others}, or set velocity_dependent = False if the acceleration of a SecondOrder field ignores v."
        )

    def start(self, f: FieldFunction, t: Tensor, y: Tensor, derivative: Tensor) -> Tensor | None:
        """The acceleration at the start, where steps share it."""
        return split_state(derivative)[1] if self.tableau.first_same_as_last else None

    def step(self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, carry: Tensor | None = None) -> Step:
        """One step; the acceleration at its end is carried to the next, where the table has it."""
        tableau = self.tableau
        q, v = split_state(y)
        span = t_end - t
        h = span.to(y.dtype).unsqueeze(-1)
        forces = [f.kick(t, q) if carry is None else carry]
        for i in range(1, tableau.stages):
            dq = h * (tableau.c[i] * v + h * combine(tableau.a[i], forces))
            forces.append(f.kick(self._time(i, t, t_end, span), q + dq))
        if not tableau.first_same_as_last:  # else the last stage is the end already
            dq = h * (v + h * combine(tableau.b, forces))
        change = torch.cat((dq, h * combine(tableau.velocity_b, forces)), dim=-1)
        error: tuple[Tensor, ...] = ()
        if tableau.error:
            error = (h * torch.cat((h * combine(tableau.error, forces), combine(tableau.velocity_error, forces)), dim=-1),)
        carry = forces[-1] if tableau.first_same_as_last else None
        return Step(y + change, error, carry, self._powers(h, v, forces), change, known=tuple(forces))

    def output_weights(self, fraction: Tensor) -> tuple[Tensor, ...]:
        """θ, θ², θ³, ..., one ``(M,)`` for each coefficient of the polynomial."""
        if not self._position:
            return super().output_weights(fraction)
        weights = [fraction]
        for _ in range(1, len(self._position[0])):
            weights.append(weights[-1] * fraction)
        return tuple(weights)

    def pull_back(
        self,
        f: FieldFunction,
        vjp: VectorJacobian,
        t: Tensor,
        t_end: Tensor,
        y: Tensor,
        cotangent: Tensor,
        stage_cotangents: Sequence[Tensor | None] = (),
        known: Sequence[Tensor] = (),
    ) -> Tensor:
        """The stage sweep in reverse, with w_i the cotangent of k_i, λ that of the end state and u_i = J_iᵀ w_i.

            w_i = γ_i + h² b_i λ_q + h b'_i λ_v + h² Σ_{j>i} a_ji u_j
            what the start is owed beyond λ: Σ u_i for q,  h λ_q + h Σ c_i u_i for v

        γ_i is what outputs inside the step owe to k_i.
        """
        tableau = self.tableau
        q, v = split_state(y)
        span = t_end - t
        h = span.to(y.dtype).unsqueeze(-1)
        points = [q]
        with torch.no_grad():
            forces = list(known)
            for i in range(1, tableau.stages):
                if not known:
                    forces.append(f.kick(self._time(i - 1, t, t_end, span), points[-1]))
                points.append(q + h * (tableau.c[i] * v + h * combine(tableau.a[i], forces)))
        end_q, end_v = split_state(cotangent)
        to_q, to_v = torch.zeros_like(end_q), h * end_q
        pairs = [None if value is None else split_state(value) for value in stage_cotangents]
        if pairs and pairs[0] is not None:
            to_v = to_v + pairs[0][0]
        back: list[Tensor] = []
        for i in reversed(range(tableau.stages)):
            weight = h * (h * (tableau.b[i] * end_q) + tableau.velocity_b[i] * end_v)
            for m, pair in enumerate(pairs):
                if pair is not None:
                    weight = weight + self._position[i][m] * h * pair[0] + self._velocity[i][m] * pair[1]
            if back:
                column = [tableau.a[j][i] for j in reversed(range(i + 1, tableau.stages))]
                weight = weight + h * h * combine(column, back)
            time = self._time(i, t, t_end, span)
            back.append(vjp(lambda x, time=time: f.kick(time, x), points[i], weight))  # type: ignore[misc]
            to_q, to_v = to_q + back[-1], to_v + tableau.c[i] * h * back[-1]
        return torch.cat((to_q, to_v), dim=-1)

    def push_forward(
        self,
        f: FieldFunction,
        jvp: JacobianVector,
        t: Tensor,
        t_end: Tensor,
        y: Tensor,
        tangents: Tensor,
        *,
        outputs: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The step with every k_i and its change side by side."""
        tableau = self.tableau
        span = t_end - t
        h = span.to(y.dtype).unsqueeze(-1)
        (q, v), (dq, dv) = split_state(y), split_state(tangents)
        forces: list[Tensor] = []
        changes: list[Tensor] = []
        for i in range(tableau.stages):
            time, row, c = self._time(i, t, t_end, span), tableau.a[i], tableau.c[i]
            point, direction = q + c * h * v, dq + c * h * dv
            if row:
                point, direction = point + h * h * combine(row, forces), direction + h * h * combine(row, changes)
            value, change = jvp(lambda x, time=time: f.kick(time, x), point, direction)  # type: ignore[misc]
            forces.append(value)
            changes.append(change)
        ends = [
            state + h * torch.cat((rate + h * combine(tableau.b, part), combine(tableau.velocity_b, part)), dim=-1)
            for state, rate, part in ((y, v, forces), (tangents, dv, changes))
        ]
        if not outputs:
            return ends[0], ends[1], (), ()
        return ends[0], ends[1], self._powers(h, v, forces), self._powers(h, dv, changes)

    def _powers(self, h: Tensor, v: Tensor, forces: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """K_m of x(t + θh) = x + h Σ_m θ^m K_m."""
        if not self._position:
            return ()
        found = []
        for position, velocity in zip(zip(*self._position, strict=True), zip(*self._velocity, strict=True), strict=True):
            first = h * combine(position, forces) if any(position) else v
            found.append(torch.cat((first, combine(velocity, forces)), dim=-1))
        return tuple(found)

    def _time(self, i: int, t: Tensor, t_end: Tensor, span: Tensor) -> Tensor:
        node = self.tableau.c[i]
        if node == 0.0:
            return t
        return t_end if node == 1.0 else t + node * span
