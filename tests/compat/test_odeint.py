"""``odeint`` against exact solutions: methods, shapes, tolerances, options, and what is refused."""

from __future__ import annotations

import warnings
from itertools import pairwise
from math import log2
from typing import Any

import pytest
import torch
from torch import Tensor

from physnode.compat import torchdiffeq
from physnode.compat.torchdiffeq import odeint
from physnode.compat.torchdiffeq.methods import METHODS, Kind
from physnode.errors import GradientError, InputError, PhysnodeError, SolveError

D = torch.float64
ADAPTIVE = [name for name, (kind, _) in METHODS.items() if kind is Kind.ADAPTIVE]
FIXED = [name for name, (kind, _) in METHODS.items() if kind is Kind.FIXED]
ORDERS = {
    "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "implicit_euler": 1, "implicit_midpoint": 2, "trapezoid": 2,
    "radauIIA3": 3, "radauIIA5": 5, "gl4": 4, "gl6": 6, "sdirk2": 2, "trbdf2": 2,
}  # fmt: skip


def wave(t: Tensor, y: Tensor) -> Tensor:
    """Its solution from y(0) = 1 is 1 / (3 - 2 cos t): nonlinear, and time is in the field."""
    return -2 * torch.sin(t) * y**2


def exact(t: Tensor) -> Tensor:
    return 1 / (3 - 2 * torch.cos(t))


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def test_the_names_promised() -> None:
    assert torchdiffeq.__version__ == "0.2.5"
    assert set(ADAPTIVE) == {"dopri5", "dopri8", "tsit5", "bosh3", "fehlberg2", "adaptive_heun"}
    assert set(FIXED) == set(ORDERS)
    assert {"explicit_adams", "implicit_adams", "fixed_adams", "scipy_solver"} == set(METHODS) - set(ADAPTIVE) - set(FIXED)
    from physnode.compat.torchdiffeq._impl.adjoint import find_parameters

    assert find_parameters is torchdiffeq.find_parameters


@pytest.mark.parametrize("method", [None, *ADAPTIVE])
@pytest.mark.parametrize("reverse", [False, True])
def test_adaptive_methods_meet_the_tolerance_between_steps_too(method: str | None, reverse: bool) -> None:
    t = torch.linspace(0, 3, 13, dtype=D)
    rtol = {"adaptive_heun": 1e-5}.get(str(method), 1e-8)
    slack = 2000 if method == "fehlberg2" else 60  # its estimate, of order 1, is a 500th of its difference
    if reverse:
        t = t.flip(0)
    found = odeint(wave, exact(t[:1]), t, method=method, rtol=rtol, atol=rtol)
    assert found.shape == (13, 1)
    assert (found[:, 0] - exact(t)).abs().max() < slack * rtol


@pytest.mark.parametrize("method", FIXED)
def test_fixed_methods_have_their_order_with_time_in_the_field(method: str) -> None:
    errors = []
    for step in (0.1, 0.05):
        found = odeint(wave, torch.ones(1, dtype=D), times(0, 1.5), method=method, options={"step_size": step})
        errors.append(float((found[-1, 0] - exact(times(1.5))).abs()))
    assert log2(errors[0] / errors[1]) > ORDERS[method] - 0.2


def test_rk4_is_the_three_eighths_rule_and_the_default_grid_is_t() -> None:
    t = times(0, 0.4)
    y = torch.ones(1, dtype=D)
    k1 = wave(t[0], y)
    k2 = wave(t[1] / 3, y + 0.4 * k1 / 3)
    k3 = wave(2 * t[1] / 3, y + 0.4 * (k2 - k1 / 3))
    k4 = wave(t[1], y + 0.4 * (k1 - k2 + k3))
    expected = y + 0.4 * (k1 + 3 * k2 + 3 * k3 + k4) / 8
    torch.testing.assert_close(odeint(wave, y, t, method="rk4")[-1], expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams", "gl4", "scipy_solver"])
def test_states_of_any_shape(shape: tuple[int, ...], method: str) -> None:
    y0 = torch.rand(shape, dtype=D) + 0.5
    t = torch.linspace(0, 1, 9, dtype=D)
    seen: list[Any] = []

    def field(time: Tensor, y: Tensor) -> Tensor:
        seen.append((tuple(time.shape), time.dtype, tuple(y.shape)))
        return -y

    found = odeint(field, y0, t, method=method)
    assert set(seen) == {((), D, shape)}
    expected = torch.exp(-t).reshape(-1, *[1] * len(shape)) * y0
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 if method in ("rk4", "implicit_adams") else 1e-6)
    torch.testing.assert_close(found[0], y0, rtol=1e-15, atol=0)


