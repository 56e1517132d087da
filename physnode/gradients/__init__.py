"""How a solve is differentiated: whoever reads the records of its accepted steps.

All but one give the exact gradient of the solve that was made, step sizes held constant (the search for steps, the starting
step and the controller carry no gradient). The one is ``ContinuousAdjoint``, which reads no records and solves an equation of
its own, to its own tolerances: the baseline.
"""

from __future__ import annotations

from physnode.errors import InputError, name_hint
from physnode.gradients.aca import ACA
from physnode.gradients.base import Gradient, Swept
from physnode.gradients.continuous import ContinuousAdjoint
from physnode.gradients.direct import Direct
from physnode.gradients.events import Outputs
from physnode.gradients.moving import MovingTimes, moved_start
from physnode.gradients.replay import Replay
from physnode.gradients.storage import GradientCost, Storage
from physnode.gradients.symplectic import SymplecticAdjoint
from physnode.gradients.taped import attach_tape

__all__ = [
    "ACA",
    "ContinuousAdjoint",
    "Direct",
    "Gradient",
    "GradientCost",
    "MovingTimes",
    "Outputs",
    "Replay",
    "Storage",
    "Swept",
    "SymplecticAdjoint",
    "attach_tape",
    "get",
    "moved_start",
]

_GRADIENTS: dict[str, type[Gradient]] = {
    "direct": Direct,
    "aca": ACA,
    "symplectic": SymplecticAdjoint,
    "continuous": ContinuousAdjoint,
}


def get(gradient: str | Gradient) -> Gradient:
    """The gradient method itself, or the one of that name.

    Raises:
        InputError: an unknown name; the message lists the known ones.
    """
    if isinstance(gradient, Gradient):
        return gradient
    if isinstance(gradient, str) and gradient in _GRADIENTS:
        return _GRADIENTS[gradient]()
    hint = name_hint(gradient, _GRADIENTS)
    raise InputError(f"unknown gradient {gradient!r}.{hint} Known gradients: {', '.join(_GRADIENTS)}")
