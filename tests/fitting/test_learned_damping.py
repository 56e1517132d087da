"""Learn a damping from noisy swings: the fit reaches the noise on unseen swings, and what it learned is the damping."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import physnode as pn
from physnode.nn import Residual

DATA = Path(__file__).resolve().parents[2] / "data" / "pendulum" / "pendulum.h5"
DAMPING = 0.15

pytestmark = pytest.mark.xdist_group("learned damping")


def swings(split: str) -> pn.data.Trajectories:
    return pn.data.open(DATA).split(split)


def learned_torque(model: torch.nn.Module, states: Tensor) -> Tensor:
    [term] = [module for module in model.modules() if isinstance(module, Residual)]
    assert isinstance(term, pn.SecondOrder)
    with torch.no_grad():
        return term.acceleration(torch.zeros(len(states), 1), states[:, :1], states[:, 1:])[:, 0]


def share_explained(model: torch.nn.Module) -> float:
    """1 - SS_res / SS_tot of the learned torque against the true one, on the states that test swings visit."""
    states = torch.cat([item.y[item.observed.all(-1)] for item in swings("test")])
    truth = -DAMPING * states[:, 1]
    found = learned_torque(model, states)
    return 1 - float((found - truth).square().sum() / (truth - truth.mean()).square().sum())


@pytest.fixture(scope="module")
def learned() -> pn.FitResult:
    """An undamped pendulum of unknown frequency, and a network that sees the angular velocity."""
    torch.set_num_threads(1)
    term = Residual(2, 16, 1, inputs=("v",), generator=torch.Generator().manual_seed(1))
    model = pn.systems.Pendulum(frequency=1.8, free=("frequency",)) + term
    return pn.fit(model, swings("train"), method="least_squares", max_iterations=30, progress=False)


def test_reaches_the_noise_on_swings_it_has_not_seen(learned: pn.FitResult) -> None:
    validation = learned.validate(swings("test"))
    assert 0.8 < validation.reduced_chi2 < 1.2
    assert validation.converged
    measured = sum(int(item.observed.sum()) for item in swings("test"))
    assert validation.dof == measured - 2 * 4  # the estimated starts of four swings are counted
    assert all(0.6 < value < 1.5 for value in validation.per_trajectory.values())
    assert "reduced chi-square" in str(validation)


def test_what_it_learned_is_the_damping(learned: pn.FitResult) -> None:
    assert share_explained(learned.model) > 0.98


def test_finds_the_frequency_besides(learned: pn.FitResult) -> None:
    assert abs(learned.parameters["frequency"] - 2.0) < 4 * learned.errors["frequency"]
    assert learned.errors["frequency"] < 0.001
    assert 0.9 < learned.reduced_chi2 < 1.2


def test_physics_alone_cannot(learned: pn.FitResult) -> None:
    """The same test is failed by the undamped pendulum, so that it says something."""
    undamped = pn.systems.Pendulum(frequency=learned.parameters["frequency"], free=("frequency",))
    alone = pn.fit(undamped, swings("train")[:2], method="least_squares", max_iterations=10, progress=False)
    assert alone.validate(swings("test")[:2]).reduced_chi2 > 20


def test_error_bars_count_the_freedom_of_the_network(learned: pn.FitResult) -> None:
    """Effective unknowns: fewer than the weights and starts there are, since the size of the learned term is held small."""
    assert learned.dof < learned.measured.rows_used - 13
    assert learned.dof > learned.measured.rows_used - learned.x.numel()


def test_a_network_that_sees_everything_learns_it_too() -> None:
    """With angle and velocity for inputs and the frequency known; noise then leaks into directions that are zero in truth."""
    term = Residual(2, 8, 1, generator=torch.Generator().manual_seed(1))
    model = pn.systems.Pendulum(frequency=2.0) + term
    result = pn.fit(model, swings("train"), method="least_squares", max_iterations=12, progress=False)
    assert 0.8 < result.validate(swings("test")).reduced_chi2 < 1.2
    assert share_explained(result.model) > 0.95


@pytest.mark.slow
def test_by_adam_and_lbfgs() -> None:
    """The default way with learned terms."""
    term = Residual(2, 16, 1, inputs=("v",), generator=torch.Generator().manual_seed(1))
    model = pn.systems.Pendulum(frequency=1.8, free=("frequency",)) + term
    result = pn.fit(model, swings("train"), adam_steps=100, max_iterations=20, progress=False)
    assert 0.8 < result.validate(swings("test")).reduced_chi2 < 1.2
    assert share_explained(result.model) > 0.98
