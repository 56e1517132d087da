"""``fit``: from a model and trajectories to parameters with error bars."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from physnode import gradients
from physnode.data.trajectories import Trajectories
from physnode.engine import methods
from physnode.engine.controllers import Controller
from physnode.engine.families.base import Method
from physnode.errors import InputError
from physnode.fields import as_field
from physnode.fitting import noise
from physnode.fitting.measurements import Observe, cut
from physnode.fitting.model_spec import describe
from physnode.fitting.parameters import Bounds, Fixed, shared_parameters
from physnode.fitting.problem import Problem, Solver
from physnode.fitting.progress import reporting
from physnode.fitting.result import FitResult
from physnode.fitting.run_folder import RunFolder
from physnode.fitting.setup import (
    calibrate,
    default_controller,
    first_states,
    measure,
    read_priors,
    refuse_hidden_parameters,
    state_scale,
    with_code,
)
from physnode.fitting.stages import Stages, plan_stages
from physnode.fitting.starts import window_cuts
from physnode.fitting.wrap_up import conclude
from physnode.gradients import Gradient
from physnode.native.choice import Choice, checked_choice
from physnode.solve import FieldLike

__all__ = ["fit"]


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
    compile: Choice = "auto",
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
            whole trajectories; if chi-square is then far above 1, windows are tried once more from the parameters found.
        integrator, controller, gradient: as in :func:`physnode.solve`; by default ``"dop853"`` at rtol 1e-8, or 1e-6 with
            learned terms.
        compile: whether trajectories are solved, and differentiated, by native code, as in :func:`physnode.solve`; ``"auto"``:
            where the fit takes hundreds of gradients (Adam, L-BFGS), silently not where there can be none. Making the code
            takes some seconds, once.
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
    plan = plan_stages(method, shooting, adam_steps, learning_rate, max_iterations, judged=absolute_sigma is not False)
    if not learned_strength >= 0:
        raise InputError(f"learned_strength must not be negative; found {learned_strength!r}")
    integrator, gradient = methods.get(integrator), gradients.get(gradient)
    fitted = copy.deepcopy(as_field(model)).to(torch.float64)
    shared = shared_parameters(fitted, free=free, fixed=fixed, bounds=bounds)
    shared.place(fitted)
    guesses = None if isinstance(initial_states, str) else torch.as_tensor(initial_states, dtype=torch.float64)
    if isinstance(initial_states, str) and initial_states not in ("estimate", "known"):
        raise InputError(f'initial_states must be "estimate", "known" or a tensor of guesses; found {initial_states!r}')
    states_free = not (isinstance(initial_states, str) and initial_states == "known")
    if observe is not None and shooting not in ("auto", "single") and states_free:
        raise InputError(
            'multiple shooting needs states to start its windows from, which observe= does not give; use shooting="single"'
        )
    if not shared.size and not states_free:
        raise InputError("nothing is free: name physical constants in free=, or add a learned term")
    measured = measure(fitted, data, observe, guesses, sigma, known=not states_free)
    starts = first_states(fitted, measured, data, guesses, known=not states_free, noisy=sigma is not None)
    dim = starts.shape[1]
    refuse_hidden_parameters(fitted, starts)
    scale = state_scale(measured, starts, dim)
    solver = Solver(integrator, controller or default_controller(scale, learned=bool(shared.weights)), gradient)
    if method == "auto":
        plan = replace(plan, method="adam+lbfgs" if shared.weights else "least_squares")
    solver = replace(solver, compile=checked_choice(compile) is True or (compile == "auto" and plan.takes_gradients))
    beliefs = read_priors(shared, priors or {})
    visited = calibrate(fitted, shared, measured, starts, dim)
    settings = {
        "free": [scalar.name for scalar in shared.free],
        "start": {scalar.name: scalar.start for scalar in shared.scalars},
        "bounds": {name: list(pair) for name, pair in (bounds or {}).items()},
        "priors": {name: [prior.mean, prior.sigma] for name, prior in beliefs.items()},
        "sigma": None if sigma is None else {name: float(value) for name, value in sigma.items()},
        "fixed": [scalar.name for scalar in shared.scalars if not scalar.free],
        "weights": sum(shared.tensors[name].numel() for name in shared.weights),
        "absolute_sigma": absolute_sigma,
        "observe": None if observe is None else getattr(observe, "__qualname__", type(observe).__name__),
        "initial_states": "estimated" if states_free else "known",
        "method": plan.method,
        "shooting": shooting,
        "integrator": integrator.name,
        "controller": repr(solver.controller),
        "gradient": gradient.name,
        "compile": compile,
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
        sigma=noise.on_windows(whole, measured, levels),
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
        if solver.compile:
            reporter.stage("compiling the field", None)
            base = with_code(base, start, needed=compile is True)
        outcome = Stages(base, plan, reporter, folder).run(start, levels)
    return conclude(outcome, absolute_sigma=absolute_sigma, settings=settings, spec=model_spec, folder=folder)
