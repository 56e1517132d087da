"""A run that is killed goes on as if nothing had happened; a folder is whole or says in one line what is wrong with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.errors import FitError, InputError

Swings = Callable[..., pn.data.Trajectories]

pytestmark = pytest.mark.xdist_group("run folder")

RUN = """
import os, signal, sys
import numpy as np
import torch
import physnode as pn
from physnode.fitting.problem import Problem

def run(folder, method, resume=False, seed=1, **options):
    t = np.linspace(0, 3, 12)
    exact = pn.solve(pn.systems.Pendulum(2.0, 0.3), [1.0, 0.0], t, method="dop853").ys.numpy()
    noisy = exact + 0.02 * np.random.default_rng(0).normal(size=exact.shape)
    names = ("angle", "angular_velocity")
    data = pn.data.from_arrays(t, dict(zip(names, noisy.T)), sigma=dict.fromkeys(names, 0.02))
    term = pn.nn.Residual(2, 2, 1, inputs=("v",), generator=torch.Generator().manual_seed(seed))
    model = pn.systems.Pendulum(1.9, free=("frequency",)) + term
    options = {"adam_steps": 60, "max_iterations": 8, "controller": pn.Adaptive(1e-4, 1e-5), "shooting": "single"} | options
    return pn.fit(model, data, method=method, integrator="tsit5", run_folder=folder, resume=resume, progress=False, **options)

if __name__ == "__main__":
    torch.set_num_threads(1)
    _, folder, method, victim, count, shooting = sys.argv
    calls = 0
    def deadly(function):
        def wrapped(*args, **kwargs):
            global calls
            calls += 1
            if calls == int(count):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return wrapped
    setattr(Problem, victim, deadly(getattr(Problem, victim)))
    run(folder, method, shooting=shooting)
