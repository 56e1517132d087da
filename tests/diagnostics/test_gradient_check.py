from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.diagnostics.finite_differences import derivative
from physnode.diagnostics.frozen_steps import FrozenSteps
from physnode.errors import GradientError, InputError
from physnode.gradients import Outputs

STARTS = torch.tensor([[1.0, 0.0], [2.0, 0.3]], dtype=torch.float64)
TIMES = torch.linspace(0, 2, 5, dtype=torch.float64)
QUICK: dict[str, Any] = {"repeats": 1, "finite_differences": 1, "gradients": ("aca", "symplectic")}


class _WrongSine(torch.autograd.Function):
    """A sine whose backward is a little off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * x.cos() * 1.001


class Swing(nn.Module):
    def __init__(self, *, wrong: bool = False) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
        self.wrong = wrong

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        q, v = y[..., :1], y[..., 1:]
        sine = _WrongSine.apply(q) if self.wrong else q.sin()
        return torch.cat((v, -self.rate * sine), -1)


class Crooked(pn.ACA):
    """An ACA that is off in the seventh digit."""

    name = "crooked"

    def attach(self, *given: Any) -> Outputs:
        outputs = super().attach(*given)
        ys = 1.0 * outputs.ys
        if ys.requires_grad:
            ys.register_hook(lambda grad: grad * (1 + 1e-7))
        return outputs._replace(ys=ys)


class Refusing(pn.ACA):
    name = "refusing"

    def attach(self, *given: Any) -> Outputs:
        raise GradientError("not this one")


def test_all_gradients_are_right_and_measured() -> None:
    found = pn.check_gradient(Swing(), STARTS, TIMES, repeats=1)
    found.raise_if_wrong()
    assert found.ok
    rows = {row.name: row for row in found.rows}
    assert {"aca", "direct", "symplectic"} <= set(rows)
    assert found.variables == ("rate", "y0")
    for name in ("aca", "direct", "symplectic"):
        row = rows[name]
        assert row.exact
        assert row.error is not None
        assert row.error < 1e-12
        assert row.from_differences is not None
        assert row.from_differences < 1e-9
        assert row.seconds is not None
        assert row.seconds > 0
        assert row.peak_bytes is not None
        assert row.peak_bytes > 1000
        assert name in str(found)
    with torch.no_grad():
        searched = int(pn.solve(Swing(), STARTS[0], TIMES).stats.evaluations)
    assert rows["symplectic"].backward > 0
    assert rows["aca"].backward > 0
    assert rows["direct"].backward == 0
    frugal = pn.SymplecticAdjoint(pn.Storage(checkpoints=4))
    long: dict[str, Any] = {"method": "rk4", "controller": pn.Fixed(0.01), "gradients": ["direct", frugal]}
    direct, symplectic = pn.check_gradient(Swing(), STARTS, TIMES, **(QUICK | {"finite_differences": 0} | long)).rows
    assert direct.peak_bytes is not None
    assert symplectic.peak_bytes is not None
    assert direct.peak_bytes > 1.5 * symplectic.peak_bytes
    assert rows["aca"].forward < 3 * searched
    assert str(found).endswith("ok")


def test_evaluations_are_those_of_the_field() -> None:
    calls = 0

    class Counting(Swing):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return super().forward(t, y)

    pn.solve(Counting(), STARTS.clone().requires_grad_(), TIMES).ys.sum().backward()
    row = pn.check_gradient(Swing(), STARTS, TIMES, **(QUICK | {"gradients": ["aca"]})).rows[0]
    assert row.forward is not None
    assert row.backward is not None
    assert row.forward + row.backward == calls
    split = {"method": "leapfrog", "controller": pn.Fixed(0.1), "gradients": ["direct"]}
    row = pn.check_gradient(pn.systems.Pendulum(free=("frequency",)), STARTS, TIMES, **(QUICK | split)).rows[0]
    assert row.forward is not None
    assert 40 <= row.forward <= 50  # 20 steps that share their kicks, searched and made again


def test_a_field_with_a_wrong_backward_is_caught() -> None:
    found = pn.check_gradient(Swing(wrong=True), STARTS, TIMES, **QUICK)
    assert not found.ok
    assert all(
        row.error is not None and row.error < 1e-12 for row in found.rows
    )  # all of them differentiate the same wrong thing
    with pytest.raises(GradientError, match="backward of the field"):
        found.raise_if_wrong()


def test_a_wrong_gradient_method_is_caught() -> None:
    found = pn.check_gradient(Swing(), STARTS, TIMES, **(QUICK | {"gradients": ["aca", Crooked()]}))
    good, bad = found.rows
    assert good.error is not None
    assert good.error < 1e-12
    assert bad.error == pytest.approx(1e-7, rel=0.01)
    assert not found.ok
    with pytest.raises(GradientError, match="crooked") as caught:
        found.raise_if_wrong()
    assert "aca" not in str(caught.value)
    assert "crooked: off by" in str(found)


def test_a_refusal_is_a_note() -> None:
    found = pn.check_gradient(Swing(), STARTS, TIMES, **(QUICK | {"gradients": ["aca", Refusing()]}))
    assert found.ok
    assert found.rows[1].error is None
    assert "refused: not this one" in str(found)


def test_events_move_with_the_variables() -> None:
    bounce = pn.Event(lambda t, y: y[..., 0], terminal=False, jump=lambda t, y: -0.8 * y)
    ts = torch.linspace(0, 4, 9, dtype=torch.float64)
    found = pn.check_gradient(Swing(), STARTS, ts, events=bounce, **QUICK)
    assert found.ok
    assert found.differences[0].uncertainty < 1e-6 * abs(found.differences[0].value)
    ends = pn.check_gradient(Swing(), STARTS, ts, events=pn.Event(lambda t, y: y[..., 0]), **QUICK)
    assert ends.ok
    assert ends.rows[0].from_differences is not None


def test_float32_both_ways_in_time_args_and_data() -> None:
    def pushed(t: Tensor, y: Tensor, args: Any) -> Tensor:
        return torch.cat((y[..., 1:], args["force"] - y[..., :1].sin()), -1)

    force = torch.tensor([[0.2], [0.4]], requires_grad=True)
    data = torch.zeros(2, 5, 2)
    found = pn.check_gradient(pushed, STARTS.float(), TIMES, t0=1.0, args={"force": force}, data=data, **QUICK)
    assert found.ok
    assert found.dtype == torch.float32
    assert found.variables == ("y0", "args['force']")
    assert all(row.error is not None and 1e-9 < row.error < 1e-4 for row in found.rows)
    assert force.grad is None


def test_structured_and_complex_states() -> None:
    def turn(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"z": 1j * y["z"] * y["r"] ** 2, "r": -y["r"]}

    y0 = {"z": torch.tensor([[1 + 0.5j]], dtype=torch.complex128), "r": torch.tensor([[1.0]], dtype=torch.float64)}
    found = pn.check_gradient(turn, y0, TIMES, loss=lambda ys: (ys["z"].abs() ** 2).sum() + ys["z"].real.sum(), **QUICK)
    found.raise_if_wrong()
    assert len(found.variables) == 2


def test_nothing_of_the_users_is_changed() -> None:
    field, y0 = pn.systems.Pendulum(free=("frequency",)).float().eval(), STARTS.float().requires_grad_()
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in field.state_dict().items()}
    versions = [p._version for p in field.parameters()]
    pn.check_gradient(field, y0, TIMES, **QUICK)
    assert all(p.grad is None for p in (*field.parameters(), y0))
    assert [p._version for p in field.parameters()] == versions
    assert all(
        torch.equal(value, before[name]) and value.dtype == before[name].dtype for name, value in field.state_dict().items()
    )
    assert not field.training
    assert not field._forward_pre_hooks
    assert torch.equal(state, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_what_cannot_be_checked_is_refused() -> None:
    rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    for options, words in (
        ({"gradient": "aca"}, "gradients="),
        ({"loss": lambda ys: ys.sum(), "data": 0.0}, "not both"),
        ({"loss": lambda ys: ys.sum(-1)}, "one number"),
        ({"repeats": 0}, "repeats"),
        ({"gradients": ["acca"]}, "Did you mean"),
    ):
        with pytest.raises(InputError, match=words):
            pn.check_gradient(Swing(), STARTS, TIMES, **options)
    with pytest.raises(InputError, match="none of its parameters"):
        pn.check_gradient(lambda t, y: -rate * y, STARTS, TIMES, **QUICK)
    with pytest.raises(GradientError, match="random"):
        pn.check_gradient(lambda t, y: -y * torch.rand(()), STARTS, TIMES, **QUICK)
    with pytest.raises(InputError, match="must be a function"):
        pn.check_gradient(3, STARTS, TIMES)


def test_without_finite_differences() -> None:
    found = pn.check_gradient(Swing(wrong=True), STARTS, TIMES, **(QUICK | {"finite_differences": 0}))
    assert found.ok  # nothing else can see it
    assert found.differences == ()
    assert found.rows[0].from_differences is None


def test_frozen_steps_are_the_steps_of_the_solve() -> None:
    ts = torch.linspace(-1, 3, 7, dtype=torch.float64)
    with torch.no_grad():
        first = pn.solve(Swing(), STARTS, ts, t0=0.5, dense=True)
        again = pn.solve(Swing(), STARTS, ts, t0=0.5, dense=True, controller=FrozenSteps(first))
        moved = pn.solve(Swing(), 1.01 * STARTS, ts, t0=0.5, dense=True, controller=FrozenSteps(first))
    assert torch.equal(first.ys, again.ys)
    for one, other in zip(first.pieces, moved.pieces, strict=True):
        assert torch.equal(one.replay.records.t_end, other.replay.records.t_end)
    with torch.no_grad(), pytest.raises(InputError, match="dense"):
        FrozenSteps(pn.solve(Swing(), STARTS, ts))


def test_difference_quotients_know_how_good_they_are() -> None:
    smooth = derivative(math.exp, 0.1)
    assert abs(smooth.value - 1) < max(1e-11, smooth.uncertainty) < 1e-9
    rough = derivative(lambda x: abs(x - 1e-3), 0.1)
    assert rough.uncertainty > 1e-3