def test_tuples_parts_of_one_dtype_and_lists() -> None:
    y0 = (torch.tensor(1.0, dtype=torch.float32), torch.rand(2, 3, dtype=D), torch.zeros(0, dtype=D))
    found = odeint(lambda t, y: (-y[0], y[1] * t, y[2]), y0, times(0, 1, 2))
    assert isinstance(found, tuple)
    assert [tuple(part.shape) for part in found] == [(3,), (3, 2, 3), (3, 0)]
    assert {part.dtype for part in found} == {D}
    torch.testing.assert_close(found[0][-1], times(2).neg().exp()[0], rtol=1e-7, atol=0)
    torch.testing.assert_close(found[1][-1], y0[1] * times(2).exp(), rtol=1e-7, atol=0)
    as_list = odeint(lambda t, y: [-y[0]], [torch.ones(2, dtype=D)], times(0, 1))
    torch.testing.assert_close(as_list[0][-1], times(-1, -1).exp(), rtol=1e-7, atol=0)


def test_complex_states() -> None:
    y0 = torch.randn(2, dtype=torch.complex128)
    t = torch.linspace(0, 2, 5, dtype=D)
    found = odeint(lambda time, y: 1j * y, y0, t, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, torch.exp(1j * t).unsqueeze(-1) * y0, rtol=0, atol=1e-9)


def test_single_precision_with_default_tolerances_and_times_in_double() -> None:
    seen = set()

    def field(t: Tensor, y: Tensor) -> Tensor:
        seen.add(t.dtype)
        return -y

    found = odeint(field, torch.ones(3), torch.linspace(0, 5, 6, dtype=D))
    assert found.dtype == torch.float32
    assert seen == {torch.float32}
    torch.testing.assert_close(found[:, 0].double(), torch.linspace(0, 5, 6, dtype=D).neg().exp(), rtol=1e-5, atol=1e-7)


