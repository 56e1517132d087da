"""Derivatives by output times and by the epoch: those of the same steps on a grid that is stretched with its ends.

The steps of a way from t0 to its last output t1 are t_n = t0 + φ_n (t1 - t0) with φ_n constant; an output time between moves
on that grid. The references make the recorded steps again on a stretched grid, and take differences.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import physnode as pn
from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.engine.tableaus import BUTCHER
from physnode.fields import as_field

F64 = torch.float64
INNER = [0.2, 0.51, 0.97, 1.37]
EXACT = ("direct", "aca", "symplectic")


def loss_of(ys: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, ys.numel(), dtype=ys.dtype).cos().reshape(ys.shape)
    return (weights * ys + 0.1 * ys**3).sum()


def slopes(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Central differences along each coordinate, extrapolated."""
    found = torch.zeros_like(point)
    for index in range(point.numel()):
        unit = torch.zeros_like(point).view(-1)
        unit[index] = 1.0
        unit = unit.view_as(point)
        coarse, fine = ((function(point + e * unit) - function(point - e * unit)) / (2 * e) for e in (2e-3, 1e-3))
        found.view(-1)[index] = (4 * fine - coarse) / 3
    return found


def on_the_stretched_grid(replay: Any, method: Method, field: Any, y0: Tensor, times: Tensor, t0: Tensor) -> Tensor:
    """Outputs ``(B, T, dim)`` at ``times`` ``(B, T)`` from ``t0`` ``(B,)``; a row at a time, by steps of the method."""
    rows = []
    for row, start in enumerate(y0):
        count = int(replay.records.count[row])
        grid = torch.cat((replay.records.t[:count, row], replay.records.t_end[count - 1 : count, row]))
        last = int((replay.times[row] - grid[0]).abs().argmax())
        where = [
            min(int((grid[1:] - t).sign().mul(replay.span.direction[row]).lt(0).sum()), count - 1) for t in replay.times[row]
        ]
        fractions = (grid - grid[0]) / (grid[-1] - grid[0])
        moved = t0[row] + fractions * (times[row, last] - t0[row])
        f = FieldFunction(as_field(field), (1,), F64)
        y, found = start.unsqueeze(0), {}
        with torch.no_grad():
            for n in range(count):
                t, t_end = moved[n : n + 1], moved[n + 1 : n + 2]
                step = method.step(f, t, t_end, y)
                for column, slot in enumerate(where):
                    if slot != n:
                        continue
                    at_the_end = bool((replay.times[row, column] - grid[n + 1]).abs() < 1e-12)
                    if replay.times[row, column] == grid[0]:
                        found[column] = start
                    elif at_the_end:
                        found[column] = step.y[0]
                    elif replay.read_out == "restep":
                        found[column] = method.step(f, t, times[row, column].view(1), y).y[0]
                    else:
                        stages = method.extend(f, t, t_end, y, step.stages)
                        weights = method.output_weights((times[row, column].view(1) - t) / (t_end - t))
                        found[column] = (y + (t_end - t) * sum(w * k for w, k in zip(weights, stages, strict=True)))[0]
                y = step.y
        rows.append(torch.stack([found[column] for column in range(times.shape[1])]))
    return torch.stack(rows)


@pytest.mark.parametrize("read_out", ["auto", "restep"])
def test_output_times_and_the_epoch(family: Any, swing: Any, y0: Tensor, read_out: str) -> None:
    """dL/dτ of every output, the last one included, and dL/dt0; rows with times of their own."""
    field, method = swing(), pn.methods.get(family.name)
    ts = (torch.tensor([[1.0], [1.3]], dtype=F64) * torch.tensor(INNER, dtype=F64)).requires_grad_()
    t0 = torch.tensor([0.1, 0.23], dtype=F64, requires_grad=True)
    sols = [family.solve(field, y0, ts, t0=t0, gradient=gradient, read_out=read_out) for gradient in EXACT]
    replay = sols[0].pieces[0].replay

    def loss(all_times: Tensor) -> Tensor:
        return loss_of(on_the_stretched_grid(replay, method, field, y0, all_times[:, 1:], all_times[:, 0]))

    wanted = slopes(loss, torch.cat((t0.unsqueeze(-1), ts), -1).detach())
    for sol in sols:
        to_ts, to_t0 = torch.autograd.grad(loss_of(sol.ys), (ts, t0))
        found = torch.cat((to_t0.unsqueeze(-1), to_ts), -1)
        assert float((found - wanted).abs().max()) < 1e-7 * float(wanted.abs().max())


def test_the_first_output_is_the_epoch(family: Any, swing: Any, y0: Tensor) -> None:
    """Without t0, ts[0] is where y0 is given: its derivative is that of the epoch. Backward in time, and shared by all rows."""
    field, method = swing(), pn.methods.get(family.name)
    ts = torch.tensor(INNER[::-1], dtype=F64, requires_grad=True)
    sols = [family.solve(field, y0, ts, gradient=gradient) for gradient in EXACT]
    replay = max((piece.replay for piece in sols[0].pieces), key=lambda replay: replay.records.slots)

    def loss(times: Tensor) -> Tensor:
        rows = times.expand(len(y0), -1)
        return loss_of(on_the_stretched_grid(replay, method, field, y0, rows, rows[:, 0]))

    wanted = slopes(loss, ts.detach())
    for sol in sols:
        (found,) = torch.autograd.grad(loss_of(sol.ys), ts)
        assert float((found - wanted).abs().max()) < 1e-7 * float(wanted.abs().max())


