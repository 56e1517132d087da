"""The steps of one solve, to be made again from other starts, with other parameters, or in another precision.

An exact gradient holds step sizes constant. What it is compared with must do the same: a solve that chooses its steps anew
changes them, and with them its result by something near its tolerance, which a difference quotient divides by a small number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from physnode.engine.controllers import Controller, Span, Verdict
from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.errors import InputError
from physnode.solution import Solution

__all__ = ["FrozenSteps"]


class FrozenSteps(Controller):
    """Makes the accepted steps of ``sol`` again, each trajectory its own.

    A step that ended on an event is tried half as long again as it was, so that the event, which has moved, is found inside it;
    the steps after it end where they did. The controller's "length of the next trial" is the number of the step.

    Raises:
        InputError: ``sol`` kept no steps.
    """

    def __init__(self, sol: Solution) -> None:
        if not sol.pieces:
            raise InputError(
                "the steps of a solve are kept only with dense=True or with a gradient; solve again with one of them"
            )
        self.rtol = sol.pieces[0].replay.controller.relative_tolerance(sol.flat.dtype)
        self.ways = [(piece.replay.span.direction, piece.replay.records) for piece in sol.pieces]

    def check(self, method: Method, dtype: torch.dtype) -> None:
        """Any method takes given steps."""

    def relative_tolerance(self, dtype: torch.dtype) -> float | None:
        """That of the solve whose steps these are: by it, the jumps of signals are chosen."""
        return self.rtol

    def start(self, method: Method, f: FieldFunction, span: Span, y: Tensor, derivative: Tensor) -> tuple[Tensor, Tensor, int]:
        """Step 0; nothing is remembered."""
        return torch.zeros_like(span.t0), span.t0.new_zeros(len(span.t0), 0), 0

    def propose(self, span: Span, t: Tensor, dt: Tensor) -> Tensor:
        """Where step ``dt`` ended; the end of the span beyond the last."""
        for direction, records in self.ways:
            if not torch.equal(direction, span.direction) or not records.slots:
                continue
            place = dt.to(torch.int64).clamp(0, records.slots - 1).unsqueeze(0)
            end = records.t_end.gather(0, place)[0]
            if records.event is not None:
                met = records.event.gather(0, place)[0] >= 0
                beyond = end + 0.5 * (end - records.t.gather(0, place)[0])
                short = (span.t1 - beyond) * span.direction > 0
                end = torch.where(met, torch.where(short, beyond, span.t1), end)
            return torch.where(dt < records.count, end, span.t1)
        return span.t1

    def judge(
        self, method: Method, running: Tensor, t: Tensor, t_end: Tensor, dt: Tensor, y: Tensor, step: Step, memory: Tensor
    ) -> Verdict:
        """Every step that was solved and is finite is accepted; another one is not tried."""
        good = torch.isfinite(step.y.sum(-1))
        if step.unsolved is not None:
            good = good & ~step.unsolved
        return Verdict(good, dt + (running & good), memory, ~good)
