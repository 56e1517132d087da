"""What may be asked of a fit: its page, its figure, functions of its parameters, predictions, other trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.errors import InputError

Swings = Callable[..., pn.data.Trajectories]


class TestNumbers:
    def test_parameters_are_within_their_errors(self, result: pn.FitResult) -> None:
        assert result.converged
        for name, truth in (("frequency", 2.0), ("damping", 0.15)):
            assert abs(result.parameters[name] - truth) < 4 * result.errors[name]
            assert result.robust_errors[name] == pytest.approx(result.errors[name], rel=0.6)
        assert result.names[:2] == ("frequency", "damping")
        assert result.names[5] == "initial angular_velocity [trajectory 1]"

    def test_chi_square_is_that_of_the_residuals(self, result: pn.FitResult) -> None:
        scaled = torch.cat([(r / s).reshape(-1) for r, s in zip(result.residuals, result.sigma, strict=True)])
        assert result.chi2 == pytest.approx(float(scaled.square().sum()), rel=1e-12)
        assert result.dof == pytest.approx(160 - 6)
        assert result.reduced_chi2 == result.chi2 / result.dof
        assert result.aic == pytest.approx(result.chi2 + 2 * 6)
        assert result.bic == pytest.approx(result.chi2 + 6 * math.log(160))

    def test_residuals_are_data_minus_model(self, result: pn.FitResult, swings: Swings) -> None:
        for number, item in enumerate(swings()):
            predicted = result.predict(item.t, band=None, trajectory=number)
            assert torch.allclose(result.residuals[number], item.y - predicted.y, atol=1e-7)

    def test_correlation_is_a_scaled_covariance(self, result: pn.FitResult) -> None:
        found = result.correlation
        assert found.shape == (2, 2)
        assert found.diagonal().tolist() == pytest.approx([1, 1])
        covariance = float(result.covariance[0, 1])
        assert float(found[0, 1]) == pytest.approx(covariance / (result.errors["frequency"] * result.errors["damping"]))

    def test_history_falls(self, result: pn.FitResult) -> None:
        losses = [entry["loss"] for entry in result.history]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] == pytest.approx(result.chi2 / 160 / 2, rel=1e-4)


class TestPage:
    def test_holds_what_a_reader_needs(self, result: pn.FitResult) -> None:
        page = result.summary()
        assert "160 (0 missing and left out)" in page
        assert "given with the data" in page
        assert f"converged            yes: {result.reason}" in page
        for name, unit, start in (("frequency", "rad/s", "1.95"), ("damping", "1/s", "0.12")):
            [line] = [line for line in page.splitlines() if line.strip().startswith(name)]
            for part in (unit, start, f"{result.parameters[name]:.10g}", f"{result.errors[name]:.3g}"):
                assert part in line.split()
            assert f"{result.robust_errors[name]:.3g}" in line.split()
        assert "initial angle [trajectory 0]" in page
        assert str(result) == page
        assert max(len(line) for line in page.splitlines()) <= 120

    def test_says_what_is_missing_and_what_is_fixed(self, swings: Swings) -> None:
        mask = np.ones(40, dtype=bool)
        mask[4:9] = False
        model = pn.systems.Pendulum(1.98, 0.15, free=("frequency",))
        found = pn.fit(model, swings(observed={"angle": [mask, mask]}), shooting="single", max_iterations=2, progress=False)
        page = found.summary()
        assert "150 (10 missing and left out)" in page
        [line] = [line for line in page.splitlines() if line.strip().startswith("damping")]
        assert line.endswith("fixed")
        if not found.converged:
            assert "converged            NO: the limit of iterations was reached" in page

    def test_says_why_it_stopped_too_early(self, swings: Swings) -> None:
        model = pn.systems.Pendulum(1.6, 0.6, free=("frequency", "damping"))
        found = pn.fit(model, swings(), shooting="single", max_iterations=1, progress=False)
        assert not found.converged
        assert "NO: the limit of iterations was reached" in found.summary()
        assert any("not converged" in line for line in found.warnings)

    def test_short_form(self, result: pn.FitResult) -> None:
        assert repr(result).startswith("FitResult(frequency=")

    def test_figure(self, result: pn.FitResult) -> None:
        figure = result.plot(trajectory=1)
        assert len(figure.axes) == 4
        assert "angle" in figure.axes[0].get_ylabel()
        assert "[rad]" in figure.axes[0].get_ylabel()


class TestDerived:
    def test_the_period(self, result: pn.FitResult) -> None:
        found = result.derived(lambda p: 2 * torch.pi / p["frequency"])
        frequency = result.parameters["frequency"]
        assert float(found.value) == pytest.approx(2 * math.pi / frequency, rel=1e-14)
        assert float(found.error) == pytest.approx(2 * math.pi / frequency**2 * result.errors["frequency"], rel=1e-12)

    def test_several_numbers_and_their_correlation(self, result: pn.FitResult) -> None:
        found = result.derived(lambda p: torch.stack((p["frequency"], p["frequency"] + p["damping"], p["damping"])))
        assert found.value.shape == found.error.shape == (3,)
        assert found.covariance.shape == (3, 3)
        ones = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
        assert float(ones @ found.covariance @ ones) == pytest.approx(0, abs=1e-12 * float(found.covariance[1, 1]))
        assert torch.allclose(found.covariance[::2, ::2], result.covariance[:2, :2])

    def test_robust(self, result: pn.FitResult) -> None:
        found = result.derived(lambda p: p["damping"], robust=True)
        assert float(found.error) == pytest.approx(result.robust_errors["damping"])


class TestPredict:
    def test_the_band_is_the_covariance_of_all_unknowns(self, result: pn.FitResult) -> None:
        """J C Jᵀ, with J by differences of solves."""
        t = torch.tensor([2.0, 5.0, 11.0], dtype=torch.float64)
        found = result.predict(t, trajectory=1)

        def at(x: Tensor) -> Tensor:
            system = pn.systems.Pendulum(float(x[0]), float(x[1]))
            return pn.solve(system, x[4:6], t, t0=0.0, method="dop853", controller=pn.Adaptive(1e-12, 1e-12)).ys

        columns = []
        for i in (0, 1, 4, 5):
            step = torch.zeros_like(result.x)
            step[i] = 1e-5
            columns.append((at(result.x + step) - at(result.x - step)) / 2e-5)
        jacobian = torch.stack(columns, -1)
        index = torch.tensor([0, 1, 4, 5])
        covariance = result.covariance[index.unsqueeze(-1), index]
        wanted = torch.einsum("tdi,ij,tdj->td", jacobian, covariance, jacobian).sqrt()
        assert found.error is not None
        assert found.lower is not None
        assert found.upper is not None
        assert torch.allclose(found.error, wanted, rtol=1e-5)
        assert torch.allclose(found.y, at(result.x), atol=1e-6)
        assert torch.allclose(found.upper - found.y, 0.99446 * wanted, rtol=1e-4)  # 68 % of a normal distribution
        assert torch.allclose(found.upper - found.y, found.y - found.lower)
        wide = result.predict(t, trajectory=1, band=0.95)
        assert wide.upper is not None
        assert torch.allclose(wide.upper - wide.y, 1.95996 * wanted, rtol=1e-4)

    def test_in_any_order_before_the_epoch_and_twice(self, result: pn.FitResult) -> None:
        t = torch.tensor([3.0, -2.0, 9.0, 0.0, 3.0, -0.5], dtype=torch.float64)
        found = result.predict(t)
        assert torch.equal(found.t, t)
        assert torch.equal(found.y[0], found.y[4])
        assert found.y[3].tolist() == result.initial_states[0].tolist()
        assert found.error is not None
        assert float(found.error[3, 0]) == pytest.approx(float(result.covariance[2, 2].sqrt()), rel=1e-9)
        for i, when in enumerate(t.tolist()):
            alone = result.predict([when])
            assert alone.error is not None
            assert torch.allclose(alone.y[0], found.y[i], atol=1e-6)
            assert torch.allclose(alone.error[0], found.error[i], rtol=1e-5)
        truth = pn.solve(pn.systems.Pendulum(2.0, 0.15), [1.2, 0.0], torch.tensor([-2.0, -0.5]), t0=0.0).ys
        assert ((found.y[[1, 5]] - truth).abs() < 4 * found.error[[1, 5]]).all()

    def test_from_another_state(self, result: pn.FitResult) -> None:
        found = result.predict([10.0, 11.0], initial_state=[0.3, 0.0])
        assert found.error is not None
        assert found.y[0].tolist() == [0.3, 0.0]
        assert found.error[0].tolist() == [0.0, 0.0]  # it is exact there, and only the constants are uncertain
        assert (found.error[1] > 0).all()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"times": []}, "at least one time"),
            ({"times": [1.0], "band": 1.2}, "probability"),
            ({"times": [1.0], "trajectory": 2}, "2 trajectories"),
            ({"times": [1.0], "initial_state": [1.0]}, "2 components"),
        ],
    )
    def test_mistakes(self, arguments: dict[str, object], words: str, result: pn.FitResult) -> None:
        with pytest.raises(InputError, match=words):
            result.predict(**arguments)  # type: ignore[arg-type]


class TestValidate:
    def test_on_trajectories_it_has_not_seen(self, result: pn.FitResult, swings: Swings) -> None:
        others = swings([(0.7, 0.0), (2.2, -0.4), (-1.0, 1.0)], seed=77)
        found = result.validate(others)
        assert found.dof == 240 - 6
        assert found.reduced_chi2 == pytest.approx(1, abs=4 * math.sqrt(2 / 234))
        assert set(found.per_trajectory) == {0, 1, 2}
        assert found.initial_states.tolist() == [
            [pytest.approx(q, abs=0.06), pytest.approx(v, abs=0.1)] for q, v in ((0.7, 0.0), (2.2, -0.4), (-1.0, 1.0))
        ]
        scaled = torch.cat([r.reshape(-1) / 0.03 for r in found.residuals])
        assert found.chi2 == pytest.approx(float(scaled.square().sum()))

    def test_leaves_the_fit_as_it_was(self, result: pn.FitResult, swings: Swings) -> None:
        before = {name: value.clone() for name, value in result.model.state_dict().items()}
        result.validate(swings([(0.7, 0.0)], seed=78))
        assert all(torch.equal(before[name], value) for name, value in result.model.state_dict().items())

    def test_a_wrong_model_is_found_out(self, swings: Swings) -> None:
        undamped = pn.fit(
            pn.systems.Pendulum(2.0, free=("frequency",)), swings(), shooting="single", max_iterations=8, progress=False
        )
        assert undamped.validate(swings([(0.7, 0.0)], seed=79)).reduced_chi2 > 5

    def test_other_variables_are_refused(self, result: pn.FitResult, swings: Swings) -> None:
        with pytest.raises(InputError, match="measure angle, the fit was made on angle, angular_velocity"):
            result.validate(swings(variables=("angle",)))
        with pytest.raises(InputError, match="no standard deviations"):
            result.validate(swings(given=False))


class Product(pn.VectorField):
    """y' = -a b y + c: a and b can never be told apart."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("a", 0.5), ("b", 2.0), ("c", 0.1)):
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.a * self.b * y + self.c


