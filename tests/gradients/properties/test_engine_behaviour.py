"""What gradients rest on in the engine: estimates that are zero where nothing errs, no work or waiting beyond the claim."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import physnode as pn
from physnode.engine.field_function import FieldFunction
from physnode.fields import as_field

F64 = torch.float64
EMBEDDED = [name for name, method in pn.methods.available().items() if method.error_order]


class Falling(pn.SecondOrder):
    """q'' = -g: quadratic in time, which every method of second-order fields follows without an error."""

    velocity_dependent = False

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return torch.full_like(q, -9.81)


@pytest.mark.parametrize("name", EMBEDDED)
def test_error_weights_sum_to_zero(name: str) -> None:
    """An estimate h Σ e_i k_i with Σ e_i != 0 would see an error of size h in a constant field; all steps of a constant
    field are as long as the controller lets them grow."""
    second_order = name in ("dprkn6", "gauss_radau15")
    field: Any = Falling() if second_order else lambda t, y: torch.full_like(y, 1.7)
    method = pn.methods.get(name)
    f = FieldFunction(as_field(field), (2,), F64)
    y = torch.tensor([[0.4, -0.3], [2.0, 0.1]], dtype=F64)
    t = torch.zeros(2, dtype=F64)
    with torch.no_grad():
        errors = method.step(f, t, t + 0.7, y).error
    assert errors
    for error in errors:
        assert float(error.abs().max()) < 1e-13
    sol = pn.solve(field, y, [0.0, 10.0], method=name, controller=pn.Adaptive(1e-10, 1e-10))
    assert int(sol.stats.rejected.max()) == 0
    assert int(sol.stats.accepted.max()) < 20


class Waits(TorchDispatchMode):
    """Counts the operations for which the host must wait until a device has the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["rk4", "tsit5", "dop853", "leapfrog"])
def test_waiting_for_the_device_does_not_grow_with_the_batch(name: str, gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial step asks for a few truth values, whatever the number of trajectories and outputs; no cache is emptied."""

    def emptied() -> None:
        raise AssertionError("the allocator's cache was emptied")

    monkeypatch.setattr(torch.cuda, "empty_cache", emptied)
    controller = pn.Adaptive(1e-6, 1e-6) if pn.methods.get(name).error_order else pn.Fixed(0.1)

    class Swing(pn.SecondOrder):
        velocity_dependent = False

        def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
            return -torch.sin(q)

    counts = []
    for batch in (2, 64):
        y0 = torch.tensor([[1.0, 0.2]], dtype=F64).expand(batch, -1).clone().requires_grad_()
        with Waits() as forward:
            sol = pn.solve(Swing(), y0, [0.0, 3.0], method=name, controller=controller, gradient=gradient)
        with Waits() as back:
            sol.ys[:, -1].sum().backward()
        trials = int((sol.stats.accepted + sol.stats.rejected).max())
        counts.append((forward.count, back.count))
        assert forward.count <= 40 + 8 * trials
        assert back.count <= 20 + 4 * trials
    few, many = counts
    assert all(after <= before for before, after in zip(few, many, strict=True))


def counted(gradient: str, steps: int) -> tuple[int, int]:
    """Calls of the field forward and backward, for ``steps`` steps of four stages."""
    calls = [0]
    k = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        return -k * torch.sin(y)

    y0 = torch.ones(3, 1, dtype=F64, requires_grad=True)
    sol = pn.solve(field, y0, [0.0, 1.0], method="rk4", controller=pn.Fixed(1 / steps), gradient=gradient)
    forward = calls[0]
    sol.ys.sum().backward()
    return forward, calls[0] - forward


def test_the_name_of_a_gradient_says_what_it_does() -> None:
    """The page names each with what it keeps and evaluates, and it is so: none, one pass, at most two passes."""
    page = (Path(__file__).parents[3] / "docs" / "differentiating.md").read_text(encoding="utf-8")
    table = re.search(r"\| `gradient=`.*?\n\n", page, re.DOTALL)
    assert table
    for name in ("direct", "aca", "symplectic"):
        assert f'`"{name}"' in table[0]
    steps = 10
    passes = {}
    for name in ("direct", "aca", "symplectic"):
        forward, back = counted(name, steps)
        made_again = steps * 4 if name == "direct" else 0
        assert forward <= steps * 4 + made_again + 4
        passes[name] = back / (steps * 4)
    assert passes["direct"] == 0
    once = 1 / (steps * 4)  # the field is called once more to see that it is still the same
    assert 0.9 < passes["aca"] <= 1 + once
    assert 0.9 < passes["symplectic"] <= 2 + once


def test_truth_and_noise_of_simulated_data_are_sound() -> None:
    """Truth is far below the noise it is given, noise has mean 0 and the size it says, and test trajectories are apart."""
    system = pn.systems.Pendulum()
    options = {"n": 40, "t1": 4.0, "rows": 101, "seed": 3}
    clean = pn.data.simulate(system, **options)
    noisy = pn.data.simulate(system, **options, noise=dict.fromkeys(clean.variables, 0.05), split=(0.5, 0.25, 0.25))
    difference = torch.cat([(one.y - two.y).flatten() for one, two in zip(noisy, clean, strict=True)])
    assert abs(float(difference.mean())) < 4 * 0.05 / difference.numel() ** 0.5
    assert float(difference.std()) == pytest.approx(0.05, rel=0.05)
    start = torch.stack([torch.as_tensor(one.y[0]) for one in clean])
    exact = pn.solve(system, start, clean[0].t, method="gauss_radau15", controller=pn.Adaptive(1e-9, 1e-12)).ys
    worst = max(float((one.y - row).abs().max()) for one, row in zip(clean, exact, strict=True))
    assert worst < 1e-8
