"""``SymplecticAdjoint``: one evaluation of the field at a time is made again with a graph; stages are swept in reverse.

Exact. Kept from the forward solve: times and states of the accepted steps; graph alive at any time: one evaluation's;
backward evaluations: twice those of the accepted steps. The sweep itself belongs to the family of the method.
Source: Matsubara, Miyatake, Yaguchi, Symplectic Adjoint Method for Exact Gradient of Neural ODE with Minimal Memory,
NeurIPS 2021 (arXiv 2102.09750); here in a form without division, so that zero weights need no case of their own.
"""

from __future__ import annotations

from torch import Tensor

from physnode.gradients.base import Swept
from physnode.gradients.events import Outputs
from physnode.gradients.owed import Owed
from physnode.gradients.replay import Replay

__all__ = ["SymplecticAdjoint"]


class SymplecticAdjoint(Swept):
    """The symplectic adjoint method."""

    name = "symplectic"

    def sweep(self, replay: Replay, cotangents: Outputs, theta: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """Each record's transposed step, with the cotangents of the outputs inside it entering the same stage sweep.

        Records that end or start on an event depend on its time too, and are made again as a whole.
        """
        owed = Owed.at_the_end(replay, cotangents, theta)
        for slot in reversed(range(replay.records.slots)):
            if replay.moves(slot):
                owed.pull_back_whole(slot)
            else:
                owed.pull_back_by_stages(slot)
        return owed.at_the_start()
