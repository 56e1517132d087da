from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import physnode as pn
from physnode import data
from physnode.errors import InputError

PENDULUM = pn.systems.Pendulum(frequency=2.0)


def test_without_noise_the_rows_are_the_exact_motion() -> None:
    found = data.simulate(PENDULUM, n=3, t1=10.0, rows=25, seed=4)
    assert found.names == ("angle", "angular_velocity")
    assert len(found) == 3
    for item in found:
        start = torch.stack([item.initial["angle"], item.initial["angular_velocity"]])
        assert torch.allclose(item.y, PENDULUM.exact(item.t, start), atol=1e-7)
        assert item.t.tolist() == pytest.approx(np.linspace(0, 10, 25).tolist())
        assert item.observed.all()
        assert item.sigma is None


def test_noise_has_the_size_it_says_and_is_stored() -> None:
    quiet = data.simulate(PENDULUM, n=20, t1=10.0, rows=200, seed=1)
    noisy = data.simulate(PENDULUM, n=20, t1=10.0, rows=200, seed=1, noise={"angle": 0.5, "angular_velocity": 2.0})
    sigma = torch.tensor([0.5, 2.0], dtype=torch.float64)
    scaled = torch.cat([a.y - b.y for a, b in zip(noisy, quiet, strict=True)]) / sigma
    assert scaled.std(0).tolist() == pytest.approx([1, 1], abs=0.05)  # 4000 draws: three standard errors are 0.034
    assert scaled.mean(0).abs().max() < 0.05
    assert abs(float((scaled[:, 0] * scaled[:, 1]).mean())) < 0.05
    assert noisy[7].sigma is not None
    assert (noisy[7].sigma == sigma).all()


def test_missing_values_are_as_many_as_asked_and_no_row_is_empty() -> None:
    found = data.simulate(PENDULUM, n=10, t1=5.0, rows=400, missing={"angle": 0.2, "angular_velocity": 0.5}, seed=2)
    seen = torch.cat([item.observed for item in found]).double()
    assert seen.any(1).all()
    assert float(seen[:, 0].mean()) == pytest.approx(0.8 + 0.1 / 2, abs=0.03)  # rows that would lack both keep one of them
    assert float(seen[:, 1].mean()) == pytest.approx(0.5 + 0.1 / 2, abs=0.03)


def test_gaps_hold_no_rows_and_random_times_fill_the_rest() -> None:
    gaps = data.Gaps(count=(2, 2), length=(1.5, 2.0))
    for irregular in (True, False):
        found = data.simulate(PENDULUM, n=6, t0=5.0, t1=25.0, rows=400, irregular=irregular, gaps=gaps, seed=3)
        for item in found:
            wide = item.t.diff()[item.t.diff() > 1.4]
            assert 1 <= len(wide) <= 2  # two gaps may touch
            assert 3.0 <= float(wide.sum()) <= 4.6
            assert item.t[0] == 5.0
            assert float(item.t[-1]) <= 25.0
            assert len(item) == 400 if irregular else 300 < len(item) < 400


