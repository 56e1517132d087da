"""What a fit finds, from where, within which limits, and which words it has for what it cannot do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.errors import FitError, InputError

Swings = Callable[..., pn.data.Trajectories]
TRUTH = {"frequency": 2.0, "damping": 0.15}


def fit(model: Any, data: pn.data.Trajectories, **options: Any) -> pn.FitResult:
    return pn.fit(model, data, progress=False, **options)


def pull(result: pn.FitResult, truth: Mapping[str, float] = TRUTH) -> float:
    """How many formal errors the worst parameter is off."""
    return max(abs(result.parameters[name] - value) / result.errors[name] for name, value in truth.items())


class TestFarStarts:
    def test_multiple_shooting_finds_what_single_shooting_misses(self, swings: Swings) -> None:
        """Two thirds of the true frequency: the phase is soon off by whole turns, and single shooting is lost."""
        rng, t = np.random.default_rng(0), np.linspace(0, 30, 150)
        noisy = pn.systems.Pendulum(2.0).exact(t, [1.2, 0.0]).numpy() + 0.03 * rng.normal(size=(150, 2))
        names = ("angle", "angular_velocity")
        data = pn.data.from_arrays(t, dict(zip(names, noisy.T, strict=True)), sigma=dict.fromkeys(names, 0.03))
        far = pn.systems.Pendulum(1.4, free=("frequency",))
        found = fit(far, data)
        assert found.converged
        assert pull(found, {"frequency": 2.0}) < 4
        assert 0.8 < found.reduced_chi2 < 1.2
        assert any("windows" in entry["stage"] for entry in found.history)
        single = fit(far, data, shooting="single", max_iterations=20)
        assert not any("windows" in entry["stage"] for entry in single.history)
        assert single.reduced_chi2 > 100

    def test_auto_shoots_singly_where_the_start_follows_the_data(self, result: pn.FitResult, swings: Swings) -> None:
        found = fit(pn.systems.Pendulum(1.98, 0.14, free=("frequency", "damping")), swings())
        assert not any("windows" in entry["stage"] for entry in found.history)
        assert found.x == pytest.approx(result.x, rel=1e-5, abs=1e-5)

    @pytest.mark.parametrize("shooting", [3, "multiple"])
    def test_windows_end_where_single_shooting_does(self, shooting: int | str, result: pn.FitResult, swings: Swings) -> None:
        found = fit(pn.systems.Pendulum(1.9, 0.1, free=("frequency", "damping")), swings(), shooting=shooting)
        assert found.x == pytest.approx(result.x, rel=1e-4, abs=1e-4)
        assert len(found.initial_states) == 2


class TestWhatIsFree:
    def test_the_model_that_was_passed_stays_as_it_was(self, swings: Swings) -> None:
        model = pn.systems.Pendulum(1.95, 0.12, free=("frequency",))
        found = fit(model, swings()[:1], shooting="single", max_iterations=5)
        assert model.number("frequency") == 1.95
        assert model.free == ("frequency",)
        assert found.model is not model
        assert float(found.model.get_parameter("frequency").detach()) == found.parameters["frequency"] != 1.95

    def test_free_by_name_and_fixed_at_a_value(self, swings: Swings) -> None:
        found = fit(pn.systems.Pendulum(1.95, 0.5), swings(), free=("frequency",), fixed={"damping": 0.15}, shooting="single")
        assert list(found.parameters) == ["frequency"]
        assert pull(found, {"frequency": 2.0}) < 4
        assert float(found.model.get_parameter("damping").detach()) == 0.15
        again = fit(
            pn.systems.Pendulum(1.95, 0.15, free=("frequency", "damping")), swings(), fixed=["damping"], shooting="single"
        )
        assert again.parameters == pytest.approx(found.parameters, rel=1e-7)

    def test_one_element_of_a_vector(self) -> None:
        """A planet weighs nothing measurable; the star is held, or the star is fitted and the planet is held."""
        truth = torch.tensor([39.5, 0.04], dtype=torch.float64)
        y0 = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, -0.007, 0.0, 6.2], dtype=torch.float64)
        t = torch.linspace(0, 1.5, 40, dtype=torch.float64)
        with torch.no_grad():
            ys = pn.solve(pn.systems.NBody(truth, dimensions=2), y0, t, method="dop853").ys.reshape(40, 2, 2, 2).numpy()
        rng = np.random.default_rng(3)
        values = {"position": ys[:, 0], "velocity": ys[:, 1]}
        noisy = {name: value + 1e-3 * rng.normal(size=value.shape) for name, value in values.items()}
        data = pn.data.from_arrays(t.numpy(), noisy, sigma=dict.fromkeys(values, 1e-3))
        start = pn.systems.NBody([38.0, 0.04], dimensions=2, free=("gm",))
        for options in ({"fixed": ["gm[1]"]}, {"free": ["gm[0]"]}):
            found = fit(start, data, shooting="single", controller=pn.Adaptive(1e-7, 1e-9), **options)
            assert list(found.parameters) == ["gm[0]"]
            assert abs(found.parameters["gm[0]"] - 39.5) < 4 * found.errors["gm[0]"]
            assert found.model.get_parameter("gm").tolist()[1] == 0.04

    def test_a_field_of_the_users_own(self, swings: Swings, result: pn.FitResult) -> None:
        class Mine(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.tensor(1.95))
                self.c = nn.Parameter(torch.tensor(0.12))

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return torch.cat((y[..., 1:], -(self.w**2) * torch.sin(y[..., :1]) - self.c * y[..., 1:]), -1)

        found = fit(Mine(), swings(), shooting="single")
        assert found.parameters["w"] == pytest.approx(result.parameters["frequency"], rel=1e-5)
        assert found.errors["c"] == pytest.approx(result.errors["damping"], rel=1e-3)
        assert found.names[-1].startswith("initial y[1]")

    def test_a_plain_function_has_its_starts_fitted(self, swings: Swings) -> None:
        def known(t: Tensor, y: Tensor) -> Tensor:
            return torch.cat((y[..., 1:], -4 * torch.sin(y[..., :1]) - 0.15 * y[..., 1:]), -1)

        found = fit(known, swings(), shooting="single")
        assert found.parameters == {}
        assert found.initial_states[0].tolist() == pytest.approx([1.2, 0.0], abs=0.05)

    def test_a_tensor_that_a_function_closes_over_is_refused(self, swings: Swings) -> None:
        w = torch.tensor(1.9, dtype=torch.float64, requires_grad=True)
        with pytest.raises(InputError, match=r"nn\.Parameter of an nn\.Module"):
            fit(lambda t, y: torch.cat((y[..., 1:], -(w**2) * torch.sin(y[..., :1])), -1), swings())

    def test_nothing_free(self, swings: Swings) -> None:
        with pytest.raises(InputError, match="nothing is free"):
            fit(pn.systems.Pendulum(2.0), swings(given=False), initial_states="known")


class TestBoundsAndPriors:
    def test_a_bound_holds_and_is_reported(self, swings: Swings) -> None:
        found = fit(
            pn.systems.Pendulum(1.95, 0.3, free=("frequency", "damping")),
            swings(),
            bounds={"damping": (0.2, None)},
            shooting="single",
        )
        assert 0.2 <= found.parameters["damping"] < 0.2 + 1e-4
        assert found.at_bound("damping")
        assert not found.at_bound("frequency")
        assert "at a bound" in found.summary()
        assert any("damping" in line for line in found.warnings)

    def test_a_domain_is_a_bound(self, swings: Swings) -> None:
        """Friction that pushes is not in the domain of a pendulum, however the noise falls."""
        undamped = [pn.systems.Pendulum(2.0).exact(np.linspace(0, 8, 40), [1.0, 0.0])]
        noisy = undamped[0].numpy() * np.exp(0.01 * np.linspace(0, 8, 40))[:, None]
        data = pn.data.from_arrays(
            np.linspace(0, 8, 40), {"angle": noisy[:, 0], "angular_velocity": noisy[:, 1]},
            sigma={"angle": 0.01, "angular_velocity": 0.01},
        )  # fmt: skip
        found = fit(pn.systems.Pendulum(2.0, 0.05, free=("frequency", "damping")), data, shooting="single")
        assert found.parameters["damping"] >= 0
        assert found.at_bound("damping")

    def test_training_stays_inside_too(self, swings: Swings) -> None:
        found = fit(
            pn.systems.Pendulum(1.95, 0.21, free=("frequency", "damping")),
            swings([(1.2, 0.0)], np.linspace(0, 4, 16)),
            bounds={"damping": (0.2, 0.3)},
            method="adam+lbfgs",
            adam_steps=10,
            max_iterations=4,
            shooting="single",
            controller=pn.Adaptive(1e-5, 1e-7),
        )
        assert 0.2 <= found.parameters["damping"] <= 0.3
        assert found.at_bound("damping")

    def test_a_prior_pulls_as_a_measurement_would(self, swings: Swings) -> None:
        """In this fit all is close to linear: the posterior is the product of two normal distributions."""
        data = swings([(0.5, 0.0)], np.linspace(0, 6, 25), noise=0.02)
        model = pn.systems.Pendulum(1.95, 0.12, free=("frequency", "damping"))
        plain = fit(model, data, shooting="single")
        with_prior = fit(model, data, shooting="single", priors={"damping": (0.2, 0.01)})
        precision = torch.linalg.inv(plain.covariance)
        step = torch.zeros(4, dtype=torch.float64)
        precision[1, 1] += 1 / 0.01**2
        step[1] = (0.2 - plain.parameters["damping"]) / 0.01**2
        covariance = torch.linalg.inv(precision)
        expected = plain.x + covariance @ step
        assert plain.parameters["damping"] < with_prior.parameters["damping"] < 0.2
        assert with_prior.x == pytest.approx(expected, abs=0.2 * with_prior.errors["damping"])
        assert with_prior.errors["damping"] == pytest.approx(float(covariance[1, 1].sqrt()), rel=0.03)

    def test_a_linear_fit_with_a_prior_is_exact(self) -> None:
        """y' = rate, with y linear in rate and start: covariance (JᵀJ + 1/s²)⁻¹ and mean in closed form."""

        class Drift(pn.VectorField):
            def __init__(self) -> None:
                super().__init__()
                self.rate = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return self.rate * torch.ones_like(y)

        rng = np.random.default_rng(8)
        t = np.sort(rng.uniform(0, 3, 12))
        values = 1.0 + 0.7 * t + 0.2 * rng.normal(size=12)
        data = pn.data.from_arrays(t, {"x": values}, sigma={"x": 0.2})
        found = fit(Drift(), data, priors={"rate": (0.5, 0.1)}, shooting="single")
        design = np.stack((t - t[0], np.ones(12)), 1) / 0.2
        normal = design.T @ design + np.diag([1 / 0.1**2, 0.0])
        covariance = np.linalg.inv(normal)
        mean = covariance @ (design.T @ (values / 0.2) + np.array([0.5 / 0.1**2, 0.0]))
        assert found.x.numpy() == pytest.approx(mean, rel=1e-7)
        assert found.covariance.numpy() == pytest.approx(covariance, rel=1e-7)
        hat = np.trace(covariance @ design.T @ design)
        assert found.dof == pytest.approx(12 - hat, rel=1e-9)


