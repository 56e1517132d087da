"""What is edited between a solve and its backward: refused where PyTorch sees it, without effect where it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn

D = torch.float64
OPTIONS = {"method": "rk4", "controller": pn.Fixed(0.1)}


class Spring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.7, dtype=D))
        self.register_buffer("shift", torch.tensor(0.3, dtype=D))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * torch.sin(y + self.shift)


SPRING = Spring()
START = torch.tensor([[0.3, -0.2], [1.4, 0.6]], dtype=D)


@pytest.fixture
def spring() -> Spring:
    with torch.no_grad():
        SPRING.rate.fill_(0.7)
        SPRING.shift.fill_(0.3)
    return SPRING


def solved(spring: Spring) -> tuple[Tensor, Tensor, Tensor]:
    y0 = START.clone().requires_grad_()
    return y0, pn.solve(spring, y0, [0.0, 1.0], compile=True, **OPTIONS).ys, spring.rate


def test_an_edit_of_a_parameter_in_place_is_refused(spring: Spring) -> None:
    y0, ys, rate = solved(spring)
    with torch.no_grad():
        rate.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(ys.sum(), (y0, rate))


def test_an_edit_of_the_start_changes_nothing(spring: Spring) -> None:
    y0, ys, rate = solved(spring)
    wanted = torch.autograd.grad(ys.sum(), (y0, rate), retain_graph=True)
    with torch.no_grad():
        y0.fill_(5.0)
    for one, other in zip(torch.autograd.grad(ys.sum(), (y0, rate)), wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("edited", ["rate", "shift"])
def test_an_edit_that_pytorch_does_not_see_changes_nothing(spring: Spring, edited: str) -> None:
    y0, ys, rate = solved(spring)
    wanted = torch.autograd.grad(ys.sum(), (y0, rate), retain_graph=True)
    getattr(spring, edited).data.fill_(9.0)
    for one, other in zip(torch.autograd.grad(ys.sum(), (y0, rate)), wanted, strict=True):
        assert torch.equal(one, other)


def test_an_edit_is_seen_by_the_next_solve(spring: Spring, help: Any) -> None:
    help.agree(spring, START, [0.0, 1.0], [spring.rate], **OPTIONS)

    def again() -> None:
        for name, value in (("rate", 1.9), ("shift", -0.8)):
            getattr(spring, name).data.fill_(value)
            help.agree(spring, START, [0.0, 1.0], [spring.rate], **OPTIONS)
        with torch.no_grad():
            spring.rate.mul_(0.3)
        help.agree(spring, START, [0.0, 1.0], [spring.rate], **OPTIONS)

    assert help.made(again) == 0


def test_outputs_may_be_edited(spring: Spring) -> None:
    y0, ys, rate = solved(spring)
    wanted = torch.autograd.grad(ys.sum(), (y0, rate), retain_graph=True)
    with torch.no_grad():
        ys.zero_()
    for one, other in zip(torch.autograd.grad(ys.sum(), (y0, rate)), wanted, strict=True):
        assert torch.equal(one, other)


def test_a_tape_outlives_its_solution_and_its_field() -> None:
    field = Spring()
    y0 = START.clone().requires_grad_()
    ys = pn.solve(field, y0, [0.0, 1.0], compile=True, **OPTIONS).ys
    wanted = torch.autograd.grad(ys.sum(), y0, retain_graph=True)[0]
    del field
    assert torch.equal(torch.autograd.grad(ys.sum(), y0)[0], wanted)
