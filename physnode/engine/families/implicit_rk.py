"""Implicit Runge-Kutta methods: one family for every tableau with a full matrix, forward, transposed and linearised.

    K_i = f(t + c_i h, x + h Σ_j a_ij K_j),    x(t + h) = x + h Σ_i b_i K_i

Stages are found by Newton's iteration, without a graph. Where a graph is wanted it is put on afterwards: two more Newton
steps with the matrix of the solution, a constant, have the exact first and second derivatives of the solution, whatever the
iteration was (the implicit function theorem).
Sources: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.8; Hairer, Lubich, Wanner, Geometric Numerical
Integration, VIII.6.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from physnode.engine.coefficients.implicit_tableau import ImplicitTableau
from physnode.engine.families.base import JacobianVector, Method, Step, VectorJacobian
from physnode.engine.families.implicit_memory import pack, predict, unpack
from physnode.engine.families.newton import Solved, StageEquations, solve_to_rounding, solve_to_tolerance, stagewise
from physnode.engine.field_function import FieldFunction
from physnode.engine.jacobian import jacobian
from physnode.engine.linear import Factors, factorize
from physnode.errors import GradientError
from physnode.torch_internals import in_forward_mode

__all__ = ["ImplicitRungeKutta"]


class ImplicitRungeKutta(Method):
    """The method of one implicit tableau; it takes any field.

    The stage equations are solved to rounding, or, by a method with an error estimate that was :meth:`tuned`, to a fraction
    of the tolerances. Evaluations spent on Jacobians are not counted in :attr:`Step.spent`.
    """

    implicit = True

    def __init__(self, tableau: ImplicitTableau) -> None:
        self.tableau = tableau
        self.name = tableau.name
        self.order = tableau.order
        self.error_order = tableau.error_order if tableau.error else None
        self.extension_order = tableau.extension.order if tableau.extension else None
        self.evaluations = tableau.stages
        self.prefers_restep = tableau.extension is not None and tableau.extension.order < tableau.order
        self._tolerances: tuple[float, Tensor] | None = None

    def tuned(self, rtol: float, atol: Tensor) -> Method:
        """The method whose iterations stop at a fraction of these tolerances; itself where it has no error estimate."""
        if self.error_order is None:
            return self
        method = copy.copy(self)
        method._tolerances = (float(rtol), atol.detach())
        return method

    def start(self, f: FieldFunction, t: Tensor, y: Tensor, derivative: Tensor) -> Tensor | None:
        """No polynomial to begin with; the derivative, where the error estimate reads it."""
        none = y.new_zeros(self.tableau.stages, *y.shape)
        return pack(none, y.new_zeros(len(y), 1), y.new_ones(len(y)), derivative if self.tableau.error else None)

    def step(self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, carry: Tensor | None = None) -> Step:
        """One step; its stages are the K_i.

        Where gradients are enabled the step is differentiable in ``y``, ``t``, ``t_end`` and all that the field reads, and
        has no error estimate, which nobody would read.

        Raises:
            GradientError: a graph is wanted, and the stage equations of some trajectory could not be solved to rounding.
        """
        table = self.tableau
        graph = torch.is_grad_enabled() or in_forward_mode()
        equations = self._equations(f, t.detach(), t_end.detach(), y.detach())
        memory = None if carry is None else carry.detach()
        error: tuple[Tensor, ...] = ()
        with torch.no_grad():
            start = jacobian(f, t.detach(), equations.y)
            k, eta = predict(self.tableau, equations, memory)
            if graph or self._tolerances is None:
                found = solve_to_rounding(equations, k, start)
            else:
                found = solve_to_tolerance(equations, k, start, self._scale(equations.y), self._target(y.dtype), eta)
            spent = table.stages * found.iterations
            if table.error and not graph:
                estimate, further = self._estimate(equations, t, start, found, memory)
                error, spent = (estimate,), spent + further
        k = self._with_graph(f, t, t_end, y, equations, found) if graph else found.k
        change = (t_end - t).to(y.dtype).unsqueeze(-1) * self._weighted(table.b, k)
        end = y + change
        slope = None
        if table.error:
            slope = k[-1] if table.ends_on_stage else f(t_end, end)
            spent = spent + int(not table.ends_on_stage)
        kept = pack(k, equations.h, found.eta, slope).detach()
        stages = tuple(k.unbind(0))
        known = stages if self._tolerances is None else ()  # else they are not the solution to rounding
        return Step(end, error, kept, stages, change, spent, known=known, unsolved=found.failed)

    def output_weights(self, fraction: Tensor) -> tuple[Tensor, ...]:
        """b_i(θ) by Horner's rule, one ``(M,)`` a stage."""
        if self.tableau.extension is None:
            return super().output_weights(fraction)
        weights = []
        for row in self.tableau.extension.weights:
            value = torch.zeros_like(fraction)
            for coefficient in reversed(row):
                value = (value + coefficient) * fraction
            weights.append(value)
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
        """All stages at once, by one linear solve with the transposed Newton matrix of the solution.

            w_i = γ_i + h (b_i λ + Σ_j a_ji J_jᵀ w_j),   i = 1..s;      λ_start - λ = Σ_i J_iᵀ w_i

        γ_i is what outputs inside the step owe to K_i, λ the cotangent of the end state.
        """
        equations, k, factors = self._solution(f, t, t_end, y, known)
        owed = [equations.h * b * cotangent for b in self.tableau.b]
        for i, given in enumerate(stage_cotangents):
            owed[i] = owed[i] if given is None else owed[i] + given
        weights = stagewise(factors, torch.stack(owed), transposed=True)
        points = equations.y + equations.displacements(k)
        total = torch.zeros_like(cotangent)
        for time, point, weight in zip(equations.times, points.unbind(0), weights.unbind(0), strict=True):
            total = total + vjp(lambda x, time=time: f(time, x), point, weight)  # type: ignore[misc]
        return total

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
        """δK_i - h Σ_j a_ij J_i δK_j = J_i δx + F_i δθ,  δx(t + h) = δx + h Σ b_i δK_i."""
        equations, k, factors = self._solution(f, t, t_end, y)
        points = equations.y + equations.displacements(k)
        right = [
            jvp(lambda x, time=time: f(time, x), point, tangents)[1]  # type: ignore[misc]
            for time, point in zip(equations.times, points.unbind(0), strict=True)
        ]
        changes = stagewise(factors, torch.stack(right))
        end = y + equations.h * self._weighted(self.tableau.b, k)
        end_change = tangents + equations.h * self._weighted(self.tableau.b, changes)
        return end, end_change, tuple(k.unbind(0)), tuple(changes.unbind(0))

    def _equations(self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor) -> StageEquations:
        span = t_end - t
        times = [t if c == 0.0 else t_end if c == 1.0 else t + c * span for c in self.tableau.c]
        a = torch.tensor(self.tableau.a, dtype=y.dtype, device=y.device)
        return StageEquations(f, times, span.to(y.dtype).unsqueeze(-1), y, a)

    def _solution(
        self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, known: Sequence[Tensor] = ()
    ) -> tuple[StageEquations, Tensor, Factors]:
        """The stages to rounding, ``known`` or found from the start state alone, and the factors of ∂R/∂K there."""
        equations = self._equations(f, t, t_end, y.detach())
        with torch.no_grad():
            if known:
                k = torch.stack(list(known))
            else:
                found = solve_to_rounding(equations, y.new_zeros(self.tableau.stages, *y.shape), jacobian(f, t, equations.y))
                self._refuse_unsolved(t, found)
                k = found.k
            return equations, k, factorize(equations.matrix(equations.jacobians(k)))

    def _with_graph(
        self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, equations: StageEquations, found: Solved
    ) -> Tensor:
        """The stages as functions of all that the step depends on.

        With M = ∂R/∂K at the solution, a constant, K - M⁻¹ R(K) agrees with the solution to first order in any change of what
        the step depends on, and done twice to third order.
        """
        self._refuse_unsolved(t, found)
        with torch.no_grad():
            factors = factorize(equations.matrix(equations.jacobians(found.k)))
        live = self._equations(f, t, t_end, y)
        k = found.k
        for _ in range(2):
            k = k + stagewise(factors, live.rates(k) - k)
        return k

    def _refuse_unsolved(self, t: Tensor, found: Solved) -> None:
        if bool(found.failed.any()):
            row = int(found.failed.nonzero()[0])
            raise GradientError(
                f"{self.name}: the equations of the step at t = {float(t[row]):.6g} (trajectory {row}) could not be "
                "solved to rounding, as its derivative needs; use tighter tolerances or shorter steps"
            )

    def _estimate(
        self, equations: StageEquations, t: Tensor, start: Tensor, found: Solved, memory: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The error estimate, and the evaluations it took, ``(B,)``.

        Where it is above the tolerance it is made again with f(t, x + estimate) in the place of f(t, x), which takes away
        what the fast components of a stiff problem add to it (Hairer, Wanner II, IV.8, eq. 8.20).
        """
        table, y, h = self.tableau, equations.y, equations.h
        f, spent = equations.f, torch.zeros_like(found.iterations)
        if memory is None:
            first, spent = f(t, y), spent + 1
        else:
            first = unpack(memory, table.stages, y.shape[-1]).slope
        rest = self._weighted(table.error, found.k)
        if not table.error_filter:
            return h * (table.error_start * first + rest), spent
        unit = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
        factors = factorize(unit - (table.error_filter * h).unsqueeze(-1) * start)
        error = factors.solve(h * (table.error_start * first + rest))
        if self._tolerances is None:
            return error, spent
        end = y + h * self._weighted(table.b, found.k)
        scale = self._scale(torch.maximum(y.abs(), end.abs()))
        large = (error / scale).square().mean(-1) >= 1
        large = large & ~found.failed & torch.isfinite(error.sum(-1))
        if not bool(large.any()):
            return error, spent
        moved = f(t, torch.where(large.unsqueeze(-1), y + error, y))
        again = factors.solve(h * (table.error_start * moved + rest))
        use = large & torch.isfinite(again.sum(-1))
        return torch.where(use.unsqueeze(-1), again, error), spent + large

    def _scale(self, y: Tensor) -> Tensor:
        assert self._tolerances is not None
        rtol, atol = self._tolerances
        return (atol.to(y) + rtol * y.abs()).clamp(min=torch.finfo(y.dtype).tiny)

    def _target(self, dtype: torch.dtype) -> float:
        """The part of the tolerance that Newton's iteration may use up."""
        assert self._tolerances is not None
        rtol = self._tolerances[0]
        return max(10 * torch.finfo(dtype).eps / rtol, min(0.03, rtol**0.5)) if rtol else 1e-3

    def _weighted(self, weights: Sequence[float], k: Tensor) -> Tensor:
        """Σ weights_i K_i over the first axis."""
        return (k.new_tensor(weights).view(-1, *[1] * (k.ndim - 1)) * k).sum(0)
