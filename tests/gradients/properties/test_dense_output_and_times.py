"""Outputs anywhere among the steps are of the solve itself, and so are their gradients."""

from __future__ import annotations

from math import factorial
from typing import Any

import pytest
import torch
from torch import Tensor

import physnode as pn

F64 = torch.float64
TS = [0.0, 0.41, 0.9, 1.0]


class Oscillator(pn.SecondOrder):
    """q'' = -k q, as a linear map of the state."""

    velocity_dependent = False

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -1.7 * q


def test_reading_at_the_end_is_as_good_as_stepping_onto_it(gradient: str) -> None:
    """z' = k z: the outputs at T from a solve that ends on T, from one that goes past it, and from dense output have
    values and derivatives dz(T)/dz0 = exp(kT) within the tolerance."""
    rate, end = 0.3, 5.0
    exact = torch.exp(torch.tensor(rate * end, dtype=F64))
    for ts in ([0.0, end], [0.0, 0.61 * end, end, 1.27 * end]):
        z0 = torch.ones(2, 1, dtype=F64, requires_grad=True)
        sol = pn.solve(
            lambda t, z: rate * z, z0, ts, method="dopri5", controller=pn.Adaptive(1e-5, 1e-5), gradient=gradient, dense=True
        )
        for z in (sol.ys[:, ts.index(end)], sol.at(end)):
            (slope,) = torch.autograd.grad(z.square().sum(), z0, retain_graph=True)
            assert float((slope / (2 * exact**2) - 1).abs().max()) < 1e-4


def test_one_requested_time_keeps_the_time_axis(family: Any, gradient: str) -> None:
    """T = 1 gives (B, 1, D), at the start and away from it, with a gradient."""
    y0 = torch.tensor([[0.5, 0.3], [2.4, -0.9]], dtype=F64, requires_grad=True)
    for ts in ([0.0], [0.7]):
        sol = family.solve(Oscillator(), y0, ts, t0=0.0, gradient=gradient)
        assert sol.ys.shape == (2, 1, 2)
        (slope,) = torch.autograd.grad(sol.ys.sum(), y0)
        assert torch.isfinite(slope).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_the_gradient_is_that_of_the_solve_made(family: Any, gradient: str, dtype: torch.dtype, tolerance: float) -> None:
    """On a linear field every step is a linear map, whatever its length, so L = |y(t)|² is quadratic in y0 and
    y0 · dL/dy0 = 2 L for the numbers that were computed, at step ends and between them. Times stay float64."""
    y0 = torch.tensor([[0.5, 0.3], [2.4, -0.9]], dtype=dtype, requires_grad=True)
    options: dict[str, Any] = {}
    if dtype == torch.float32:
        adaptive = isinstance(family.controller, pn.Adaptive)
        options["controller"] = pn.Adaptive(1e-4, 1e-5) if adaptive else family.controller
        # the series of gauss_radau15 in powers of the fraction loses digits between steps
        options["read_out"] = "restep" if family.name == "gauss_radau15" else "auto"
    sol = family.solve(Oscillator(), y0, TS, gradient=gradient, **options)
    assert sol.ts.dtype == F64
    records = sol.pieces[0].replay.records
    assert records.t.dtype == records.t_end.dtype == F64
    for column in range(1, len(TS)):
        loss = sol.ys[:, column].square().sum(-1)
        (slope,) = torch.autograd.grad(loss.sum(), y0, retain_graph=True)
        assert slope.dtype == dtype
        assert float(((y0 * slope).sum(-1).detach() / (2 * loss.detach()) - 1).abs().max()) < tolerance


