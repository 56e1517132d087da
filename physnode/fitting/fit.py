"""``fit``: from a model and trajectories to parameters with error bars."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from physnode.data.trajectories import Trajectories
from physnode.engine.controllers import Adaptive, Controller
from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction, trace
from physnode.errors import InputError
from physnode.fields import SecondOrder, VectorField, as_field, split_state
from physnode.fitting import noise
from physnode.fitting.least_squares import minimise
from physnode.fitting.measurements import Measurements, Observe, Windows, channels_of, cut
from physnode.fitting.model_spec import describe
from physnode.fitting.parameters import Bounds, Fixed, Prior, Shared, shared_parameters
from physnode.fitting.problem import Problem, Solver, learned_terms, returned_widths
from physnode.fitting.progress import Reporter, reporting
from physnode.fitting.result import FitResult
from physnode.fitting.run_folder import RunFolder
from physnode.fitting.starts import (
    StateGuess,
    follows,
    has_exact_start,
    known_starts,
    state_dim,
    state_labels,
    window_cuts,
)
from physnode.fitting.training import Training, adam, lbfgs
from physnode.fitting.wrap_up import conclude
from physnode.gradients import Gradient
from physnode.solve import FieldLike

__all__ = ["fit"]

_CONTINUITY = (10.0, 100.0, 1000.0)
_METHODS = ("auto", "least_squares", "adam", "lbfgs", "adam+lbfgs")


def fit(
    model: FieldLike,
    data: Trajectories,
    *,
    observe: Observe | None = None,
    free: Sequence[str] | None = None,
    fixed: Fixed = None,
    bounds: Bounds | None = None,
    priors: Mapping[str, tuple[float, float]] | None = None,
    initial_states: str | Sequence[Any] | Tensor = "estimate",
    sigma: Mapping[str, float] | None = None,
    absolute_sigma: bool | None = None,
    method: str = "auto",
    shooting: str | int = "auto",
    integrator: str | Method = "dop853",
    controller: Controller | None = None,
    gradient: str | Gradient = "aca",
    learned_strength: float = 1e-4,
    adam_steps: int = 400,
    learning_rate: float = 0.01,
    max_iterations: int = 100,
    run_folder: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
    spec: Mapping[str, Any] | None = None,
) -> FitResult:
    """Fit the free parameters of ``model``, its learned terms, and the initial states to trajectories.

    The loss is the sum over measurements of ((measured - predicted) / sigma)², plus priors, plus a weak penalty on the size of
    learned terms that picks the smallest of those that fit equally well.

    Args:
        model: a field; it is copied, and the copy is fitted in float64.
        data: trajectories; missing values are left out.
        observe: ``(t, y) -> {name: values}``, what is measured as a function of the state, for ``t`` ``(*batch, T, 1)`` and
            ``y`` ``(*batch, T, dim)``; by default the state itself, matched by component names or by order.
        free: physical constants to fit, such as ``("damping",)`` or ``("gm[1]",)``; by default those the model declares free.
        fixed: names to hold, or ``{"masses[0]": 1.0}`` to hold at a value. Single entries may be named.
        bounds: ``{name: (lowest, highest)}``, None for no limit; inside the domain that the model declares.
        priors: ``{name: (mean, sigma)}``, a normal prior of a free physical constant.
        initial_states: ``"estimate"`` (from the data, then fitted), guesses ``(trajectories, dim)`` to start from, or
            ``"known"``: the exact starts that the data keep (``initial``), else the first rows. A noisy first row is refused
            there, since it makes error bars far too small.
        sigma: ``{variable: standard deviation}`` in place of what the data say.
        absolute_sigma: True: the standard deviations are right as they stand; False: only their ratios, so that errors are
            scaled by the residuals. By default True where standard deviations are given. Without any, one noise level is
            estimated for each variable (each body of it) from the residuals.
        method: ``"least_squares"`` (trust region, exact Jacobian), ``"adam"``, ``"lbfgs"``, ``"adam+lbfgs"``; ``"auto"`` takes
            the first for physics alone, the last with learned terms.
        shooting: ``"single"``, a number of windows a trajectory, ``"multiple"`` (windows of about a dozen rows), or ``"auto"``:
            multiple where there is something to learn, or where the start does not follow the data. It always ends with
            whole trajectories.
        integrator, controller, gradient: as in :func:`physnode.solve`; by default ``"dop853"`` at rtol 1e-8, or 1e-6 with
            learned terms.
        learned_strength: weight of the learned term's mean square, in units of its output scale.
        adam_steps, learning_rate, max_iterations: length of the stages; a step of Adam moves an unknown by about
            ``learning_rate`` of its own size.
        run_folder: where to write configuration, checkpoints, metrics and the result, which :func:`physnode.load` opens.
        resume: go on in ``run_folder`` where a killed run stopped; the result is that of an uninterrupted run.
        seed: of whatever is drawn at random; no global generator is touched.
        progress: show a progress bar with the loss on standard error.
        spec: how to build the model again (written into the run folder); found by itself for physnode's own systems.

    Returns:
        A :class:`physnode.FitResult`.

    Raises:
        InputError: the model, the data and the options do not fit together.
        FitError: the fit cannot go on.
    """
    plan = _plan(method, shooting, adam_steps, learning_rate, max_iterations)
    if not learned_strength >= 0:
        raise InputError(f"learned_strength must not be negative; found {learned_strength!r}")
    fitted = copy.deepcopy(as_field(model)).to(torch.float64)
    shared = shared_parameters(fitted, free=free, fixed=fixed, bounds=bounds)
    guesses = None if isinstance(initial_states, str) else torch.as_tensor(initial_states, dtype=torch.float64)
    if isinstance(initial_states, str) and initial_states not in ("estimate", "known"):
        raise InputError(f'initial_states must be "estimate", "known" or a tensor of guesses; found {initial_states!r}')
    states_free = not (isinstance(initial_states, str) and initial_states == "known")
    if not shared.size and not states_free:
        raise InputError("nothing is free: name physical constants in free=, or add a learned term")
    measured = measure(fitted, data, observe, guesses, sigma, known=not states_free)
    starts = _initial_states(fitted, measured, data, guesses, known=not states_free, noisy=sigma is not None)
    dim = starts.shape[1]
    _refuse_hidden_parameters(fitted, starts)
    solver = Solver(integrator, controller or _controller(measured, starts, learned=bool(shared.weights)), gradient)
    if method == "auto":
        plan = replace(plan, method="adam+lbfgs" if shared.weights else "least_squares")
    beliefs = {name: Prior(*pair) for name, pair in (priors or {}).items()}
    _check_priors(shared, beliefs)
    scale = _state_scale(measured, starts, dim)
    visited = _calibrate(fitted, shared, measured, starts, dim)
    settings = {
        "free": [scalar.name for scalar in shared.free],
        "start": {scalar.name: scalar.start for scalar in shared.scalars},
        "bounds": {name: list(pair) for name, pair in (bounds or {}).items()},
        "priors": {name: [prior.mean, prior.sigma] for name, prior in beliefs.items()},
        "sigma": None if sigma is None else {name: float(value) for name, value in sigma.items()},
        "fixed": [scalar.name for scalar in shared.scalars if not scalar.free],
        "weights": sum(shared.tensors[name].numel() for name in shared.weights),
        "initial_states": "estimated" if states_free else "known",
        "method": plan.method,
        "shooting": shooting,
        "integrator": solver.method if isinstance(solver.method, str) else solver.method.name,
        "controller": repr(solver.controller),
        "gradient": solver.gradient if isinstance(solver.gradient, str) else solver.gradient.name,
        "learned_strength": learned_strength,
        "adam_steps": adam_steps,
        "learning_rate": learning_rate,
        "max_iterations": max_iterations,
        "seed": seed,
    }
    model_spec = dict(spec) if spec is not None else describe(fitted)
    levels = None if measured.sigma is not None else noise.spread(measured)
    whole = cut(measured, window_cuts(measured, 1))
    base = Problem(
        model=fitted,
        shared=shared,
        windows=whole,
        measured=measured,
        solver=solver,
        sigma=_window_sigma(whole, measured, levels),
        state_scale=scale,
        observe=observe,
        priors=beliefs,
        strength=learned_strength if shared.weights else 0.0,
        visited=visited,
        states_free=states_free,
        known_states=None if states_free else starts,
    )
    start = torch.cat((shared.start, starts.reshape(-1) if states_free else starts.new_zeros(0)))
    folder = None
    if run_folder is not None:
        folder = RunFolder(Path(run_folder), resume=resume)
        folder.begin({"settings": settings, "model": model_spec}, measured)
        start = folder.start(start)
    with reporting(progress) as reporter:
        run = _Run(base, plan, reporter, folder)
        outcome = run.everything(start, levels)
    return conclude(outcome, absolute_sigma=absolute_sigma, settings=settings, spec=model_spec, folder=folder)


@dataclass(frozen=True)
class _Plan:
    method: str
    shooting: str | int
    adam_steps: int
    learning_rate: float
    max_iterations: int


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


class _Run:
    """The stages of one fit, in order; each is skipped where the run folder holds its end."""

    def __init__(self, base: Problem, plan: _Plan, reporter: Reporter, folder: RunFolder | None) -> None:
        self.base, self.plan, self.reporter, self.folder = base, plan, reporter, folder
        self.history: list[dict[str, Any]] = []

    def everything(self, x: Tensor, levels: Tensor | None) -> Outcome:
        """Shoot in windows if that is called for, then fit whole trajectories, and estimate noise that is not known."""
        windows = self._windows(x)
        if windows is not None:
            x, levels = self._in_windows(x, windows, levels)
        converged, reason = False, ""
        for round_number in range(1 if levels is None else 4):
            problem = replace(self.base, sigma=_window_sigma(self.base.windows, self.base.measured, levels))
            first = "whole trajectories" if round_number == 0 else f"noise level, round {round_number}"
            x, converged, reason = self._minimise(problem, x, first, polish=round_number > 0 or windows is not None)
            if levels is None:
                break
            with torch.no_grad():
                residuals = residual_tables(problem, x)
            found = noise.group_rms(self.base.measured, residuals, min(problem.size, 0.5 * int(problem.windows.mask.sum())))
            settled = bool(((found / levels - 1).abs() < 0.02).all())
            levels = found
            if settled:
                break
        problem = replace(self.base, sigma=_window_sigma(self.base.windows, self.base.measured, levels))
        return Outcome(problem, x, levels, converged, reason, tuple(self.history))

    def _windows(self, x: Tensor) -> list[list[int]] | None:
        """Where to cut for multiple shooting, or None for single shooting."""
        choice = self.plan.shooting
        if choice == "single" or not self.base.states_free:
            return None
        cuts = window_cuts(self.base.measured, choice if isinstance(choice, int) else None)
        if max(len(edges) for edges in cuts) <= 2 or self.base.observe is not None:
            return None
        if choice == "auto" and not self.base.shared.weights:
            with torch.no_grad():
                solution = self.base.solve(x)
                predicted = self.base.predicted(solution)
            if bool(solution.ok.all()) and follows([*self.base.windows.values], [*predicted], [*self.base.windows.mask]):
                return None
        return cuts

    def _in_windows(self, x: Tensor, cuts: list[list[int]], levels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Multiple shooting: windows whose ends are pulled ever harder onto the next one's start."""
        measured = self.base.measured
        windows = cut(measured, cuts)
        guess = StateGuess(measured, self.base.dim, self.base.model)
        nodes = torch.stack([guess.at(number, start) for number, edges in enumerate(cuts) for start in edges[:-1]])
        y = torch.cat((x[: self.base.shared.size], nodes.reshape(-1)))
        rounds = _CONTINUITY if self.plan.method == "least_squares" else _CONTINUITY[1:]
        for number, weight in enumerate(rounds):
            problem = replace(self.base, windows=windows, continuity=weight, sigma=_window_sigma(windows, measured, levels))
            y, _, _ = self._minimise(problem, y, f"windows, continuity {weight:g}", polish=number > 0)
        shared, states = problem.split(y)
        first = torch.tensor([sum(len(edges) - 1 for edges in cuts[:number]) for number in range(len(cuts))])
        return torch.cat((shared, states[first].reshape(-1))), levels

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
        tolerance = 1e-3 if problem.continuity else 1e-10
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


