"""``SymplecticAdjoint``: one evaluation of the field at a time is made again with a graph; stages are swept in reverse.

Exact. Kept from the forward solve: times and states of the accepted steps, and the field's values inside them where there is
room, or checkpoints; graph alive at any time: one evaluation's; backward evaluations: twice those of the accepted steps, or
once where the values were kept. The sweep itself belongs to the family of the method.
Source: Matsubara, Miyatake, Yaguchi, Symplectic Adjoint Method for Exact Gradient of Neural ODE with Minimal Memory,
NeurIPS 2021 (arXiv 2102.09750); here in a form without division, so that zero weights need no case of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from physnode.gradients.base import Swept
from physnode.gradients.owed import Owed

__all__ = ["SymplecticAdjoint"]


class SymplecticAdjoint(Swept):
    """The symplectic adjoint method; ``storage`` (:class:`physnode.Storage`) bounds the memory."""

    name = "symplectic"
    whole_steps = False

    def pull_back(self, owed: Owed, slot: int, y: Tensor, known: Sequence[Tensor]) -> None:
        """The transposed step, with the cotangents of the outputs inside it entering the same stage sweep.

        Steps that end or start on an event depend on its time too, and are made again as a whole.
        """
        if owed.replay.moves(slot):
            owed.pull_back_whole(slot, y)
        elif owed.replay.moving is not None:
            owed.pull_back_moving(slot, y)
        else:
            owed.pull_back_by_stages(slot, y, known)
