"""Structured and complex states: the flat tensor, the field seen through it, and what is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.errors import InputError
from physnode.states import StateAdapter


class Phase(NamedTuple):
    q: Tensor
    v: Tensor


def adapter_of(y0: Any) -> StateAdapter:
    adapter = StateAdapter.of(y0)
    assert adapter is not None
    return adapter


def solve(field: Any, y0: Any, ts: Tensor, **options: Any) -> Any:
    adapter = adapter_of(y0)
    return adapter.unflatten(pn.solve(adapter.field(field), adapter.flatten(y0), ts, **options).ys)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


STATES = {
    "dict": lambda: {"q": random(4, 2), "v": random(4, 3)},
    "tuple": lambda: (random(4, 2), random(4, 1)),
    "list": lambda: [random(2), random(3)],
    "named": lambda: Phase(random(4, 5, 2), random(4, 5, 2)),
    "nested": lambda: {"a": (random(3, 1), random(3, 2)), "b": [random(3, 4)]},
    "complex": lambda: random(4, 3, dtype=torch.complex128),
    "real beside complex": lambda: (random(4, 1), random(4, 3, dtype=torch.complex128), random(4, 1)),
    "complex without a batch": lambda: (random(1), random(3, dtype=torch.complex128)),
    "single precision": lambda: (random(1, dtype=torch.float32), random(3, dtype=torch.complex64)),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_comes_back_from_the_flat_tensor(name: str) -> None:
    state = STATES[name]()
    adapter = adapter_of(state)
    flat = adapter.flatten(state)
    assert flat.shape == (*adapter.batch, adapter.dim)
    assert flat.dtype == adapter.dtype
    assert not flat.is_complex()
    torch.testing.assert_close(adapter.unflatten(flat), state, rtol=0, atol=0)
    many = adapter.unflatten(flat.unsqueeze(-2).expand(*adapter.batch, 7, adapter.dim))
    for part, one in zip(torch.utils._pytree.tree_leaves(many), torch.utils._pytree.tree_leaves(state), strict=True):
        assert part.shape == (*one.shape[:-1], 7, one.shape[-1])


@pytest.mark.parametrize("plain", [torch.ones(3), np.ones(3), [1.0, 2.0], (1, 2), [[1.0], [2.0]], 1.0])
def test_plain_states_need_no_adapter(plain: Any) -> None:
    assert StateAdapter.of(plain) is None


def test_arrays_in_a_dictionary_become_float64() -> None:
    adapter = adapter_of({"q": np.ones(2, dtype=np.float32), "v": np.arange(1, 3)})
    assert adapter.flatten({"q": np.ones(2), "v": np.arange(1, 3)}).tolist() == [1, 1, 1, 2]
    assert adapter_of(np.array([1j])).flatten(np.array([1j])).tolist() == [0, 1]


def test_an_oscillator_as_a_dictionary() -> None:
    y0 = {"q": random(3, 2), "v": random(3, 2)}
    ts = torch.linspace(0, 2, 5, dtype=torch.float64)
    found = solve(lambda t, y: {"v": -y["q"], "q": y["v"]}, y0, ts, controller=pn.Adaptive(1e-10, 1e-12))
    c, s = torch.cos(ts).view(-1, 1), torch.sin(ts).view(-1, 1)
    torch.testing.assert_close(found["q"], c * y0["q"].unsqueeze(1) + s * y0["v"].unsqueeze(1), rtol=0, atol=1e-9)
    torch.testing.assert_close(found["v"], c * y0["v"].unsqueeze(1) - s * y0["q"].unsqueeze(1), rtol=0, atol=1e-9)


def test_a_rotating_phase_and_its_gradient() -> None:
    y0 = random(3, 2, dtype=torch.complex128).requires_grad_()
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    ts = torch.linspace(0, 2, 5, dtype=torch.float64)
    found = solve(lambda t, y: 1j * rate * y, y0, ts, controller=pn.Adaptive(1e-10, 1e-12))
    exact = torch.exp(1j * rate * ts).unsqueeze(-1) * y0.unsqueeze(1)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)
    weight = random(3, 5, 2, dtype=torch.complex128)
    mine = torch.autograd.grad((found * weight).sum().abs(), (y0, rate))
    theirs = torch.autograd.grad((exact * weight).sum().abs(), (y0, rate))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-8)


def test_a_conjugated_derivative() -> None:
    y0 = torch.tensor([1 + 2j], dtype=torch.complex128)
    found = solve(lambda t, y: y.conj(), y0, torch.tensor([0.0, 1.0], dtype=torch.float64))
    e = torch.tensor(1.0, dtype=torch.float64).exp()
    torch.testing.assert_close(found[-1], torch.complex(e, 2 / e).reshape(1), rtol=0, atol=1e-5)


class Spring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t: Tensor, y: dict[str, Tensor], args: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        drag = 0.0 if args is None else args["drag"]
        return {"q": y["v"], "v": -self.k * y["q"] - drag * y["v"]}


def test_parameters_of_a_module_stay_visible() -> None:
    y0 = {"q": random(2, 1), "v": random(2, 1)}
    spring = Spring()
    field = adapter_of(y0).field(spring)
    assert [id(p) for p in field.parameters()] == [id(spring.k)]
    found = solve(spring, y0, torch.linspace(0, 1, 3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found["q"].sum(), spring.k)
    assert bool(gradient.isfinite())
    assert float(gradient) != 0.0


def test_the_field_gets_its_arguments_and_a_time_that_broadcasts() -> None:
    y0 = {"q": random(2, 3), "v": random(2, 3)}
    adapter = adapter_of(y0)
    seen: list[tuple[int, ...]] = []

    def field(t: Tensor, y: dict[str, Tensor], args: float) -> dict[str, Tensor]:
        seen.append(tuple(t.shape))
        return {"q": y["v"] * t, "v": y["q"] * args}

    time, flat = torch.full((2, 1), 0.5, dtype=torch.float64), adapter.flatten(y0)
    found = adapter.unflatten(adapter.field(field)(time, flat, 3.0))
    assert seen == [(2, 1)]
    torch.testing.assert_close(found, {"q": 0.5 * y0["v"], "v": 3.0 * y0["q"]})


def test_conditions_and_jumps_see_the_structure() -> None:
    y0 = {"q": random(2, 1), "v": random(2, 1)}
    adapter = adapter_of(y0)
    time, flat = torch.zeros(2, 1, dtype=torch.float64), adapter.flatten(y0)
    torch.testing.assert_close(adapter.function(lambda t, y: y["q"][..., 0])(time, flat), y0["q"][:, 0])
    bounced = adapter.state_map(lambda t, y: {"q": y["q"], "v": -y["v"]})(time, flat)
    torch.testing.assert_close(adapter.unflatten(bounced), {"q": y0["q"], "v": -y0["v"]})


@pytest.mark.parametrize(
    ("y0", "words"),
    [
        ((torch.ones(3, 2), torch.ones(4, 2)), r"leading axes; found \(3,\) in y0\[0\] and \(4,\) in y0\[1\]"),
        ((torch.ones(2), torch.ones(2, dtype=torch.float64)), r"one precision; found torch.float32 in y0\[0\]"),
        ({"n": torch.ones(2), "k": torch.ones(2, dtype=torch.int64)}, r"y0\['k'\] must be a floating-point or complex"),
        ({"n": torch.ones(2), "k": torch.tensor(1.0)}, r"y0\['k'\] has no axes"),
        ({}, "holds no tensor"),
        ({"n": "three"}, r"y0\['n'\] must hold numbers"),
    ],
)
def test_states_that_are_refused(y0: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        StateAdapter.of(y0)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda y: {"q": y["q"]}, r"structure of y0 \(\['q'\], \['v'\]\); found a dict with the keys \['q'\]"),
        (lambda y: (y["q"], y["v"]), "found a tuple of 2"),
        (lambda y: torch.cat((y["q"], y["v"]), -1), "found one tensor of shape"),
        (lambda y: {"q": y["q"], "v": y["v"][..., :1]}, r"result\['v'\] must have shape \(2, 3\); found \(2, 1\)"),
        (lambda y: {"q": y["q"], "v": y["v"].float()}, r"result\['v'\] must be torch.float64.* found torch.float32"),
        (lambda y: {"q": y["q"] * 1j, "v": y["v"]}, r"result\['q'\] must be torch.float64.* found torch.complex128"),
        (lambda y: {"q": y["q"], "v": 0.0}, r"result\['v'\] must be a tensor; found float"),
    ],
)
def test_results_of_a_field_that_are_refused(result: Any, words: str) -> None:
    y0 = {"q": random(2, 3), "v": random(2, 3)}
    with pytest.raises(InputError, match=words):
        solve(lambda t, y: result(y), y0, torch.linspace(0, 1, 3, dtype=torch.float64))


def test_a_whole_tree_as_one_trajectory() -> None:
    y0 = (torch.tensor(1.0, dtype=torch.float64), random(2, 3), random(0), random(2, dtype=torch.complex128))
    adapter = StateAdapter.whole(y0)
    assert (adapter.batch, adapter.dim) == ((), 1 + 6 + 4)
    shapes: list[tuple[int, ...]] = []

    def field(t: Tensor, y: tuple[Tensor, ...]) -> list[Tensor]:
        shapes.append(tuple(t.shape))
        return [-y[0].float(), -y[1], -y[2], 1j * y[3]]

    ys = pn.solve(adapter.field(field), adapter.flatten(y0), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)).ys
    parts = adapter.unflatten(ys)
    assert set(shapes) == {()}
    assert [tuple(part.shape) for part in parts] == [(3,), (3, 2, 3), (3, 0), (3, 2)]
    torch.testing.assert_close(parts[1][-1], y0[1] * float(np.exp(-2.0)), rtol=1e-5, atol=0)
    with pytest.raises(InputError, match=r"must have shape \(2, 3\); found \(3,\)"):
        adapter.derivative((y0[0], y0[1][0], y0[2], y0[3]), ())
    with pytest.raises(InputError, match=r"\[0\] must be torch.float64.* found torch.complex128"):
        adapter.derivative((y0[0] * 1j, *y0[1:]), ())
