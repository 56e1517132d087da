"""Dense output written as a Hermite interpolant with corrections, expanded into the weight polynomials of the stages.

The dense outputs of bosh3, dopri5 and dop853 are published in this nested form, which keeps the value and the slope at
both ends of the step; the engine reads weight polynomials.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

__all__ = ["hermite_weights"]


def hermite_weights(
    b: Sequence[float], corrections: Sequence[Sequence[float]] = (), extra: int = 0
) -> tuple[tuple[float, ...], ...]:
    """The weights of x0 + theta (F0 + (1 - theta) (F1 + theta (F2 + (1 - theta) (F3 + theta (F4 + ...))))).

    F0 is the step's increment, F1 = h k_1 - F0, F2 = 2 F0 - h (k_1 + k_end), and F3, F4, ... = h sum_i d_i k_i with one
    row d of ``corrections`` each: the form of the programs DOPRI5 and DOP853, Hairer, Norsett & Wanner, *Solving
    Ordinary Differential Equations I*, 2nd ed., section II.6.

    Returns one row for each of the s own stages, the end derivative and the ``extra`` stages (the columns of
    ``corrections``); entry k of a row belongs to theta^(k+1).
    """
    columns = len(b) + 1 + extra
    increment = [*b, *[0.0] * (columns - len(b))]
    first = [float(i == 0) for i in range(columns)]
    last = [float(i == len(b)) for i in range(columns)]
    slope = [f - w for f, w in zip(first, increment, strict=True)]
    bend = [2 * w - f - e for w, f, e in zip(increment, first, last, strict=True)]
    terms = [increment, slope, bend, *map(list, corrections)]
    basis = [[1.0]]
    for term in range(1, len(terms)):
        previous = basis[-1]
        shifted = [0.0, *previous]
        if term % 2:
            basis.append([x - y for x, y in zip([*previous, 0.0], shifted, strict=True)])
        else:
            basis.append(shifted)
    return tuple(
        tuple(fsum(p[k] * term[i] for p, term in zip(basis, terms, strict=True) if k < len(p)) for k in range(len(terms)))
        for i in range(columns)
    )
