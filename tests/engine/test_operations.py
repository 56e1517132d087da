"""How many operations a solve dispatches and how often it waits for its device: counted, so that no clock is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from physnode.engine import loop
from physnode.engine.controllers import Adaptive, Controller, Fixed
from physnode.fields import SecondOrder
from physnode.gradients import ACA, Storage
from physnode.solve import solve

F64 = torch.float64


class Operations(TorchDispatchMode):
    """Counts what reaches PyTorch's kernels, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


class Waits(TorchFunctionMode):
    """Counts the calls that need a tensor's values on the host."""

    names = frozenset(("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "cpu", "nonzero", "unique"))

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += getattr(func, "__name__", "") in self.names
        return func(*args, **(kwargs or {}))


class Swing(SecondOrder):
    velocity_dependent = False

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -torch.sin(q)


def fall(t: Tensor, y: Tensor) -> Tensor:
    return -y


def each_trial(monkeypatch: pytest.MonkeyPatch, counter: Operations | Waits, run: Callable[[], object]) -> list[int]:
    """What the counter counts in each trial of ``run``."""
    found: list[int] = []
    plain = loop.advance

    def advance(setting: loop.Setting, state: loop.State) -> Any:
        before = counter.number
        out = plain(setting, state)
        found.append(counter.number - before)
        return out

    with monkeypatch.context() as patch, counter:
        patch.setattr(loop, "advance", advance)
        run()
    return found


class TestOperations:
    """Limits a little above what is dispatched; who needs more operations says so here."""

    @pytest.mark.parametrize("rows", [1, 64])
    @pytest.mark.parametrize(("method", "limit"), [("tsit5", 148), ("bosh3", 117), ("rk4", 90)])
    def test_of_a_trial(self, monkeypatch: pytest.MonkeyPatch, rows: int, method: str, limit: int) -> None:
        controller: Controller = Fixed(0.1) if method == "rk4" else Adaptive()
        y0 = torch.ones(rows, 2, dtype=F64)
        made = each_trial(monkeypatch, Operations(), lambda: solve(fall, y0, [0.0, 1.0], method=method, controller=controller))
        assert len(made) >= 5
        assert max(made) <= limit

    @pytest.mark.parametrize(("gradient", "limit"), [(None, 330), ("aca", 445), ("symplectic", 455)])
    def test_of_a_solve_beside_its_trials(self, monkeypatch: pytest.MonkeyPatch, gradient: str | None, limit: int) -> None:
        y0 = torch.ones(1, 2, dtype=F64, requires_grad=gradient is not None)
        counter = Operations()
        trials = each_trial(monkeypatch, counter, lambda: solve(fall, y0, [0.0, 0.1, 0.2, 0.3], gradient=gradient or "aca"))
        assert counter.number - sum(trials) <= limit

    @pytest.mark.parametrize(("gradient", "limit"), [("aca", 137), ("symplectic", 107)])
    def test_of_the_way_back_over_a_step(self, gradient: str, limit: int) -> None:
        found = []
        for t1 in (1.0, 3.0):
            y0 = torch.ones(1, 2, dtype=F64, requires_grad=True)
            sol = solve(fall, y0, [0.0, t1], method="tsit5", controller=Fixed(0.1), gradient=gradient)
            with Operations() as counter:
                sol.ys.sum().backward()
            found.append(counter.number)
        assert found[1] - found[0] <= 20 * limit


class TestWaits:
    @pytest.mark.parametrize("method", ["tsit5", "dop853", "rk4", "leapfrog", "dprkn6"])
    def test_none_in_a_trial(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        controller: Controller = Fixed(0.1) if method in ("rk4", "leapfrog") else Adaptive()
        y0 = torch.ones(3, 2, dtype=F64)
        made = each_trial(monkeypatch, Waits(), lambda: solve(Swing(), y0, [0.0, 2.0], method=method, controller=controller))
        assert len(made) >= 3
        assert not any(made)

    def test_one_for_several_trials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run() -> None:
            solve(Swing(), torch.ones(3, 2, dtype=F64), [0.0, 40.0])

        found = []
        for several in (1, 8):
            monkeypatch.setattr(loop, "_trials_a_wait", lambda setting, device, several=several: several)
            counter = Waits()
            trials = len(each_trial(monkeypatch, counter, run))
            found.append((counter.number, trials))
        (each, trials), (rarely, _) = found
        assert trials > 60
        assert rarely <= each - 0.8 * trials


class TestSeveralTrialsAWait:
    """Those that have ended rest until the loop hears of it; nothing that a caller sees tells how often it listens."""

    def everything(self, **options: Any) -> list[Any]:
        y0 = torch.tensor([[1.0, 0.0], [3.1, 0.0], [0.2, 0.3], [2.0, 1e9]], dtype=F64, requires_grad=True)
        ends = torch.tensor([3.0, 40.0, 0.0, 20.0], dtype=F64)
        ts = ends.unsqueeze(-1) * torch.linspace(0, 1, 12, dtype=F64) if options.pop("ragged", True) else [0.0, 7.0, 19.0]
        seen: list[Tensor] = []
        sol = solve(
            Swing(),
            y0,
            ts,
            t0=0.0,
            max_steps=90,
            on_failure="report",
            observe=lambda trial: seen.append(trial.t_end),
            **options,
        )
        (grad,) = torch.autograd.grad(torch.nan_to_num(sol.ys).square().sum(), y0)
        found = [sol.ys, sol.status, sol.reached, sol.last_step, sol.stats.accepted, sol.stats.rejected, sol.stats.evaluations]
        assert sol.stats.gradient is not None
        return [*found, grad, torch.stack(seen), torch.tensor([sol.stats.gradient.bytes, sol.stats.gradient.states])]

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"ragged": False},
            {"gradient": "symplectic", "read_out": "restep"},
            {"controller": Adaptive(per_trajectory=False)},
            {"controller": Adaptive(icoeff=0.3, pcoeff=0.4), "jump_times": [1.0, 2.5]},
            {"gradient": ACA(Storage(checkpoints=5))},
            {"gradient": ACA(Storage(limit=20_000))},
        ],
    )
    @pytest.mark.parametrize("several", [3, 8, 64])
    def test_same_to_the_last_bit(self, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], several: int) -> None:
        wanted = self.everything(**options)
        assert (wanted[1] > 0).any()
        assert (wanted[1] == 0).any()
        monkeypatch.setattr(loop, "_trials_a_wait", lambda setting, device: several)
        monkeypatch.setattr(loop, "_CHUNK_BYTES", 2**13)  # so that trials without outputs are trimmed
        for one, other in zip(wanted, self.everything(**options), strict=True):
            assert torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