def measure(
    model: VectorField,
    data: Trajectories,
    observe: Observe | None,
    guesses: Tensor | None,
    sigma: Mapping[str, float] | None,
    *,
    known: bool = False,
) -> Measurements:
    """What of ``data`` is compared with what of ``model``; first rows that serve as ``known`` starts are left out."""
    labels = state_labels(model)
    dim = int(guesses.shape[-1]) if guesses is not None else state_dim(model)
    exact_start = known and not all(has_exact_start(item) for item in data)
    if observe is None:
        return channels_of(data, dim=dim, labels=labels, sigma=sigma, exact_start=exact_start)
    returned = returned_widths(observe, dim if dim is not None else data.dim)
    return channels_of(data, dim=dim, labels=labels, returned=returned, sigma=sigma, exact_start=exact_start)


def residual_tables(problem: Problem, x: Tensor) -> list[Tensor]:
    """Measured minus predicted for whole trajectories, ``(n_i, C)``; NaN where nothing was measured."""
    predicted = problem.predicted(problem.solve(x))
    difference = torch.where(problem.windows.mask, problem.windows.values - predicted, torch.nan)
    return [difference[i, : len(t)] for i, t in enumerate(problem.measured.t)]


def _window_sigma(windows: Windows, measured: Measurements, levels: Tensor | None) -> Tensor:
    if levels is None:
        return windows.sigma
    _, group = measured.groups
    return levels[group].expand(windows.sigma.shape)


