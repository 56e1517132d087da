"""The stages of a fit in order: windows pulled together, whole trajectories, noise levels that are not known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from physnode.errors import InputError
from physnode.fitting import noise
from physnode.fitting.least_squares import minimise
from physnode.fitting.measurements import cut
from physnode.fitting.problem import Problem
from physnode.fitting.progress import Reporter
from physnode.fitting.run_folder import RunFolder
from physnode.fitting.starts import StateGuess, follows, window_cuts
from physnode.fitting.training import Training, adam, lbfgs

__all__ = ["Outcome", "Plan", "Stages", "plan_stages"]

_CONTINUITY = (10.0, 100.0, 1000.0)
_FAR_ABOVE_NOISE = 4.0
_MANY = 100
"""Gradients from which on native code for them is made."""
_METHODS = ("auto", "least_squares", "adam", "lbfgs", "adam+lbfgs")


@dataclass(frozen=True)
class Plan:
    """How the stages of a fit go."""

    method: str
    shooting: str | int
    adam_steps: int
    learning_rate: float
    max_iterations: int
    judged: bool
    """Whether standard deviations are right as they stand, so that a chi-square far above 1 means a wrong minimum."""

    @property
    def takes_gradients(self) -> bool:
        """Whether it takes so many gradients of the loss that code for them is worth making."""
        steps = self.adam_steps * ("adam" in self.method) + 10 * self.max_iterations * ("lbfgs" in self.method)
        return steps >= _MANY


@dataclass(frozen=True)
class Outcome:
    """Where the stages of a fit ended."""

    problem: Problem
    """Whole trajectories, one window each."""
    x: Tensor
    levels: Tensor | None
    converged: bool
    reason: str
    history: tuple[dict[str, Any], ...]


class Stages:
    """The stages of one fit, in order; each is skipped where the run folder holds its end."""

    def __init__(self, base: Problem, plan: Plan, reporter: Reporter, folder: RunFolder | None) -> None:
        self.base, self.plan, self.reporter, self.folder = base, plan, reporter, folder
        self.history: list[dict[str, Any]] = []

    def run(self, x: Tensor, levels: Tensor | None) -> Outcome:
        """Shoot in windows if that is called for, then fit whole trajectories, and estimate noise that is not known."""
        cuts = self._windows(x)
        if cuts is not None:
            x = self._in_windows(x, cuts, levels)
        converged, reason = False, ""
        for round_number in range(1 if levels is None else 4):
            problem = replace(self.base, sigma=noise.on_windows(self.base.windows, self.base.measured, levels))
            first = "whole trajectories" if round_number == 0 else f"noise level, round {round_number}"
            x, converged, reason = self._minimise(problem, x, first, polish=round_number > 0 or cuts is not None)
            if levels is None:
                x, converged, reason = self._again(problem, x, converged, reason)
                break
            with torch.no_grad():
                residuals = problem.residuals(x)
            found = noise.group_rms(self.base.measured, residuals, min(problem.size, 0.5 * int(problem.windows.mask.sum())))
            settled = bool(((found / levels - 1).abs() < 0.02).all())
            levels = found
            if settled:
                break
        problem = replace(self.base, sigma=noise.on_windows(self.base.windows, self.base.measured, levels))
        return Outcome(problem, x, levels, converged, reason, tuple(self.history))

    def _again(self, problem: Problem, x: Tensor, converged: bool, reason: str) -> tuple[Tensor, bool, str]:
        """Where the noise is known and the fit is far above it, shoot once more from what was found; the better one stays.

        A wrong minimum is mostly one trajectory on a wrong branch: its nodes start from the data again, and the shared
        parameters are nearly right by now.
        """
        cuts = self._cuts() if self.plan.judged else None
        if cuts is None:
            return x, converged, reason
        before = _excess(problem, x)
        if before < _FAR_ABOVE_NOISE:
            return x, converged, reason
        start = self._in_windows(x, cuts, None, again=True)
        found, then, why = self._minimise(problem, start, "whole trajectories, again", polish=True)
        return (found, then, why) if _excess(problem, found) < before else (x, converged, reason)

    def _cuts(self) -> list[list[int]] | None:
        """Where trajectories can be cut into windows that start from the data, or None if they cannot or should not."""
        choice = self.plan.shooting
        if choice == "single" or not self.base.states_free or self.base.observe is not None:
            return None
        cuts = window_cuts(self.base.measured, choice if isinstance(choice, int) else None)
        return cuts if max(len(edges) for edges in cuts) > 2 else None

    def _windows(self, x: Tensor) -> list[list[int]] | None:
        """Where to cut for multiple shooting, or None for single shooting."""
        cuts = self._cuts()
        if cuts is not None and self.plan.shooting == "auto" and not self.base.shared.weights:
            with torch.no_grad():
                solution = self.base.solve(x)
                predicted = self.base.predicted(solution)
            if bool(solution.ok.all()) and follows([*self.base.windows.values], [*predicted], [*self.base.windows.mask]):
                return None
        return cuts

    def _in_windows(self, x: Tensor, cuts: list[list[int]], levels: Tensor | None, *, again: bool = False) -> Tensor:
        """Multiple shooting: windows whose ends are pulled ever harder onto the next one's start."""
        measured = self.base.measured
        windows = cut(measured, cuts)
        guess = StateGuess(measured, self.base.dim, self.base.model)
        nodes = torch.stack([guess.at(number, start) for number, edges in enumerate(cuts) for start in edges[:-1]])
        y = torch.cat((x[: self.base.shared.size], nodes.reshape(-1)))
        rounds = _CONTINUITY if self.plan.method == "least_squares" else _CONTINUITY[1:]
        for number, weight in enumerate(rounds):
            problem = replace(self.base, windows=windows, continuity=weight, sigma=noise.on_windows(windows, measured, levels))
            y, _, _ = self._minimise(
                problem, y, f"windows, continuity {weight:g}{', again' if again else ''}", polish=again or number > 0
            )
        shared, states = problem.split(y)
        first = torch.searchsorted(windows.trajectory, torch.arange(len(cuts)))
        return torch.cat((shared, states[first].reshape(-1)))

    def _minimise(self, problem: Problem, x: Tensor, stage: str, *, polish: bool) -> tuple[Tensor, bool, str]:
        """One stage by the method of the plan; ``polish`` leaves Adam out."""
        if self.plan.method == "least_squares":
            return self._least_squares(problem, x, stage)
        converged, reason = False, ""
        if "adam" in self.plan.method and not (polish and "lbfgs" in self.plan.method):
            x, converged, reason = self._trained(problem, x, f"{stage}: Adam")
        if "lbfgs" in self.plan.method:
            x, converged, reason = self._trained(problem, x, f"{stage}: L-BFGS")
        return x, converged, reason

    def _least_squares(self, problem: Problem, x: Tensor, stage: str) -> tuple[Tensor, bool, str]:
        saved = self.folder.finished(stage) if self.folder is not None else None
        if saved is not None:
            self.history += list(saved.history)
            return saved.x, saved.done, saved.reason
        tolerance = 1e-3 if problem.continuity else 1e-8
        found = minimise(problem, x, self.reporter, stage=stage, max_iterations=self.plan.max_iterations, tolerance=tolerance)
        self.history += found.history
        self._keep(stage, Training(found.x, 0, {}, tuple(found.history), found.converged, found.reason), finished=True)
        return found.x, found.converged, found.reason

    def _trained(self, problem: Problem, x: Tensor, stage: str) -> tuple[Tensor, bool, str]:
        saved = self.folder.finished(stage) if self.folder is not None else None
        if saved is None:
            begun = self.folder.interrupted(stage) if self.folder is not None else None
            training = Training(x) if begun is None else begun

            def checkpoint(state: Training) -> None:
                self._keep(stage, state, finished=False)

            if stage.endswith("Adam"):
                saved = adam(
                    problem, training, self.reporter, stage=stage, steps=self.plan.adam_steps,
                    learning_rate=self.plan.learning_rate, checkpoint=checkpoint,
                )  # fmt: skip
            else:
                saved = lbfgs(
                    problem, training, self.reporter, stage=stage, steps=self.plan.max_iterations, checkpoint=checkpoint
                )
            self._keep(stage, saved, finished=True)
        self.history += list(saved.history)
        return saved.x, saved.done, saved.reason

    def _keep(self, stage: str, training: Training, *, finished: bool) -> None:
        if self.folder is not None:
            self.folder.checkpoint(stage, training, finished=finished)


def _excess(problem: Problem, x: Tensor) -> float:
    """Chi-square over the number of measurements."""
    with torch.no_grad():
        rows = problem.rows(x).data
    return float(rows.square().sum()) / max(1, len(rows))


def plan_stages(
    method: str, shooting: str | int, adam_steps: int, learning_rate: float, max_iterations: int, judged: bool
) -> Plan:
    """The stages as they were asked for, once all of it is understood."""
    if method not in _METHODS:
        raise InputError(f"unknown fit method {method!r}. Known: {', '.join(_METHODS)}")
    windows = isinstance(shooting, int) and not isinstance(shooting, bool) and shooting >= 1
    if not windows and shooting not in ("auto", "single", "multiple"):
        raise InputError(f'shooting must be "auto", "single", "multiple" or a number of windows; found {shooting!r}')
    for name, value in (("adam_steps", adam_steps), ("max_iterations", max_iterations)):
        if not (isinstance(value, int) and value >= 1):
            raise InputError(f"{name} must be a positive integer; found {value!r}")
    if not learning_rate > 0:
        raise InputError(f"learning_rate must be positive; found {learning_rate!r}")
    return Plan(method, shooting, adam_steps, learning_rate, max_iterations, judged)
