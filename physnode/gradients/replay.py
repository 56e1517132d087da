"""A recorded solve as a function of its start and of the tensors the field reads, to be made again with or without a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from physnode.engine.controllers import Span
from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.engine.readout import ReadOut, read_slot
from physnode.engine.records import OutputPlan, Records, plan_outputs
from physnode.errors import GradientError
from physnode.gradients.binding import with_tensors

__all__ = ["Replay"]

T = TypeVar("T")


@dataclass(frozen=True)
class Replay:
    """The accepted steps of one solve, and where its outputs lie among them."""

    f: FieldFunction
    method: Method
    read_out: ReadOut
    span: Span
    records: Records
    times: Tensor
    """Output times, ``(B, T)``."""
    plan: OutputPlan
    at_start: Tensor
    """Outputs that are y0 itself, ``(B, T)`` bool."""
    ok: Tensor
    """Trajectories that reached their end, ``(B,)`` bool: the others carry no gradient."""
    theta: tuple[Tensor, ...]
    """Every tensor that the field reads and that requires a gradient."""
    names: tuple[str | None, ...]
    """What the field calls each of ``theta``, if it is one of its parameters."""
    versions: tuple[int, ...]
    """How often each of ``theta`` had been written to when the steps were made."""

    @classmethod
    def of(
        cls,
        f: FieldFunction,
        method: Method,
        read_out: ReadOut,
        span: Span,
        records: Records,
        times: Tensor,
        reached: Tensor,
        ok: Tensor,
        theta: tuple[Tensor, ...],
    ) -> Replay:
        """Plan the outputs at ``times`` as far as each trajectory has ``reached``."""
        plan, at_start = _plan(span, records, times, reached)
        called = {id(parameter): name for name, parameter in f.field.named_parameters()}
        names = tuple(called.get(id(tensor)) for tensor in theta)
        versions = tuple(0 if tensor.is_inference() else tensor._version for tensor in theta)
        return cls(f, method, read_out, span, records, times, plan, at_start, ok, theta, names, versions)

    def at(self, times: Tensor) -> Replay:
        """The same steps with other output times ``(B, T')``, all within the span.

        Raises:
            GradientError: a tensor that the field reads was edited in place since the solve.
        """
        if any(not tensor.is_inference() and tensor._version != v for tensor, v in zip(self.theta, self.versions, strict=True)):
            raise GradientError(
                "a parameter of the field was changed in place since the solve (an optimizer step?), so its steps no longer "
                "belong to it; call solve again"
            )
        reached = self.span.t0
        if self.records.slots:
            last = self.records.t_end.gather(0, (self.records.count - 1).clamp(min=0).unsqueeze(0)).squeeze(0)
            reached = torch.where(self.records.count > 0, last, reached)
        plan, at_start = _plan(self.span, self.records, times, reached)
        return replace(self, times=times, plan=plan, at_start=at_start)

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
            records = Records(records.t[:0], records.t_end[:0], records.y[:0], count)
        else:
            well = int(count.argmax())
            ok, start = self.ok, span.t0[well]
            records = Records(
                torch.where(ok, records.t[:slots], start),
                torch.where(ok, records.t_end[:slots], start),
                torch.where(ok.unsqueeze(-1), records.y[:slots], records.y[0, well]),
                count,
            )
        plan, at_start = _plan(span, records, self.times, torch.where(self.ok, span.t1, span.t0))
        return replace(self, records=records, plan=plan, at_start=at_start)

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
                    ys[self.plan.rows[here], self.plan.columns[here]] = self.step(self.f, slot, self.records.y[slot])[1]
        return ys

    def run(self, f: FieldFunction, y0: Tensor) -> Tensor:
        """The outputs ``(B, T, dim)`` for a start ``y0``, on the recorded times, differentiable in all that ``f`` reads."""
        y, carry = y0, None
        found: list[Tensor] = []
        for slot in range(self.records.slots):
            active = self.records.active(slot)
            resting = not bool(active.all())
            if resting:
                y_in = torch.where(active.unsqueeze(-1), y, self.records.y[slot])
                carry = None
            else:
                y_in = y
            step, values = self.step(f, slot, y_in, carry)
            found.append(values)
            y = torch.where(active.unsqueeze(-1), step.y, y) if resting else step.y
            carry = step.carry
        ys = torch.where(self.at_start.unsqueeze(-1), y0.unsqueeze(1), torch.nan)
        if found:
            ys = ys.index_put((self.plan.rows, self.plan.columns), torch.cat(found))
        return torch.where(self.ok.view(-1, 1, 1), ys, ys.detach()) if not bool(self.ok.all()) else ys

    def step(self, f: FieldFunction, slot: int, y: Tensor, carry: Tensor | None = None) -> tuple[Step, Tensor]:
        """One recorded step from ``y``, and the outputs ``(M, dim)`` inside it."""
        t, t_end = self.records.t[slot], self.records.t_end[slot]
        step = self.method.step(f, t, t_end, y, carry)
        here = self.plan.within(slot)
        rows, fractions = self.plan.rows[here], self.plan.fractions[here]
        return step, read_slot(f, self.method, self.read_out, t, t_end, y, carry, step, rows, fractions)


def _plan(span: Span, records: Records, times: Tensor, reached: Tensor) -> tuple[OutputPlan, Tensor]:
    """Where the outputs lie, as far as each trajectory has ``reached``, and which of them are the start itself."""
    sign = span.direction.unsqueeze(-1)
    at_start = times == span.t0.unsqueeze(-1)
    near = 4 * torch.finfo(torch.float64).eps * times.abs()
    wanted = ~at_start & (sign * times - near <= sign * reached.unsqueeze(-1))
    return plan_outputs(records.t, records.t_end, records.count, span, times, wanted), at_start
