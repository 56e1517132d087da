"""The speed benchmark writes what it measures, names who is absent, refuses who is wrong, and fails on a missed limit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import physnode as pn

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def _from_the_root():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


@pytest.fixture
def in_this_process(monkeypatch):
    """Jobs without processes of their own, which would load PyTorch again, and short."""
    from benchmarks.speed import growth, jobs, plan
    from benchmarks.speed.timing import Patience

    monkeypatch.setattr(plan, "Patience", lambda cap, *more, **named: Patience(cap, 0.01, 2, 0.0))
    monkeypatch.setattr(growth, "HORIZONS", (0.1, 0.2))
    monkeypatch.setattr(growth, "WIDTHS", (16, 32))
    monkeypatch.setattr(growth, "FIXED_BATCH", 2)
    monkeypatch.setattr(jobs, "launch", lambda job: plan.PARTS[job.part](job))


def run(folder, *more):
    from benchmarks.speed.__main__ import main

    out, kept = folder / "speed.md", folder / "speed.json"
    status = main(["--quick", "--without-peers", "--out", str(out), "--json", str(kept), *more])
    return status, out, kept


def test_the_page_and_all_measurements_are_written(tmp_path, in_this_process, monkeypatch):
    from benchmarks.speed import growth, page

    monkeypatch.setattr(growth, "LIMITS", dict.fromkeys(growth.LIMITS, 9.0))
    monkeypatch.setattr(page, "missing", lambda: ["somebody"])
    chosen = ("--only", "same", "scaling", "--cases", "three-bodies", "--batches", "1", "3")
    status, out, kept = run(tmp_path, *chosen)
    text, records = out.read_text(), json.loads(kept.read_text())
    assert status == 0
    assert "left out: somebody." in text
    assert "## Three bodies: forward and gradient, float64, one thread" in text
    assert "(≤ 9)" in text
    assert (tmp_path / "figures" / "speed_scaling.png").exists()
    same = [record for record in records if record["part"] == "same"]
    assert {record["batch"] for record in same} == {1, 3}
    assert all(record["error"] < 1e-4 and min(record["seconds"]) > 0 for record in same)
    assert all(record["gradient_error"] < 1e-3 for record in same if record["mode"] == "gradient")


def test_a_missed_limit_fails(tmp_path, in_this_process, monkeypatch, capsys):
    from benchmarks.speed import at_the_limit

    monkeypatch.setattr(at_the_limit, "FORWARD", 0.01)
    status, out, _ = run(tmp_path, "--only", "limit", "--batches", "2")
    assert status == 1
    assert "limit missed: Held: distance to the limit: 2: forward / limit" in capsys.readouterr().err
    assert "missed" in out.read_text()


def test_who_solves_another_problem_is_not_timed(tmp_path):
    from benchmarks.speed.contenders import Contender
    from benchmarks.speed.jobs import Job
    from benchmarks.speed.problems import build
    from benchmarks.speed.reference import reference
    from benchmarks.speed.same_tolerance import start_up

    problem = build("pendulum-network", 2)
    wanted = reference("pendulum-network", 2, tmp_path, gradient=False, rtol=1e-9)
    wrong = Contender("wrong", "wrong", "", lambda problem, setting: lambda: (torch.zeros(2, 21, 2), ()))
    record: dict[str, object] = {}
    assert start_up(wrong, problem, "forward", wanted, record, Job("same", "pendulum-network", (2,))) is None
    assert "off by" in str(record["skipped"])


@pytest.mark.parametrize("name", ["three-bodies", "three-bodies-network", "pendulum-network", "solar-system"])
def test_all_forms_of_a_field_are_one_field(name):
    from benchmarks.speed.plain_fields import PlainField, derivative
    from benchmarks.speed.problems import build

    problem = build(name, 2)
    t, y = torch.zeros((), dtype=torch.float64), problem.y0
    wanted = problem.field(t, y)
    torch.testing.assert_close(PlainField(problem)(t, y), wanted)
    for pairs in (False, True):
        found = np.stack([derivative(np, problem.case, problem.theta, row, pairs=pairs) for row in problem.array])
        torch.testing.assert_close(torch.from_numpy(found), wanted.detach(), rtol=1e-12, atol=1e-18)


def test_small_batches_are_the_first_rows_of_large_ones():
    from benchmarks.speed.problems import build

    large = build("three-bodies", 130).y0
    assert torch.equal(build("three-bodies", 3).y0, large[:3])
    assert torch.equal(build("three-bodies", 64).y0, large[:64])


def test_time_and_memory_of_a_larger_batch_are_foreseen():
    from benchmarks.speed.timing import History

    loop = History([(1, 2.0, 0)])
    assert loop.seconds(64, one_by_one=True) == 128.0
    assert History([(1, 1.0, 0), (64, 1.0, 0)]).seconds(256, one_by_one=False) == pytest.approx(2.0)
    assert History([(64, 1.0, 2**30)]).bytes(128) == 2**31


def test_equal_error_finds_the_tolerance(tmp_path):
    from benchmarks.speed.jobs import Job
    from benchmarks.speed.timing import Patience
    from benchmarks.speed.work_precision import NEAR, TARGET, measure

    patience = Patience(budget=0.01, quickly=0.0)
    job = Job("work-precision", "three-bodies", (1,), folder=str(tmp_path), peers=False, patience=patience)
    found = [record for record in measure(job) if "mode" in record]
    assert {record["mode"] for record in found} == {"forward", "gradient"}
    assert all(record["error"] <= NEAR * TARGET["bodies"] for record in found)
    assert {record["method"] for record in found} <= set(pn.methods.available())
