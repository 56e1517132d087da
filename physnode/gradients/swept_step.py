"""A step, and the outputs inside it, as functions of times too, of which no more than one evaluation's graph is ever alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.engine.readout import interpolate, restep_ranks
from physnode.gradients.replay import Replay
from physnode.gradients.unit_step import UnitStep

__all__ = ["swept_step"]


def swept_step(
    replay: Replay, slot: int, vjp: Callable[..., Any], y: Tensor, t: Tensor, t_end: Tensor, times: Tensor
) -> tuple[Tensor, Tensor]:
    """The end ``(B, dim)`` of a slot's steps and the outputs ``(M, dim)`` at ``times`` ``(M,)`` inside them.

    ``vjp(leaves, sums)`` makes the function that pulls an evaluation back, and adds what it owes to ``leaves`` to ``sums``.
    """
    f, method, h = replay.f.on_step(t.detach(), t_end.detach()), replay.method, t_end - t
    rows, fractions, inside = replay.inside(slot, t, t_end, times)
    inner, inner_rows = inside.nonzero().flatten(), rows[inside]
    smooth = replay.read_out == "interpolate" and bool(len(inner))
    unit = UnitStep(f, t, h)
    start = unit.into(y)
    found, *stages = _ByStages.apply(method, f, vjp, smooth, t, h, start)  # type: ignore[no-untyped-call]
    end = unit.out_of(found)
    values = end[rows]
    if smooth:
        weights = [weight.to(y.dtype) for weight in method.output_weights(fractions[inner])]
        at = interpolate(weights, y.new_ones(len(inner), 1), start[inner_rows], [stage[inner_rows] for stage in stages])
        return end, values.index_put((inner,), unit.out_of(at, inner_rows))
    for entries, whose in restep_ranks(inner_rows):
        short = torch.zeros_like(h).index_put((whose,), fractions[inner[entries]] * h[whose])
        unit = UnitStep(f, t, short)
        (found,) = _ByStages.apply(method, f, vjp, False, t, short, unit.into(y))  # type: ignore[no-untyped-call]
        values = values.index_put((inner[entries],), unit.out_of(found)[whose])
    return end, values


class _ByStages(torch.autograd.Function):
    """(t, h, start) -> the end of a unit step, and its stages if they are wanted."""

    @staticmethod
    def forward(
        ctx: Any, method: Method, f: FieldFunction, vjp: Callable[..., Any], smooth: bool, t: Tensor, h: Tensor, start: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.method, ctx.f, ctx.vjp = method, f, vjp
        ctx.save_for_backward(t, h, start)
        unit, zero, one = UnitStep(f, t, h), torch.zeros_like(t), torch.ones_like(t)
        step = method.step(unit, zero, one, start)
        stages = method.extend(unit, zero, one, start, step.stages) if smooth else ()
        return step.y, *(stage.clone() for stage in stages)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        to_end, *to_stages = grads
        t, h, start = ctx.saved_tensors
        leaves = tuple(part.detach().requires_grad_() for part in (t, h))
        sums = tuple(torch.zeros_like(part) for part in leaves)
        unit, zero, one = UnitStep(ctx.f, *leaves), torch.zeros_like(t), torch.ones_like(t)
        change = ctx.method.pull_back(unit, ctx.vjp(leaves, sums), zero, one, start, to_end, to_stages)
        return None, None, None, None, *sums, to_end + change
