"""Fields that no code can stand for: the batch as a whole, random numbers, derivatives that are not those of the values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.errors import CompileWarning, GradientError

D = torch.float64
TS = [0.0, 0.3, 0.7]
OPTIONS = {"method": "euler", "controller": pn.Fixed(0.1)}
START = torch.tensor([[0.1, 0.0], [0.5, -0.3]], dtype=D)


@pytest.mark.parametrize(
    "start", [START, torch.zeros(2, 2, dtype=D), torch.ones(1, 2, dtype=D)], ids=["unequal", "zero", "one"]
)
def test_a_field_that_treats_the_batch_as_a_whole(start: Tensor) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(t) - y.sum(0, keepdim=True) * y

    for _ in range(2):
        with pytest.warns(CompileWarning, match="treats trajectories of a batch differently"):
            found = pn.solve(field, start, TS, compile=True, **OPTIONS)
        assert torch.equal(found.ys, pn.solve(field, start, TS, **OPTIONS).ys)


def test_randomness_that_is_switched_on(help: Any) -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double().eval()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return net(y)

    help.agree(field, START, TS, list(net.parameters()), **OPTIONS)
    net.train()
    with pytest.raises(GradientError, match="draws random numbers"):
        pn.solve(field, START.clone().requires_grad_(), TS, compile=True, **OPTIONS)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(1)
    with pytest.warns(CompileWarning, match="random"):
        found = pn.solve(field, START, TS, compile=True, **OPTIONS).ys
    torch.manual_seed(1)
    assert torch.equal(found, pn.solve(field, START, TS, **OPTIONS).ys)


class Straight(torch.autograd.Function):
    """Rounds, with the derivative of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.floor(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def detached(t: Tensor, y: Tensor) -> Tensor:
    return -y * y.detach()


def without_a_graph(t: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        size = y.norm(dim=-1, keepdim=True)
    return -y * size


def straight(t: Tensor, y: Tensor) -> Tensor:
    return -Straight.apply(3 * y)


@pytest.mark.parametrize("field", [detached, without_a_graph, straight])
def test_derivatives_that_are_not_those_of_what_is_computed(field: Any, help: Any) -> None:
    for _ in range(2):
        with pytest.warns(CompileWarning, match="derivatives are not those of what it computes"):
            found = help.run(field, START, TS, compile=True, **OPTIONS)
        help.assert_same(found, help.run(field, START, TS, compile=False, **OPTIONS), 0.0)
    with torch.no_grad():
        values = pn.solve(field, START, TS, compile=True, **OPTIONS).ys
    help.assert_close(values, found.ys, 1e-13)
