"""A recorded solve as a function of its start and of the tensors the field reads, to be made again with or without a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from physnode.engine.controllers import Controller, Span
from physnode.engine.events import Watch
from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.engine.jumps import Jumps
from physnode.engine.readout import ReadOut, read_slot
from physnode.engine.records import OutputPlan, Records, plan_outputs
from physnode.errors import GradientError
from physnode.gradients.binding import with_tensors
from physnode.gradients.events import EventPlan, Made, Outputs, moved_end
from physnode.gradients.moving import MovingTimes, shares
from physnode.gradients.storage import GradientCost

__all__ = ["Replay"]

T = TypeVar("T")


@dataclass(frozen=True)
class Replay:
    """The accepted steps of one solve, and where its outputs lie among them."""

    f: FieldFunction
    method: Method
    controller: Controller
    read_out: ReadOut
    span: Span
    records: Records
    times: Tensor
    """Output times, ``(B, T)``."""
    plan: OutputPlan
    at_start: Tensor
    """Outputs that are y0 itself, ``(B, T)`` bool."""
    first: Tensor
    """The field at the start, ``(B, dim)``, as the solve found it."""
    ok: Tensor
    """Trajectories that reached their end, ``(B,)`` bool: the others carry no gradient."""
    theta: tuple[Tensor, ...]
    """Every tensor that the field reads and that requires a gradient."""
    names: tuple[str | None, ...]
    """What the field calls each of ``theta``, if it is one of its parameters."""
    versions: tuple[int, ...]
    """How often each of ``theta`` had been written to when the steps were made."""
    jumps: Jumps | None = None
    events: EventPlan | None = None
    moving: MovingTimes | None = None
    """The times that a gradient is wanted of, if there are any."""
    cost: GradientCost = field(default_factory=lambda: GradientCost(""))

    @classmethod
    def of(
        cls,
        f: FieldFunction,
        method: Method,
        controller: Controller,
        read_out: ReadOut,
        span: Span,
        records: Records,
        times: Tensor,
        first: Tensor,
        reached: Tensor,
        ok: Tensor,
        theta: tuple[Tensor, ...],
        jumps: Jumps | None = None,
        watch: Watch | None = None,
        moving: MovingTimes | None = None,
        cost: GradientCost | None = None,
    ) -> Replay:
        """Plan the outputs at ``times`` as far as each trajectory has ``reached``."""
        plan, at_start = _plan(span, records, times, reached)
        called = {id(parameter): name for name, parameter in f.field.named_parameters()}
        names = tuple(called.get(id(tensor)) for tensor in theta)
        versions = tuple(0 if tensor.is_inference() else tensor._version for tensor in theta)
        events = None if watch is None else EventPlan.of(watch, records)
        cost = GradientCost("") if cost is None else cost
        return cls(
            f, method, controller, read_out, span, records, times, plan, at_start, first, ok, theta, names, versions, jumps,
            events, moving, cost,
        )  # fmt: skip

    def at(self, times: Tensor) -> Replay:
        """The same steps with other output times ``(B, T')``, all within the span; they may require a gradient.

        Raises:
            GradientError: a tensor that the field reads was edited in place since the solve.
        """
        if any(not tensor.is_inference() and tensor._version != v for tensor, v in zip(self.theta, self.versions, strict=True)):
            raise GradientError(
                "a parameter of the field was changed in place since the solve (an optimizer step?), so its steps no longer "
                "belong to it; call solve again"
            )
        reached = torch.where(self.records.count > 0, self.records.reached, self.span.t0)
        moving, plain = self.moving, times.detach()
        if moving is not None:
            moving = replace(moving, times=times, last=torch.zeros_like(plain, dtype=torch.bool))
        elif torch.is_grad_enabled() and times.requires_grad:
            moving = MovingTimes(self.span.t0, self.span.t1, times, torch.zeros_like(plain, dtype=torch.bool))
        plan, at_start = _plan(self.span, self.records, plain, reached)
        return replace(self, times=plain, plan=plan, at_start=at_start, moving=moving)

    def without_failures(self) -> Replay:
        """The same solve with every failed trajectory at rest, at the start of one that is well.

        Multiplying what a failed trajectory owes by zero is not enough: zero times an infinite derivative is NaN, and that
        would reach the parameters that all trajectories share.
        """
        if bool(self.ok.all()):
            return self
        count = torch.where(self.ok, self.records.count, 0)
        slots, records, span = int(count.max()), self.records, self.span
        if not bool(self.ok.any()) or slots == 0:
            event = None if records.event is None else records.event[:0]
            records = Records(records.t[:0], records.t_end[:0], records.y, count, event)
        else:
            well = int(count.argmax())
            ok, start = self.ok, span.t0[well]
            records = Records(
                torch.where(ok, records.t[:slots], start),
                torch.where(ok, records.t_end[:slots], start),
                records.y.without(ok, count, records.y.rest[well]),
                count,
                None if records.event is None else torch.where(ok, records.event[:slots], -1),
            )
        reached = torch.where(count > 0, records.reached, span.t0)
        plan, at_start = _plan(span, records, self.times, reached)
        events = None if self.events is None else EventPlan.of(self.events.watch, records, self.events.columns)
        return replace(self, records=records, plan=plan, at_start=at_start, events=events)

    def bound_to(self, theta: Sequence[Tensor], function: Callable[[], T]) -> T:
        """``function()`` while the field's parameters are those of ``theta`` (``torch.func.functional_call`` swaps them)."""
        tensors = {name: tensor for name, tensor in zip(self.names, theta, strict=True) if name is not None}
        return with_tensors(self.f.field, tensors, function)

    def read(self, y0: Tensor) -> Tensor:
        """The outputs ``(B, T, dim)`` from the recorded states, without a graph; NaN where a trajectory did not get so far."""
        with torch.no_grad():
            ys = torch.where(self.at_start.unsqueeze(-1), y0.unsqueeze(1), torch.nan)
            for slot in range(self.records.slots):
                here = self.plan.within(slot)
                if here.start < here.stop:
                    ys[self.plan.rows[here], self.plan.columns[here]] = self.step(self.f, slot, self.records.y.state(slot))[1]
        return ys

    def run(self, f: FieldFunction, y0: Tensor) -> Outputs:
        """The outputs for a start ``y0``, on the recorded times, differentiable in all that ``f`` reads.

        Times of events move with what they depend on, and the steps that follow start at the moved times; so do the times of
        all steps with ``moving``.
        """
        y, carry = y0, None
        values, event_times, event_states = [], [], []
        moved: Tensor | None = None
        for slot in range(self.records.slots):
            active, resting = self.records.active(slot), slot >= self.records.fewest
            if resting or self.starts_afresh(slot):
                carry = None
            y_in = torch.where(active.unsqueeze(-1), y, self.records.y.safe) if resting else y
            if self.events is None and self.moving is None:
                step, found = self.step(f, slot, y_in, carry)
                end, carry = step.y, step.carry
            else:
                t, t_end = self.grid(slot)
                made = self.make(f, slot, y_in, self.start_of(slot, t, moved), t_end, self.wanted(slot))
                found, end, carry, moved = made.values, made.y, None, made.t_end
                if self.events is not None:
                    event_times.append(made.t_end[self.events.rows[slot]])
                    event_states.append(made.arrival[self.events.rows[slot]])
            values.append(found)
            y = torch.where(active.unsqueeze(-1), end, y) if resting else end
        ys = torch.where(self.at_start.unsqueeze(-1), y0.unsqueeze(1), torch.nan)
        if values:
            ys = ys.index_put((self.plan.rows, self.plan.columns), torch.cat(values))
        if not bool(self.ok.all()):
            ys = torch.where(self.ok.view(-1, 1, 1), ys, ys.detach())
        if self.events is None:
            return Outputs.without_events(ys)
        return Outputs(ys, *self.events.tables(event_times, event_states, self.span.t0, y0))

    def step(self, f: FieldFunction, slot: int, y: Tensor, carry: Tensor | None = None) -> tuple[Step, Tensor]:
        """One recorded step from ``y``, and the outputs ``(M, dim)`` inside it."""
        return self.step_between(f, slot, self.records.t[slot], self.records.t_end[slot], y, carry)

    def step_between(
        self,
        f: FieldFunction,
        slot: int,
        t: Tensor,
        t_end: Tensor,
        y: Tensor,
        carry: Tensor | None = None,
        times: Tensor | None = None,
    ) -> tuple[Step, Tensor]:
        """The step of a slot between ends that may have moved; outputs inside are at ``times`` ``(M,)``, or where they were."""
        f = f.on_step(t, t_end)
        step = self.method.step(f, t, t_end, y, carry)
        rows, fractions, inside = self.inside(slot, t, t_end, times)
        return step, read_slot(f, self.method, self.read_out, t, t_end, y, carry, step, rows, fractions, inside)[0]

    def inside(self, slot: int, t: Tensor, t_end: Tensor, times: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The rows ``(M,)`` of the outputs in a slot, at which fraction of the step, and which are not the step's own end."""
        here = self.plan.within(slot)
        rows, columns, fractions = self.plan.rows[here], self.plan.columns[here], self.plan.fractions[here]
        inside = fractions != 1.0
        if self.moving is not None:
            inside = inside | ~self.moving.last[rows, columns]
        if len(rows) and (times is not None or self.events is not None):
            times = self.times[rows, columns] if times is None else times
            length = torch.where(inside, (t_end - t)[rows], 1.0)
            fractions = torch.where(inside, (times - t[rows]) / length, 1.0)
        return rows, fractions, inside

    def wanted(self, slot: int) -> Tensor | None:
        """The times of the outputs in a slot ``(M,)``, where a gradient is wanted of them."""
        if self.moving is None:
            return None
        here = self.plan.within(slot)
        return self.moving.times[self.plan.rows[here], self.plan.columns[here]]

    def grid(self, slot: int) -> tuple[Tensor, Tensor]:
        """Start and end of a slot's steps ``(B,)``, as they move with the span."""
        t, t_end = self.records.t[slot], self.records.t_end[slot]
        if self.moving is None:
            return t, t_end
        dt0, dt1 = (time - time.detach() for time in (self.moving.t0, self.moving.t1))

        def moved(time: Tensor) -> Tensor:
            first, last = shares(self.span, self.jumps, time)
            return time + first * dt0 + last * dt1

        return moved(t), moved(t_end)

    def starts_afresh(self, slot: int) -> bool:
        """Whether some step of this slot starts on a jump of the field, so that no carry fits it."""
        return self.jumps is not None and bool(self.jumps.on(self.records.t[slot]).any())

    def start_of(self, slot: int, t: Tensor, moved: Tensor | None) -> Tensor:
        """Where the steps of a slot start: at the ``moved`` time of the event before, where there was one, else at ``t``."""
        if moved is None or self.records.event is None or not slot:
            return t
        return torch.where(self.on_event(slot), moved, t)

    def on_event(self, slot: int) -> Tensor:
        """Which rows start this slot on the time of an event, ``(B,)`` bool."""
        if not slot or self.records.event is None:
            return torch.zeros_like(self.ok)
        return self.records.active(slot) & (self.records.event[slot - 1] >= 0)

    def moves(self, slot: int) -> bool:
        """Whether a step of this slot ends on an event, or starts on one."""
        event = self.records.event
        if event is None:
            return False
        return bool((event[max(0, slot - 1) : slot + 1] >= 0).any())

    def make(self, f: FieldFunction, slot: int, y: Tensor, t: Tensor, t_end: Tensor, times: Tensor | None = None) -> Made:
        """One slot as a function of its start ``y`` at ``t``, of the end of the steps that end on no event, and of the outputs'
        ``times`` ``(M,)``."""
        if self.events is None or self.records.event is None:
            step, values = self.step_between(f, slot, t, t_end, y, None, times)
            return Made(values, step.y, step.y, t_end)
        event = moving = self.records.event[slot]
        if self.jumps is not None:  # the field jumped across the condition: when it does so is given
            at_once = (self.records.t_end[slot] == self.records.t[slot]) & self.jumps.on(self.records.t_end[slot])
            moving = torch.where(at_once, -1, event)
        if bool((moving >= 0).any()):
            found = moved_end(f, self.method, self.events.watch, moving, t, t_end.detach(), y)
            t_end = torch.where(moving >= 0, found, t_end)
        step, values = self.step_between(f, slot, t, t_end, y, None, times)
        after = self.events.watch.after(f.on_step(t, t_end), event, t_end, step.y)
        return Made(values, after, step.y, t_end)


def _plan(span: Span, records: Records, times: Tensor, reached: Tensor) -> tuple[OutputPlan, Tensor]:
    """Where the outputs lie, as far as each trajectory has ``reached``, and which of them are the start itself."""
    sign = span.direction.unsqueeze(-1)
    at_start = times == span.t0.unsqueeze(-1)
    near = 4 * torch.finfo(torch.float64).eps * times.abs()
    wanted = ~at_start & (sign * times - near <= sign * reached.unsqueeze(-1))
    return plan_outputs(records.t, records.t_end, records.count, span, times, wanted), at_start
