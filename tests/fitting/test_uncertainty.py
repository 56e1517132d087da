"""Covariances from Jacobians and scores: long-run variance, null directions, words for what is not determined."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from physnode.fitting import uncertainty
from physnode.fitting.uncertainty import combination, determine, score_covariance


def autoregression(n: int, correlation: float, seed: int, columns: int = 1) -> Tensor:
    """Stationary, unit variance; the variance of its sum is n (1 + correlation) / (1 - correlation) for long n."""
    noise = torch.randn(n, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values = [noise[0]]
    for row in noise[1:]:
        values.append(correlation * values[-1] + (1 - correlation**2) ** 0.5 * row)
    return torch.stack(values)


class TestScoreCovariance:
    @pytest.mark.parametrize("bandwidth", [1.0, 7.3, 33.0, 150.0])
    def test_direct_and_fourier_sums_agree(self, bandwidth: float, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = autoregression(200, 0.5, 1, columns=3)
        total = scores.T @ scores
        for lag in range(1, len(scores)):
            weight = max(0.0, 1 - lag / (bandwidth + 1))
            product = scores[:-lag].T @ scores[lag:]
            total = total + weight * (product + product.T)
        monkeypatch.setattr(uncertainty, "_bandwidth", lambda _: bandwidth)
        by_fourier = uncertainty._by_fourier(scores, bandwidth)
        assert torch.allclose(by_fourier, total, rtol=1e-10, atol=1e-10)
        if bandwidth < 32:
            assert torch.allclose(score_covariance(scores), total, rtol=1e-10, atol=1e-10)
        else:
            assert torch.equal(score_covariance(scores), by_fourier)

    def test_of_white_scores_is_their_number_times_their_variance(self) -> None:
        scores = 3 * torch.randn(20_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        found = score_covariance(scores) / 20_000
        assert torch.allclose(found, 9 * torch.eye(2, dtype=torch.float64), atol=0.9)

    @pytest.mark.parametrize("correlation", [0.5, 0.9, -0.5])
    def test_of_an_autoregression_is_its_long_run_variance(self, correlation: float) -> None:
        found = [float(score_covariance(autoregression(5_000, correlation, seed))) / 5_000 for seed in range(6)]
        wanted = (1 + correlation) / (1 - correlation)
        assert sum(found) / 6 == pytest.approx(wanted, rel=0.25)

    def test_is_symmetric_and_never_negative(self) -> None:
        for n in (1, 2, 3, 5, 60):
            found = score_covariance(autoregression(n, 0.95, n, columns=4))
            assert torch.allclose(found, found.T)
            assert float(torch.linalg.eigvalsh(found).min()) > -1e-10 * float(found.abs().max())

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_of_constant_scores_is_finite(self, value: float) -> None:
        assert torch.isfinite(score_covariance(torch.full((50, 2), value, dtype=torch.float64))).all()


class TestDetermine:
    def test_equals_the_inverse_of_the_normal_matrix(self) -> None:
        """Columns of very different sizes, as masses in kg and angles in rad are."""
        generator = torch.Generator().manual_seed(3)
        data = torch.randn(50, 3, dtype=torch.float64, generator=generator) * torch.tensor([1e-9, 1.0, 1e9])
        prior = torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64)
        found = determine(data, prior, [])
        sizes = torch.tensor([1e-9, 1.0, 1e9], dtype=torch.float64)
        scaled = data / sizes
        wanted = torch.linalg.inv(scaled.T @ scaled + (prior / sizes).T @ (prior / sizes)) / sizes / sizes.unsqueeze(-1)
        assert torch.allclose(found.covariance, wanted, rtol=1e-9, atol=0)
        assert found.weak == []
        assert found.effective < 3

    def test_white_residuals_make_both_covariances_alike(self) -> None:
        generator = torch.Generator().manual_seed(4)
        data = torch.randn(4_000, 2, dtype=torch.float64, generator=generator)
        residuals = torch.randn(4_000, 1, dtype=torch.float64, generator=generator)
        prior = torch.tensor([[60.0, 0.0]], dtype=torch.float64)  # as strong as the data
        found = determine(data, prior, [data * residuals])
        assert torch.allclose(found.robust.diagonal(), found.covariance.diagonal(), rtol=0.15)

    def test_a_prior_alone_is_the_error_bar_of_both(self) -> None:
        """Data that say next to nothing: the robust error is the prior's width too, not zero."""
        data = torch.full((10, 1), 1e-6, dtype=torch.float64)
        found = determine(data, torch.tensor([[1 / 0.3]], dtype=torch.float64), [data])
        assert float(found.covariance) == pytest.approx(0.09, rel=1e-6)
        assert float(found.robust) == pytest.approx(0.09, rel=1e-6)

    def test_null_directions_are_infinite(self) -> None:
        """Two columns that move the rows alike, one that nothing moves, and one that is well determined."""
        generator = torch.Generator().manual_seed(5)
        column = torch.randn(30, 1, dtype=torch.float64, generator=generator)
        other = torch.randn(30, 1, dtype=torch.float64, generator=generator)
        data = torch.cat((column, 2 * column, other, torch.zeros(30, 1)), 1)
        found = determine(data, data.new_zeros(0, 4), [data])
        assert torch.isinf(found.covariance.diagonal()).tolist() == [True, True, False, True]
        assert torch.isinf(found.robust.diagonal()).tolist() == [True, True, False, True]
        assert float(found.covariance[2, 2]) == pytest.approx(
            float(torch.linalg.inv(torch.cat((column, other), 1).T @ torch.cat((column, other), 1))[1, 1]), rel=1e-9
        )
        assert found.effective == pytest.approx(2)
        assert sorted(ratio < 1e-13 for _, ratio in found.weak) == [True, True]

    def test_a_weak_direction_is_named_and_finite(self) -> None:
        generator = torch.Generator().manual_seed(6)
        column = torch.randn(30, 1, dtype=torch.float64, generator=generator)
        data = torch.cat((column, column + 1e-5 * torch.randn(30, 1, dtype=torch.float64, generator=generator)), 1)
        found = determine(data, data.new_zeros(0, 2), [data])
        [(vector, ratio)] = found.weak
        assert 1e-13 < ratio < 1e-8
        assert torch.isfinite(found.covariance).all()
        assert combination(vector, ["mass", "charge"]) in ("0.71 mass - 0.71 charge", "0.71 charge - 0.71 mass")


def test_a_combination_leaves_out_what_hardly_matters() -> None:
    vector = torch.tensor([0.01, -0.8, 0.6], dtype=torch.float64)
    assert combination(vector, ["a", "b", "c"]) == "0.80 b - 0.60 c"