@pytest.mark.parametrize("rate", [0.2, -0.2])
def test_the_gradient_by_a_rate_is_that_of_the_stability_function(gradient: str, rate: float) -> None:
    """z' = k z: z_N = z0 Π R(h_n k), so dL/dk = 2 z_N² Σ h_n R'(h_n k) / R(h_n k), for dopri5 with
    R(x) = Σ_{p<=5} x^p / p! + x^6 / 600, on whatever steps the controller took."""
    k = torch.tensor(rate, dtype=F64, requires_grad=True)
    sol = pn.solve(
        lambda t, z: k * z, torch.tensor([1.7], dtype=F64), [0.0, 19.5], method="dopri5",
        controller=pn.Adaptive(1e-3, 1e-3), gradient=gradient,
    )  # fmt: skip
    loss = sol.ys[-1].square().sum()
    (found,) = torch.autograd.grad(loss, k)
    records = sol.pieces[0].replay.records
    h = (records.t_end - records.t).squeeze(1)
    x = h * rate
    value = 1 + x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 5)))))
    slope = 1 + x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + 6 * x / 25))))
    wanted = 2 * loss.detach() * (h * slope / value).sum()
    assert float((found / wanted - 1).abs()) < 1e-13


@pytest.mark.parametrize(("method", "order"), [("rk4", 4), ("midpoint", 2)])
def test_a_jump_at_a_step_end_is_seen_from_the_side_of_the_step(gradient: str, method: str, order: int) -> None:
    """y' = a y before the jump and b y after it: y_N = R(ha)^n R(hb)^n, so y and dL/d(a, b) have closed forms; a last
    stage at c = 1 that looked across the jump would change both."""
    rates = torch.tensor([0.4, 0.9], dtype=F64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return y * torch.where(t < 0.5, rates[0], rates[1])

    sol = pn.solve(
        field,
        torch.ones(1, dtype=F64),
        [0.0, 1.0],
        method=method,
        controller=pn.Fixed(0.1),
        gradient=gradient,
        jump_times=[0.5],
    )
    (found,) = torch.autograd.grad(sol.ys[-1].sum(), rates)

    def closed_form(rates: Tensor) -> Tensor:
        x = 0.1 * rates
        return (sum((x**p / factorial(p) for p in range(order + 1)), torch.zeros(2, dtype=F64)) ** 5).prod()

    assert torch.allclose(sol.ys[-1], closed_form(rates), rtol=1e-14)
    assert torch.allclose(found, torch.autograd.functional.jacobian(closed_form, rates.detach()), rtol=1e-13)


def test_output_times_cost_no_steps_and_bad_ones_raise(family: Any, gradient: str) -> None:
    """2 or 101 output times: equal steps and values. Times that turn around, repeat in the middle or are NaN raise."""
    y0 = torch.tensor([0.5, 0.3], dtype=F64, requires_grad=True)
    few = family.solve(Oscillator(), y0, [0.0, 1.0], gradient=gradient)
    many = family.solve(Oscillator(), y0, torch.linspace(0, 1, 101, dtype=F64), gradient=gradient)
    assert torch.equal(few.stats.accepted + few.stats.rejected, many.stats.accepted + many.stats.rejected)
    assert torch.equal(few.ys[-1], many.ys[-1])
    for ts in ([0.0, 1.0, 0.5], [0.0, 0.5, 0.5, 1.0], [0.0, float("nan")]):
        with pytest.raises(pn.errors.InputError):
            family.solve(Oscillator(), y0, ts, gradient=gradient)


def test_the_field_is_called_inside_the_span_only(family: Any, gradient: str) -> None:
    """Forward and backward, also where the solve goes both ways from an inner epoch."""
    times: list[float] = []

    class Watched(Oscillator):
        def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
            times.extend(t.detach().flatten().tolist())
            return super().acceleration(t, q, v) * torch.cos(t)

    y0 = torch.tensor([[0.5, 0.3], [2.4, -0.9]], dtype=F64, requires_grad=True)
    for ts, t0 in (([0.3, 0.4, 1.2], None), ([0.3, 0.4, 1.2], 0.8)):
        family.solve(Watched(), y0, ts, t0=t0, gradient=gradient).ys.sum().backward()
    assert 0.3 <= min(times) <= max(times) <= 1.2