class TestWhatIsMeasured:
    def test_an_angle_through_a_function(self, swings: Swings) -> None:
        """A camera sees the height and the side of the bob; states are never measured."""
        data = swings(noise=1e-9)
        rng = np.random.default_rng(5)
        angles = [item.y[:, 0].numpy() for item in data]
        bobs = [np.stack((np.sin(a), -np.cos(a)), -1) + 0.02 * rng.normal(size=(len(a), 2)) for a in angles]
        seen = pn.data.from_arrays([item.t.numpy() for item in data], observations={"bob": bobs}, sigma={"bob": 0.02})

        def camera(t: Tensor, y: Tensor) -> Mapping[str, Tensor]:
            return {"bob": torch.stack((torch.sin(y[..., 0]), -torch.cos(y[..., 0])), -1)}

        model = pn.systems.Pendulum(1.95, 0.12, free=("frequency", "damping"))
        guesses = [[1.1, 0.1], [-1.9, 0.3]]
        found = fit(model, seen, observe=camera, initial_states=guesses)
        assert pull(found) < 4
        assert found.residuals[0].shape == (40, 2)
        validation = found.validate(seen[:1], initial_states=guesses[:1])
        assert 0.6 < validation.reduced_chi2 < 1.4
        with pytest.raises(InputError, match="initial_states"):
            fit(model, seen, observe=camera)
        with pytest.raises(InputError, match='observe returns "ball"'):
            fit(model, seen, observe=lambda t, y: {"ball": y[..., 0]}, initial_states=guesses)

    @pytest.mark.parametrize("learned", [False, True])
    def test_the_angle_alone(self, learned: bool, swings: Swings) -> None:
        """Velocities are guessed from slopes, and fitted; also where the model is a sum with a learned term."""
        data = swings(variables=("angle",), t=np.linspace(0, 8, 60))
        model = pn.systems.Pendulum(1.95, 0.12, free=("frequency", "damping"))
        field = model + pn.nn.Residual(2, 2, 1, inputs=("v",)) if learned else model
        found = fit(field, data, method="least_squares", max_iterations=15)
        assert found.initial_states.shape == (2, 2)
        assert found.initial_states[:, 1].tolist() == pytest.approx([0.0, 0.5], abs=0.1)
        assert found.parameters["frequency"] == pytest.approx(2.0, abs=0.02)
        assert "initial angular_velocity [trajectory 0]" in found.names

    def test_missing_values_do_not_count(self, swings: Swings) -> None:
        rng = np.random.default_rng(6)
        masks = [rng.uniform(size=40) > 0.3 for _ in range(2)]
        masks[0][0] = False  # not even the first angle is there
        data = swings(observed={"angle": masks})
        found = fit(pn.systems.Pendulum(1.95, 0.12, free=("frequency", "damping")), data)
        missing = sum(int((~mask).sum()) for mask in masks)
        assert found.measured.rows_used == 160 - missing
        assert found.measured.rows_masked == missing
        assert torch.isnan(found.residuals[0][:, 0]).sum() == (~masks[0]).sum()
        assert found.dof == pytest.approx(160 - missing - 6, abs=1e-6)
        assert pull(found) < 4

    def test_variables_are_matched_by_name(self, swings: Swings, result: pn.FitResult) -> None:
        data = swings()
        turned = pn.data.from_arrays(
            [item.t.numpy() for item in data],
            {name: [item.y[:, i].numpy() for item in data] for i, name in ((1, "angular_velocity"), (0, "angle"))},
            sigma={"angle": 0.03, "angular_velocity": 0.03},
        )
        found = fit(pn.systems.Pendulum(1.95, 0.12, free=("frequency", "damping")), turned, shooting="single")
        assert found.parameters == pytest.approx(result.parameters, rel=1e-7)

    def test_data_of_another_size_are_refused(self, swings: Swings) -> None:
        with pytest.raises(InputError, match=r"2 state components .* but the model has 4"):
            fit(pn.systems.Kepler(free=("gm",)), swings())
        with pytest.raises(InputError, match="no trajectory to fit"):
            fit(pn.systems.Pendulum(free=("frequency",)), swings().split("train"))


