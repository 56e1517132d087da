"""Splitting methods for q' = drift(p), p' = kick(q): symmetric compositions of kicks and drifts, which are symplectic.

    p += κ_0 h F(q);   q += δ_0 h V(p);   p += κ_1 h F(q);   ...   p += κ_m h F(q)

The last kick of a step and the first of the next share one force evaluation. A time in the force advances with the drifts.
Every splitting of order above two has negative coefficients (Goldman, Kaper 1996), so that the time which a driven force sees
runs backward within a step. Within ``leapfrog`` and ``kahan_li8`` it stays inside the step; it leaves the step, and so the
span of a solve, by 0.35 h in ``yoshida4`` and by 0.16 h in ``yoshida6``: force data must reach that far beyond the span.
Source: Hairer, Lubich, Wanner, Geometric Numerical Integration, II.4-II.5 and V.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from physnode.engine.families.base import JacobianVector, Method, Step, VectorJacobian
from physnode.engine.field_function import FieldFunction
from physnode.engine.tableaus import SplittingTableau
from physnode.errors import InputError
from physnode.fields import SecondOrder, split_state

__all__ = ["Splitting"]


class Splitting(Method):
    """The method of one splitting tableau; steps are fixed, and outputs inside a step are read by a shorter step."""

    error_order = None
    extension_order = None

    def __init__(self, tableau: SplittingTableau) -> None:
        self.tableau = tableau
        self.name = tableau.name
        self.order = tableau.order
        self.evaluations = len(tableau.drifts)

    def check(self, f: FieldFunction) -> None:
        """Refuse a field that does not split."""
        if f.splits:
            return
        kind = type(f.field).__name__
        if isinstance(f.field, SecondOrder):
            found = f"the acceleration of {kind} is declared to depend on velocity (damping, or a learned term that reads v)"
        else:
            found = f"{kind} is neither a SeparableHamiltonian nor a SecondOrder field"
        raise InputError(
            f"{self.name} splits the motion into drifts and kicks, which needs q' = V(p), p' = F(q); {found}. Use an explicit "
            'Runge-Kutta method such as "tsit5" or "dop853", or set velocity_dependent = False if the acceleration ignores v.'
        )

    def start(self, f: FieldFunction, t: Tensor, y: Tensor, derivative: Tensor) -> Tensor | None:
        """The force at the start."""
        return split_state(derivative)[1] if f.drift_is_identity else f.kick(t, split_state(y)[0])

    def step(self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, carry: Tensor | None = None) -> Step:
        """One composition of kicks and drifts; changes are added up apart from the state, which is so much larger."""
        q, p = split_state(y)
        span = t_end - t
        h = span.to(y.dtype).unsqueeze(-1)
        force = f.kick(t, q) if carry is None else carry
        dp = self.tableau.kicks[0] * h * force
        dq = torch.zeros_like(dp)
        for i, time in enumerate(self._times(t, t_end, span)):
            rate = p + dp if f.drift_is_identity else f.drift(time, p + dp)
            dq = dq + self.tableau.drifts[i] * h * rate
            force = f.kick(time, q + dq)
            dp = dp + self.tableau.kicks[i + 1] * h * force
        change = torch.cat((dq, dp), dim=-1)
        return Step(y + change, (), force, (), change)

    def pull_back(
        self,
        f: FieldFunction,
        vjp: VectorJacobian,
        t: Tensor,
        t_end: Tensor,
        y: Tensor,
        cotangent: Tensor,
        stage_cotangents: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """Each kick and drift transposed, in reverse.

        λ_q += (∂F/∂q)ᵀ κ h λ_p after a kick, λ_p += (∂V/∂p)ᵀ δ h λ_q after a drift.
        """
        span = t_end - t
        h = span.to(y.dtype).unsqueeze(-1)
        times = self._times(t, t_end, span)
        positions, momenta = [split_state(y)[0]], []
        with torch.no_grad():
            q, p = split_state(y)
            p = p + self.tableau.kicks[0] * h * f.kick(t, q)
            for i, time in enumerate(times):
                momenta.append(p)
                q = q + self.tableau.drifts[i] * h * (p if f.drift_is_identity else f.drift(time, p))
                positions.append(q)
                if i + 1 < len(times):
                    p = p + self.tableau.kicks[i + 1] * h * f.kick(time, q)
        to_q, to_p = split_state(cotangent)
        for i in reversed(range(len(times))):
            time = times[i]
            weight = self.tableau.kicks[i + 1] * h * to_p
            to_q = to_q + vjp(lambda x, time=time: f.kick(time, x), positions[i + 1], weight)  # type: ignore[misc]
            weight = self.tableau.drifts[i] * h * to_q
            back = weight if f.drift_is_identity else vjp(lambda x, time=time: f.drift(time, x), momenta[i], weight)  # type: ignore[misc]
            to_p = to_p + back
        to_q = to_q + vjp(lambda x: f.kick(t, x), positions[0], self.tableau.kicks[0] * h * to_p)
        return torch.cat((to_q, to_p), dim=-1)

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
        """Each kick and drift linearised, in order."""
        span = t_end - t
        h = span.to(y.dtype).unsqueeze(-1)
        (q, p), (dq, dp) = split_state(y), split_state(tangents)
        force, change = jvp(lambda x: f.kick(t, x), q, dq)
        p, dp = p + self.tableau.kicks[0] * h * force, dp + self.tableau.kicks[0] * h * change
        for i, time in enumerate(self._times(t, t_end, span)):
            rate, change = (p, dp) if f.drift_is_identity else jvp(lambda x, time=time: f.drift(time, x), p, dp)  # type: ignore[misc]
            q, dq = q + self.tableau.drifts[i] * h * rate, dq + self.tableau.drifts[i] * h * change
            force, change = jvp(lambda x, time=time: f.kick(time, x), q, dq)  # type: ignore[misc]
            p, dp = p + self.tableau.kicks[i + 1] * h * force, dp + self.tableau.kicks[i + 1] * h * change
        return torch.cat((q, p), dim=-1), torch.cat((dq, dp), dim=-1), (), ()

    def _times(self, t: Tensor, t_end: Tensor, span: Tensor) -> list[Tensor]:
        """The time after each drift; the last is the step's end itself."""
        times, elapsed = [], 0.0
        for drift in self.tableau.drifts[:-1]:
            elapsed += drift
            times.append(t + elapsed * span)
        return [*times, t_end]
