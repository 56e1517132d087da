"""Whether a field is still the one that the steps of a solve were made of.

The versions of tensors show most edits, but not those by way of ``.data``, nor constants that were replaced, nor random numbers
that no generator known here has drawn. What the field gives at the start shows them all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from physnode.errors import GradientError
from physnode.gradients.replay import Replay

__all__ = ["refuse_another_field"]

_SAME = 1e4
"""Units in the last place by which two calls of one field may differ (sums in another order)."""


def refuse_another_field(replay: Replay, y0: Tensor) -> None:
    """Call the field once more at the start ``y0`` ``(B, dim)`` of a solve, and compare.

    Raises:
        GradientError: the field gives another value than it did.
    """
    with torch.no_grad():
        now = replay.f(replay.span.t0, y0.detach())
    scale = replay.first.abs().amax(-1, keepdim=True)
    other = ~((now - replay.first).abs() <= _SAME * torch.finfo(now.dtype).eps * scale)
    other = other & (replay.ok & torch.isfinite(scale.squeeze(-1))).unsqueeze(-1)
    if bool(other.any()):
        row = int(other.any(-1).nonzero()[0])
        raise GradientError(
            f"the field is not the one that the steps were made of: at the start of trajectory {row} it gives "
            f"{_few(now[row])} where it gave {_few(replay.first[row])}. A parameter or a constant that it reads was changed "
            "between the solve and backward (an optimizer step, .data, an attribute), or it draws random numbers; call "
            "backward first, or solve again"
        )


def _few(values: Tensor) -> str:
    shown = ", ".join(f"{value:.6g}" for value in values[:3].tolist())
    return f"({shown}{', ...' if len(values) > 3 else ''})"
