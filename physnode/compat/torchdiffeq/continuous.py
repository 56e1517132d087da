"""The continuous adjoint: the gradient as the solution of an equation of its own, solved backward in time.

    λ' = -(∂f/∂y)ᵀ λ,    (dL/dθ)' = -(∂f/∂θ)ᵀ λ,    (dL/dt)' = -(∂f/∂t)ᵀ λ,    λ jumps by ∂L/∂y_i at each output time t_i

It is accurate to its own tolerances, not exact for the steps of the forward solve; y starts anew from the saved output at each
t_i. Source: Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, NeurIPS 2018, appendix B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from physnode.compat.torchdiffeq.integrate import run
from physnode.compat.torchdiffeq.problem import Problem
from physnode.errors import GradientError
from physnode.gradients.variables import refuse_unknown, stand_ins

__all__ = ["BackwardOptions", "solve_with_backward_solve"]


@dataclass(frozen=True)
class BackwardOptions:
    """How the backward solve is done."""

    rtol: Any
    atol: Any
    method: str | None
    options: Mapping[str, Any]
    params: tuple[Tensor, ...]
    """What gradients are found for besides y0 and t."""
    state_norm: Callable[[Any], Any] | None
    """The caller's norm of the forward solve."""
    all_listed: bool
    """Whether ``params`` are the caller's own choice; else a tensor that the field reads and that is not listed is refused."""


def solve_with_backward_solve(
    problem: Problem, rtol: Any, atol: Any, method: str | None, options: Mapping[str, Any] | None, backward: BackwardOptions
) -> Any:
    """The structured solution, whose gradient is found by the backward solve.

    Raises:
        GradientError: from ``backward`` with ``create_graph``, which the backward solve does not offer.
    """
    if len(problem.t) == 1:
        return problem.at_start()
    forward = (rtol, atol, method, options)
    ys: Tensor = _Solve.apply(problem, forward, backward, problem.y0, problem.t, *backward.params)  # type: ignore[no-untyped-call]
    return problem.adapter.unflatten(ys)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, problem: Problem, forward: tuple[Any, ...], backward: BackwardOptions, y0: Tensor, t: Tensor, *params: Tensor
    ) -> Tensor:
        rtol, atol, method, options = forward
        ys = run(problem, rtol, atol, method, options, "aca")
        ctx.problem, ctx.how = problem, backward
        ctx.save_for_backward(ys, t, *params)
        return ys.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise GradientError(
                "the backward solve of the adjoint equation has no second derivative (create_graph=True); leave the adjoint_* "
                "options out, and the exact replay is used, which has one"
            )
        ys, t, *params = ctx.saved_tensors
        problem: Problem = ctx.problem
        field = _Augmented(problem, ctx.how, tuple(params), with_time=ctx.needs_input_grad[4])
        owed, times = grads[0], problem.ts
        to_times = torch.zeros_like(times)
        to_t, to_y, to_params = ys.new_zeros(()), torch.zeros_like(ys[0]), [field.real(torch.zeros_like(p)) for p in params]
        for i in range(len(times) - 1, 0, -1):
            to_y = to_y + owed[i]
            if field.with_time:
                slope = problem.field(times[i].to(ys.dtype).reshape(1), ys[i])
                to_times[i] = slope @ owed[i]
                to_t = to_t - to_times[i].to(ys)
            pair = times[[i, i - 1]]
            state = (to_t, field.shaped(ys[i]), field.shaped(to_y), *to_params)
            part = Problem.of(field, state, pair)
            found = run(part, ctx.how.rtol, ctx.how.atol, ctx.how.method, field.options, gradient="aca")
            to_t, _, to_y, *to_params = (value[-1] for value in part.adapter.unflatten(found))
            to_y = to_y.reshape(-1)
        to_times[0] = to_t
        back = [field.like(value, p) for value, p in zip(to_params, params, strict=True)]
        return None, None, None, to_y + owed[0], to_times.to(t) if field.with_time else None, *back


