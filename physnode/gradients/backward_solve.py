"""The backward solve of the continuous adjoint: from each output time to the one before, down to the start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.engine.controllers import Adaptive, Controller, Span
from physnode.engine.families.base import Method
from physnode.engine.loop import Setting, advance, begin
from physnode.engine.status import Status, describe_failures
from physnode.errors import GradientError
from physnode.gradients.augmented import AugmentedField, Clock, Layout, controlled
from physnode.gradients.replay import Replay

__all__ = ["BackwardSolve", "Found"]


@dataclass
class Found:
    """What the start, the times and the tensors of a field are owed."""

    to_y0: Tensor
    """``(B, dim)``."""
    to_t0: Tensor
    """``(B,)`` float64."""
    to_times: Tensor
    """``(B, T)`` float64."""
    to_theta: list[Tensor]
    evaluations: int

    @classmethod
    def all(cls, value: float, y0: Tensor, times: Tensor, theta: tuple[Tensor, ...]) -> Found:
        """One value everywhere."""
        each = [torch.full_like(tensor, value) for tensor in theta]
        return cls(torch.full_like(y0, value), torch.full_like(times[:, 0], value), torch.full_like(times, value), each, 0)


@dataclass(frozen=True)
class _Problem:
    """The outputs of a solve, those after the start alone, each trajectory's in the order of its way."""

    start: Tensor
    """``(B,)``."""
    y0: Tensor
    times: Tensor
    states: Tensor
    cotangents: Tensor
    order: Tensor
    """``(B, T)``: which output each of them is."""

    @classmethod
    def of(cls, replay: Replay, ys: Tensor, y0: Tensor, cotangents: Tensor) -> _Problem:
        """Trajectories that failed rest at the start of one that is well, with nothing owed."""
        ok, sound = replay.ok, replay.ok.unsqueeze(-1)
        well = int(ok.nonzero()[0])
        start, first = torch.where(ok, replay.span.t0, replay.span.t0[well]), torch.where(sound, y0, y0[well])
        times = torch.where(sound, replay.times, start.unsqueeze(-1))
        after = (~replay.at_start & sound).unsqueeze(-1)
        states, cotangents = torch.where(after, ys, first.unsqueeze(1)), torch.where(after, cotangents, 0.0)
        order = (times - start.unsqueeze(-1)).abs().argsort(dim=-1, stable=True)
        index = order.unsqueeze(-1).expand(states.shape)
        return cls(start, first, times.gather(1, order), states.gather(1, index), cotangents.gather(1, index), order)

    def before(self, column: int) -> Tensor:
        """The times ``(B,)`` of the outputs before those of a column, or of the start."""
        return self.times[:, column - 1] if column else self.start


@dataclass(frozen=True)
class BackwardSolve:
    """How a backward solve is done."""

    method: Method
    controller: Controller
    seminorm: bool
    max_steps: int

    def pull_back(
        self, replay: Replay, ys: Tensor, y0: Tensor, cotangents: Tensor, theta: tuple[Tensor, ...], *, with_times: bool
    ) -> Found:
        """Pull ``cotangents`` ``(B, T, dim)`` of the outputs ``ys`` back to y0, ``theta`` and, if asked, the times.

        With λ_i what is owed to y_i at the output time t_i: dL/dt_i = ∂L/∂y_i · f(t_i, y_i), dL/dt0 = -λ_0 · f(t0, y0).

        Raises:
            GradientError: the backward solve failed.
        """
        ok, f = replay.ok, replay.f
        cotangents = torch.where(ok.view(-1, 1, 1), cotangents, 0.0)
        largest = cotangents.abs().sum() if not cotangents.numel() else cotangents.abs().amax()
        if not bool(largest > 0) or not bool(torch.isfinite(largest)):  # nothing is owed, or nothing that is a number
            return Found.all(0.0 if bool(largest == 0) else torch.nan, y0, replay.times, theta)
        problem = _Problem.of(replay, ys, y0, cotangents)
        scale = torch.exp2(largest.log2().floor())  # a power of two rounds nothing
        layout = Layout(problem.y0, theta)
        controller = controlled(self.controller, layout, problem.y0, seminorm=self.seminorm)
        found = Found.all(0.0, y0, replay.times, theta)
        owed = torch.zeros_like(problem.y0, dtype=layout.dtype)
        row = layout.join(problem.y0, owed, [None] * len(theta))
        for column in reversed(range(ys.shape[1])):
            t, y, t_end = problem.times[:, column], problem.states[:, column], problem.before(column)
            to_y = problem.cotangents[:, column]
            if with_times:
                slope = f.on_step(problem.start, t)(t, y)
                to_t = (slope * to_y).sum(-1, keepdim=True).to(torch.float64)
                found.to_times.scatter_(1, problem.order[:, column : column + 1], to_t)
                found.evaluations += 1
            _, owed, grads = layout.split(row)
            owed = owed + to_y / scale
            row = layout.join(y, owed, grads)
            if bool((t == t_end).all()) or not bool(owed.any()):
                continue
            field = AugmentedField(f, Clock.between(t, t_end, replay.jumps), layout, theta)
            row, dt, spent = self._run(field, controller, row)
            found.evaluations += spent
            if isinstance(controller, Adaptive):
                controller.first_step = dt  # steps go on across an output as they were
        _, owed, grads = layout.split(row)
        found.to_y0 = (owed * scale).to(y0.dtype)
        found.to_theta = layout.shaped([grad * scale for grad in grads])
        if with_times:
            slope = f.on_step(problem.start, replay.span.t1)(problem.start, problem.y0)
            found.to_t0 = -(slope * found.to_y0).sum(-1).to(torch.float64)
            found.evaluations += 1
        found.to_y0 += torch.where(replay.at_start.unsqueeze(-1), cotangents, 0.0).sum(1)
        return found

    def _run(self, field: AugmentedField, controller: Controller, row: Tensor) -> tuple[Tensor, float, int]:
        """The augmented row at the end of the field's clock, the step proposed next, and the evaluations made.

        Raises:
            GradientError: the end was not reached.
        """
        clock, method = field.clock, self.method
        zero = torch.zeros_like(clock.length)
        span = Span(zero, clock.length, torch.ones_like(zero))
        derivative = field.on_step(zero, clock.length)(zero, row)
        carry = method.start(field, zero, row, derivative)
        setting = Setting(field, method, controller, span, row, carry, self.max_steps, clock.stops)
        status = torch.full_like(zero, int(Status.RUNNING), dtype=torch.int64)
        state = begin(setting, row, derivative, carry, status, spent=1)
        while bool(state.status == Status.RUNNING):  # there is no read-out, so nothing of a trial is kept for one
            state = advance(setting, state)[0]
        if not bool(state.status == Status.OK):
            longest = (clock.end - clock.start).abs().argmax()
            reached = clock.time(state.t)[longest : longest + 1]
            raise GradientError(
                f"the backward solve of the continuous adjoint, from the output at t = {float(clock.start[longest]):.6g} to "
                f"t = {float(clock.end[longest]):.6g}, failed: {describe_failures(state.status, reached, state.tried, ())}. "
                'Backward in time a stable motion may be unstable: ask for more output times, or use gradient="aca" or '
                '"symplectic", which solve nothing backward'
            )
        return state.y, float(state.dt), int(state.evaluations)
