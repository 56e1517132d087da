"""The ways of a solve: forward from the epoch of its start, backward, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from physnode.drivers import Driver
from physnode.engine.controllers import Controller, Span
from physnode.engine.diagnosis import diagnose
from physnode.engine.events import Watch
from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.engine.jumps import Jumps
from physnode.engine.loop import Setting, Trace, first_status, integrate
from physnode.engine.readout import OutputBoard, ReadOut
from physnode.engine.recorder import Keep
from physnode.engine.records import Records, Trial
from physnode.engine.status import Status
from physnode.gradients import GradientCost, MovingTimes, Replay
from physnode.native.choice import Native
from physnode.solution import Piece

__all__ = ["Plan", "of_the_worst", "total", "ways_of"]


def ways_of(times: Tensor, epoch: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Which of ``times`` ``(B, T)`` belong to each way from ``epoch`` ``(B,)``, and the times of that way; at least one way."""
    start = epoch.unsqueeze(-1)
    ahead, behind = times >= start, times < start
    forward, backward = torch.stack(((times > start).any(), behind.any())).tolist()
    if not (forward and backward):
        return [(ahead | behind, times)]
    return [(mine, torch.where(mine, times, start)) for mine in (ahead, behind)]


@dataclass(frozen=True)
class Plan:
    """Everything that both ways of a solve share."""

    f: FieldFunction
    method: Method
    controller: Controller
    read: ReadOut
    y0: Tensor
    epoch: Tensor
    max_steps: int
    keep: Keep | None
    cost: GradientCost
    jumps: Jumps | None
    watch: Watch | None
    observe: Callable[[Trial], None] | None
    driver: Driver

    def solve_one_way(self, wanted: Tensor, *, first: bool) -> tuple[Trace, Piece | None]:
        """Solve from the epoch to the farthest of the ``wanted`` times ``(B, T)``, which all lie on one side of it."""
        f, method, traced = self.f, self.method, self.driver.traced
        times, epoch = wanted.detach(), self.epoch.detach()
        farthest = (times - epoch.unsqueeze(-1)).abs().argmax(-1, keepdim=True)
        t1 = times.gather(-1, farthest).squeeze(-1)
        # a trajectory that does not move goes the way of the others: both ways of a two-way solve then differ for it too
        span = Span(epoch, t1, torch.full_like(epoch, -1.0 if bool((t1 < epoch).any()) else 1.0))
        if self.driver.native is not None:
            return self._solve_natively(self.driver.native, span, times, wanted, farthest, first=first)
        with torch.no_grad():
            start, derivative = self.y0.detach(), traced.derivative
            status = first_status(span, start, derivative)
            good = status != Status.NON_FINITE
            carry = method.start(f, epoch, start, derivative)
            safe_y, safe_carry = start, carry
            if not bool(good.all()) and bool(good.any()):
                stand_in = int(good.nonzero()[0])
                safe_y = torch.where(good.unsqueeze(-1), start, start[stand_in])
                if carry is not None:
                    safe_carry = torch.where(good.unsqueeze(-1), carry, carry[stand_in])
                    carry = safe_carry
                derivative = torch.where(good.unsqueeze(-1), derivative, derivative[stand_in])
            setting = Setting(
                f, method, self.controller, span, safe_y, safe_carry, self.max_steps, self.jumps, self.watch, self.observe
            )
            spent = int(first) * traced.calls + int(carry is not None and not method.shares_derivative(f))
            board = OutputBoard(span, times, start, self.read)
            found = integrate(
                setting, start, derivative, carry, status, board, keep=self.keep, spent=spent, graphs=self.driver.graphs
            )
            explicit = not method.implicit
            told = diagnose(
                f, span, found.status, found.reached, found.last_y, found.last_step, start, traced.derivative, explicit=explicit
            )
            found = replace(found, status=told)
        if found.records is None:
            return found, None
        replay = self._replay(
            span, found, times, MovingTimes.of(self.epoch, wanted, farthest), traced.derivative, found.records
        )
        return found, Piece(lambda: replay, self.y0, found.met)

    def _solve_natively(
        self, native: Native, span: Span, times: Tensor, wanted: Tensor, farthest: Tensor, *, first: bool
    ) -> tuple[Trace, Piece | None]:
        """The same by native code."""
        found, taped = native.solve(span, times, keep=self.keep is not None)
        status = found.status
        if bool((status > 0).any()):
            with torch.no_grad():
                status = diagnose(
                    self.f, span, status, found.reached, found.last, found.tried, self.y0.detach(), found.derivative,
                    explicit=not self.method.implicit,
                )  # fmt: skip
        evaluations = found.evaluations + int(first) * self.driver.traced.calls
        trace = Trace(
            found.ys, status, found.reached, found.accepted, found.rejected, evaluations, None, None, found.last, found.tried
        )
        if taped is None:
            return trace, None
        moving = MovingTimes.of(self.epoch, wanted, farthest)

        def make_replay() -> Replay:
            return self._replay(span, trace, times, moving, found.derivative, taped.records())

        return trace, Piece(make_replay, self.y0, taped=taped if moving is None else None)

    def _replay(
        self, span: Span, found: Trace, times: Tensor, moving: MovingTimes | None, derivative: Tensor, records: Records
    ) -> Replay:
        return Replay.of(
            self.f,
            self.method,
            self.controller,
            self.read,
            span,
            records,
            times,
            derivative,
            found.reached,
            found.status == Status.OK,
            self.driver.traced.theta,
            self.jumps,
            self.watch,
            moving,
            self.cost,
        )


def total(traces: list[Trace], name: str, batch: tuple[int, ...]) -> Tensor:
    """A count over all ways of a solve, in the shape of the batch."""
    first, *others = (getattr(found, name) for found in traces)
    counts: Tensor = sum(others, first)
    return counts.reshape(batch)


def of_the_worst(traces: list[Trace], name: str) -> Tensor:
    """``reached`` and the like, from the worse direction of each trajectory."""
    value, status = getattr(traces[0], name), traces[0].status
    for found in traces[1:]:
        value = torch.where(found.status > status, getattr(found, name), value)
    return value  # type: ignore[no-any-return]