def test_tolerances_below_the_resolution_are_not_taken_in_silence() -> None:
    with pytest.warns(UserWarning, match=r"rtol=1e-09 is below what torch.float32 can resolve"):
        odeint(decay, torch.ones(1), torch.tensor([0.0, 1.0]), rtol=1e-9)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(InputError, match="below what"):
            odeint(decay, torch.ones(1, dtype=dtype), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("method", list(METHODS))
def test_one_time_gives_the_start_back(method: str) -> None:
    y0 = (torch.rand(2, dtype=D), torch.tensor(1.0, dtype=D))
    found = odeint(decay, y0, times(3.0), method=method)
    torch.testing.assert_close(found, (y0[0].unsqueeze(0), y0[1].unsqueeze(0)), rtol=0, atol=0)


# Tolerances and norms.


def steps(**options: Any) -> int:
    """Evaluations for a slow part beside a fast one."""
    count = 0

    def field(t: Tensor, y: Any) -> Any:
        nonlocal count
        count += 1
        return (
            (-y[0], 50 * torch.cos(50 * t) * torch.ones_like(y[1]))
            if isinstance(y, tuple)
            else torch.stack((-y[0], 50 * torch.cos(50 * t)))
        )

    odeint(field, options.pop("y0", torch.ones(2, dtype=D)), times(0, 1), **options)
    return count


def test_tolerances_for_each_component_and_each_part() -> None:
    both = steps(rtol=0.0, atol=1e-6)
    slow_only = steps(rtol=0.0, atol=times(1e-6, 1e3))
    assert slow_only < both / 4
    pair = (torch.ones(3, dtype=D), torch.ones((), dtype=D))
    assert steps(y0=pair, rtol=0.0, atol=(1e-6, 1e3)) < both / 4
    assert steps(y0=pair, rtol=(0.0, 1e-4), atol=(1e-6, 0.0)) > both / 4
    assert steps(y0=pair, rtol=(1e-6, 1e3), atol=1e-9) < both / 4
    assert steps(rtol=torch.tensor(1e-6), atol=torch.tensor([1e-6])) > both / 4


def test_a_relative_tolerance_for_each_component_is_kept() -> None:
    found = odeint(decay, torch.ones(2, dtype=D), times(0, 2), rtol=times(1e-10, 1e-10), atol=0.0)
    torch.testing.assert_close(found[-1], times(-2, -2).exp(), rtol=1e-9, atol=0)
    calls = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls.append(float(t))
        return torch.stack((-y[0], 50 * torch.cos(50 * t)))

    found = odeint(field, torch.ones(2, dtype=D), times(0, 1), rtol=times(1e-9, 10.0), atol=1e-12)
    assert float(found[-1, 0]) == pytest.approx(0.36787944117, abs=1e-8)
    assert len(calls) < steps(rtol=1e-9, atol=1e-12) / 4


def test_a_tuple_is_judged_by_its_worst_part() -> None:
    """Idle numbers beside a moving one do not hide its error, as they do in one tensor."""
    idle = torch.zeros(1000, dtype=D)
    alone = steps(y0=(torch.ones(1, dtype=D), torch.ones(1, dtype=D)))
    count = 0

    def field(t: Tensor, y: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        nonlocal count
        count += 1
        return -y[0], 50 * torch.cos(50 * t) * torch.ones_like(y[1]), 0 * y[2]

    odeint(field, (torch.ones(1, dtype=D), torch.ones(1, dtype=D), idle), times(0, 1))
    assert count == alone


def test_a_norm_of_the_callers_own() -> None:
    kinds = set()

    def slow(y: Tensor) -> Tensor:
        kinds.add(tuple(y.shape))
        return y[0].abs()

    assert steps(options={"norm": slow}) < steps() / 4
    assert kinds == {(2,)}

    def slow_part(y: tuple[Tensor, ...]) -> Tensor:
        assert isinstance(y, tuple)
        return y[0].abs().max()

    assert steps(y0=(torch.ones(1, dtype=D), torch.ones(1, dtype=D)), options={"norm": slow_part}) < steps() / 4


# Options.


def starts(options: dict[str, Any], t: Tensor, method: str = "euler") -> list[float]:
    seen: list[float] = []

    def field(time: Tensor, y: Tensor) -> Tensor:
        seen.append(float(time))
        return -y

    odeint(field, torch.ones(1, dtype=D), t, method=method, options=options)
    return seen[1:]  # the first call only looks at the field


def test_step_size_and_grids() -> None:
    assert starts({"step_size": 0.25}, times(0, 0.6)) == [0, 0.25, 0.5]
    assert starts({"step_size": 0.25}, times(1, 0.4)) == [1, 0.75, 0.5]
    assert starts({"step_size": torch.tensor(0.1)}, times(0, 1)) == pytest.approx([n / 10 for n in range(10)], abs=1e-7)
    assert starts({}, times(0, 0.3, 0.4)) == [0, 0.3]
    given = []

    def grid(func: Any, y0: Tensor, t: Tensor) -> Tensor:
        given.append((tuple(y0.shape), t.tolist()))
        return times(2, 1.5, 0)

    assert starts({"grid_constructor": grid}, times(2, 1, 0)) == [2, 1.5]
    assert given == [((1,), [2, 1, 0])]


def test_limits_of_adaptive_steps() -> None:
    def longest(options: dict[str, Any]) -> float:
        found = sorted(set(starts(options, times(0, 10), "bosh3")))
        return max(y - x for x, y in pairwise(found))

    assert longest({}) > 0.04
    assert longest({"max_step": 0.02}) <= 0.02
    first = starts({"first_step": 1e-3}, times(0, 10), "dopri5")
    assert first[0] == pytest.approx(0.2e-3)
    many, few = (len(starts({"ifactor": x, "first_step": 1e-6}, times(0, 10), "bosh3")) for x in (1.5, 10.0))
    assert many > few + 50


def test_options_are_not_modified_and_unknown_ones_warn_with_the_nearest() -> None:
    options = {"stepsize": 0.01, "step_size": 0.5}
    with pytest.warns(UserWarning, match=r"rk4: unexpected option 'stepsize' is ignored. Did you mean \"step_size\"\?"):
        odeint(decay, torch.ones(1, dtype=D), times(0, 1), method="rk4", options=options)
    assert options == {"stepsize": 0.01, "step_size": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odeint(decay, torch.ones(1, dtype=D), times(0, 1), options={"dtype": torch.float32, "max_num_steps": 10_000})


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "options", "kinds", "words"),
    [
        ((decay, [1.0], times(0, 1)), {}, (AssertionError, ValueError), "y0 must be a torch.Tensor or a tuple"),
        ((decay, torch.ones(2, dtype=torch.int64), times(0, 1)), {}, (TypeError,), "y0 must hold floating point"),
        ((decay, torch.ones(2), torch.tensor([0, 1])), {}, (TypeError,), "t must be a floating point tensor"),
        ((decay, torch.ones(2), [0.0, 1.0]), {}, (AssertionError,), "t must be a torch.Tensor"),
        ((decay, torch.ones(2), torch.rand(2, 2)), {}, (AssertionError,), "t must be one dimensional"),
        ((decay, torch.ones(2), times(0, 2, 1)), {}, (AssertionError,), "strictly increasing or decreasing"),
        ((decay, torch.ones(2), times(0, 0, 1)), {}, (AssertionError,), "strictly increasing or decreasing"),
        ((decay, torch.ones(2), times(0, 1)), {"method": "rk5"}, (ValueError,), 'Did you mean "rk4".*"dopri5", "dopri8"'),
        ((decay, torch.ones(2), times(0, 1)), {"rtol": times(1e-3).requires_grad_()}, (AssertionError,), "rtol cannot require"),
        ((decay, (torch.ones(2),), times(0, 1)), {"atol": (1e-3, 1e-3)}, (AssertionError,), "atol has 2 entries"),
        ((decay, torch.ones(2), times(0, 1)), {"atol": times(1, 1, 1)}, (ValueError,), "does not broadcast"),
        (
            (decay, torch.ones(2), times(0, 1)),
            {"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": lambda f, y, t: t}},
            (ValueError,),
            "exclude each other",
        ),
        (
            (decay, torch.ones(2), times(0, 1)),
            {"method": "rk4", "options": {"grid_constructor": lambda f, y, t: t / 2}},
            (AssertionError,),
            r"from t\[0\] to t\[-1\]",
        ),
        ((decay, torch.ones(2), times(0, 1)), {"method": "rk4", "options": {"interp": "magic"}}, (ValueError,), "interp must"),
        ((decay, torch.ones(2), times(0, 1)), {"method": "rk4", "options": {"step_size": -0.1}}, (ValueError,), "positive"),
        ((decay, torch.ones(2), times(0, 1)), {"options": {"step_t": [0.5], "jump_t": [0.5]}}, (ValueError,), "repeated"),
        ((decay, torch.ones(2), times(0, 1)), {"options": {"jump_t": times(0.2, 0.2)}}, (ValueError,), "repeated"),
        ((3, torch.ones(2), times(0, 1)), {}, (AssertionError,), "func must be"),
        ((lambda t, y: y[0], torch.ones(3), times(0, 1)), {"method": "rk4"}, (ValueError,), r"shape \(3,\); found \(\)"),
        ((lambda t, y: (y,), torch.ones(3), times(0, 1)), {}, (ValueError,), "must be a tensor; found tuple"),
    ],
)  # fmt: skip
def test_arguments_that_are_refused(arguments: Any, options: dict[str, Any], kinds: tuple[type, ...], words: str) -> None:
    for kind in (*kinds, PhysnodeError):
        with pytest.raises(kind, match=words):
            odeint(*arguments, **options)


