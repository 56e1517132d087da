"""``step_t`` and ``jump_t``: times at which a step has to end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from physnode.compat.torchdiffeq.problem import Problem
from physnode.errors import InputError

__all__ = ["jumps_and_stops"]


def jumps_and_stops(problem: Problem, step_t: Any, jump_t: Any) -> Tensor | None:
    """The times ``(K,)`` of both lists that lie strictly inside the span, in float64; None if there is none.

    The field is evaluated again on the far side of each of them: at a jump that is needed, at a mere stop it costs one
    evaluation.

    Raises:
        InputError: a time that occurs twice.
    """
    lists = [values for values in (step_t, jump_t) if values is not None]
    if not lists:
        return None
    device = problem.y0.device
    times = torch.cat([torch.as_tensor(values, dtype=torch.float64, device=device).detach().reshape(-1) for values in lists])
    if len(set(times.tolist())) != len(times):
        raise InputError(
            "step_t and jump_t must not have any repeated elements between them; found some in both, or twice in one"
        )
    low, high = problem.ts.min(), problem.ts.max()
    inside = times[(times > low) & (times < high)]
    return inside.sort().values if len(inside) else None