class TestKnownStarts:
    def test_a_noisy_first_row_is_refused(self, swings: Swings) -> None:
        with pytest.raises(InputError, match="takes the first row as exact"):
            fit(pn.systems.Pendulum(1.95, free=("frequency",)), swings(), initial_states="known")
        with pytest.raises(InputError, match="takes the first row as exact"):
            fit(
                pn.systems.Pendulum(1.95, free=("frequency",)),
                swings(given=False),
                sigma={"angle": 0.03, "angular_velocity": 0.03},
                initial_states="known",
            )

    def test_exact_starts_kept_with_the_data_are_used(self, swings: Swings) -> None:
        data = swings(initial={"angle": [1.2, -2.0], "angular_velocity": [0.0, 0.5]})
        found = fit(pn.systems.Pendulum(1.95, 0.12, free=("frequency", "damping")), data, initial_states="known")
        assert found.initial_states.tolist() == [[1.2, 0.0], [-2.0, 0.5]]
        assert found.x.numel() == 2
        assert found.dof == pytest.approx(158)
        assert pull(found) < 4

    def test_an_exact_first_row_is_no_measurement(self, swings: Swings) -> None:
        """Its standard deviation is zero, which would weigh infinitely; it is left out."""
        sigma = np.full(40, 0.03)
        sigma[0] = 0.0
        exact = swings(noise=1e-12)
        noisy = swings()
        data = pn.data.from_arrays(
            exact[0].t.numpy(),
            {
                name: np.concatenate((exact[0].y[:1, i].numpy(), noisy[0].y[1:, i].numpy()))
                for i, name in enumerate(("angle", "angular_velocity"))
            },
            sigma={"angle": sigma, "angular_velocity": sigma},
        )
        found = fit(pn.systems.Pendulum(1.95, 0.12, free=("frequency", "damping")), data, initial_states="known")
        assert found.initial_states[0].tolist() == pytest.approx([1.2, 0.0], abs=1e-9)
        assert found.measured.rows_used == 78
        assert pull(found) < 4

    def test_without_any_standard_deviation_there_is_a_warning(self, swings: Swings) -> None:
        found = fit(
            pn.systems.Pendulum(1.95, 0.12, free=("frequency", "damping")),
            swings(given=False),
            initial_states="known",
            shooting="single",
        )
        assert any("far too small" in line for line in found.warnings)


