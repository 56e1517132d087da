"""The gradient of a solve by native code: its steps are pulled back, stage by stage, where they lie.

The sweep is that of the transposed step of each family, exact for the steps as they were made. The field's values inside a
step are made again from its start, and stay in the cache until they have been read: nothing but the states of accepted steps is
kept, and the tensors that the field read, as they were, so that a later edit changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from physnode.gradients.base import second_derivative
from physnode.gradients.events import Outputs
from physnode.gradients.replay import Replay
from physnode.gradients.storage import GradientCost
from physnode.native.code import Taped

__all__ = ["attach_tape"]


def attach_tape(taped: Taped, ys: Tensor, y0: Tensor, make_replay: Callable[[], Replay], cost: GradientCost) -> Tensor:
    """``ys`` ``(B, T, dim)`` as a function of ``y0`` and of all that the field reads."""
    out: Tensor = _TapeFunction.apply(taped, ys, make_replay, cost, y0, *taped.problem.theta)  # type: ignore[no-untyped-call]
    return out


class _TapeFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, taped: Taped, ys: Tensor, make_replay: Callable[[], Replay], cost: GradientCost, y0: Tensor, *theta: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y0, *theta)  # their versions are checked: a parameter edited since then raises
        ctx.taped, ctx.make_replay, ctx.cost = taped, make_replay, cost
        return ys.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        y0, *theta = ctx.saved_tensors
        [grad] = grads
        taped: Taped = ctx.taped
        if torch.is_grad_enabled():  # a second derivative goes through a replay with a graph
            replay: Replay = ctx.make_replay().without_failures()
            grad = torch.where(replay.ok.view(-1, 1, 1), grad, 0.0)
            back = replay.bound_to(theta, partial(second_derivative, replay, Outputs.without_events(grad), y0, theta))
            return None, None, None, None, back[0], *back[4:]
        to_y0, to_theta = taped.pull(grad)
        ctx.cost.add(taped.slots * taped.evaluations)
        return None, None, None, None, to_y0 if y0.requires_grad else None, *to_theta
