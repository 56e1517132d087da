"""``ACA``: the Adaptive Checkpoint Adjoint. One accepted step at a time is made again with a graph, differentiated, dropped.

Exact. Kept from the forward solve: times and states of the accepted steps, or checkpoints among them; backward evaluations: as
many as forward, without the search; graph alive at any time: one step's. Source: Zhuang et al., Adaptive Checkpoint Adjoint
Method for Gradient Estimation in Neural ODE, ICML 2020 (arXiv 2006.02493), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from physnode.gradients.base import Swept
from physnode.gradients.owed import Owed

__all__ = ["ACA"]


class ACA(Swept):
    """Adaptive Checkpoint Adjoint; ``storage`` (:class:`physnode.Storage`) bounds the memory."""

    name = "aca"
    whole_steps = True

    def pull_back(self, owed: Owed, slot: int, y: Tensor, known: Sequence[Tensor]) -> None:
        """λ_n = (∂x_{n+1}/∂x_n)ᵀ λ_{n+1} and dL/dθ += (∂x_{n+1}/∂θ)ᵀ λ_{n+1}, outputs inside the step included."""
        owed.pull_back_whole(slot, y)