def _initial_states(
    model: VectorField, measured: Measurements, data: Trajectories, guesses: Tensor | None, *, known: bool, noisy: bool
) -> Tensor:
    count = len(measured.t)
    if guesses is not None:
        if guesses.ndim != 2 or len(guesses) != count:
            raise InputError(f"initial_states must have shape ({count}, dim); found {tuple(guesses.shape)}")
        return guesses.clone()
    dim = state_dim(model) or data.dim
    if known:
        return known_starts(data, measured.state_columns, dim, noisy=noisy)
    guess = StateGuess(measured, dim, model)
    return torch.stack([guess.at(i, 0) for i in range(count)])


def _state_scale(measured: Measurements, starts: Tensor, dim: int) -> Tensor:
    """Root mean square of each component over the data, or of the guesses where it is not measured."""
    scale = starts.square().mean(0).sqrt()
    if measured.state_columns is not None:
        values, observed = torch.cat(list(measured.values)), torch.cat(list(measured.observed))
        rms = (values.square().sum(0) / observed.sum(0).clamp(min=1)).sqrt()
        scale = scale.index_put((torch.tensor(measured.state_columns),), rms)
    typical = scale[scale > 0].mean() if bool((scale > 0).any()) else torch.tensor(1.0, dtype=torch.float64)
    return torch.where(scale > 0, scale, typical)


