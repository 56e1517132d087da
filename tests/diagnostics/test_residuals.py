from __future__ import annotations

import math

import pytest
import torch

from physnode.diagnostics import residual_statistics
from physnode.errors import InputError


def autoregressive(rho: float, n: int, seed: int) -> torch.Tensor:
    """A stationary first-order autoregression of unit variance."""
    noise = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values = [noise[0]]
    for i in range(1, n):
        values.append(rho * values[-1] + math.sqrt(1 - rho**2) * noise[i])
    return torch.stack(values)


@pytest.mark.parametrize("rho", [0.0, 0.6, -0.4])
def test_autocorrelation_and_durbin_watson_of_a_known_process(rho: float) -> None:
    residuals = [0.5 * autoregressive(rho, 1500, seed).unsqueeze(1) for seed in (1, 2)]
    found = residual_statistics(["x"], residuals, [torch.full_like(item, 0.5) for item in residuals]).channels[0]
    assert found.count == 3000
    assert found.autocorrelation == pytest.approx(rho, abs=0.06)
    assert found.durbin_watson == pytest.approx(2 * (1 - rho), abs=0.12)
    assert found.rms == pytest.approx(1, abs=0.08)
    assert found.correlated is (rho != 0)


def test_missing_values_and_ends_of_trajectories_make_no_pairs() -> None:
    nan = math.nan
    residuals = [torch.tensor([[1.0, nan], [nan, nan], [1.0, nan]]), torch.tensor([[-1.0, 2.0]])]
    found = residual_statistics(["a", "b"], residuals, [torch.ones_like(item) for item in residuals])
    a, b = found.channels
    assert (a.count, a.mean, a.rms) == (3, pytest.approx(1 / 3), 1.0)
    assert a.autocorrelation == pytest.approx(1 / 3)  # one pair, 1 times 1, over a power of 3
    assert a.durbin_watson == 0
    assert b.count == 1
    assert math.isnan(b.autocorrelation)
    assert found.per_trajectory == (1.0, 2.5)
    assert found.worst == 1


def test_the_worst_trajectory_is_found_beside_an_empty_one() -> None:
    residuals = [torch.full((3, 1), math.nan), torch.full((3, 1), 0.5), torch.full((3, 1), 4.0)]
    found = residual_statistics(["a"], residuals, [torch.ones(3, 1)] * 3)
    assert math.isnan(found.per_trajectory[0])
    assert found.worst == 2


def test_shapes_are_checked() -> None:
    with pytest.raises(InputError, match="same trajectories"):
        residual_statistics(["a"], [], [])
    with pytest.raises(InputError, match="shape"):
        residual_statistics(["a"], [torch.zeros(3, 2)], [torch.zeros(3, 2)])