def test_the_same_seed_gives_the_same_numbers_and_more_trajectories_keep_the_first() -> None:
    options: dict[str, Any] = {"t1": 4.0, "rows": 30, "irregular": True, "noise": {"angle": 0.1}, "missing": 0.1}
    few, again, many, other = (
        data.simulate(PENDULUM, n=n, seed=seed, **options) for n, seed in ((2, 5), (2, 5), (4, 5), (2, 6))
    )
    assert torch.equal(few[1].y, again[1].y)
    assert torch.equal(few[1].y, many[1].y)
    assert not torch.equal(few[1].t, other[1].t)
    before = torch.get_rng_state()
    data.simulate(PENDULUM, n=2, seed=5, **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_components_become_variables_with_axes_and_keep_their_names() -> None:
    system = pn.systems.NBody([1.0, 0.001, 0.002])
    found = data.simulate(system, t1=3.0, rows=10, noise={"position": 0.01})
    assert found.names == system.labels
    assert found.variables == ("position", "velocity")
    assert found[0].parameters["gm"].tolist() == [1.0, 0.001, 0.002]
    sigma = found[0].sigma
    assert sigma is not None
    assert sigma[:, :9].eq(0.01).all()
    assert sigma[:, 9:].isnan().all()
    kepler = data.simulate(pn.systems.Kepler(), t1=3.0, rows=10)
    assert kepler.names == ("position[x]", "position[y]", "velocity[x]", "velocity[y]")


def test_a_plain_function_needs_start_states_and_names() -> None:
    def decay(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -y

    times = [np.array([0.0, 1.0]), np.array([0.0, 0.5, 2.0])]
    found = data.simulate(decay, y0=[[1.0, 2.0], [3.0, 4.0]], ts=times, names=["a[x]", "a[y]"], units={"a": "m"})
    assert found.lengths == (2, 3)
    assert torch.allclose(found[1].y[-1], torch.tensor([3.0, 4.0], dtype=torch.float64) * np.exp(-2.0), rtol=1e-9)
    assert found.units["a"] == "m"
    with pytest.raises(InputError, match="offers no start states"):
        data.simulate(decay, t1=1.0, rows=3)
    with pytest.raises(InputError, match="does not name its state"):
        data.simulate(decay, y0=[1.0], t1=1.0, rows=3)


def test_splits_are_exact_shares(tmp_path: Path) -> None:
    found = data.simulate(PENDULUM, n=10, t1=1.0, rows=3, split=(0.5, 0.2, 0.3), seed=1)
    assert [found.splits.count(name) for name in ("train", "valid", "test")] == [5, 2, 3]
    assert found.splits != ("train",) * 5 + ("valid",) * 2 + ("test",) * 3
    path = data.write(tmp_path / "a.h5", found)
    assert data.validate(path).findings == ()


def test_provenance_is_enough_to_make_it_again(tmp_path: Path) -> None:
    path = data.write(tmp_path / "a.h5", data.simulate(PENDULUM, n=2, t1=1.0, rows=9, noise={"angle": 0.1}, seed=11))
    assert data.validate(path).findings == ()
    attributes = data.open(path).attributes
    assert attributes["source"].startswith("simulated: physnode.systems.pendulum.Pendulum ")
    assert attributes["generator_seed"] == 11
    assert (attributes["integrator"], attributes["integrator_rtol"], attributes["integrator_atol"]) == ("dop853", 1e-10, 1e-12)
    config = json.loads(attributes["generator_config"])
    assert config["constants"] == {"frequency": 2.0, "damping": 0.0}
    assert config["noise"] == {"angle": 0.1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give the times"),
        ({"ts": [0.0, 1.0], "t1": 1.0, "rows": 3}, "found both"),
        ({"ts": [0.0, 1.0], "irregular": True}, "leave them out"),
        ({"ts": [0.0, 0.0]}, "increase within"),
        ({"ts": []}, "one array of times"),
        ({"t1": 1.0}, "go together"),
        ({"t1": -1.0, "rows": 5}, "t1 after t0"),
        ({"t1": 1.0, "rows": 1}, "at least 2 rows"),
        ({"t1": 1.0, "rows": 3, "n": 0}, "at least 1"),
        ({"t1": 1.0, "rows": 3, "noise": {"mass": 1.0}}, "angle, angular_velocity"),
        ({"t1": 1.0, "rows": 3, "noise": {"angle": -1.0}}, "positive"),
        ({"t1": 1.0, "rows": 3, "missing": 1.0}, "probabilities"),
        ({"t1": 1.0, "rows": 3, "split": (0.5, 0.2)}, "add up to 1"),
        ({"t1": 1.0, "rows": 3, "n": 2, "split": (0.5, 0.2, 0.3)}, "too few"),
        ({"t1": 1.0, "rows": 3, "n": 2, "y0": [[1.0, 0.0]] * 3}, "holds 3 start states"),
        ({"t1": 1.0, "rows": 3, "y0": [[[1.0]]]}, "shape"),
        ({"t1": 1.0, "rows": 3, "names": ["a"]}, "1 names for 2"),
        ({"t1": 1.0, "rows": 3, "names": ["a[x]", "a[x]"]}, "grid"),
        ({"t1": 1.0, "rows": 3, "units": {"b": "m"}}, "units names 'b'"),
        ({"t1": 1.0, "rows": 9, "gaps": data.Gaps((3, 3), (0.4, 0.4))}, "too little"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        data.simulate(PENDULUM, **options)


def test_gaps_are_checked() -> None:
    with pytest.raises(InputError, match="range of whole numbers"):
        data.Gaps((3, 2), (1.0, 2.0))
    with pytest.raises(InputError, match="positive times"):
        data.Gaps((1, 2), (0.0, 2.0))
