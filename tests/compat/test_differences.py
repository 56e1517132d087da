"""Where the interface does better than the library it stands for: the claims of docs/torchdiffeq.md not tested elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from math import log2
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from physnode.compat.torchdiffeq import odeint, odeint_adjoint, odeint_event
from physnode.compat.torchdiffeq.methods import METHODS
from physnode.engine.families.base import Method

D = torch.float64


def wave(t: Tensor, y: Tensor) -> Tensor:
    return -2 * torch.sin(t) * y**2


def exact(t: Tensor) -> Tensor:
    return 1 / (3 - 2 * torch.cos(t))


@pytest.mark.parametrize(("method", "order"), [("tsit5", 5), ("dopri5", 5), ("dopri8", 8)])
def test_pairs_advance_their_higher_order(method: str, order: int) -> None:
    found = METHODS[method][1]
    assert isinstance(found, Method)
    assert found.order == order
    errors = []
    for length in (0.5, 0.25) if order == 8 else (0.25, 0.125):
        t = torch.tensor([0.0, 1.0], dtype=D)
        options = {"first_step": length, "max_step": length, "min_step": length}
        ys = odeint(wave, torch.ones(1, dtype=D), t, method=method, options=options, rtol=1.0, atol=1.0)
        errors.append(float((ys[-1, 0] - exact(t[-1])).abs()))
    assert log2(errors[0] / errors[1]) > order - 0.6


def test_values_between_long_steps_are_as_good_as_at_their_ends() -> None:
    t = torch.linspace(0, 3, 40, dtype=D)
    for method, rtol in (("dopri8", 1e-10), ("bosh3", 1e-6)):
        together = (odeint(wave, torch.ones(1, dtype=D), t, method=method, rtol=rtol, atol=rtol)[:, 0] - exact(t)).abs().max()
        ends = [
            (
                odeint(wave, torch.ones(1, dtype=D), torch.stack((t[0], end)), method=method, rtol=rtol, atol=rtol)[-1, 0]
                - exact(end)
            ).abs()
            for end in t[5::5]
        ]
        assert float(together) < 10 * float(torch.stack(ends).max())


def test_implicit_equations_are_solved_to_rounding() -> None:
    t = torch.tensor([0.0, 1.5], dtype=D)
    found = odeint(wave, torch.ones(1, dtype=D), t, method="gl6", options={"step_size": 0.025, "max_iters": 100})
    assert float((found[-1, 0] - exact(t[-1])).abs()) < 1e-12


def test_a_stiff_equation_by_an_implicit_method() -> None:
    t = torch.tensor([0.0, 1.0], dtype=D)
    for method in ("implicit_euler", "radauIIA5", "sdirk2", "trbdf2"):
        found = odeint(
            lambda t, y: -1e6 * (y - torch.cos(t)), torch.zeros(1, dtype=D), t, method=method, options={"step_size": 0.1}
        )
        assert float(found[-1]) == pytest.approx(float(torch.cos(t[-1])), abs=1e-4)


def test_tolerances_for_parts_in_the_adjoint() -> None:
    layer = nn.Linear(2, 2, dtype=D)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return torch.tanh(self.layer(y[0])), y[0].sum() + 0 * y[1]

    start = (torch.ones(3, 2, dtype=D), torch.zeros((), dtype=D))
    slopes = []
    for solver in (odeint, odeint_adjoint):
        found = solver(Pair(), start, torch.tensor([0.0, 1.0], dtype=D), rtol=(1e-6, 1e-5), atol=(1e-8, 1e-7))
        slopes.append(torch.autograd.grad(found[1][-1], layer.weight)[0])
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-10, atol=0)


def test_failures_are_seen_with_assertions_switched_off() -> None:
    program = """
import torch
from physnode.compat.torchdiffeq import odeint
for field in (lambda t, y: y * float("nan"), lambda t, y: y**2):
    try:
        odeint(field, torch.ones(1), torch.tensor([0.0, 2.0]))
    except AssertionError as error:
        print("refused")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, text=True, env=environment, timeout=100)
    assert done.stdout == "refused\nrefused\n", done.stderr


def test_callbacks_hear_of_the_search_for_an_event() -> None:
    class Heard(nn.Module):
        steps = 0

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -y

        def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
            self.steps += 1

    for method, options in (("dopri5", None), ("rk4", {"step_size": 0.1})):
        heard = Heard()
        odeint_event(
            heard,
            torch.ones((), dtype=D),
            torch.zeros((), dtype=D),
            event_fn=lambda t, y: y - 0.5,
            method=method,
            options=options,
        )
        assert heard.steps >= 3


def test_gradients_inside_torch_func() -> None:
    t = torch.tensor([0.0, 1.0], dtype=D)
    y0 = torch.tensor([1.0, 2.0], dtype=D)

    def end(y: Tensor) -> Tensor:
        last: Tensor = odeint(lambda t, y: -(y**2), y, t, rtol=1e-9, atol=1e-11)[-1]
        return last

    expected = torch.diag(1 / (1 + y0) ** 2)
    torch.testing.assert_close(torch.func.jacrev(end)(y0), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(torch.func.grad(lambda y: end(y).sum())(y0), expected.diagonal(), rtol=0, atol=1e-7)


def test_memory_of_the_adjoint_is_that_of_one_step() -> None:
    """No tensor of the field's inside is kept between the passes by the adjoint; the direct gradient keeps all of them."""
    kept: dict[str, int] = {}

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 50, dtype=D), nn.Tanh(), nn.Linear(50, 2, dtype=D))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            out: Tensor = self.net(y)
            return out

    for name, solver in (("direct", odeint), ("adjoint", odeint_adjoint)):
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Any:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            solver(Wide(), torch.ones(4, 2, dtype=D), torch.tensor([0.0, 5.0], dtype=D))
        kept[name] = sum(sizes)
    assert kept["adjoint"] < kept["direct"] / 20


def test_what_a_counter_in_the_field_counts() -> None:
    """The search alone without gradients; search and replay with them; the backward pass only in the adjoint."""

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate, self.calls = nn.Parameter(torch.tensor(1.0, dtype=D)), 0

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return -self.rate * y**2

    counts: dict[str, list[int]] = {}
    t = torch.tensor([0.0, 2.0], dtype=D)
    for name, solver in (("silent", odeint), ("direct", odeint), ("adjoint", odeint_adjoint)):
        field = Counted()
        with torch.set_grad_enabled(name != "silent"):
            ys = solver(field, torch.ones(1, dtype=D), t)
        counts[name] = [field.calls]
        if name != "silent":
            ys[-1].sum().backward()
        counts[name].append(field.calls)
    search = counts["silent"][0]
    assert counts["adjoint"][0] == search
    assert search < counts["adjoint"][1] <= 2.2 * search
    assert counts["direct"][0] == counts["direct"][1] <= 2.2 * search


def test_an_event_of_the_adjoint_is_differentiated_by_replay_with_any_options() -> None:
    rate = torch.tensor(1.0, dtype=D, requires_grad=True)
    t, _ = odeint_event(
        lambda t, y: -rate * y,
        torch.ones((), dtype=D),
        torch.zeros((), dtype=D),
        event_fn=lambda t, y: y - 0.5,
        odeint_interface=odeint_adjoint,
        adjoint_params=(rate,),
        adjoint_rtol=1e-2,
    )
    (slope,) = torch.autograd.grad(t, rate)
    assert float(slope) == pytest.approx(-0.693147, abs=1e-5)