@pytest.fixture(scope="module")
def product() -> pn.FitResult:
    t = np.linspace(0, 3, 40)
    values = 0.2 + (2 - 0.2) * np.exp(-1.5 * t) + 0.01 * np.random.default_rng(1).normal(size=40)
    data = pn.data.from_arrays(t, {"x": values}, sigma={"x": 0.01})
    return pn.fit(Product(), data, shooting="single", progress=False)


class TestWhatIsNotDetermined:
    def test_is_said_in_words_and_numbers(self, product: pn.FitResult) -> None:
        assert product.parameters["a"] * product.parameters["b"] == pytest.approx(1.5, abs=0.05)
        assert product.errors["a"] == product.errors["b"] == product.robust_errors["a"] == math.inf
        assert 0 < product.errors["c"] < 0.1
        [line] = product.unidentified
        assert line.startswith("not determined")
        assert " a" in line
        assert " b" in line
        assert " c" not in line
        assert "undetermined" in product.summary()
        assert line in product.summary()
        assert product.dof == pytest.approx(40 - 3, abs=0.01)  # the product, c, and the start

    def test_what_depends_on_the_determined_alone_has_an_error(self, product: pn.FitResult) -> None:
        found = product.derived(lambda p: p["a"] * p["b"])
        assert 0 < float(found.error) < 0.1
        alone = product.derived(lambda p: torch.stack((p["a"], p["a"] * p["b"], p["c"])))
        assert torch.isinf(alone.error).tolist() == [True, False, False]
        assert float(alone.error[1]) == pytest.approx(float(found.error), rel=1e-6)
        curve = product.predict([0.5, 1.5, 4.0])
        assert curve.error is not None
        assert torch.isfinite(curve.error).all()
        assert (curve.error < 0.05).all()

    def test_a_strong_correlation_is_named(self, swings: Swings) -> None:
        """A quarter of a swing tells little of the damping apart from the frequency."""

        class Offset(pn.VectorField):
            def __init__(self) -> None:
                super().__init__()
                self.rate = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
                self.floor = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return -self.rate * (y - self.floor)

        t = np.linspace(0, 0.3, 30)
        data = pn.data.from_arrays(t, {"x": np.exp(-t)}, sigma={"x": 0.001})
        found = pn.fit(Offset(), data, shooting="single", progress=False)
        [line] = found.unidentified
        assert line.startswith("strongly correlated (+0.9")
        assert "rate and floor" in line
        assert abs(float(found.correlation[0, 1])) > 0.95


def test_an_observed_function_of_the_state_is_predicted_as_state(swings: Swings) -> None:
    """With ``observe``, predictions are still of the state, and the figure leaves the curve out."""
    t = np.linspace(0, 6, 30)
    exact = pn.solve(pn.systems.Pendulum(2.0, 0.15), [1.0, 0.0], t, method="dop853").ys.numpy()
    height = -np.cos(exact[:, 0]) + 0.01 * np.random.default_rng(2).normal(size=30)
    data = pn.data.from_arrays(t, observations={"height": height}, sigma={"height": 0.01})

    def observe(t: Tensor, y: Tensor) -> Mapping[str, Tensor]:
        return {"height": -torch.cos(y[..., 0])}

    found = pn.fit(
        pn.systems.Pendulum(1.95, 0.15, free=("frequency",)),
        data,
        observe=observe,
        initial_states=[[1.1, 0.05]],
        progress=False,
    )
    assert abs(found.parameters["frequency"] - 2.0) < 4 * found.errors["frequency"]
    assert found.predict([1.0]).y.shape == (1, 2)
    assert len(found.plot().axes) == 2
