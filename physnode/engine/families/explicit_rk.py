"""Explicit Runge-Kutta methods: one loop over a Butcher tableau, forward and transposed.

    X_i = x + h Σ_{j<i} a_ij k_j,    k_i = f(t + c_i h, X_i),    x(t + h) = x + h Σ b_i k_i

The derivative at the step's end, where a method's error estimate or continuous extension reads it, is the next step's k_1.
Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, II.1, II.4 and II.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from physnode.engine.families.base import JacobianVector, Method, Step, VectorJacobian
from physnode.engine.field_function import FieldFunction
from physnode.engine.tableaus import ButcherTableau

__all__ = ["ExplicitRungeKutta"]


class ExplicitRungeKutta(Method):
    """The method of one explicit Butcher tableau."""

    def __init__(self, tableau: ButcherTableau) -> None:
        self.tableau = tableau
        self.name = tableau.name
        self.order = tableau.order
        self.error_order = tableau.error_order if tableau.error else None
        self.extension_order = tableau.extension.order
        self.prefers_restep = tableau.extension.order < tableau.order - 1
        self.evaluations = tableau.stages
        self.extra_evaluations = len(tableau.extension.a)
        # rows over which the sweep runs: own stages, the end derivative as one more stage, extra stages
        end = ((*tableau.b,),) if tableau.reads_end else ()
        self._rows = (*tableau.a, *end, *tableau.extension.a)
        self._nodes = (*tableau.c, *((1.0,) if tableau.reads_end else ()), *tableau.extension.c)

    def start(self, f: FieldFunction, t: Tensor, y: Tensor, derivative: Tensor) -> Tensor | None:
        """The derivative, where steps share it."""
        return derivative if self.tableau.reads_end else None

    def step(self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, carry: Tensor | None = None) -> Step:
        """One step; the stages it returns are the own ones, then the end derivative if the method reads it."""
        tableau = self.tableau
        span = t_end - t
        h = span.to(y.dtype).unsqueeze(-1)
        stages = self._stages(f, t, t_end, span, h, y, [f(t, y) if carry is None else carry], tableau.stages)
        change = h * combine(tableau.b, stages)
        end = y + change
        carry = f(t_end, end) if tableau.reads_end else None
        if carry is not None:
            stages.append(carry)
        error = tuple(h * combine(row, stages) for row in tableau.error)
        return Step(end, error, carry, tuple(stages), change, known=tuple(stages))

    def extend(self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The stages of the step, then the extra stages of the continuous extension."""
        if not self.extra_evaluations:
            return tuple(stages)
        span = t_end - t
        h = span.to(y.dtype).unsqueeze(-1)
        return tuple(self._stages(f, t, t_end, span, h, y, list(stages), len(self._rows)))

    def output_weights(self, fraction: Tensor) -> tuple[Tensor, ...]:
        """b_i(θ) by Horner's rule, for all stages at once; one ``(M,)`` a stage."""
        *lower, highest = _powers(self.tableau.extension.weights, fraction.dtype, fraction.device)
        value = highest * fraction
        for coefficients in reversed(lower):
            value = (value + coefficients) * fraction
        return value.unbind()

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
        """The stage sweep in its division-free form, with w_i the cotangent of k_i and λ that of the end state.

            w_i = γ_i + h (b_i λ + Σ_{j>i} a_ji J_jᵀ w_j),   i = s..1;      λ_start - λ = Σ_i J_iᵀ w_i

        γ_i is what outputs inside the step owe to k_i. Equivalent to the symplectic partner of the tableau (Matsubara,
        Miyatake, Yaguchi 2021, eq. 7) and defined for zero weights too, since nothing is divided by b_i.
        """
        tableau = self.tableau
        span = t_end - t
        h = span.to(y.dtype).unsqueeze(-1)
        given = [*stage_cotangents, *[None] * (len(self._rows) - len(stage_cotangents))]
        last = max([tableau.stages, *(i + 1 for i, value in enumerate(given) if value is not None)])
        with torch.no_grad():
            stages = self._stages(f, t, t_end, span, h, y, list(known) or [f(t, y)], last - 1)
        returned: list[Tensor | None] = [None] * last
        total: Tensor | None = None
        for i in reversed(range(last)):
            later = [(self._rows[j][i], back) for j in range(i + 1, last) if (back := returned[j]) is not None]
            if i < tableau.stages:
                later.append((tableau.b[i], cotangent))
            coefficients, terms = [a for a, _ in later], [term for _, term in later]
            weight = given[i]
            if any(coefficients):
                step_part = combine(coefficients, terms)
                weight = h * step_part if weight is None else torch.addcmul(weight, h, step_part)
            if weight is None:
                continue
            time, row = self._time(i, t, t_end, span), self._rows[i]
            point = torch.addcmul(y, h, combine(row, stages)) if any(row) else y
            back = vjp(lambda x, time=time: f(time, x), point, weight)  # type: ignore[misc]
            returned[i] = back
            total = back if total is None else total + back
        return torch.zeros_like(cotangent) if total is None else total

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
        """δX_i = δx + h Σ a_ij δk_j,  δk_i = J_i δX_i + F_i δθ,  δx(t + h) = δx + h Σ b_i δk_i."""
        span = t_end - t
        h = span.to(y.dtype).unsqueeze(-1)
        stages: list[Tensor] = []
        changes: list[Tensor] = []
        for i in range(len(self._rows) if outputs else self.tableau.stages):
            time, row = self._time(i, t, t_end, span), self._rows[i]
            inner = any(row)
            point = torch.addcmul(y, h, combine(row, stages)) if inner else y
            direction = torch.addcmul(tangents, h, combine(row, changes)) if inner else tangents
            value, change = jvp(lambda x, time=time: f(time, x), point, direction)  # type: ignore[misc]
            stages.append(value)
            changes.append(change)
        end = torch.addcmul(y, h, combine(self.tableau.b, stages))
        return end, torch.addcmul(tangents, h, combine(self.tableau.b, changes)), tuple(stages), tuple(changes)

    def _stages(
        self,
        f: FieldFunction,
        t: Tensor,
        t_end: Tensor,
        span: Tensor,
        h: Tensor,
        y: Tensor,
        stages: list[Tensor],
        count: int,
    ) -> list[Tensor]:
        """Continue the list of stage derivatives up to ``count`` of them."""
        for i in range(len(stages), count):
            stages.append(f(self._time(i, t, t_end, span), torch.addcmul(y, h, combine(self._rows[i], stages))))
        return stages

    def _time(self, i: int, t: Tensor, t_end: Tensor, span: Tensor) -> Tensor:
        node = self._nodes[i]
        if node == 0.0:
            return t
        return t_end if node == 1.0 else torch.add(t, span, alpha=node)


def combine(weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """Σ weights_i stages_i over the weights that are not zero, in their order."""
    total: Tensor | None = None
    for weight, stage in zip(weights, stages, strict=False):
        if weight:
            total = weight * stage if total is None else torch.add(total, stage, alpha=weight)
    return torch.zeros_like(stages[0]) if total is None else total


@lru_cache(maxsize=64)
def _powers(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """The coefficients of each power of θ, the lowest first, ``(S, 1)`` each for S polynomials without a constant term."""
    with torch.inference_mode(False):  # they outlive the solve, and the next one may record a graph
        return torch.tensor(rows, dtype=dtype, device=device).T.unsqueeze(-1).unbind()
