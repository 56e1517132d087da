"""How a trajectory ended, and what the error says when it ended badly."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from torch import Tensor

__all__ = ["Status", "describe_failures"]


class Status(IntEnum):
    """The state of one trajectory; every value but RUNNING is final."""

    RUNNING = -1
    OK = 0
    TOO_MANY_STEPS = 1
    STEP_UNDERFLOW = 2
    NON_FINITE = 3
    STIFF = 4
    DIVERGED = 5
    UNSOLVED = 6
    CROWDED = 7


_REASONS = {
    Status.TOO_MANY_STEPS: (
        "took max_steps trial steps without reaching the end",
        "raise max_steps, loosen the tolerances, or check that the time unit fits the motion",
    ),
    Status.STIFF: (
        "is stiff: stability, not accuracy, keeps the steps of an explicit method short",
        'use method="radau5"',
    ),
    Status.DIVERGED: (
        "has diverged: its state has grown by many orders beyond its start",
        "the solution may blow up in finite time, or the step be too long for the method; shorten the span or the step, "
        "or check signs and parameters of the field",
    ),
    Status.STEP_UNDERFLOW: (
        "needs steps too short to take: below min_step, or below what moves the time",
        "the solution is singular there (a collision, a kink), or the tolerances are below what the field's own precision "
        "allows; lower min_step, loosen the tolerances, or soften the field",
    ),
    Status.UNSOLVED: (
        "has no solution of the equations of an implicit step",
        "shorten the steps (dt, max_step), or check that the field is smooth there",
    ),
    Status.CROWDED: (
        "meets one event after the other without moving in time",
        "events accumulate there, as those of a ball that comes to rest; end the trajectory with a terminal event before that",
    ),
    Status.NON_FINITE: (
        "met a field value, a state or an event condition that is not finite",
        "check the field at that time and state (a division by zero, an overflow, a logarithm of a negative number)",
    ),
}
_SHOWN = 5


def describe_failures(status: Tensor, reached: Tensor, last_step: Tensor, batch: Sequence[int]) -> str:
    """One line a kind of failure: which trajectories, when, with which step, why, and what to do. Empty if all went well."""
    lines = []
    for kind, (reason, remedy) in _REASONS.items():
        rows = (status == kind).nonzero().flatten().tolist()
        if rows:
            shown = ", ".join(
                f"{_index(row, batch)} at t = {float(reached[row]):.6g} (step {float(last_step[row]):.2g})"
                for row in rows[:_SHOWN]
            )
            more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
            noun = "trajectory" if len(rows) == 1 else "trajectories"
            lines.append(f"{noun} {shown}{more}: {reason}; {remedy}")
    return "\n".join(lines)


def _index(row: int, batch: Sequence[int]) -> str:
    """A row of the flattened batch as the user's own index."""
    if not batch:
        return "(the only one)"
    index = []
    for size in reversed(batch):
        row, part = divmod(row, size)
        index.append(part)
    return str(index[0]) if len(index) == 1 else str(tuple(reversed(index)))
