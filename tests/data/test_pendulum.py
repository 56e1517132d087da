from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import physnode as pn
from physnode import data

FILE = Path(__file__).resolve().parents[2] / "data" / "pendulum" / "pendulum.h5"


@pytest.fixture(scope="module")
def swings() -> data.Trajectories:
    return data.open(FILE)


def test_the_file_is_small_valid_and_what_its_card_says(swings: data.Trajectories) -> None:
    assert FILE.stat().st_size < 300_000
    assert data.validate(FILE).findings == ()
    facts = data.info(FILE)
    assert facts["content_sha256"] in FILE.with_name("README.md").read_text()
    assert facts["splits"] == {"train": 6, "valid": 2, "test": 4}
    assert [float(value) for value in swings[0].parameters.values()] == [2.0, 0.15]
    starts = torch.stack([item.initial["angle"] for item in swings]).abs()
    assert (float(starts.min()), float(starts.max())) == (0.5, 2.6)


def test_it_can_be_made_again(swings: data.Trajectories, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate_pendulum", FILE.with_name("generate.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = data.write(tmp_path / "again.h5", module.build())
    for again, shipped in zip(data.open(path), swings, strict=True):
        assert torch.allclose(again.y, shipped.y, atol=2e-5)
    assert data.info(path)["content_sha256"] == data.info(FILE)["content_sha256"]


def test_the_residuals_of_the_truth_are_the_noise(swings: data.Trajectories) -> None:
    scaled = []
    for item in swings:
        start = torch.stack(list(item.initial.values()))
        truth = pn.solve(pn.systems.Pendulum(2.0, 0.15), start, item.t, controller=pn.Adaptive(1e-9, 1e-11)).ys
        assert item.sigma is not None
        scaled.append(((item.y - truth) / item.sigma)[item.observed])
    everything = torch.cat(scaled)
    assert len(everything) > 2700
    assert float(everything.square().mean()) == pytest.approx(1.0, abs=0.08)


def test_gaps_and_missing_velocities(swings: data.Trajectories) -> None:
    for item in swings:
        assert 1 <= int((item.t.diff() > 1.0).sum()) <= 3
        assert item.observed[:, 0].all()
    seen = torch.cat([item.observed[:, 1] for item in swings]).double()
    assert 0.93 < float(seen.mean()) < 0.97
