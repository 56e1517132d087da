"""``ACA``: the Adaptive Checkpoint Adjoint. One accepted step at a time is made again with a graph, differentiated, dropped.

Exact. Kept from the forward solve: times and states of the accepted steps; backward evaluations: as many as forward, without
the search; graph alive at any time: one step's. Source: Zhuang et al., Adaptive Checkpoint Adjoint Method for Gradient
Estimation in Neural ODE, ICML 2020 (arXiv 2006.02493), algorithm 2.
"""

from __future__ import annotations

from torch import Tensor

from physnode.gradients.base import Swept
from physnode.gradients.events import Outputs
from physnode.gradients.owed import Owed
from physnode.gradients.replay import Replay

__all__ = ["ACA"]


class ACA(Swept):
    """Adaptive Checkpoint Adjoint."""

    name = "aca"

    def sweep(self, replay: Replay, cotangents: Outputs, theta: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """λ_n = (∂x_{n+1}/∂x_n)ᵀ λ_{n+1} and dL/dθ += (∂x_{n+1}/∂θ)ᵀ λ_{n+1}, outputs inside the step included."""
        owed = Owed.at_the_end(replay, cotangents, theta)
        for slot in reversed(range(replay.records.slots)):
            owed.pull_back_whole(slot)
        return owed.at_the_start()