@pytest.mark.parametrize("name", ["rk4", "dopri5"])
def test_against_runge_kutta_steps_written_out(name: str, gradient: str) -> None:
    """The same by a plain loop over the tableau: X_i = x + h Σ a_ij k_j, k_i = f(t + c_i h, X_i), x + h Σ b_i k_i."""
    table = BUTCHER[name]
    stages = sum(1 for weight in table.b if weight is not None)
    y0 = torch.tensor([0.5, 0.3], dtype=F64)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.cat((y[..., 1:], -1.3 * torch.sin(y[..., :1]) + 0.4 * torch.cos(2 * t)), -1)

    ends = torch.tensor([0.2, 1.37], dtype=F64, requires_grad=True)
    controller = pn.Adaptive(1e-5, 1e-6) if pn.methods.get(name).error_order else pn.Fixed(0.15)
    sol = pn.solve(field, y0, ends, method=name, controller=controller, gradient=gradient)
    (found,) = torch.autograd.grad(loss_of(sol.ys[-1]), ends)
    records = sol.pieces[0].replay.records
    grid = torch.cat((records.t[:, 0], records.t_end[-1:, 0]))
    fractions = (grid - grid[0]) / (grid[-1] - grid[0])

    def loss(times: Tensor) -> Tensor:
        y, moved = y0, times[0] + fractions * (times[1] - times[0])
        for t, t_end in pairwise(moved):
            h, k = t_end - t, []
            for i in range(stages):
                inner = sum((table.a[i][j] * k[j] for j in range(i)), torch.zeros_like(y))
                k.append(field((t + table.c[i] * h).view(1), y + h * inner))
            y = y + h * sum(b * slope for b, slope in zip(table.b, k, strict=False))
        return loss_of(y)

    assert torch.allclose(loss(ends.detach()), loss_of(sol.ys[-1]).detach(), rtol=1e-13)
    wanted = slopes(loss, ends.detach())
    assert torch.allclose(found, wanted, rtol=1e-8)


def test_both_ways_from_an_inner_epoch(family: Any, swing: Any, y0: Tensor) -> None:
    """Each way is stretched between the epoch and its own last output."""
    field, method = swing(), pn.methods.get(family.name)
    ts = torch.tensor(INNER, dtype=F64, requires_grad=True)
    t0 = torch.tensor(0.7, dtype=F64, requires_grad=True)
    sols = [family.solve(field, y0, ts, t0=t0, gradient=gradient) for gradient in EXACT]
    pieces = sorted((piece.replay for piece in sols[0].pieces), key=lambda replay: float(replay.span.t1[0]))
    columns = ([0, 1], [2, 3])

    def loss(all_times: Tensor) -> Tensor:
        epoch = all_times[0].expand(len(y0))
        parts = []
        for replay, mine in zip(pieces, columns, strict=True):
            times = torch.where(replay.times == replay.span.t0.unsqueeze(-1), epoch.unsqueeze(-1), all_times[1:])
            parts.append(on_the_stretched_grid(replay, method, field, y0, times, epoch)[:, mine])
        return loss_of(torch.cat(parts, 1))

    wanted = slopes(loss, torch.cat((t0.view(1), ts)).detach())
    for sol in sols:
        to_ts, to_t0 = torch.autograd.grad(loss_of(sol.ys), (ts, t0))
        found = torch.cat((to_t0.view(1), to_ts))
        assert float((found - wanted).abs().max()) < 1e-7 * float(wanted.abs().max())


def test_they_tend_to_the_continuous_formulas(family: Any, gradient: str, swing: Any, y0: Tensor) -> None:
    """dL/dt1 = λ(t1) · f(t1, y1), dL/dt0 = -λ(t0) · f(t0, y0), up to the error of the solve; an inner output as the last."""
    fine = pn.Adaptive(1e-9, 1e-10) if isinstance(family.controller, pn.Adaptive) else pn.Fixed(0.02)
    field, start = swing(), y0.clone().requires_grad_()
    ts = torch.tensor([0.1, 0.63, 1.4], dtype=F64, requires_grad=True)
    ys = family.solve(field, start, ts, gradient=gradient, controller=fine).ys

    def slope(state: Tensor, time: Tensor, owed: Tensor) -> float:
        with torch.no_grad():
            return float((owed * field(time.expand(len(state), 1), state)).sum())

    for column, tolerance in ((2, 1e-3), (1, 1e-3)):
        loss = ys[:, column].pow(3).sum()
        to_ts, to_start = torch.autograd.grad(loss, (ts, start), retain_graph=True)
        (owed,) = torch.autograd.grad(loss, ys, retain_graph=True)
        wanted = slope(ys[:, column].detach(), ts[column].detach(), owed[:, column])
        assert float(to_ts[column]) == pytest.approx(wanted, rel=tolerance)
        if column == 2:
            assert float(to_ts[0]) == pytest.approx(-slope(y0, ts[0].detach(), to_start), rel=tolerance)


def test_times_that_want_no_gradient_change_nothing(gradient: str, swing: Any, y0: Tensor) -> None:
    """Values and other gradients are the same to the last bit."""
    results = []
    for wanted in (False, True):
        field, start = swing(), y0.clone().requires_grad_()
        ts = torch.tensor(INNER, dtype=F64, requires_grad=wanted)
        ys = pn.solve(field, start, ts, gradient=gradient).ys
        results.append((ys.detach(), *torch.autograd.grad(loss_of(ys), (start, field.stiffness))))
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=1e-14, atol=0)
