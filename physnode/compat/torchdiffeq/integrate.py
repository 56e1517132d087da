"""One solve: the options of torchdiffeq put into the words of ``physnode.solve``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from physnode.compat.torchdiffeq import adams, scipy_solver
from physnode.compat.torchdiffeq.callbacks import observer
from physnode.compat.torchdiffeq.errors import IntegrationError
from physnode.compat.torchdiffeq.grid import Grid, grid_of
from physnode.compat.torchdiffeq.jumps import jumps_and_stops
from physnode.compat.torchdiffeq.methods import Kind, checked_options, find
from physnode.compat.torchdiffeq.problem import Problem
from physnode.compat.torchdiffeq.tolerances import adaptive_steps
from physnode.engine.controllers import Controller
from physnode.errors import GradientError, SolveError
from physnode.gradients import ACA, Direct, Outputs, Replay
from physnode.solution import Solution
from physnode.solve import solve

__all__ = ["Sparing", "run", "solution", "steps_of"]

_NO_LIMIT = 2**31 - 1


def run(problem: Problem, rtol: Any, atol: Any, method: str | None, options: Mapping[str, Any] | None, gradient: str) -> Tensor:
    """The flat solution ``(T, dim)`` at the times of the problem, from ``problem.y0``.

    Raises:
        InputError: an unknown method, or options that contradict each other.
        IntegrationError: the solution could not be followed to the last time.
    """
    name, kind, _ = find(method)
    if kind is Kind.SCIPY:
        return scipy_solver.run(problem, rtol, atol, checked_options(name, kind, options))
    if kind is Kind.ADAMS:
        given = checked_options(name, kind, options)
        if given.get("max_order", 4) >= 4:
            return adams.run(problem, name, rtol, atol, given)
        warnings.warn(f"max_order is below 4, so {name} reduces to rk4", stacklevel=5)
        method, options = "rk4", {word: value for word, value in given.items() if not word.startswith("max")}
    ys: Tensor = solution(problem, rtol, atol, method, options, gradient).ys
    return ys


def solution(
    problem: Problem,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: Mapping[str, Any] | None,
    gradient: str,
    *,
    controller: Controller | None = None,
    outputs: slice = slice(None),
    **more: Any,
) -> Solution:
    """The same as a :class:`physnode.Solution`, for the methods of physnode's engine; ``more`` are arguments of ``solve``.

    ``outputs`` are the times to be read out, all of them by default.
    """
    name, kind, found = find(method)
    given = checked_options(name, kind, options)
    limits: dict[str, Any] = {}
    if controller is None:
        controller, limits = steps_of(problem, kind, given, rtol, atol)
    watching = observer(problem, name, adaptive=kind is Kind.ADAPTIVE)
    if watching is not None:
        limits["observe"] = watching
    assert found is not None

    def attempt() -> Solution:
        return solve(
            problem.field,
            problem.y0,
            problem.ts[outputs],
            t0=problem.ts[0],
            method=found,
            controller=controller,
            gradient=Sparing(problem) if gradient == "aca" and not _transformed() else "direct",
            **{**limits, **more},
        )

    return checked(lambda: again_if_random(attempt))


def steps_of(problem: Problem, kind: Kind, options: dict[str, Any], rtol: Any, atol: Any) -> tuple[Controller, dict[str, Any]]:
    """The controller that the options ask for, and the further arguments of ``solve``."""
    if kind is Kind.FIXED:
        step = options.get("step_size")
        step = None if step is None else float(step)
        grid = grid_of(problem.t, step, options.get("grid_constructor"), problem.func, problem.state)
        limits: dict[str, Any] = {"max_steps": _NO_LIMIT}
        if options.get("perturb"):
            limits["jump_times"] = grid
        return Grid(grid), limits
    first = options.get("first_step")
    controller = adaptive_steps(
        problem,
        rtol,
        atol,
        options.get("norm"),
        first_step=None if first is None else float(first),
        min_step=float(options.get("min_step", 0.0)),
        max_step=float(options.get("max_step", float("inf"))),
        safety=float(options.get("safety", 0.9)),
        max_factor=float(options.get("ifactor", 10.0)),
        min_factor=float(options.get("dfactor", 0.2)),
    )
    limits = {"max_steps": max(1, int(options.get("max_num_steps", _NO_LIMIT)))}
    stops = jumps_and_stops(problem, options.get("step_t"), options.get("jump_t"))
    if stops is not None:
        limits["jump_times"] = stops
    return controller, limits


def checked(function: Callable[[], Solution]) -> Solution:
    """``function()``, its failures as errors that handlers of torchdiffeq's catch too."""
    try:
        return function()
    except SolveError as problem:
        words = str(problem).rsplit("\n", 1)[0].replace('"radau5"', '"radauIIA5" and a step_size')
        raise IntegrationError(words) from None


def again_if_random(function: Callable[[], Solution]) -> Solution:
    """``function()``, once more where a gradient is refused: a field may draw its noise in its first call and then keep it."""
    try:
        return function()
    except GradientError:
        return function()


class Sparing(ACA):
    """A step's memory at a time; but the whole replay for a field that takes derivatives with respect to its time.

    Such a time is a variable of its own in every call, which a sweep that looks for what the field reads has to refuse.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self._problem = problem

    def attach(self, replay: Replay, outputs: Outputs, y0: Tensor) -> Outputs:
        """By whichever of the two can."""
        return Direct().attach(replay, outputs, y0) if self._problem.field.marks_time else super().attach(replay, outputs, y0)


def _transformed() -> bool:
    """Whether a torch.func transform is at work, which sees through the direct gradient alone."""
    return torch._C._functorch.peek_interpreter_stack() is not None
