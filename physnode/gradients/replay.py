"""A recorded solve as a function of its start and of the tensors the field reads, to be made again with or without a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from physnode.engine.controllers import Span
from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.engine.readout import ReadOut, read_slot
from physnode.engine.records import OutputPlan, Records, plan_outputs
from physnode.fields import VectorField

__all__ = ["Replay", "with_tensors"]

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
        sign = span.direction.unsqueeze(-1)
        at_start = times == span.t0.unsqueeze(-1)
        near = 4 * torch.finfo(torch.float64).eps * times.abs()
        wanted = ~at_start & (sign * times - near <= sign * reached.unsqueeze(-1))
        plan = plan_outputs(records.t, records.t_end, records.count, span, times, wanted)
        return cls(f, method, read_out, span, records, times, plan, at_start, ok, theta)

    def at(self, times: Tensor) -> Replay:
        """The same steps with other output times ``(B, T')``, all within the span."""
        reached = self.span.t1
        return replace(
            Replay.of(self.f, self.method, self.read_out, self.span, self.records, times, reached, self.ok, self.theta)
        )

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


class _Holder(nn.Module):
    """Lets ``torch.func.functional_call`` put other tensors into a field for the length of one function call."""

    def __init__(self, field: VectorField) -> None:
        super().__init__()
        self.field = field

    def forward(self, function: Callable[[], T]) -> T:
        return function()


def with_tensors(field: VectorField, tensors: Mapping[str, Tensor], function: Callable[[], T]) -> T:
    """``function()`` while the field's parameters of these names are ``tensors``."""
    own = dict(field.named_parameters())
    if all(own.get(name) is tensor for name, tensor in tensors.items()):
        return function()
    named = {f"field.{name}": tensor for name, tensor in tensors.items()}
    result: T = torch.func.functional_call(_Holder(field), named, (function,))
    return result
