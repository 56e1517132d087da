"""``odeint_event`` and ``event_fn``: when, where, which, how it is differentiated, and what happens without an event."""

from __future__ import annotations

from math import log, pi
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from physnode.compat.torchdiffeq import event_search, odeint, odeint_adjoint, odeint_event
from physnode.compat.torchdiffeq.methods import Kind
from physnode.errors import SolveError

D = torch.float64
METHODS: list[tuple[str, dict[str, Any] | None]] = [
    ("dopri5", None),
    ("dopri8", None),
    ("bosh3", None),
    ("rk4", {"step_size": 0.1}),
    ("gl4", {"step_size": 0.1}),
]


def tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=D)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def half(t: Tensor, y: Tensor) -> Tensor:
    return y - 0.5


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_time_and_state_and_their_gradients(method: str, options: Any, interface: Any) -> None:
    """y = e^-(t - t0) y0 falls to a half at t0 + log(2 y0): whatever the method's interpolant, to its tolerance."""
    t0, y0, level = tensor(1.0).requires_grad_(), tensor(1.5).requires_grad_(), tensor(0.5).requires_grad_()
    rate = nn.Parameter(tensor(1.0))

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = rate

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.rate * y

    t, ys = odeint_event(
        Field(), y0, t0, event_fn=lambda t, y: y - level, odeint_interface=interface, method=method, options=options,
        rtol=1e-10, atol=1e-12,
    )  # fmt: skip
    close = 1e-5 if method == "rk4" else 1e-6 if method == "gl4" else 1e-9
    assert t.dtype == D
    assert t.shape == ()
    assert ys.shape == (2,)
    assert ys[0] == 1.5
    assert float(t.detach()) == pytest.approx(1 + log(3), abs=close)
    assert float(ys[1].detach()) == pytest.approx(0.5, abs=1e-12)
    found = torch.autograd.grad(t, (t0, y0, level, rate), retain_graph=True)
    assert [float(g) for g in found] == pytest.approx([1, 1 / 1.5, -2, -log(3)], abs=10 * close)
    state = torch.autograd.grad(ys[1], (y0, level, rate))
    assert [float(g) for g in state] == pytest.approx([0, 1, 0], abs=10 * close)


def test_second_derivatives() -> None:
    y0 = tensor(1.5).requires_grad_()
    t, _ = odeint_event(decay, y0, tensor(0.0), event_fn=half)
    (slope,) = torch.autograd.grad(t, y0, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, y0)
    assert float(curvature) == pytest.approx(-1 / 1.5**2, abs=1e-6)


def test_going_backward_with_true_times() -> None:
    seen = set()

    def event(t: Tensor, y: Tensor) -> Tensor:
        seen.add(float(t))
        return y - 3

    t, ys = odeint_event(decay, tensor(1.5), tensor(1.0), event_fn=event, reverse_time=True)
    assert float(t) == pytest.approx(1 - log(2), abs=1e-7)
    assert float(ys[1]) == pytest.approx(3, abs=1e-7)
    assert max(seen) <= 1


