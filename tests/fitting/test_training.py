"""Adam and L-BFGS by themselves, on a valley that is steep one way and flat the other."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from physnode.errors import FitError
from physnode.fitting.progress import Reporter
from physnode.fitting.training import Training, adam, lbfgs

START = torch.tensor([-1.2, 1.0, 30.0], dtype=torch.float64)


def valley(x: Tensor) -> Tensor:
    """Rosenbrock's function of the first two unknowns, and a third one of another size; least at (1, 1, 17)."""
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2 + (x[2] / 17 - 1) ** 2


def problem(loss: Callable[[Tensor], Tensor] = valley, low: float = -torch.inf) -> Any:
    infinite = torch.full((3,), torch.inf, dtype=torch.float64)
    lower = torch.tensor([-torch.inf, -torch.inf, low], dtype=torch.float64)
    shared = SimpleNamespace(scale=torch.tensor([0.7, 1.3, 29.0], dtype=torch.float64), bounds=(lower, infinite), size=3)
    windows = SimpleNamespace(mask=torch.ones(50, dtype=torch.bool))
    return SimpleNamespace(loss=loss, shared=shared, states_free=False, state_scale=START[:0], size=3, windows=windows, count=1)


def run(name: str, of: Any, training: Training, checkpoint: Callable[[Training], None] = lambda _: None) -> Training:
    if name == "adam":
        return adam(of, training, Reporter(None), stage="s", steps=40, learning_rate=0.05, checkpoint=checkpoint, every=1)
    return lbfgs(of, training, Reporter(None), stage="s", steps=12, checkpoint=checkpoint, every=1)


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
class TestTraining:
    def test_goes_down(self, name: str) -> None:
        found = run(name, problem(), Training(START))
        losses = [entry["loss"] for entry in found.history]
        assert losses[-1] < 0.6 * losses[0]
        assert found.done
        if name == "lbfgs":
            assert found.x.tolist() == pytest.approx([1.0, 1.0, 17.0], rel=1e-2)

    def test_taken_up_at_any_checkpoint_it_ends_alike(self, name: str) -> None:
        kept: list[Training] = []
        whole = run(name, problem(), Training(START), kept.append)
        assert len(kept) >= 2
        for training in kept:
            again = run(name, problem(), training)
            assert torch.equal(again.x, whole.x)
            assert again.history == whole.history
            assert again.reason == whole.reason

    def test_stays_inside_its_bounds(self, name: str) -> None:
        seen: list[float] = []

        def watched(x: Tensor) -> Tensor:
            seen.append(float(x[2].detach()))
            return valley(x)

        found = run(name, problem(watched, low=25.0), Training(START))
        assert min(seen) >= 25.0 * (1 - 1e-15)
        assert float(found.x[2]) == pytest.approx(25.0, rel=0.02)

    def test_a_loss_that_is_no_number_is_an_error(self, name: str) -> None:
        with pytest.raises(FitError, match="the loss is nan"):
            run(name, problem(lambda x: valley(x) * torch.nan), Training(START))