def _controller(measured: Measurements, starts: Tensor, *, learned: bool) -> Adaptive:
    """Tolerances far below the noise of most data, and measured by the size of each component."""
    rtol = 1e-6 if learned else 1e-8
    return Adaptive(rtol=rtol, atol=1e-3 * rtol * _state_scale(measured, starts, starts.shape[1]))


def _calibrate(model: Any, shared: Shared, measured: Measurements, starts: Tensor, dim: int) -> Tensor | None:
    """Set the input and output scales of learned terms from the data; returns the states where their size is measured."""
    terms = learned_terms(model) if shared.weights else []
    if not terms:
        return None
    if measured.state_columns is None:
        visited = starts
    else:
        guess = StateGuess(measured, dim, model)
        visited = torch.cat([guess.along(i) for i in range(len(measured.t))])
    with torch.no_grad():
        rate = model(visited.new_zeros(len(visited), 1), visited).square().mean(0).sqrt()
    for term in terms:
        calibrate = getattr(term, "calibrate", None)
        if callable(calibrate):
            own = split_state(rate)[1] if isinstance(term, SecondOrder) else rate
            calibrate(visited, torch.where(own > 0, own, rate.mean().clamp(min=1e-300)))
    stride = max(1, len(visited) // 2000)
    return visited[::stride].clone()


def _plan(method: str, shooting: str | int, adam_steps: int, learning_rate: float, max_iterations: int) -> _Plan:
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
    return _Plan(method, shooting, adam_steps, learning_rate, max_iterations)


def _refuse_hidden_parameters(model: VectorField, starts: Tensor) -> None:
    """Refuse a model that reads trainable tensors which are no parameters of it: they would silently stay where they are."""
    point = starts[:1]
    found = trace(FieldFunction(model, (1,), point.dtype), point.new_zeros(1), point).theta
    own = {id(parameter) for parameter in model.parameters()}
    hidden = [tensor for tensor in found if id(tensor) not in own]
    if hidden:
        raise InputError(
            f"the model reads a tensor of shape {tuple(hidden[0].shape)} that requires a gradient but is no parameter of it, "
            "so the fit could not move it. Make it an nn.Parameter of an nn.Module, or detach it if it is a constant"
        )


def _check_priors(shared: Shared, priors: Mapping[str, Prior]) -> None:
    names = [scalar.name for scalar in shared.free]
    for name, prior in priors.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f' Did you mean "{close[0]}"?' if close else ""
            raise InputError(
                f'priors names "{name}", which is not a free physical constant.{hint} Free: {", ".join(names) or "none"}'
            )
        if not prior.sigma > 0:
            raise InputError(f"the prior of {name} needs a positive standard deviation; found {prior.sigma}")