def test_the_first_of_several_conditions_and_of_a_tuple_state() -> None:
    state = (torch.tensor([1.0, 0.0], dtype=D), tensor(0.0))

    def field(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.stack((y[0][1], -y[0][0])), torch.ones_like(y[1])

    def event(t: Tensor, y: tuple[Tensor, Tensor]) -> Tensor:
        return torch.stack((y[0][1] - 0.5, y[0][0] + 0.5, y[1] - 2.5))

    t, (turn, clock) = odeint_event(field, state, torch.zeros(1, dtype=D), event_fn=event)
    assert float(t) == pytest.approx(2 * pi / 3, abs=1e-6)
    assert turn.shape == (2, 2)
    assert clock.shape == (2,)
    assert turn[1].tolist() == pytest.approx([-0.5, -(0.75**0.5)], abs=1e-6)
    assert float(clock[1]) == pytest.approx(2 * pi / 3, abs=1e-6)


@pytest.mark.parametrize(("method", "options"), [("dopri5", None), ("rk4", {"step_size": 0.1})])
def test_starting_on_the_surface(method: str, options: Any) -> None:
    """A stone thrown up from the floor meets it when it falls back, not at once."""
    state = (tensor(0.0), tensor(10.0))
    for height in (0.0, 1e-17, -1e-17):
        t, _ = odeint_event(
            lambda t, y: (y[1], -9.81 * torch.ones_like(y[1])),
            (state[0] + height, state[1]),
            tensor(2.0),
            event_fn=lambda t, y: y[0],
            method=method,
            options=options,
        )
        assert float(t) == pytest.approx(2 + 20 / 9.81, abs=1e-8)


def test_two_crossings_inside_one_step() -> None:
    """Steps grow without bound here; max_step, of which eight points are looked at, says how close two crossings may lie."""
    t, _ = odeint_event(
        lambda t, y: torch.ones_like(y),
        tensor(0.0),
        tensor(0.0),
        event_fn=lambda t, y: (y - 2.5) * (y - 2.8),
        options={"max_step": 1.0},
    )
    assert float(t) == pytest.approx(2.5, abs=1e-9)


@pytest.mark.parametrize("atol", [0.0, torch.tensor([1e-9], dtype=D), 1e-9])
def test_the_event_is_as_exact_as_the_solve_for_any_form_of_atol(atol: Any) -> None:
    t, _ = odeint_event(decay, torch.ones(1, dtype=D), tensor(0.0), event_fn=half, atol=atol, rtol=1e-9)
    assert float(t) == pytest.approx(log(2), abs=1e-8)


def test_event_fn_of_odeint() -> None:
    t, ys = odeint(decay, torch.ones(2, dtype=D), torch.tensor([0.0, 1.0], dtype=D), event_fn=lambda t, y: y - 0.25)
    assert float(t) == pytest.approx(2 * log(2), abs=1e-7)  # beyond t[1], which only says which way to go
    assert ys.shape == (2, 2)
    with pytest.raises(ValueError, match="t has two entries; found 3"):
        odeint(decay, torch.ones(2, dtype=D), torch.linspace(0, 1, 3, dtype=D), event_fn=half)


def test_parameters_of_the_condition_alone_get_gradients() -> None:
    class Level(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(tensor(0.5))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return y - self.value

    level = Level()
    for interface in (odeint, odeint_adjoint):
        options = {} if interface is odeint else {"adjoint_params": ()}
        t, _ = odeint_event(decay, tensor(1.0), tensor(0.0), event_fn=level, odeint_interface=interface, **options)
        (slope,) = torch.autograd.grad(t, level.value)
        assert float(slope) == pytest.approx(-2, abs=1e-6)


@pytest.mark.parametrize(
    ("field", "options", "words"),
    [
        (lambda t, y: 0 * y, {}, r"no event was found between t0 = 0 and 1e\+12"),
        (decay, {"options": {"max_num_steps": 20}}, "no event was found from t0 = 0 on.*max_steps"),
        (decay, {"method": "rk4", "options": {"step_size": 0.1}}, "no event was found from t0 = 0 on.*max_steps"),
        (lambda t, y: y**2, {}, "no event was found from t0 = 0 on.*t = 1"),
    ],
)
def test_no_event(field: Any, options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(event_search.MAX_STEPS, Kind.FIXED, 50)
    for kind in (SolveError, RuntimeError, AssertionError):
        with pytest.raises(kind, match=words):
            odeint_event(field, tensor(1.0), tensor(0.0), event_fn=lambda t, y: y + 1, **options)


def test_what_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"needs options=.'step_size'"):
        odeint_event(decay, tensor(1.0), tensor(0.0), event_fn=half, method="rk4")
    with pytest.raises(ValueError, match="scipy_solver has no events"):
        odeint_event(decay, tensor(1.0), tensor(0.0), event_fn=half, method="scipy_solver")
    with pytest.raises(AssertionError, match="t0 must be a tensor"):
        odeint_event(decay, tensor(1.0), 0.0, event_fn=half)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="event_fn must return a tensor"):
        odeint_event(decay, tensor(1.0), tensor(0.0), event_fn=lambda t, y: 0.5)  # type: ignore[arg-type, return-value]
