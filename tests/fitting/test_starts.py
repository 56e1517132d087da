"""Where a fit begins: states read off the data, and where trajectories are cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import physnode as pn
from physnode.errors import InputError
from physnode.fitting.measurements import channels_of
from physnode.fitting.starts import StateGuess, follows, window_cuts

Swings = Callable[..., pn.data.Trajectories]
LABELS = ["angle", "angular_velocity"]


def guess(data: pn.data.Trajectories) -> StateGuess:
    return StateGuess(channels_of(data, dim=2, labels=LABELS), 2, pn.systems.Pendulum())


def test_velocities_are_slopes_of_angles(swings: Swings) -> None:
    t = np.sort(np.random.default_rng(0).uniform(0, 8, 100))
    full, angles = swings(t=t, noise=1e-6), swings(t=t, noise=1e-6, variables=("angle",))
    found, wanted = guess(angles).along(1), full[1].y
    assert torch.allclose(found[:, 0], wanted[:, 0], atol=1e-4)
    assert float((found[:, 1] - wanted[:, 1]).abs().mean()) < 0.05
    assert float((found[:, 1] - wanted[:, 1]).abs().max()) < 0.5


def test_missing_values_are_read_between_their_neighbours(swings: Swings) -> None:
    mask = np.ones(40, dtype=bool)
    mask[[0, 7]] = False
    data = swings([(1.2, 0.0)], noise=1e-6, observed={"angle": [mask]})
    whole = swings([(1.2, 0.0)], noise=1e-6)
    found = guess(data)
    assert float(found.at(0, 7)[0]) == pytest.approx(float(whole[0].y[[6, 8], 0].mean()), abs=1e-3)
    assert float(found.at(0, 0)[0]) == pytest.approx(float(whole[0].y[1, 0]), abs=1e-3)
    assert float(found.at(0, 7)[1]) == float(data[0].y[7, 1])


def test_a_component_that_cannot_be_guessed(swings: Swings) -> None:
    only_speed = channels_of(swings(variables=("angular_velocity",)), dim=2, labels=LABELS)
    with pytest.raises(InputError, match="component 0 of the state"):
        StateGuess(only_speed, 2, pn.systems.Pendulum())
    nothing = np.zeros(40, dtype=bool)
    with pytest.raises(InputError, match="angle is never observed in trajectory 0"):
        guess(swings([(1.2, 0.0)], observed={"angle": [nothing]})).at(0, 0)


def test_windows_share_rows_at_their_ends(swings: Swings) -> None:
    measured = channels_of(swings(t=[np.linspace(0, 8, 40), np.linspace(0, 1, 5)]), dim=2, labels=LABELS)
    assert window_cuts(measured, 1) == [[0, 39], [0, 4]]
    assert window_cuts(measured, 3) == [[0, 13, 26, 39], [0, 1, 3, 4]]
    assert window_cuts(measured, 99)[1] == [0, 1, 2, 3, 4]
    assert [len(cuts) for cuts in window_cuts(measured, None)] == [4, 2]


def test_a_prediction_follows_or_it_does_not() -> None:
    t = torch.linspace(0, 10, 50, dtype=torch.float64)
    data = torch.sin(t).unsqueeze(-1)
    seen = torch.ones(50, 1, dtype=torch.bool)
    assert follows([data], [0.8 * data], [seen])
    assert not follows([data], [torch.sin(1.4 * t).unsqueeze(-1)], [seen])
    assert not follows([data], [data * torch.nan], [seen])
    assert not follows([data], [torch.zeros_like(data)], [seen])
