"""A field that is no longer what its code was made of: noticed, also where the start of a solve does not show it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn

D = torch.float64
TS = [0.0, 0.3, 0.7]
OPTIONS = {"method": "euler", "controller": pn.Fixed(0.1)}
START = torch.tensor([[0.1, 0.0], [0.5, -0.3]], dtype=D)


class Forced(nn.Module):
    """What is read only when t > 0, the start: none of it changes the field's first value."""

    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(1.3, dtype=D))
        self.gain = torch.tensor(0.5, dtype=D)
        self._rate = 2.0
        self.switch = {"at": [0.3]}
        self.order = torch.tensor([1, 0])
        self.register_buffer("mask", torch.tensor([True, False]))
        self.shape = torch.sin
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        push = self.gain * self.shape(self._rate * t) * self.scale + torch.where(t > self.switch["at"][0], 1.0, 0.0)
        late = t * torch.where(self.mask, y[..., self.order], y) * STRENGTH
        return push + late - self.k * y


STRENGTH = 0.7


CHANGES: dict[str, Callable[[Forced], Any]] = {
    "tensor": lambda field: setattr(field, "gain", torch.tensor(5.0, dtype=D)),
    "number": lambda field: setattr(field, "_rate", 4.0),
    "function": lambda field: setattr(field, "shape", torch.tanh),
    "number of the class, shadowed": lambda field: setattr(field, "scale", 3.0),
    "number in a list in a dictionary": lambda field: field.switch["at"].__setitem__(0, 0.5),
    "places": lambda field: setattr(field, "order", torch.tensor([1, 1])),
    "places, in place": lambda field: field.order.__setitem__(1, 1),
    "mask in a buffer, in place": lambda field: field.mask.__setitem__(1, True),
    "tensor that wants a gradient": lambda field: setattr(field, "gain", torch.tensor(0.5, dtype=D, requires_grad=True)),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_whatever_a_field_reads(name: str, help: Any) -> None:
    field = Forced()
    help.agree(field, START, TS, [field.k], **OPTIONS)
    CHANGES[name](field)
    found = help.agree(field, START, TS, [field.k, field.gain] if field.gain.requires_grad else [field.k], **OPTIONS)
    assert all(float(grad.abs().max()) > 0 for grad in found.grads)


def test_a_global_number(help: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    field = Forced()
    help.agree(field, START, TS, [field.k], **OPTIONS)
    monkeypatch.setitem(globals(), "STRENGTH", 9.0)
    help.agree(field, START, TS, [field.k], **OPTIONS)


def test_a_count_of_calls_is_no_change(help: Any) -> None:
    field = Forced()
    help.agree(field, START, TS, [field.k], **OPTIONS)
    assert help.made(lambda: help.agree(field, START, TS, [field.k], **OPTIONS)) == 0


def test_parameters_that_are_replaced_frozen_and_freed(help: Any) -> None:
    field = Forced()
    help.agree(field, START, TS, [field.k], **OPTIONS)
    field.k = nn.Parameter(torch.tensor(2.0, dtype=D))
    help.agree(field, START, TS, [field.k], **OPTIONS)
    field.k.requires_grad_(False)
    help.agree(field, START, TS, **OPTIONS)
    field.k.requires_grad_(True)
    help.agree(field, START, TS, [field.k], **OPTIONS)


def test_a_closed_over_tensor_that_is_rebound(help: Any) -> None:
    gain = torch.tensor(0.5, dtype=D, requires_grad=True)
    push = 1.0

    def field(t: Tensor, y: Tensor) -> Tensor:
        return gain * torch.sin(t) * push - y

    help.agree(field, START, TS, [gain], **OPTIONS)
    gain = torch.tensor(1.5, dtype=D, requires_grad=True)
    help.agree(field, START, TS, [gain], **OPTIONS)
    gain = gain.detach().clone().requires_grad_()
    found = help.agree(field, START, TS, [gain], **OPTIONS)
    assert float(found.grads[1].abs()) > 0
    push = 4.0
    help.agree(field, START, TS, [gain], **OPTIONS)


def test_layers_that_are_replaced(help: Any) -> None:
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2, bias=False)).double()
    nn.init.zeros_(net[0].bias)
    start = torch.zeros(3, 2, dtype=D)  # where the network gives zero, whatever its activation

    def field(t: Tensor, y: Tensor) -> Tensor:
        return net(y) + t

    parameters: Callable[[], list[Tensor]] = lambda: list(net.parameters())  # noqa: E731
    help.agree(field, start, TS, parameters(), **OPTIONS)
    for place, layer in ((1, nn.ELU(2.0)), (1, nn.ELU(3.0)), (0, nn.Linear(2, 5, bias=False).double())):
        net[place] = layer
        help.agree(field, start, TS, parameters(), **OPTIONS)
    net[0], net[2] = nn.Linear(2, 7).double(), nn.Linear(7, 2).double()
    help.agree(field, start, TS, parameters(), **OPTIONS)


def test_methods_of_one_object_are_fields_of_their_own(help: Any) -> None:
    class Two:
        def free(self, t: Tensor, y: Tensor) -> Tensor:
            return -y

        def forced(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.sin(t) - y

    two = Two()
    for field in (two.free, two.forced, two.free):
        help.agree(field, START, TS, **OPTIONS)


def test_arguments_that_change(help: Any) -> None:
    def field(t: Tensor, y: Tensor, args: dict[str, Any]) -> Tensor:
        return args["n"] * torch.sin(t) * y[..., args["order"]] - args["a"] * y

    a, start = torch.tensor(1.0, dtype=D), torch.randn(3, 2, dtype=D)
    for n, order in ((1.0, [0, 1]), (3.0, [0, 1]), (3.0, [1, 0]), (2, [1, 0]), (2.0, [1, 1])):
        args = {"a": a, "n": n, "order": torch.tensor(order)}
        help.agree(field, start, TS, args=args, **OPTIONS)
    for other in (
        torch.tensor([[1.0], [2.0], [0.5]], dtype=D),
        torch.tensor([1.0, 2.0, 3.0], dtype=D).sum(),
        a.clone().requires_grad_(),
    ):
        help.agree(field, start, TS, args={**args, "a": other}, **OPTIONS)


def test_code_goes_with_its_field() -> None:
    field = Forced()
    pn.solve(field, START, TS, compile=True, **OPTIONS)
    gone = weakref.ref(field)
    del field
    gc.collect()
    assert gone() is None
