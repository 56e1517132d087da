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
from physnode.torch_internals import in_forward_mode

__all__ = ["Direct", "with_graph"]


class Direct(Gradient):
    """Backpropagation through the accepted steps."""

    name = "direct"
    kept_instead = "graph"

    def attach(self, replay: Replay, outputs: Outputs, y0: Tensor) -> Outputs:
        """The outputs of the solve, bit for bit, with the graph of the replayed ones."""
        sound = replay.without_failures()
        forward = in_forward_mode()  # the replay of an iteration needs to know that it counts
        with torch.set_grad_enabled(forward or torch.is_grad_enabled()):
            found = replay.bound_to(replay.theta, lambda: sound.run(replay.f, y0))
        rows = [replay.ok.view(-1, *[1] * (value.ndim - 1)) for value in outputs]
        return Outputs(*(with_graph(*each) for each in zip(outputs, found, rows, strict=True)))


def with_graph(value: Tensor, found: Tensor, ok: Tensor) -> Tensor:
    """``value``, to the last bit, with the derivatives of ``found`` where it is ``ok`` and finite."""
    change = torch.where(ok & torch.isfinite(value), found, 0.0)
    return value.detach() + (change - change.detach())
