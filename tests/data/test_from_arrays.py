from __future__ import annotations

import numpy as np
import pytest
import torch

import physnode.data as data
from physnode.errors import InputError

T = np.linspace(0.0, 1.0, 5)


def test_y_is_each_state_in_c_order_one_after_the_other() -> None:
    position = np.arange(30.0).reshape(5, 3, 2)
    speed = np.arange(5.0) + 100
    axes = {"body": ["sun", "a", "b"], "space": ["x", "y"]}
    found = data.from_arrays(T, {"position": position, "speed": speed}, labels={"position": axes})[0]
    assert found.names[:2] == ("position[sun,x]", "position[sun,y]")
    assert found.names[-2:] == ("position[b,y]", "speed")
    assert torch.equal(found.y, torch.from_numpy(np.concatenate([position.reshape(5, 6), speed[:, None]], axis=1)))
    assert found.t.dtype == torch.float64
    assert found.units == {"time": "s", "position": "1", "speed": "1"}
    assert found.sigma is None
    assert found.observed.all()


def test_a_missing_value_becomes_zero_and_unobserved() -> None:
    values = np.ones((5, 2))
    values[1, 0] = np.nan
    found = data.from_arrays(T, {"x": values}, sigma={"x": 0.5})[0]
    assert found.y[1, 0] == 0
    assert not found.observed[1, 0]
    assert found.observed.sum() == 9
    assert found.sigma is not None
    assert found.sigma[1, 0] == 1
    assert found.sigma[0, 0] == 0.5


def test_observed_hides_values_and_must_not_show_missing_ones() -> None:
    seen = np.array([True, False, True, True, True])
    found = data.from_arrays(T, {"x": np.ones((5, 2))}, observed={"x": seen})[0]
    assert found.observed[:, 0].tolist() == seen.tolist()
    with pytest.raises(InputError, match="NaN"):
        data.from_arrays(T, {"x": np.full(5, np.nan)}, observed={"x": seen})


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [(2.0, np.full((5, 2), 2.0)), (T + 1, np.stack([T + 1] * 2, 1)), (np.arange(1.0, 11).reshape(5, 2), None)],
)
def test_sigma_of_each_shape_is_spread_over_the_components(sigma: object, expected: np.ndarray | None) -> None:
    found = data.from_arrays(T, {"x": np.ones((5, 2))}, sigma={"x": sigma})[0]
    wanted = np.asarray(sigma) if expected is None else expected
    assert found.sigma is not None
    assert np.array_equal(found.sigma.numpy(), wanted)


def test_a_variable_without_sigma_beside_one_with_has_nan() -> None:
    found = data.from_arrays(T, {"x": T, "v": T}, sigma={"x": 1.0})[0]
    assert found.sigma is not None
    assert found.sigma[:, 0].eq(1).all()
    assert found.sigma[:, 1].isnan().all()


def test_ragged_lists_tensors_and_parameters() -> None:
    times = [torch.linspace(0, 1, n, dtype=torch.float64) for n in (3, 4)]
    x = [torch.sin(t).float().requires_grad_() for t in times]
    found = data.from_arrays(times, {"x": x}, parameters={"m": [1.0, 2.0], "g": 9.8})
    assert [len(item) for item in found] == [3, 4]
    assert [item.parameters["m"].item() for item in found] == [1.0, 2.0]
    assert [item.parameters["g"].item() for item in found] == [9.8, 9.8]
    assert found[0].y.dtype == torch.float32
    assert data.from_arrays(T, {"x": T}, parameters={"m": [1.0, 2.0]})[0].parameters["m"].tolist() == [1.0, 2.0]


def test_missing_units_are_named() -> None:
    with pytest.raises(InputError, match="'x'"):
        data.from_arrays(T, {"x": T}, units={"time": "s"})
    with pytest.raises(InputError, match="time"):
        data.from_arrays(T, {"x": T}, units={"x": "m"})
    with pytest.raises(InputError, match=r"365\.25 d"):
        data.from_arrays(T, {"x": T}, units={"time": "yr", "x": "m"})
    with pytest.raises(InputError, match="speed"):
        data.from_arrays(T, {"x": T}, units={"time": "s", "x": "m", "speed": "m"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": {"x": T[:4]}}, "5 times"),
        ({"values": {"x": 1.0}}, "first axis"),
        ({"values": {"x": [1j] * 5}}, "real numbers"),
        ({"values": {"x y": T}}, "cannot name"),
        ({"values": {"time": T}}, "reserved"),
        ({"values": {}}, "at least one state"),
        ({"values": {"x": np.full(5, np.inf)}}, "infinite"),
        ({"values": {"x": T}, "sigma": {"x": -1.0}}, "negative"),
        ({"values": {"x": T}, "sigma": {"q": 1.0}}, "'q'"),
        ({"values": {"x": T}, "sigma": {"x": T[:3]}}, "needed"),
        ({"values": {"x": T}, "parameters": {"m": np.nan}}, "finite"),
        ({"values": {"x": T}, "split": ["dev"]}, "split"),
        ({"values": {"x": T}, "labels": {"x": {"body": ["a"]}}}, "name 1 axes"),
        ({"values": {"x": np.ones((5, 2))}, "labels": {"x": {"body": ["a", "a"]}}}, "different labels"),
        ({"values": {"x": T}, "inputs": {"u": T}, "interpolation": "cubic"}, "cubic"),
        ({"values": {"x": T, "x_sigma": T}, "sigma": {"x": 1.0}}, "taken"),
        ({"values": {"x": T}, "labels": {"y": {"a": None}}}, "'y'"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        data.from_arrays(T, **arguments)


def test_time_must_increase_within_a_trajectory_only() -> None:
    data.from_arrays([T, T], {"x": [T, 2 * T]})
    with pytest.raises(InputError, match="decreases"):
        data.from_arrays(T[::-1].copy(), {"x": T})
    with pytest.raises(InputError, match="two rows at one time"):
        data.from_arrays(np.zeros(5), {"x": T})
    twice = np.array([0.0, 0.0, 1.0])
    data.from_arrays(twice, {"x": [1.0, 2.0, 3.0]}, instruments={"x": ["A", "B", "A"]})


def test_a_group_must_stay_in_one_split() -> None:
    with pytest.raises(InputError, match="two splits"):
        data.from_arrays([T, T], {"x": [T, 2 * T]}, split=["train", "test"], groups=[4, 4])
