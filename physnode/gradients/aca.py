"""``ACA``: the Adaptive Checkpoint Adjoint. One accepted step at a time is made again with a graph, differentiated, dropped.

Exact. Kept from the forward solve: times and states of the accepted steps; backward evaluations: as many as forward, without
the search; graph alive at any time: one step's. Source: Zhuang et al., Adaptive Checkpoint Adjoint Method for Gradient
Estimation in Neural ODE, ICML 2020 (arXiv 2006.02493), algorithm 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from physnode.gradients.base import Swept
from physnode.gradients.replay import Replay
from physnode.gradients.variables import refuse_unknown

__all__ = ["ACA"]


class ACA(Swept):
    """Adaptive Checkpoint Adjoint."""

    name = "aca"

    def sweep(self, replay: Replay, cotangents: Tensor, theta: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """λ_n = (∂x_{n+1}/∂x_n)ᵀ λ_{n+1} and dL/dθ += (∂x_{n+1}/∂θ)ᵀ λ_{n+1}, outputs inside the step included."""
        to_theta = [torch.zeros_like(tensor) for tensor in theta]
        to_y = cotangents.new_zeros(cotangents.shape[0], cotangents.shape[2])
        known = {id(tensor) for tensor in theta}
        for slot in reversed(range(replay.records.slots)):
            active = replay.records.active(slot).unsqueeze(-1)
            here = replay.plan.within(slot)
            with torch.enable_grad():
                y = replay.records.y[slot].detach().requires_grad_()
                step, values = replay.step(replay.f, slot, y)
                refuse_unknown(known | {id(y)}, step.y, values)
                back = torch.autograd.grad(
                    (step.y, values),
                    (y, *theta),
                    (torch.where(active, to_y, 0.0), cotangents[replay.plan.rows[here], replay.plan.columns[here]]),
                    allow_unused=True,
                )
            to_y = torch.where(active, back[0], to_y)
            for total, part in zip(to_theta, back[1:], strict=True):
                if part is not None:
                    total += part
        return to_y + torch.where(replay.at_start.unsqueeze(-1), cotangents, 0.0).sum(1), to_theta
