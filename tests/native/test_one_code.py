"""One code serves every batch, span, tolerance and value of a parameter, and the next process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import physnode as pn
from physnode.systems import Pendulum

D = torch.float64
PROGRAM = """
import sys, torch, physnode as pn
from physnode.native.build import COUNTS
from physnode.systems import Pendulum
sol = pn.solve(Pendulum(1.1), torch.ones(3, 2).double(), [0.0, 1.0], compile=True, method="euler", controller=pn.Fixed(0.1))
print(sol.ys.sum().item().hex(), COUNTS["compiled"], COUNTS["loaded"])
"""


def test_no_second_code(help: Any) -> None:
    field = Pendulum(1.3, 0.1, free=("frequency", "damping"))
    options = {"method": "tsit5", "controller": pn.Adaptive(1e-5, 1e-6)}
    wrt = list(field.parameters())
    help.agree(field, field.initial_states(3), [0.0, 0.5, 1.0], wrt, **options)

    def more() -> None:
        for rows in (1, 2, 8, 64, 1024):
            help.agree(field, field.initial_states(rows), [0.0, 0.5, 1.0], wrt, tolerance=1e-11, **options)
        for ts, t0 in (([0.0, 3.0], 0.0), (torch.linspace(0, 1, 77, dtype=D), 0.0), ([1.0, 0.0], 1.0), ([-1.0, 1.0], 0.0)):
            help.agree(field, field.initial_states(3), ts, wrt, t0=t0, tolerance=1e-11, **options)
        for rtol, atol, limit in ((1e-3, 1e-4, 1000), (1e-8, 1e-9, 5000)):
            settings = {"method": "tsit5", "controller": pn.Adaptive(rtol, atol), "max_steps": limit}
            help.agree(field, field.initial_states(3), [0.0, 1.0], wrt, tolerance=1e-11, **settings)
        with torch.no_grad():
            field.frequency.fill_(0.4)
            field.damping.fill_(0.0)
        help.agree(field, field.initial_states(3), [0.0, 1.0], wrt, tolerance=1e-11, **options)

    assert help.made(more) == 0


def test_steps_of_a_mesh_may_change(help: Any) -> None:
    field = Pendulum(1.3)
    pn.solve(field, field.initial_states(3), [0.0, 1.0], method="rk4", controller=pn.Fixed(0.1), compile=True)

    def more() -> None:
        for dt in (0.07, 0.3):
            with torch.no_grad():
                options = {"method": "rk4", "controller": pn.Fixed(dt)}
                found = pn.solve(field, field.initial_states(3), [0.0, 1.0], compile=True, **options)
                eager = pn.solve(field, field.initial_states(3), [0.0, 1.0], **options)
            torch.testing.assert_close(found.ys, eager.ys, rtol=1e-13, atol=1e-13)
            assert torch.equal(found.stats.accepted, eager.stats.accepted)

    assert help.made(more) == 0


def test_the_same_source_is_compiled_once(help: Any) -> None:
    options = {"method": "rk4", "controller": pn.Fixed(0.1), "compile": True}
    pn.solve(Pendulum(1.3), torch.ones(2, dtype=D), [0.0, 1.0], **options)
    another = lambda: pn.solve(Pendulum(0.7), torch.ones(2, dtype=D), [0.0, 1.0], **options)  # noqa: E731
    assert help.made(another, "compiled") == 0


def start(cache: Path) -> subprocess.Popen[str]:
    root = Path(pn.__file__).resolve().parents[1]
    environment = {**os.environ, "PHYSNODE_CACHE": str(cache), "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, text=True, stdout=subprocess.PIPE)


def said(process: subprocess.Popen[str]) -> tuple[str, int, int]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    value, compiled, loaded = out.split()
    return value, int(compiled), int(loaded)


def test_processes_share_a_folder(tmp_path: Path) -> None:
    """Two that start at once may both compile; a later one does not, and nothing but whole libraries stays behind."""
    first, second = [said(process) for process in [start(tmp_path), start(tmp_path)]]
    third = said(start(tmp_path))
    assert first[0] == second[0] == third[0]
    assert 1 <= first[1] + second[1] <= 2
    assert third[1:] == (0, 1)
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("PHYSNODE_CACHE", str(in_the_way / "cache"))

    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -0.123456 * y

    with pytest.warns(pn.errors.CompileWarning):
        sol = pn.solve(field, torch.ones(2, dtype=D), [0.0, 1.0], method="euler", controller=pn.Fixed(0.1), compile=True)
    assert bool(sol.ok)
