"""``odeint``: differentiable by the replay of the steps that were taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from physnode.compat.torchdiffeq.event_search import until_event
from physnode.compat.torchdiffeq.integrate import run
from physnode.compat.torchdiffeq.problem import Problem
from physnode.compat.torchdiffeq.times import moved_outputs, moved_start

__all__ = ["odeint", "solve_problem"]


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
) -> Any:
    """The solution of dy/dt = func(t, y), y(t[0]) = y0, at the times ``t``.

    Args:
        func: any callable of a 0-dim time and the state; returns the derivative, shaped like the state.
        y0: a floating-point or complex tensor of any shape, or a tuple of them, at ``t[0]``.
        t: times ``(T,)``, strictly increasing or decreasing; may require a gradient.
        rtol, atol: numbers, tensors that broadcast to the state, or one entry a part of a tuple. A step is accepted where the
            root mean square of its error over atol + rtol max(|y_n|, |y_n+1|) is at most 1, for a tuple in each part.
        method: a name; ``"dopri5"`` by default.
        options: of the method; unknown ones are ignored with a warning.
        event_fn: a function of (t, y); the solve ends where it (or the first of its values to do so) changes sign. ``t`` then
            has two entries, and the second says only which way to go.

    Returns:
        ``(T, *y0.shape)``, or a tuple of such; with ``event_fn`` a pair: the event's time, and the states at ``t[0]`` and then.
        Exactly differentiable, for the steps taken, in y0, in ``t`` and in every tensor that ``func`` reads.

    Raises:
        InputError: (a ValueError) an unknown method, options that contradict each other.
        ArgumentError, IntegrationError: (AssertionErrors too) arguments of a wrong kind; a solution that ends too early.
        NotFloatingError: (a TypeError) whole numbers for ``t`` or ``y0``.
    """
    if event_fn is not None:
        return until_event(func, y0, t, event_fn, rtol=rtol, atol=atol, method=method, options=options, gradient="direct")
    return solve_problem(Problem.of(func, y0, t), rtol, atol, method, options, gradient="direct")


def solve_problem(
    problem: Problem, rtol: Any, atol: Any, method: str | None, options: Mapping[str, Any] | None, *, gradient: str
) -> Any:
    """The structured solution of a checked problem, tied to its start, its times and what its field reads."""
    if len(problem.t) == 1:
        return problem.at_start()
    moving = replace(problem, y0=moved_start(problem))
    ys = run(moving, rtol, atol, method, options, gradient)
    return problem.adapter.unflatten(moved_outputs(problem, ys))
