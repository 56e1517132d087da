"""The Jacobian and the gradient that every fit rests on, against differences and reverse mode on steps that do not move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import physnode as pn
from physnode.fitting.measurements import Measurements, channels_of, cut
from physnode.fitting.parameters import Prior, shared_parameters
from physnode.fitting.problem import Problem, Solver, returned_widths
from physnode.fitting.starts import window_cuts

STEPS = pn.Fixed(0.07)


def data_of(swings: Callable[..., pn.data.Trajectories]) -> pn.data.Trajectories:
    """Two trajectories of unequal length and unequal times, with holes."""
    rng = np.random.default_rng(1)
    times = [np.sort(rng.uniform(0, 3, 17)), np.sort(rng.uniform(-1, 1, 9))]
    masks = [rng.uniform(size=len(t)) > 0.2 for t in times]
    masks[0][3], masks[1][2] = False, False
    return swings(t=times, observed={"angle": masks})


def learned_model() -> pn.VectorField:
    term = pn.nn.Residual(2, 3, 1, inputs=("v",), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for value in term.parameters():
            value += 0.2 * torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(2))
    return pn.systems.Pendulum(1.9, 0.1, free=("frequency", "damping")) + term


def tip(t: Tensor, y: Tensor) -> Mapping[str, Tensor]:
    """What a camera sees: where the bob is, a non-linear function of the state and (a little) of time."""
    return {"bob": torch.stack((torch.sin(y[..., 0]), -torch.cos(y[..., 0]) + 0.1 * t[..., 0] * y[..., 1]), -1)}


def problem_of(kind: str, swings: Callable[..., pn.data.Trajectories]) -> Problem:
    data, model = data_of(swings), pn.systems.Pendulum(1.9, 0.1, free=("frequency", "damping"))
    observe = None
    windows, strength, priors = 1, 0.0, {}
    if kind in ("windows", "everything"):
        windows = 3
    if kind in ("learned", "everything"):
        model, strength = learned_model(), 0.3
    if kind in ("priors", "everything"):
        priors = {"damping": Prior(0.2, 0.05)}
    measured: Measurements
    if kind == "observe":
        observe = tip
        rng = np.random.default_rng(2)
        times = [item.t.numpy() for item in data]
        bobs = [rng.normal(size=(len(t), 2)) for t in times]
        data = pn.data.from_arrays(times, observations={"bob": bobs}, sigma={"bob": 0.1})
        measured = channels_of(data, dim=2, labels=None, returned=returned_widths(tip, 2))
    else:
        measured = channels_of(data, dim=2, labels=["angle", "angular_velocity"])
    rows = cut(measured, window_cuts(measured, windows))
    generator = torch.Generator().manual_seed(3)
    known = torch.randn(len(rows.t), 2, dtype=torch.float64, generator=generator) if kind == "known starts" else None
    return Problem(
        model=model,
        shared=shared_parameters(model),
        windows=rows,
        measured=measured,
        solver=Solver("dop853", STEPS, "direct"),
        sigma=rows.sigma,
        state_scale=torch.tensor([1.3, 2.0], dtype=torch.float64),
        observe=observe,
        continuity=7.0 if windows > 1 else 0.0,
        priors=priors,
        strength=strength,
        visited=torch.randn(11, 2, dtype=torch.float64, generator=generator) if strength else None,
        states_free=known is None,
        known_states=known,
    )


def point_of(problem: Problem) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    states = torch.randn(problem.size - problem.shared.size, dtype=torch.float64, generator=generator)
    return torch.cat((problem.shared.start, states))


KINDS = ["plain", "windows", "learned", "priors", "observe", "known starts", "everything"]


@pytest.mark.parametrize("kind", KINDS)
class TestJacobian:
    def test_equals_differences(self, kind: str, swings: Callable[..., pn.data.Trajectories]) -> None:
        problem = problem_of(kind, swings)
        x = point_of(problem)
        with torch.no_grad():
            found = problem.jacobian(x, problem.solve(x, dense=True))
            assert found.shape == (len(problem.rows(x).all), problem.size)
            for i in range(problem.size):
                step = torch.zeros_like(x)
                step[i] = 1e-4
                rows = [problem.rows(x + k * step).all for k in (-2, -1, 1, 2)]
                wanted = (rows[0] - 8 * rows[1] + 8 * rows[2] - rows[3]) / 1.2e-3
                assert float((found[:, i] - wanted).abs().max()) <= 1e-6 * max(1.0, float(wanted.abs().max()))

    def test_equals_reverse_mode(self, kind: str, swings: Callable[..., pn.data.Trajectories]) -> None:
        problem = problem_of(kind, swings)
        x = point_of(problem)
        with torch.no_grad():
            solution = problem.solve(x, dense=True)
            found = problem.jacobian(x, solution)
            few_at_a_time = problem.jacobian(x, solution, chunk=2)
        free = x.clone().requires_grad_()
        rows = problem.rows(free).all
        (wanted,) = torch.autograd.grad(rows, free, torch.eye(len(rows), dtype=x.dtype), is_grads_batched=True)
        assert float((found - wanted).abs().max()) <= 1e-10 * float(wanted.abs().max())
        assert float((few_at_a_time - found).abs().max()) <= 1e-12 * float(wanted.abs().max())

    @pytest.mark.parametrize("gradient", ["aca", "symplectic", "direct"])
    def test_gives_the_gradient_of_the_loss(
        self, kind: str, gradient: str, swings: Callable[..., pn.data.Trajectories]
    ) -> None:
        problem = problem_of(kind, swings)
        problem = replace(problem, solver=Solver("dop853", STEPS, gradient))
        x = point_of(problem)
        with torch.no_grad():
            rows = problem.rows(x).all
            wanted = problem.jacobian(x, problem.solve(x, dense=True)).T @ rows / int(problem.windows.mask.sum())
        free = x.clone().requires_grad_()
        loss = problem.loss(free)
        loss.backward()
        assert free.grad is not None
        assert float(loss.detach()) == pytest.approx(
            0.5 * float(rows.square().sum()) / int(problem.windows.mask.sum()), rel=1e-13
        )
        assert float((free.grad - wanted).abs().max()) <= 1e-10 * float(wanted.abs().max())


def test_a_window_ends_where_the_next_one_starts(swings: Callable[..., pn.data.Trajectories]) -> None:
    problem = problem_of("windows", swings)
    windows = problem.windows
    assert int(windows.mask.sum()) == problem.measured.rows_used  # each measurement counts once
    for s, following in enumerate(windows.following.tolist()):
        if following >= 0:
            assert windows.t[s, windows.last[s]] == windows.t[following, 0]
            assert windows.trajectory[s] == windows.trajectory[following]
    assert windows.following.tolist().count(-1) == 2


def test_continuous_windows_owe_nothing(swings: Callable[..., pn.data.Trajectories]) -> None:
    """With nodes on one trajectory, windows predict what the whole trajectory does, and continuity rows are zero."""
    problem = problem_of("windows", swings)
    whole = problem_of("plain", swings)
    x = torch.cat((whole.shared.start, torch.tensor([1.0, 0.2, -1.5, 0.3], dtype=torch.float64)))
    with torch.no_grad():
        states = []
        for number, t in enumerate(problem.measured.t):
            nodes = problem.windows.t[problem.windows.trajectory == number, 0]
            start = x[2 + 2 * number : 4 + 2 * number]
            states.append(pn.solve(whole.model, start, nodes, t0=float(t[0]), method="dop853", controller=pn.Fixed(0.01)).ys)
        y = torch.cat((whole.shared.start, torch.cat(states).reshape(-1)))
        assert float(problem.rows(y).continuity.abs().max()) < 1e-8
        assert float(problem.rows(y).data.square().sum()) == pytest.approx(float(whole.rows(x).data.square().sum()), rel=1e-8)


def test_a_failed_window_gives_finite_rows_and_no_derivative(swings: Callable[..., pn.data.Trajectories]) -> None:
    problem = replace(problem_of("plain", swings), solver=Solver("dop853", pn.Adaptive(1e-6, 1e-6), "aca"))
    x = point_of(problem)
    x[2] = torch.inf  # the start of the first trajectory
    with torch.no_grad():
        solution = problem.solve(x, dense=True)
        rows = problem.rows(x, solution).all
        jacobian = problem.jacobian(x, solution)
    first = problem.windows.mask[0].sum()
    assert torch.isfinite(rows).all()
    assert torch.isfinite(jacobian).all()
    assert float(rows[:first].square().mean()) > 1e9
    assert (jacobian[:first] == 0).all()
    assert (jacobian[first:, 4:] != 0).any()
    with pytest.raises(pn.errors.FitError, match="could not be integrated"):
        problem.loss(x.requires_grad_())
