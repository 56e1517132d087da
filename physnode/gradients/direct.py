"""``Direct``: the accepted steps made again with a graph, and differentiated by autograd.

Exact; memory grows with steps times stages times the graph of one evaluation. Forward storage: the whole graph; backward
evaluations: none. It is the reference that the other gradients are held against.
"""

from __future__ import annotations

import torch
from torch import Tensor

from physnode.gradients.base import Gradient
from physnode.gradients.events import Outputs
from physnode.gradients.replay import Replay

__all__ = ["Direct"]


class Direct(Gradient):
    """Backpropagation through the accepted steps."""

    name = "direct"

    def attach(self, replay: Replay, outputs: Outputs, y0: Tensor) -> Outputs:
        """The outputs of the solve, bit for bit, with the graph of the replayed ones."""
        sound = replay.without_failures()
        found = replay.bound_to(replay.theta, lambda: sound.run(replay.f, y0))
        return Outputs(*(_with_graph(value, own, replay.ok) for value, own in zip(outputs, found, strict=True)))


def _with_graph(value: Tensor, found: Tensor, ok: Tensor) -> Tensor:
    ok = ok.view(-1, *[1] * (value.ndim - 1)) & torch.isfinite(value)
    change = torch.where(ok, found, 0.0)
    return value + (change - change.detach())
