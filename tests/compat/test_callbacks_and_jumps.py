"""Callbacks on the field, and times at which steps must end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from physnode.compat.torchdiffeq import odeint, odeint_adjoint

D = torch.float64


class Heard(nn.Module):
    """Counts what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.0, dtype=D))
        self.told: dict[str, list[tuple[float, Any, float]]] = {"step": [], "accept": [], "reject": []}

    def forward(self, t: Tensor, y: Any) -> Any:
        slope = 1 + 50 * torch.exp(-((t - 1) ** 2) * 1e3)
        return tuple(-self.rate * part * slope for part in y) if isinstance(y, tuple) else -self.rate * y * slope

    def callback_step(self, t0: Tensor, y0: Any, dt: Tensor) -> None:
        self.told["step"].append((float(t0), y0, float(dt)))

    def callback_accept_step(self, t0: Tensor, y0: Any, dt: Tensor) -> None:
        self.told["accept"].append((float(t0), y0, float(dt)))

    def callback_reject_step(self, t0: Tensor, y0: Any, dt: Tensor) -> None:
        self.told["reject"].append((float(t0), y0, float(dt)))


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)])
@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
def test_every_trial_is_told(ends: tuple[float, float], solver: Any) -> None:
    field = Heard()
    solver(field, torch.ones(3, 2, dtype=D), torch.tensor(ends, dtype=D))
    told = field.told
    assert len(told["step"]) == len(told["accept"]) + len(told["reject"])
    assert told["reject"]
    sign = 1 if ends[1] > ends[0] else -1
    for t0, y0, dt in told["step"]:
        assert min(ends) <= t0 <= max(ends)
        assert y0.shape == (3, 2)
        assert dt > 0
    starts = [t0 for t0, _, _ in told["accept"]]
    assert starts[0] == ends[0]
    assert all(sign * (b - a) > 0 for a, b in pairwise(starts))
    assert starts[-1] + sign * told["accept"][-1][2] == pytest.approx(ends[1])


def test_tuples_are_told_as_tuples() -> None:
    field = Heard()
    odeint(field, (torch.ones(2, dtype=D), torch.ones((), dtype=D)), torch.tensor([0.0, 1.0], dtype=D))
    _, state, _ = field.told["step"][0]
    assert isinstance(state, tuple)
    assert [tuple(part.shape) for part in state] == [(2,), ()]


@pytest.mark.parametrize("method", ["rk4", "explicit_adams"])
def test_fixed_steps_tell_of_steps_and_warn_of_the_rest(method: str) -> None:
    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps: list[float] = []

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -y

        def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
            self.steps.append(float(t0))

    field = Only()
    odeint(field, torch.ones(1, dtype=D), torch.tensor([1.0, 0.0], dtype=D), method=method, options={"step_size": 0.25})
    assert field.steps == pytest.approx([1, 0.75, 0.5, 0.25])
    if method == "rk4":
        with pytest.warns(UserWarning, match="does not support the callbacks callback_accept_step, callback_reject_step"):
            odeint(Heard(), torch.ones(1, dtype=D), torch.tensor([0.0, 1.0], dtype=D), method="rk4")


def test_callbacks_of_the_backward_pass_bring_the_backward_solve() -> None:
    class Both(Heard):
        def callback_step_adjoint(self, t0: Tensor, y0: tuple[Tensor, ...], dt: Tensor) -> None:
            seen.append((float(t0), [tuple(part.shape) for part in y0]))

    seen: list[Any] = []
    field = Both()
    ys = odeint_adjoint(field, torch.ones(3, dtype=D), torch.tensor([0.0, 0.3, 0.6], dtype=D))
    assert not seen
    ys[-1].sum().backward()
    assert seen[0] == (pytest.approx(0.6), [(), (3,), (3,), ()])
    assert [t for t, _ in seen] == sorted((t for t, _ in seen), reverse=True)


# Jumps.


class Switch(nn.Module):
    """y' = -y before t = 1, and 3y after it: e^-1 e^(3 (t - 1))."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.tensor(3.0, dtype=D))
        self.times: list[float] = []

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(float(t.detach()))
        return torch.where(t < 1, -y, self.up * y)


def reached(ends: tuple[float, float], y0: float = 1.0, **options: Any) -> tuple[Switch, Tensor]:
    field = Switch()
    start = torch.tensor([y0], dtype=D)
    return field, odeint(field, start, torch.tensor(ends, dtype=D), rtol=1e-10, atol=1e-12, **options)[-1]


@pytest.mark.parametrize("form", [list, tuple, lambda values: torch.tensor(values, dtype=torch.float32)])
def test_a_jump_costs_no_steps_in_either_direction(form: Any) -> None:
    exact = torch.tensor([2.0], dtype=D).exp()
    field, found = reached((0.0, 2.0), options={"jump_t": form([1.0])})
    blind, _ = reached((0.0, 2.0))
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)
    assert len(field.times) < len(blind.times) - 400  # 1300 in place of 1800
    back, found = reached((2.0, 0.0), float(exact), options={"jump_t": form([1.0])})
    torch.testing.assert_close(found, torch.ones(1, dtype=D), rtol=1e-8, atol=0)
    assert len(back.times) < len(blind.times) - 400


def test_the_field_is_seen_from_both_sides_of_a_jump() -> None:
    field, _ = reached((0.0, 2.0), options={"jump_t": [1.0]})
    near = {t for t in field.times if abs(t - 1) < 1e-12}
    assert any(t < 1 for t in near)
    assert any(t >= 1 for t in near)


def test_steps_end_on_step_t() -> None:
    field = Heard()
    odeint(field, torch.ones(1, dtype=D), torch.tensor([0.0, 2.0], dtype=D), options={"step_t": [0.123, 1.9, -4.0, 7.0]})
    starts = [t0 for t0, _, _ in field.told["accept"]]
    assert {0.123, 1.9} <= set(starts)


def test_perturb_sees_the_near_side_of_grid_points() -> None:
    t = torch.tensor([0.0, 1.0, 2.0], dtype=D)
    field = Switch()
    found = odeint(field, torch.ones(1, dtype=D), t, method="rk4", options={"step_size": 0.01, "perturb": True})
    torch.testing.assert_close(found[-1], torch.tensor([2.0], dtype=D).exp(), rtol=1e-6, atol=0)
    plain = odeint(Switch(), torch.ones(1, dtype=D), t, method="rk4", options={"step_size": 0.01})
    assert abs(float((plain[-1] - found[-1]).detach())) > 1e-3


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)])
def test_jumps_act_in_the_backward_solve_too(ends: tuple[float, float]) -> None:
    counts = []
    found = []
    for options in ({"jump_t": [1.0]}, {}):
        field = Switch()
        ys = odeint_adjoint(
            field, torch.ones(1, dtype=D), torch.tensor(ends, dtype=D), options=options, adjoint_rtol=1e-8, adjoint_atol=1e-10
        )
        forward = len(field.times)
        ys[-1].sum().backward()
        counts.append(len(field.times) - forward)
        found.append(field.up.grad)
    assert counts[0] < 0.7 * counts[1]
    assert found[0] is not None
    exact = 1.0 if ends[0] == 0 else -1.0  # d/du e^(-+1 +- u)
    exact *= float(torch.tensor(2.0 if ends[0] == 0 else -2.0, dtype=D).exp())
    assert float(found[0]) == pytest.approx(exact, rel=1e-5)