class TestFailures:
    def test_a_trial_that_cannot_be_integrated_is_stepped_back_from(self) -> None:
        """y' = rate y² goes to infinity at 1 / (rate y0): a long step towards it fails, and least squares goes on."""

        class Growth(pn.VectorField):
            def __init__(self) -> None:
                super().__init__()
                self.rate = nn.Parameter(torch.tensor(0.05, dtype=torch.float64))

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return torch.where(self.rate < 1.2, self.rate * y**2, torch.nan)

        t = np.linspace(0, 0.9, 12)
        data = pn.data.from_arrays(t, {"x": 1 / (1 - t)}, sigma={"x": 0.01})
        found = fit(Growth(), data, shooting="single", controller=pn.Adaptive(1e-6, 1e-8))
        assert found.converged
        assert found.parameters["rate"] == pytest.approx(1.0, abs=1e-3)

    def test_a_fit_that_ends_where_nothing_can_be_integrated_says_so(self) -> None:
        t = np.linspace(0, 1, 8)
        data = pn.data.from_arrays(t, {"x": np.ones(8)}, sigma={"x": 0.1})

        class Nowhere(pn.VectorField):
            def __init__(self) -> None:
                super().__init__()
                self.rate = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return torch.where(t < 0.5, self.rate * y, torch.nan)

        for options in ({"shooting": "single"}, {"method": "adam", "adam_steps": 3}, {"method": "lbfgs", "shooting": "single"}):
            with pytest.raises(FitError, match=r"(could not|cannot) be integrated"):
                fit(Nowhere(), data, **options)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"free": ["freqency"]}, 'Did you mean "frequency"'),
            ({"fixed": ["dampng"]}, 'Did you mean "damping"'),
            ({"bounds": {"damp": (0, 1)}}, 'Did you mean "damping"'),
            ({"priors": {"frequencies": (2, 1)}}, 'Did you mean "frequency"'),
            ({"priors": {"damping": (0.1, 0.0)}}, "positive standard deviation"),
            ({"bounds": {"damping": (0.5, 1.0)}}, "outside"),
            ({"fixed": {"damping": -1.0}}, "outside"),
            ({"sigma": {"angel": 0.1}}, "unknown: angel"),
            ({"sigma": {"angle": 0.1}}, "missing: angular_velocity"),
            ({"method": "newton"}, "unknown fit method"),
            ({"shooting": "double"}, "shooting must be"),
            ({"shooting": 0}, "shooting must be"),
            ({"initial_states": "guess"}, "initial_states must be"),
            ({"initial_states": [[1.0, 0.0]]}, r"shape \(2, dim\)"),
            ({"max_iterations": 0}, "max_iterations"),
            ({"adam_steps": -1}, "adam_steps"),
            ({"learning_rate": 0.0}, "learning_rate"),
            ({"learned_strength": -1.0}, "learned_strength"),
            ({"integrator": "dop852"}, "dop853"),
            ({"gradient": "acca"}, "aca"),
        ],
    )
    def test_mistakes_are_named_before_anything_is_written(
        self, options: dict[str, Any], words: str, swings: Swings, tmp_path: Any
    ) -> None:
        model = pn.systems.Pendulum(1.95, 0.12, free=("frequency", "damping"))
        with pytest.raises(InputError, match=words):
            fit(model, swings(), run_folder=tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()


class TestRefusals:
    """What used to be matched, guessed or unpacked silently."""

    @staticmethod
    def data(names: tuple[str, str]) -> pn.data.Trajectories:
        t = torch.linspace(0, 5, 40, dtype=torch.float64)
        y = pn.solve(pn.systems.Pendulum(2.0), [1.0, 0.0], t).ys.detach()
        return pn.data.from_arrays(
            t.numpy(), {names[0]: y[:, 0].numpy(), names[1]: y[:, 1].numpy()}, sigma=dict.fromkeys(names, 0.02)
        )

    def test_half_matched_names(self) -> None:
        with pytest.raises(InputError, match="others not \\(rate\\)"):
            pn.fit(pn.systems.Pendulum(1.9, free=("frequency",)), self.data(("rate", "angle")), progress=False)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"priors": {"frequency": 2.0}}, "must be a pair \\(mean, standard deviation\\)"),
            (
                {"observe": lambda t, y: {"angle": y[..., 0]}, "initial_states": [[1.0, 0.0]], "shooting": "multiple"},
                "multiple shooting needs states",
            ),
            ({"bounds": {"frequency": 3.0}}, "must be a pair \\(lowest, highest\\)"),
            ({"bounds": {"frequency": (3.0, 1.0)}}, "must be \\(lowest, highest\\)"),
            ({"initial_states": [[float("nan"), 0.0]]}, "is not finite"),
            ({"observe": lambda t, y: {"angle": y[..., 7]}, "initial_states": [[1.0, 0.0]]}, "observe failed"),
        ],
    )
    def test_options_of_the_wrong_kind(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            pn.fit(
                pn.systems.Pendulum(1.9, free=("frequency",)),
                self.data(("angle", "angular_velocity")),
                progress=False,
                **options,
            )
