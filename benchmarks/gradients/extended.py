"""The exact gradient of a solve that was made, from nothing but its step lengths: forward mode in extended precision.

It shares no code with what it judges: steps and their tangents are NumPy's ``longdouble``, the Jacobian is written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from physnode.engine.tableaus import ButcherTableau

__all__ = ["tangent_of_steps"]

Extended = NDArray[Any]
Function = Callable[[Extended], Extended]


def tangent_of_steps(
    field: Function, jacobian: Function, y0: Sequence[float], steps: Sequence[float], tableau: ButcherTableau
) -> tuple[Extended, Extended]:
    """The end of an autonomous explicit Runge-Kutta solve by these (signed) ``steps``, and its derivative in ``y0``.

    Args:
        field: f(y), ``(dim,)`` to ``(dim,)``.
        jacobian: ∂f/∂y, ``(dim,)`` to ``(dim, dim)``.
        y0: the start, ``(dim,)``.
        steps: h_n.
        tableau: coefficients of the method.

    Returns:
        y_N ``(dim,)`` and ∂y_N/∂y_0 ``(dim, dim)``.
    """
    y = np.asarray(y0, dtype=np.longdouble)
    tangent = np.eye(len(y), dtype=np.longdouble)
    rows = [np.asarray(row, dtype=np.longdouble) for row in tableau.a]
    weights = np.asarray(tableau.b, dtype=np.longdouble)
    for step in steps:
        h = np.longdouble(step)
        slopes: list[Extended] = []
        changes: list[Extended] = []
        for row in rows:
            point = y + h * sum((a * k for a, k in zip(row, slopes, strict=False)), np.zeros_like(y))
            moved = tangent + h * sum((a * k for a, k in zip(row, changes, strict=False)), np.zeros_like(tangent))
            slopes.append(field(point))
            changes.append(jacobian(point) @ moved)
        y = y + h * sum((b * k for b, k in zip(weights, slopes, strict=True)), np.zeros_like(y))
        tangent = tangent + h * sum((b * k for b, k in zip(weights, changes, strict=True)), np.zeros_like(tangent))
    return y, tangent