class _Augmented:
    """The right-hand side of the backward solve: a function of the time and of (dL/dt, y, dL/dy, dL/dθ...)."""

    def __init__(self, problem: Problem, how: BackwardOptions, params: tuple[Tensor, ...], *, with_time: bool) -> None:
        self.problem, self.how, self.params, self.with_time = problem, how, params, with_time
        self.shape = (-1,) if problem.is_tuple or problem.state.is_complex() else tuple(problem.state.shape)
        for word in ("step", "accept_step", "reject_step"):
            callback = getattr(problem.func, f"callback_{word}_adjoint", None)
            if callback is not None:
                setattr(self, f"callback_{word}", callback)
        self.options = {**how.options, "norm": self.norm(how.options.get("norm"))}

    def __call__(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        _, y, to_y, *_ = state
        with torch.enable_grad(), stand_ins(self.params, graph=False) as params:
            time = t.detach().clone().requires_grad_(self.with_time)
            point = y.detach().reshape(-1).requires_grad_()
            value = self.problem.field(time.reshape(1), point)
            inputs = [point, *([time] if self.with_time else []), *params]
            if not value.requires_grad:
                back: list[Tensor | None] = [None] * len(inputs)
            else:
                if not (self.how.all_listed or self.problem.field.marks_time):
                    refuse_unknown({id(tensor) for tensor in (time, *inputs)}, value)
                back = list(torch.autograd.grad(value, inputs, -to_y.reshape(-1), allow_unused=True))
        filled = [torch.zeros_like(x) if part is None else part for part, x in zip(back, inputs, strict=True)]
        to_point, *others = filled
        to_time = others.pop(0) if self.with_time else torch.zeros_like(t)
        return to_time, value.detach().reshape(y.shape), to_point.reshape(y.shape), *(self.real(part) for part in others)

    def shaped(self, y: Tensor) -> Tensor:
        """A flat state in the shape of y0, where that is one real tensor."""
        return y.reshape(self.shape)

    @staticmethod
    def real(value: Tensor) -> Tensor:
        """Complex numbers as pairs."""
        return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value

    @staticmethod
    def like(value: Tensor, param: Tensor) -> Tensor:
        """A cotangent in the dtype of its parameter."""
        if param.is_complex():
            return torch.complex(value[..., 0], value[..., 1]).to(param.dtype)
        return value.to(param.dtype)

    def norm(self, asked: Any) -> Callable[[tuple[Tensor, ...]], Tensor]:
        """The error norm of the backward solve.

        By default the largest of |dL/dt|, the norms of y and dL/dy, and the RMS of each parameter; ``"seminorm"`` leaves the
        parameters out; a function gets (t, y, adj_y, *params), with the parts of y and adj_y one by one for a tuple state.
        """
        if callable(asked):

            def own(state: tuple[Tensor, ...]) -> Tensor:
                to_t, y, to_y, *to_params = state
                structured = [self.problem.adapter.unflatten(value.reshape(-1)) for value in (y, to_y)]
                parts = [part for value in structured for part in (value if self.problem.is_tuple else (value,))]
                found: Tensor = asked((to_t, *parts, *to_params))
                return found

            return own

        def default(state: tuple[Tensor, ...]) -> Tensor:
            to_t, y, to_y, *to_params = state
            sizes = [to_t.abs(), self.of_state(y), self.of_state(to_y)]
            if asked != "seminorm":
                sizes += [_rms(value) for value in to_params if value.numel()]
            return torch.stack(sizes).amax()

        return default

    def of_state(self, y: Tensor) -> Tensor:
        """The forward norm of a state."""
        state = self.problem.adapter.unflatten(y.reshape(-1))
        if self.how.state_norm is not None:
            return torch.as_tensor(self.how.state_norm(state)).to(y)
        parts = state if self.problem.is_tuple else (state,)
        return torch.stack([_rms(part) for part in parts if part.numel()]).amax()


def _rms(x: Tensor) -> Tensor:
    return x.abs().square().mean().sqrt()
