"""Solves that have no native code: one warning that says why, and the eager result to the last bit."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.errors import CompileWarning, InputError
from physnode.native import build, choice

D = torch.float64
TS = [0.0, 0.5, 1.0]
START = torch.tensor([[0.1, 0.4], [0.5, -0.3]], dtype=D)


class Spring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.3, dtype=D))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        q, p = y[..., :1], y[..., 1:]
        return torch.cat((p, -self.rate * torch.sin(q)), -1)


class Eigen(Spring):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(y.unsqueeze(-1) * y.unsqueeze(-2) + torch.eye(2, dtype=D)) - self.rate * y


class Branch(Spring):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * y if float(y.detach().abs().max()) > 0.2 else -2 * self.rate * y


class Places(Spring):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * torch.gather(y, -1, y.argsort(-1))


class Half(Spring):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return (-self.rate * y).to(torch.bfloat16).to(y.dtype)


class Own(pn.Fixed):
    pass


def driven(t: Tensor, y: Tensor, args: dict[str, Any]) -> Tensor:
    return args["u"] - y


WAVE = pn.Signal([0.0, 0.4, 1.0], [0.0, 1.0, 0.5])
CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "events": (Spring(), {"events": pn.Event(lambda t, y: y[..., :1].squeeze(-1))}, "it has events"),
    "jump_times": (Spring(), {"jump_times": [0.3]}, "jumps"),
    "signal": (driven, {"args": {"u": WAVE}}, "signal"),
    "observer": (Spring(), {"observe": lambda trial: None}, "observed"),
    "storage": (Spring(), {"gradient": pn.ACA(pn.Storage(limit=10**6))}, "limit of storage"),
    "implicit method": (Spring(), {"method": "radau5"}, "radau5 iterates"),
    "shared steps": (Spring(), {"controller": pn.Adaptive(per_trajectory=False)}, "shared by all trajectories"),
    "own controller": (Spring(), {"controller": Own(0.1), "method": "rk4"}, "one of your own"),
    "unknown operation": (Eigen(), {}, "eigh"),
    "branch on a value": (Branch(), {}, "asks for the value of a tensor"),
    "places that depend on the state": (Places(), {}, "sort"),
    "coarse numbers": (Half(), {}, "float16"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_one_warning_says_why(name: str, help: Any) -> None:
    field, options, why = CASES[name]
    wrt = list(field.parameters()) if isinstance(field, nn.Module) else []
    wanted = help.run(field, START, TS, wrt, compile=False, **options)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = help.run(field, START, TS, wrt, compile=True, **options)
        [warning] = told
        assert warning.category is CompileWarning
        assert why in str(warning.message)
        assert "this solve is not compiled" in str(warning.message)
        help.assert_close(found.ys, wanted.ys, 0.0)
        assert all(torch.equal(one, other) for one, other in zip(found.grads, wanted.grads, strict=True))


def test_the_warning_is_the_callers(help: Any) -> None:
    with pytest.warns(CompileWarning) as told:
        pn.solve(Eigen(), START, TS, compile=True)
    assert told[0].filename == __file__


def test_auto_says_nothing(help: Any) -> None:
    for name in ("events", "implicit method", "unknown operation"):
        field, options, _ = CASES[name]
        found = pn.solve(field, START, TS, compile="auto", **options)
        help.assert_close(found.ys, pn.solve(field, START, TS, **options).ys, 0.0)


def test_auto_compiles_after_enough_work(help: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_WORTH", 100)
    field = Spring()
    natively = []
    for _ in range(6):
        found = help.run(field, START, TS, [field.rate], compile="auto")
        natively.append(found.sol.pieces[0].taped is not None)
    assert natively[0] is False
    assert natively[-1] is True
    assert natively == sorted(natively)
    help.assert_same(found, help.run(field, START, TS, [field.rate], compile=False))


def test_auto_gives_up_where_there_is_no_code(help: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_WORTH", 1)
    field = Eigen()
    pn.solve(field, START, TS, compile="auto")
    assert help.made(lambda: pn.solve(field, START, TS, compile="auto")) == 1
    assert help.made(lambda: pn.solve(field, START, TS, compile="auto")) == 0


@pytest.mark.parametrize("value", ["yes", None, 2, "True"])
def test_another_word_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match='compile must be True, False or "auto"'):
        pn.solve(Spring(), START, TS, compile=value)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_to(path: str) -> None:
        monkeypatch.setenv("CXX", path)
        build._compiler.cache_clear()

    yield set_to
    monkeypatch.undo()
    build._compiler.cache_clear()


def test_without_a_compiler(compiler: Any, tmp_path: Any) -> None:
    field = Spring()
    wanted = pn.solve(field, START, TS).ys
    compiler("/nonexistent/c++")
    with pytest.warns(CompileWarning, match="no C\\+\\+ compiler here \\('/nonexistent/c\\+\\+' was not found"):
        assert torch.equal(pn.solve(field, START, TS, compile=True).ys, wanted)


def test_a_compiler_that_fails(compiler: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'no room' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PHYSNODE_CACHE", str(tmp_path / "cache"))
    compiler(str(broken))
    with pytest.warns(CompileWarning, match="the C\\+\\+ compiler failed: no room"):
        pn.solve(Spring(), START, TS, compile=True)
    assert list((tmp_path / "cache").iterdir()) == []
