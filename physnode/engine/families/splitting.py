"""Splitting methods for q' = drift(p), p' = kick(q): symmetric compositions of kicks and drifts, which are symplectic.

    p += κ_0 h F(q);   q += δ_0 h V(p);   p += κ_1 h F(q);   ...      or with a drift first

Where a step kicks first, its last kick and the first of the next share one force evaluation. A time in the force advances with
the drifts. Every splitting of order above two has negative coefficients (Goldman, Kaper 1996), so that the time which a driven
force sees runs backward within a step. It stays inside the step in every table here.
Source: Hairer, Lubich, Wanner, Geometric Numerical Integration, II.4-II.5 and V.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
        self.evaluations = tableau.stages
        self._moves = tuple(_timed(tableau))

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
        """The force at the start, where the first move is a kick."""
        if not self.tableau.kick_first:
            return None
        return split_state(derivative)[1] if f.drift_is_identity else f.kick(t, split_state(y)[0])

    def shares_derivative(self, f: FieldFunction) -> bool:
        """Only where q' = p, since then the force is half of the derivative."""
        return f.drift_is_identity

    def step(self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, carry: Tensor | None = None) -> Step:
        """One composition of kicks and drifts; changes are added up apart from the state, which is so much larger."""
        q, p = split_state(y)
        h = (t_end - t).to(y.dtype).unsqueeze(-1)
        dq, dp = torch.zeros_like(q), torch.zeros_like(p)
        force = carry
        known = []
        for number, (kind, fraction, node) in enumerate(self._moves):
            if kind == "kick":
                if number or force is None:
                    force = f.kick(_time(node, t, t_end), q + dq)
                dp = dp + fraction * h * force
                known.append(force)
            else:
                rate = p + dp if f.drift_is_identity else f.drift(_time(node, t, t_end), p + dp)
                dq = dq + fraction * h * rate
                known.append(rate)
        change = torch.cat((dq, dp), dim=-1)
        return Step(y + change, (), force if self.tableau.kick_first else None, (), change, known=tuple(known))

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
        """Each kick and drift transposed, in reverse.

        λ_q += (∂F/∂q)ᵀ κ h λ_p after a kick, λ_p += (∂V/∂p)ᵀ δ h λ_q after a drift.
        """
        h = (t_end - t).to(y.dtype).unsqueeze(-1)
        points: list[Tensor] = []
        with torch.no_grad():
            q, p = split_state(y)
            for number, (kind, fraction, node) in enumerate(self._moves):
                points.append(q if kind == "kick" else p)
                if number + 1 == len(self._moves):
                    break
                time = _time(node, t, t_end)
                if kind == "kick":
                    p = p + fraction * h * (known[number] if known else f.kick(time, q))
                elif f.drift_is_identity:
                    q = q + fraction * h * p
                else:
                    q = q + fraction * h * (known[number] if known else f.drift(time, p))
        end_q, end_p = split_state(cotangent)
        to_q, to_p = torch.zeros_like(end_q), torch.zeros_like(end_p)
        for (kind, fraction, node), point in zip(reversed(self._moves), reversed(points), strict=True):
            time = _time(node, t, t_end)
            if kind == "kick":
                weight = fraction * h * (end_p + to_p)
                to_q = to_q + vjp(lambda x, time=time: f.kick(time, x), point, weight)  # type: ignore[misc]
            elif f.drift_is_identity:
                to_p = to_p + fraction * h * (end_q + to_q)
            else:
                weight = fraction * h * (end_q + to_q)
                to_p = to_p + vjp(lambda x, time=time: f.drift(time, x), point, weight)  # type: ignore[misc]
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
        h = (t_end - t).to(y.dtype).unsqueeze(-1)
        (q, p), (dq, dp) = split_state(y), split_state(tangents)
        for kind, fraction, node in self._moves:
            time = _time(node, t, t_end)
            if kind == "kick":
                force, change = jvp(lambda x, time=time: f.kick(time, x), q, dq)  # type: ignore[misc]
                p, dp = p + fraction * h * force, dp + fraction * h * change
            else:
                rate, change = (p, dp) if f.drift_is_identity else jvp(lambda x, time=time: f.drift(time, x), p, dp)  # type: ignore[misc]
                q, dq = q + fraction * h * rate, dq + fraction * h * change
        return torch.cat((q, p), dim=-1), torch.cat((dq, dp), dim=-1), (), ()


def _timed(tableau: SplittingTableau) -> Iterator[tuple[str, float, float]]:
    """Each move with the fraction of the step that the drifts before it have covered; after the last one it is 1 exactly."""
    elapsed, drifts = 0.0, 0
    for kind, fraction in tableau.moves:
        yield kind, fraction, elapsed
        if kind == "drift":
            drifts += 1
            elapsed = 1.0 if drifts == len(tableau.drifts) else elapsed + fraction


def _time(node: float, t: Tensor, t_end: Tensor) -> Tensor:
    if node == 0.0:
        return t
    return t_end if node == 1.0 else t + node * (t_end - t)
