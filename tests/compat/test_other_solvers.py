"""Adams methods, SciPy's solvers and dense output."""

from __future__ import annotations

from math import log2
from typing import Any

import pytest
import torch
from torch import Tensor

from physnode.compat.torchdiffeq import odeint, odeint_adjoint, odeint_dense
from physnode.compat.torchdiffeq.adams import DEFAULT_ORDER, weights
from physnode.errors import GradientError, InputError

D = torch.float64


def wave(t: Tensor, y: Tensor) -> Tensor:
    return -2 * torch.sin(t) * y**2


def exact(t: Tensor) -> Tensor:
    return 1 / (3 - 2 * torch.cos(t))


# Adams.


def test_weights_of_equal_steps_are_the_known_ones() -> None:
    assert weights([0, -1, -2, -3], 0, 1) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24])  # Bashforth
    assert weights([1, 0, -1, -2], 0, 1) == pytest.approx([9 / 24, 19 / 24, -5 / 24, 1 / 24])  # Moulton


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
@pytest.mark.parametrize("order", [4, 5, 6])
def test_order_on_unequal_steps_at_and_between_them(method: str, order: int) -> None:
    errors = []
    for count in (40, 80):
        s = torch.linspace(0, 1, count + 1, dtype=D)
        grid = 2 * (s + 0.08 * torch.sin(6 * s) * s * (1 - s) * 4)
        grid[-1] = 2
        t = torch.tensor([0.0, 0.7431, 1.313, 2.0], dtype=D)
        options = {"grid_constructor": lambda f, y, t, grid=grid: grid, "max_order": order, "max_iters": 20}
        found = odeint(wave, torch.ones(1, dtype=D), t, method=method, options=options, rtol=1e-13, atol=1e-14)
        errors.append((found[:, 0] - exact(t)).abs())
    assert log2(float(errors[0][-1] / errors[1][-1])) > order - 0.6
    assert float(errors[1][1:3].max()) < 10 * float(errors[1].max())


def test_defaults_are_stable() -> None:
    assert max(DEFAULT_ORDER.values()) <= 6
    for method in DEFAULT_ORDER:
        found = odeint(
            lambda t, y: -y,
            torch.ones(1, dtype=D),
            torch.tensor([0.0, 1.0], dtype=D),
            method=method,
            options={"step_size": 0.01},
        )
        assert float(found[-1]) == pytest.approx(0.36787944, abs=1e-7)


def test_adams_backward_in_time_and_its_gradient() -> None:
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    t = torch.tensor([1.0, 0.5, 0.0], dtype=D)
    for solver in (odeint, lambda *a, **k: odeint_adjoint(*a, adjoint_params=(), **k)):
        found = solver(lambda t, y: -y * torch.cos(t), y0, t, method="implicit_adams", options={"step_size": 0.02})
        factor = torch.exp(torch.sin(t[0]) - torch.sin(t[2]))
        torch.testing.assert_close(found[-1], y0 * factor, rtol=1e-7, atol=0)
        (slope,) = torch.autograd.grad(found[-1].sum(), y0)
        torch.testing.assert_close(slope, torch.full((2,), float(factor), dtype=D), rtol=1e-7, atol=0)


def test_low_orders_become_rk4_and_unconverged_iterations_warn_once() -> None:
    y0, t = torch.ones(1, dtype=D), torch.tensor([0.0, 1.0], dtype=D)
    with pytest.warns(UserWarning, match="max_order is below 4, so explicit_adams reduces to rk4"):
        found = odeint(wave, y0, t, method="explicit_adams", options={"step_size": 0.1, "max_order": 3})
    torch.testing.assert_close(found, odeint(wave, y0, t, method="rk4", options={"step_size": 0.1}), rtol=0, atol=0)
    with pytest.warns(UserWarning, match="did not converge to rtol and atol in 6 of 10 steps") as record:
        odeint(wave, y0, t, method="implicit_adams", options={"step_size": 0.1, "max_iters": 1})
    assert len(record) == 1


# SciPy.


@pytest.mark.parametrize("solver", ["LSODA", "RK45", "Radau"])
def test_scipy(solver: str) -> None:
    t = torch.linspace(2, 0, 5, dtype=D)
    found = odeint(wave, exact(t[:1]), t, method="scipy_solver", options={"solver": solver}, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found[:, 0], exact(t), rtol=0, atol=1e-6)


def test_scipy_failures_are_errors_and_gradients_are_refused() -> None:
    options = {"solver": "RK45"}
    with pytest.raises(AssertionError, match=r"SciPy's RK45 stopped after \d+ of 5 times"):
        odeint(
            lambda t, y: y**2, torch.ones(1, dtype=D), torch.linspace(0, 2, 5, dtype=D), method="scipy_solver", options=options
        )
    y0 = torch.ones(1, dtype=D, requires_grad=True)
    found = odeint(wave, y0, torch.tensor([0.0, 1.0], dtype=D), method="scipy_solver")
    with pytest.raises(GradientError, match="scipy_solver has no gradient"):
        found.sum().backward()


# Dense output.


@pytest.mark.parametrize("ends", [(0.0, 3.0), (3.0, 0.0)])
@pytest.mark.parametrize("method", [None, "dopri8", "bosh3", "rk4"])
def test_dense_output_at_any_times(ends: tuple[float, float], method: Any) -> None:
    options = {"step_size": 0.01} if method == "rk4" else None
    t0, t1 = (torch.tensor(end, dtype=D) for end in ends)
    at = odeint_dense(wave, exact(t0).reshape(1), t0, t1, method=method, options=options, rtol=1e-9, atol=1e-11)
    times = torch.rand(4, 5, dtype=D) * 3
    found = at(times)
    assert found.shape == (4, 5, 1)
    torch.testing.assert_close(found[..., 0], exact(times), rtol=0, atol=3e-7)
    assert at(1.5).shape == at(torch.tensor(1.5)).shape == (1,)
    for end in ends:
        torch.testing.assert_close(at(end), exact(torch.tensor([end], dtype=D)), rtol=0, atol=1e-7)
    with pytest.raises(InputError, match="outside the solved span"):
        at(3.5)


def test_dense_output_of_tuples_and_its_gradients() -> None:
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    at = odeint_dense(lambda t, y: (-y[0], torch.ones_like(y[1])), (y0, torch.zeros((), dtype=D)), 0.0, 2.0)
    time = torch.tensor([0.3, 1.1], dtype=D, requires_grad=True)
    first, second = at(time)
    assert first.shape == (2, 2)
    assert second.shape == (2,)
    slopes = torch.autograd.grad(first.sum() + 5 * second.sum(), (y0, time))
    e = torch.exp(-time.detach())
    torch.testing.assert_close(slopes, (e.sum().expand(2), 5 - 2 * e), rtol=1e-6, atol=0)
    with pytest.raises(InputError, match="keeps no dense output; use one of dopri5"):
        odeint_dense(wave, y0, 0.0, 1.0, method="explicit_adams")