def blow_up(t: Tensor, y: Tensor) -> Tensor:
    return y**2


@pytest.mark.parametrize(
    ("field", "options", "words"),
    [
        (blow_up, {}, "t = 1.*(diverged|too short)"),
        (blow_up, {"method": "rk4", "options": {"step_size": 0.05}}, "diverged|not finite"),
        (blow_up, {"method": "explicit_adams", "options": {"step_size": 0.05}}, "not finite"),
        (lambda t, y: y * torch.nan, {}, "not finite"),
        (lambda t, y: torch.where(t > 0.5, y * torch.nan, y), {}, "not finite"),
        (decay, {"options": {"max_num_steps": 3}}, "max_steps"),
        (lambda t, y: -100 * y, {"options": {"min_step": 0.2}}, "stiff|too short"),
    ],
)
def test_every_failure_has_its_own_words(field: Any, options: dict[str, Any], words: str) -> None:
    for kind in (AssertionError, RuntimeError, SolveError):
        with pytest.raises(kind, match=words):
            odeint(field, torch.ones(1, dtype=D), torch.linspace(0, 9, 50, dtype=D), **options)


def test_the_step_limit_counts_the_whole_solve() -> None:
    for outputs in (2, 51):
        with pytest.raises(SolveError):
            odeint(decay, torch.ones(1, dtype=D), torch.linspace(0, 9, outputs, dtype=D), options={"max_num_steps": 10})


def test_the_field_is_never_called_outside_the_span() -> None:
    for t in (times(0, 0.5, 1), times(1, 0.3, 0)):
        for method in METHODS:
            if method == "scipy_solver":
                continue
            seen = starts({} if METHODS[method][0] is Kind.ADAPTIVE else {"step_size": 0.3}, t, method)
            assert 0 <= min(seen) <= max(seen) <= 1


def test_random_fields_are_refused_where_a_gradient_is_wanted() -> None:
    weight = torch.ones((), dtype=D, requires_grad=True)
    with pytest.raises(GradientError, match="draws random numbers"):
        odeint(lambda t, y: weight * y * torch.rand_like(y), torch.ones(2, dtype=D), times(0, 1))


def test_noise_drawn_once_is_allowed() -> None:
    class Field(torch.nn.Module):
        noise: Tensor | None = None

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), dtype=D))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            if self.noise is None:
                self.noise = torch.randn_like(y)
            return self.weight * self.noise

    field = Field()
    found = odeint(field, torch.zeros(2, dtype=D), times(0, 1))
    found[-1].sum().backward()
    assert field.noise is not None
    torch.testing.assert_close(field.weight.grad, field.noise.sum())
