"""Gradients of compiled solves by everything that a field may read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn

TS = [0.0, 0.35, 1.0]
OPTIONS = {"method": "tsit5", "controller": pn.Adaptive(1e-5, 1e-6)}
D = torch.float64


class Reads(nn.Module):
    """Parameters, one of them unused and one frozen, buffers, and tensors that are closed over."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.7, dtype=D))
        self.unused = nn.Parameter(torch.ones(3, dtype=D))
        self.frozen = nn.Parameter(torch.tensor([0.3, 0.1], dtype=D), requires_grad=False)
        self.register_buffer("shift", torch.tensor([0.2, -0.4], dtype=D))
        self.gain = torch.tensor(0.5, dtype=D, requires_grad=True)
        self.source = torch.tensor([0.4, -0.3, 0.8], dtype=D, requires_grad=True)
        self.computed = torch.sin(self.source[:2]) * self.source[2]

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        push = self.gain * torch.cos(t) + self.frozen
        return push - self.rate * torch.sin(y + self.shift) + self.computed * y.flip(-1)


READS = Reads()
START = torch.tensor([[0.3, -0.2], [1.4, 0.6], [-0.8, 2.0]], dtype=D)


def test_by_all_that_is_read(help: Any) -> None:
    wrt = [READS.rate, READS.gain, READS.unused]
    found = help.agree(READS, START, TS, wrt, **OPTIONS)
    assert torch.equal(found.grads[3], torch.zeros(3, dtype=D))
    assert all(float(g.abs().min()) > 0 for g in found.grads[:3])


def test_by_what_a_closed_over_tensor_is_computed_from(help: Any) -> None:
    found = []
    for compile in (False, True):
        sol = pn.solve(READS, START, TS, compile=compile, **OPTIONS)
        found.append(torch.autograd.grad(help.loss(sol.ys), READS.source, retain_graph=True)[0])
    help.assert_close(found[1], found[0], 1e-12)


def test_tensors_that_do_not_ask_get_none() -> None:
    sol = pn.solve(READS, START, TS, compile=True, **OPTIONS)
    sol.ys.sum().backward()
    assert READS.frozen.grad is None
    assert READS.shift.grad is None
    assert READS.rate.grad is not None
    READS.zero_grad()
    READS.gain.grad = READS.source.grad = None
    READS.computed = torch.sin(READS.source[:2]) * READS.source[2]


def damped(t: Tensor, y: Tensor, args: dict[str, Any]) -> Tensor:
    return -args["k"] * torch.sin(y) + args["push"] * torch.cos(t) * args["scale"] + (args["m"] @ y.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("batch", [(6,), (2, 3)], ids=str)
def test_by_arguments(batch: tuple[int, ...], help: Any) -> None:
    """Some are a trajectory's own, of any shape, some are shared, and some are numbers."""
    y0 = torch.randn(*batch, 2, dtype=D)
    k = torch.rand(*batch, 1, dtype=D).requires_grad_()
    m = (0.3 * torch.randn(*batch, 2, 2, dtype=D)).requires_grad_()
    push = torch.tensor([0.4, -0.2], dtype=D, requires_grad=True)
    args = {"k": k, "m": m, "push": push, "scale": 0.6}
    help.agree(damped, y0, TS, [k, m, push], args=args, **OPTIONS)
    frozen = {**args, "k": k.detach(), "push": push.detach()}
    help.agree(damped, y0, TS, [m], args=frozen, **OPTIONS)


def test_without_any_gradient_no_tape_is_kept() -> None:
    with torch.no_grad():
        sol = pn.solve(READS, START, TS, compile=True, **OPTIONS)
        eager = pn.solve(READS, START, TS, **OPTIONS)
    assert not sol.ys.requires_grad
    assert not sol.pieces
    torch.testing.assert_close(sol.ys, eager.ys, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", ["direct", "symplectic", "continuous"])
def test_the_other_gradients(gradient: str, help: Any) -> None:
    tolerance = 1e-9 if gradient == "continuous" else 1e-12
    wanted = help.run(READS, START, TS, [READS.rate, READS.gain], compile=False, gradient=gradient, **OPTIONS)
    found = help.run(READS, START, TS, [READS.rate, READS.gain], compile=True, gradient=gradient, **OPTIONS)
    help.assert_same(found, wanted, tolerance)


def test_second_derivatives(help: Any) -> None:
    found = []
    for compile in (False, True):
        y0 = START.clone().requires_grad_()
        sol = pn.solve(READS, y0, TS, compile=compile, **OPTIONS)
        first = torch.autograd.grad(help.loss(sol.ys), (y0, READS.rate), create_graph=True)
        size = sum((g**2).sum() for g in first)
        found.append([*first, *torch.autograd.grad(size, (y0, READS.rate, READS.gain), retain_graph=True)])
    for mine, other in zip(found[1], found[0], strict=True):
        help.assert_close(mine, other, 1e-11)


@pytest.mark.parametrize("t0", [None, 0.2], ids=["first time", "between"])
def test_by_times(t0: float | None, help: Any) -> None:
    found = []
    for compile in (False, True):
        y0 = START.clone().requires_grad_()
        ts = torch.tensor(TS, dtype=D, requires_grad=True)
        epoch = None if t0 is None else torch.tensor(t0, dtype=D, requires_grad=True)
        sol = pn.solve(READS, y0, ts, t0=epoch, compile=compile, **OPTIONS)
        wrt = [y0, ts, READS.rate] + ([] if epoch is None else [epoch])
        found.append([sol.ys, *torch.autograd.grad(help.loss(sol.ys), wrt)])
    for mine, other in zip(found[1], found[0], strict=True):
        help.assert_close(mine, other, 1e-11)


def test_dense_output(help: Any) -> None:
    times = torch.tensor([0.9, 0.0, 0.123, 1.0], dtype=D)
    found = []
    for compile in (False, True):
        y0 = START.clone().requires_grad_()
        sol = pn.solve(READS, y0, TS, t0=0.35, dense=True, compile=compile, **OPTIONS)
        values = sol.at(times)
        found.append([values, *torch.autograd.grad(help.loss(values) + help.loss(sol.ys), (y0, READS.rate))])
    for mine, other in zip(found[1], found[0], strict=True):
        help.assert_close(mine, other, 1e-12)


def test_backward_twice_and_in_parts(help: Any) -> None:
    y0 = START.clone().requires_grad_()
    sol = pn.solve(READS, y0, TS, compile=True, **OPTIONS)
    whole = torch.autograd.grad(help.loss(sol.ys), (y0, READS.rate), retain_graph=True)
    again = torch.autograd.grad(help.loss(sol.ys), (y0, READS.rate), retain_graph=True)
    parts = [torch.autograd.grad(sol.ys[row].sum(), y0, retain_graph=True)[0] for row in range(3)]
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    help.assert_close(sum(parts), torch.autograd.grad(sol.ys.sum(), y0)[0], 1e-14)