"""


def run(folder: Path, method: str, **options: Any) -> pn.FitResult:
    scope: dict[str, Any] = {"__name__": "run"}
    exec(RUN, scope)
    found: pn.FitResult = scope["run"](folder, method, **options)
    return found


def run_and_kill(folder: Path, method: str, victim: str, count: int, shooting: str = "single") -> None:
    """The same run in a process of its own, which is killed when it calls ``Problem.victim`` for the ``count``-th time."""
    script = folder.parent / "run.py"
    script.write_text(RUN)
    arguments = [str(folder), method, victim, str(count), shooting]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script), *arguments], check=False, capture_output=True, env=environment)
    assert done.returncode == -9, done.stderr.decode()
    assert (folder / "config.json").exists()
    assert not (folder / "result.json").exists()


def assert_same(found: pn.FitResult, wanted: pn.FitResult) -> None:
    """To the last bit."""
    assert torch.equal(found.x, wanted.x)
    assert torch.equal(found.covariance, wanted.covariance)
    assert found.history == wanted.history
    assert found.reason == wanted.reason
    before, after = wanted.model.state_dict(), found.model.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[pn.FitResult, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return run(folder, "adam+lbfgs"), folder


class TestKilled:
    @pytest.mark.parametrize(
        ("count", "files"),
        [
            pytest.param(20, 1, id="in Adam, before its first checkpoint"),
            pytest.param(56, 2, id="in Adam, after a checkpoint"),
            pytest.param(75, 2, id="in L-BFGS, before its first checkpoint"),
        ],
    )
    def test_goes_on_to_the_same_bits(
        self, count: int, files: int, uninterrupted: tuple[pn.FitResult, Path], tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        run_and_kill(folder, "adam+lbfgs", "loss", count)
        with pytest.raises(InputError, match="has not ended; resume it"):
            pn.load(folder)
        stages = sorted(name for name in files_of(folder) if name.startswith("stage-"))
        assert len(stages) == files
        # weights drawn anew by the process that goes on are not used
        found = run(folder, "adam+lbfgs", resume=True, seed=99)
        assert_same(found, uninterrupted[0])
        assert files_of(folder) == files_of(uninterrupted[1])
        assert (folder / "metrics.jsonl").read_text() == (uninterrupted[1] / "metrics.jsonl").read_text()
        assert_same(pn.load(folder), uninterrupted[0])

    def test_in_lbfgs(self, tmp_path: Path) -> None:
        """After a checkpoint, whose memory of past gradients the rest of the run depends on."""
        wanted = run(tmp_path / "whole", "lbfgs")
        assert len(wanted.history) > 6
        folder = tmp_path / "run"
        run_and_kill(folder, "lbfgs", "loss", 90)
        assert "stage-01.safetensors" in files_of(folder)
        assert_same(run(folder, "lbfgs", resume=True, seed=99), wanted)

    def test_in_least_squares(self, tmp_path: Path) -> None:
        """Windows first, then whole trajectories: killed in the last stage, the stages before are not done again."""
        wanted = run(tmp_path / "whole", "least_squares", shooting="multiple")
        jacobians = len(wanted.history)
        folder = tmp_path / "run"
        run_and_kill(folder, "least_squares", "jacobian", jacobians - 1, "multiple")
        found = run(folder, "least_squares", resume=True, shooting="multiple")
        assert_same(found, wanted)
        assert files_of(folder) == files_of(tmp_path / "whole")


class TestResuming:
    def test_a_run_that_has_ended_gives_its_result_again(
        self, uninterrupted: tuple[pn.FitResult, Path], tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        shutil.copytree(uninterrupted[1], folder)
        assert_same(run(folder, "adam+lbfgs", resume=True), uninterrupted[0])

    def test_a_folder_that_is_not_there_yet_is_begun(self, uninterrupted: tuple[pn.FitResult, Path], tmp_path: Path) -> None:
        assert_same(run(tmp_path / "new", "adam+lbfgs", resume=True), uninterrupted[0])

    def test_other_settings_are_refused(self, uninterrupted: tuple[pn.FitResult, Path]) -> None:
        before = {path: path.stat().st_mtime_ns for path in uninterrupted[1].iterdir()}
        changes: list[tuple[dict[str, Any], str]] = [
            ({"adam_steps": 61}, "started otherwise: adam_steps 60, now 61"),
            ({"priors": {"frequency": (2.0, 1.0)}}, "priors"),
            ({"bounds": {"frequency": (1.0, 3.0)}}, "bounds"),
            ({"controller": pn.Adaptive(1e-5, 1e-5)}, "controller"),
        ]
        for options, words in changes:
            with pytest.raises(FitError, match=words):
                run(uninterrupted[1], "adam+lbfgs", resume=True, **options)
        assert before == {path: path.stat().st_mtime_ns for path in uninterrupted[1].iterdir()}

    def test_other_data_are_refused(self, swings: Swings, tmp_path: Path) -> None:
        model = pn.systems.Pendulum(1.95, 0.12, free=("frequency", "damping"))
        options: dict[str, Any] = {"shooting": "single", "max_iterations": 2, "progress": False}
        pn.fit(model, swings(), run_folder=tmp_path / "run", **options)
        for other in (swings(seed=1), swings(noise=0.03, given=False)):
            with pytest.raises(FitError, match="other data"):
                pn.fit(model, other, run_folder=tmp_path / "run", resume=True, **options)
        start = pn.systems.Pendulum(1.9, 0.12, free=("frequency", "damping"))
        with pytest.raises(FitError, match="another model; start"):
            pn.fit(start, swings(), run_folder=tmp_path / "run", resume=True, **options)

    def test_a_run_is_not_overwritten(self, uninterrupted: tuple[pn.FitResult, Path]) -> None:
        with pytest.raises(InputError, match=r"already holds a run; .* resume"):
            run(uninterrupted[1], "adam+lbfgs")

    @pytest.mark.parametrize("resume", [False, True])
    def test_a_folder_of_other_things_is_left_alone(self, resume: bool, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(InputError, match="holds files that are no run"):
            run(tmp_path, "least_squares", resume=resume)
        assert files_of(tmp_path) == {"thesis.tex"}

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("")
        with pytest.raises(InputError, match="is a file"):
            run(tmp_path / "run", "least_squares")

    def test_what_a_killed_run_was_writing_is_cleared_away(
        self, uninterrupted: tuple[pn.FitResult, Path], tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        shutil.copytree(uninterrupted[1], folder)
        (folder / ".stage-01.safetensors.123.part").write_bytes(b"half")
        run(folder, "adam+lbfgs", resume=True)
        assert files_of(folder) == files_of(uninterrupted[1])

    def test_a_damaged_checkpoint_is_refused(self, uninterrupted: tuple[pn.FitResult, Path], tmp_path: Path) -> None:
        folder = tmp_path / "run"
        shutil.copytree(uninterrupted[1], folder)
        (folder / "stage-01.safetensors").write_bytes(b"\0" * 100)
        with pytest.raises(InputError, match=r"stage-01\.safetensors is damaged") as caught:
            run(folder, "adam+lbfgs", resume=True)
        assert "\n" not in str(caught.value)


class TestSaveAndLoad:
    def test_a_round_trip_keeps_everything(self, result: pn.FitResult, swings: Swings, tmp_path: Path) -> None:
        folder = result.save(tmp_path / "fit")
        assert files_of(folder) == {"config.json", "fit.png", "model.safetensors", "result.json", "result.safetensors"}
        found = pn.load(folder)
        assert found.summary() == result.summary()
        assert torch.equal(found.covariance, result.covariance)
        assert torch.equal(found.robust_covariance, result.robust_covariance)
        t = [0.5, -1.0, 12.0]
        for trajectory in (0, 1):
            one, other = found.predict(t, trajectory=trajectory), result.predict(t, trajectory=trajectory)
            assert torch.equal(one.y, other.y)
            assert one.error is not None
            assert other.error is not None
            assert torch.equal(one.error, other.error)
        other_swings = swings([(0.7, 0.0)], seed=5)
        assert found.validate(other_swings).chi2 == result.validate(other_swings).chi2
        y = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
        assert torch.equal(found.model(torch.zeros(1, 1), y), result.model(torch.zeros(1, 1), y))
        assert found.history == tuple(result.history)
        assert found.settings == json.loads(json.dumps(result.settings))
        assert found.derived(lambda p: p["frequency"] ** 2).error == result.derived(lambda p: p["frequency"] ** 2).error
        assert (found.save(tmp_path / "again") / "result.json").read_bytes() == (folder / "result.json").read_bytes()

    def test_a_learned_term_comes_back_with_its_scales(self, uninterrupted: tuple[pn.FitResult, Path]) -> None:
        found = pn.load(uninterrupted[1])
        y = torch.tensor([[0.4, -0.3], [1.0, 2.0]], dtype=torch.float64)
        t = torch.zeros(2, 1, dtype=torch.float64)
        with torch.no_grad():
            assert torch.equal(found.model(t, y), uninterrupted[0].model(t, y))

    def test_infinities_survive(self, tmp_path: Path) -> None:
        class Twice(pn.VectorField):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
                self.b = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return -(self.a + self.b) * y

        t = np.linspace(0, 1, 9)
        data = pn.data.from_arrays(t, {"x": np.exp(-2.1 * t)}, sigma={"x": 0.01})
        fitted = pn.fit(Twice(), data, shooting="single", run_folder=tmp_path / "run", progress=False)
        with pytest.raises(InputError, match=r"load\(folder, model=\.\.\.\)"):
            pn.load(tmp_path / "run")
        found = pn.load(tmp_path / "run", model=Twice())
        assert found.errors == fitted.errors == {"a": np.inf, "b": np.inf}
        assert float(found.derived(lambda p: p["a"] + p["b"]).error) == float(fitted.derived(lambda p: p["a"] + p["b"]).error)
        assert found.unidentified == fitted.unidentified
        with pytest.raises(InputError, match="does not fit the weights"):
            pn.load(tmp_path / "run", model=pn.systems.Pendulum())

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="holds no run"):
            pn.load(tmp_path)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "result.json", "result.safetensors"])
    @pytest.mark.parametrize("damage", ["cut", "empty", "noise", "list", "missing"])
    def test_damage_is_said_in_one_line(self, name: str, damage: str, result: pn.FitResult, tmp_path: Path) -> None:
        folder = result.save(tmp_path / "fit")
        path = folder / name
        if damage == "missing":
            path.unlink()
        else:
            content = path.read_bytes()
            changed = {"cut": content[: len(content) // 2], "empty": b"", "noise": b"\x93\xff" * 400, "list": b"[1, 2]"}
            path.write_bytes(changed[damage])
        with pytest.raises(InputError) as caught:
            pn.load(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("key", ["scalars", "channels", "trajectories", "solver", "chi2", "format", "names"])
    def test_so_is_what_is_left_out(self, key: str, result: pn.FitResult, tmp_path: Path) -> None:
        folder = result.save(tmp_path / "fit")
        facts = json.loads((folder / "result.json").read_text())
        for wrong in (None, "nonsense", {"deep": [1]}):
            (folder / "result.json").write_text(json.dumps({**facts, key: wrong}))
            with pytest.raises(InputError) as caught:
                pn.load(folder).summary()
            assert "\n" not in str(caught.value)

    def test_a_failed_run_can_be_told_from_a_finished_one(self, tmp_path: Path) -> None:
        class Nowhere(pn.VectorField):
            def __init__(self) -> None:
                super().__init__()
                self.rate = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return torch.where(t < 0.5, self.rate * y, torch.nan)

        data = pn.data.from_arrays(np.linspace(0, 1, 8), {"x": np.ones(8)}, sigma={"x": 0.1})
        with pytest.raises(FitError):
            pn.fit(Nowhere(), data, shooting="single", run_folder=tmp_path / "run", progress=False)
        assert "result.json" not in files_of(tmp_path / "run")
        assert not any(name.endswith(".part") for name in files_of(tmp_path / "run"))
        with pytest.raises(InputError, match="has not ended"):
            pn.load(tmp_path / "run")

    def test_metrics_are_one_object_a_line(self, uninterrupted: tuple[pn.FitResult, Path]) -> None:
        lines = [json.loads(line) for line in (uninterrupted[1] / "metrics.jsonl").read_text().splitlines()]
        assert lines == list(uninterrupted[0].history)
        assert {"stage", "step", "loss"} <= set(lines[0])
