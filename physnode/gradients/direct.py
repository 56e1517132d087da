"""``Direct``: the accepted steps made again with a graph, and differentiated by autograd.

Exact; memory grows with steps times stages times the graph of one evaluation. Forward storage: the whole graph; backward
evaluations: none. It is the reference that the other gradients are held against.
"""

from __future__ import annotations

import torch
from torch import Tensor

from physnode.gradients.base import Gradient
from physnode.gradients.replay import Replay

__all__ = ["Direct"]


class Direct(Gradient):
    """Backpropagation through the accepted steps."""

    name = "direct"

    def attach(self, replay: Replay, values: Tensor, y0: Tensor) -> Tensor:
        """The outputs of the solve, bit for bit, with the graph of the replayed ones."""
        sound = replay.without_failures()
        found = replay.bound_to(replay.theta, lambda: sound.run(replay.f, y0))
        return torch.where(replay.ok.view(-1, 1, 1), values + (found - found.detach()), values)
