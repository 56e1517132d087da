from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import physnode.data as data
from physnode.errors import InputError


@pytest.fixture
def counted() -> data.Trajectories:
    """Two trajectories whose only value is 100 * trajectory + row."""
    times = [np.arange(n, dtype=float) for n in (10, 7)]
    values = [100.0 * k + t for k, t in enumerate(times)]
    return data.from_arrays(times, {"x": values}, parameters={"m": [1.0, 2.0]}, split=["train", "test"], ids=[4, 9])


def test_indexing_slicing_and_iteration(counted: data.Trajectories) -> None:
    assert len(counted) == 2
    assert counted[-1].id == 9
    assert [item.id for item in counted] == [4, 9]
    assert [item.id for item in counted[1:]] == [9]
    with pytest.raises(IndexError, match="there are 2"):
        counted[2]


def test_select_rows_and_trajectories(counted: data.Trajectories) -> None:
    assert counted.split("test").ids == (9,)
    assert len(counted.split("valid")) == 0
    assert counted.select(every=3)[0].y[:, 0].tolist() == [0, 3, 6, 9]
    part = counted.select(t0=2, t1=6.5, every=2)
    assert [item.y[:, 0].tolist() for item in part] == [[2, 4, 6], [102, 104, 106]]
    assert part.select(every=2, t0=3)[0].y[:, 0].tolist() == [4]
    assert counted.select(t0=8).ids == (4,)
    assert counted.select(where=lambda item: item.parameters["m"].item() > 1.5).ids == (9,)
    with pytest.raises(InputError, match="id 5"):
        counted.select(ids=[5])
    with pytest.raises(InputError, match="dev"):
        counted.split("dev")


def test_segments_cover_without_copying_across_trajectories(counted: data.Trajectories) -> None:
    windows = counted.segments(4, 3)
    rows = [item.y[:, 0].tolist() for item in windows]
    assert rows == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [100, 101, 102, 103], [103, 104, 105, 106]]
    assert [item.group for item in windows] == [4, 4, 4, 9, 9]
    assert windows.ids == (0, 1, 2, 3, 4)
    assert [item.split for item in windows] == ["train"] * 3 + ["test"] * 2
    assert windows[4].parameters["m"] == 2
    assert [len(item) for item in counted.segments(8)] == [8]
    strided = counted.select(every=2).segments(2)
    assert [item.y[:, 0].tolist() for item in strided] == [[0, 2], [4, 6], [100, 102], [104, 106]]


def test_batch_pads_with_false_and_the_last_time(counted: data.Trajectories) -> None:
    batch = counted.batch()
    assert batch.t.shape == (2, 10)
    assert batch.y.shape == batch.mask.shape == (2, 10, 1)
    assert batch.t[1, 6:].tolist() == [6, 6, 6, 6]
    assert batch.mask[1].sum() == 7
    assert not batch.mask[1, 7:].any()
    assert batch.y[1, 7:].eq(0).all()
    assert batch.sigma is None
    assert batch.args["m"].tolist() == [1, 2]


def test_padded_sigma_keeps_weighted_residuals_finite(sample: data.Trajectories) -> None:
    batch = sample.batch([0, 1])
    assert batch.sigma is not None
    residual = ((batch.y - 1) / batch.sigma * batch.mask).square().sum()
    assert torch.isfinite(residual)
    assert batch.sigma[~batch.mask].eq(1).all()


def test_a_data_loader_takes_it(counted: data.Trajectories) -> None:
    loader = DataLoader(counted.segments(3), batch_size=2, collate_fn=data.collate)
    assert [tuple(batch.y.shape) for batch in loader] == [(2, 3, 1), (2, 3, 1), (1, 3, 1)]
    again = pickle.loads(pickle.dumps(counted))
    assert torch.equal(again[1].y, counted[1].y)


def test_choosing_variables_reorders_the_state(sample: data.Trajectories) -> None:
    chosen = sample.select(variables=["angle", "position"])
    assert chosen.names[0] == "angle"
    assert chosen.dim == 7
    only = sample.select(variables=["rate"])
    assert only.dim == 0
    assert only[0].y.shape == (5, 0)
    assert set(only[0].observations) == {"rate"}
    with pytest.raises(InputError, match="inputs only"):
        sample.select(variables=["torque"])


def test_observations_carry_sigma_mask_and_instrument(sample: data.Trajectories) -> None:
    rate = sample[1].observations["rate"]
    assert not rate.observed[3]
    assert rate.values[3] == 0
    assert rate.unit == "km s-1"
    assert rate.period == 6.0
    assert rate.instruments == ("VLT",)
    assert rate.instrument is not None
    assert rate.instrument.tolist() == [0, 0, 0, -1, 0, 0, 0]
    assert sample[1].inputs["torque"].shape == (7,)
    assert sample[1].time_origin == 2451545.0


def test_initial_values_belong_to_the_first_row_only(sample: data.Trajectories) -> None:
    assert sample[1].initial["angle"] == 0.1
    windows = sample.segments(3)
    assert "angle" in windows[0].initial
    assert windows[1].initial["angle"] == 0.1  # the first window of the second trajectory
    assert windows[2].initial == {}


def test_concat_renumbers_only_if_ids_clash(counted: data.Trajectories) -> None:
    both = data.concat([counted, counted])
    assert both.ids == (0, 1, 2, 3)
    assert torch.equal(both[3].y, counted[1].y)
    assert data.concat([counted[:1], counted[1:]]).ids == (4, 9)
    split = data.concat([counted, data.from_arrays([0.0, 1.0], {"x": [5.0, 6.0]}, parameters={"m": 3.0}, ids=[1])])
    assert split.splits == ("train", "test", "none")


def test_concat_lists_every_difference(counted: data.Trajectories, sample: data.Trajectories) -> None:
    other = data.from_arrays([0.0, 1.0], {"x": [5.0, 6.0]}, units={"time": "d", "x": "m"})
    with pytest.raises(InputError) as caught:
        data.concat([counted, other])
    assert "lacks 'm'" in str(caught.value)
    assert "units 'm' for 'x'" in str(caught.value)
    assert "units 'd' for 'time'" in str(caught.value)
    with pytest.raises(InputError):
        data.concat([])


def test_batch_refuses_what_cannot_be_stacked(counted: data.Trajectories, sample: data.Trajectories) -> None:
    with pytest.raises(InputError, match="differ"):
        data.collate([counted[0], sample[0]])
    with pytest.raises(InputError, match="at least one"):
        data.collate([])


def test_repr_says_what_it_is(sample: data.Trajectories) -> None:
    shown = repr(sample)
    for part in ("3 trajectories", "5 to 300 rows", "position[3x2] m", "1 valid"):
        assert part in shown
    assert "5 rows" in repr(sample[0])
