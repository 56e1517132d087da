"""The derivative of a function of one number from its values, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Quotient", "derivative"]

_LEVELS = 6
_FACTOR = 2.0


class Quotient(NamedTuple):
    """A derivative found from differences."""

    value: float
    uncertainty: float
    """The largest change that the last extrapolation made; infinite if no value was finite."""


def derivative(function: Callable[[float], float], step: float) -> Quotient:
    """function'(0) from central differences of steps ``step``, ``step`` / 2, ..., extrapolated to zero.

    (F(h) - F(-h))/2h has an error series in h², of which each column of the table removes one term. The entry that differs
    least from its neighbours is taken, and the table ends where rounding takes over. Source: Ridders, Accurate computation of
    F'(x) and F'(x)F''(x), Advances in Engineering Software 4 (1982) 75.
    """
    best = Quotient(float("nan"), float("inf"))
    previous: list[float] = []
    for level in range(_LEVELS):
        h = step / _FACTOR**level
        row = [(function(h) - function(-h)) / (2 * h)]
        power = 1.0
        for column, coarser in enumerate(previous):
            power *= _FACTOR**2
            row.append(row[column] + (row[column] - coarser) / (power - 1))
            off = max(abs(row[-1] - row[column]), abs(row[-1] - coarser))
            if off <= best.uncertainty:
                best = Quotient(row[-1], off)
        if previous and abs(row[-1] - previous[-1]) >= 2 * best.uncertainty:
            break
        previous = row
    return best
