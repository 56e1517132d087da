"""What a recorded step should have given: a more accurate step over the same record, and more accurate outputs inside it.

Below order 8 the better step is one of DOP853 on the field as a first-order system, whatever the family of the method. An
explicit method of order 8 or more, and an implicit one, whose steps may be too long for an explicit one to be stable, is
compared with itself: two half steps u_2 and one whole step u_1 of order p give u_2 + (u_2 - u_1)/(2^p - 1), which is of order
p + 1 (Richardson's extrapolation; Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, II.4).
"""

from __future__ import annotations

from torch import Tensor

from physnode.engine import methods
from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.engine.readout import ReadOut, read_slot, restep_ranks, short_end

__all__ = ["better_step", "change_of"]


def better_step(
    f: FieldFunction,
    method: Method,
    read_out: ReadOut,
    t: Tensor,
    t_end: Tensor,
    y: Tensor,
    rows: Tensor,
    fractions: Tensor,
) -> tuple[Tensor, Tensor]:
    """The change of the state ``(B, dim)`` from ``t`` to ``t_end``, and the states ``(M, dim)`` of ``rows`` at ``fractions``.

    ``fractions`` lie strictly inside the step. ``f`` is the field as this step sees it.
    """
    if method.order < 8 and not method.implicit:
        better = methods.dop853
        step = better.step(f, t, t_end, y)
        values = read_slot(f, better, "interpolate", t, t_end, y, None, step, rows, fractions)[0] if len(rows) else y[rows]
        return change_of(step, y), values
    method = methods.available().get(method.name, method)  # its equations solved to rounding, not to the tolerances of a solve
    middle = t + 0.5 * (t_end - t)
    first = method.step(f, t, middle, y)
    second = method.step(f, middle, t_end, first.y)
    change = _extrapolated(method, f, t, t_end, y, first, second)
    values = y[rows]
    if len(rows) and read_out == "interpolate":
        late = fractions > 0.5
        halves = ((~late, 0.0, t, middle, y, first), (late, 1.0, middle, t_end, first.y, second))
        for half, before, start, end, state, step in halves:
            inside = 2 * fractions[half] - before
            found = read_slot(f, method, read_out, start, end, state, None, step, rows[half], inside)[0]
            values = values.index_put((half.nonzero().flatten(),), found)
    elif len(rows):
        for entries, whose in restep_ranks(rows):
            end = short_end(t, t_end, whose, fractions[entries])
            middle = t + 0.5 * (end - t)
            first = method.step(f, t, middle, y)
            short = _extrapolated(method, f, t, end, y, first, method.step(f, middle, end, first.y))
            values = values.index_put((entries,), (y + short)[whose])
    return change, values


def change_of(step: Step, y: Tensor) -> Tensor:
    """What the step from ``y`` adds to it, before rounding where the method says so."""
    return step.y - y if step.change is None else step.change


def _extrapolated(method: Method, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, first: Step, second: Step) -> Tensor:
    halves = change_of(first, y) + change_of(second, first.y)
    whole = change_of(method.step(f, t, t_end, y), y)
    extrapolated: Tensor = halves + (halves - whole) / (2.0**method.order - 1)
    return extrapolated
