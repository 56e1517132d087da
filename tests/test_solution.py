"""What ``solve`` returns: dense output, invariants, a plot, and what it says of itself."""

from __future__ import annotations

import gc
import weakref
from math import log

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from physnode.engine.controllers import Adaptive, Fixed
from physnode.errors import GradientError, InputError
from physnode.fields import SeparableHamiltonian
from physnode.solve import solve


class Pendulum(SeparableHamiltonian):
    def __init__(self) -> None:
        super().__init__()
        self.length = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def kinetic(self, p: Tensor) -> Tensor:
        return 0.5 * (p * p).sum(-1) / self.length**2

    def potential(self, q: Tensor) -> Tensor:
        return -self.length * torch.cos(q).sum(-1)


def swing(t: Tensor, y: Tensor) -> Tensor:
    return torch.cat((y[..., 1:], -torch.sin(y[..., :1])), -1)


Y0 = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.1, 0.0]], dtype=torch.float64)
OWN = torch.tensor([[-1.0, 0.2, 2.0], [0.0, 1.0, 4.0], [-3.0, -1.0, 0.0]], dtype=torch.float64)

SOLVES = {
    "forward": {"ts": [0.0, 0.7, 2.0]},
    "backward": {"ts": [2.0, 0.7, 0.0]},
    "both ways": {"ts": [-1.0, 0.3, 2.0], "t0": 0.3},
    "own times": {"ts": OWN, "t0": 0.0},
    "own epochs": {"ts": [-1.0, 0.3, 2.0], "t0": [-1.0, 0.5, 2.0]},
    "restep": {"ts": [0.0, 0.7, 2.0], "read_out": "restep"},
    "dop853": {"ts": [0.0, 0.7, 2.0], "method": "dop853"},
    "rk4": {"ts": [0.0, 0.7, 2.0], "method": "rk4", "controller": Fixed(0.3)},
}


def dense(which: str, field=swing, y0: Tensor = Y0, **options: object):
    given = dict(SOLVES[which])
    return solve(field, y0, given.pop("ts"), dense=True, **given, **options)


def same(found: Tensor, wanted: Tensor) -> None:
    """Equal but for the last bit: the solve's own sums are compensated, a step made again ends where it ends."""
    torch.testing.assert_close(found, wanted, rtol=4e-16, atol=2e-16)


class TestAt:
    @pytest.mark.parametrize("which", SOLVES)
    def test_equals_the_outputs(self, which: str) -> None:
        sol = dense(which)
        same(sol.at(sol.ts), sol.ys)
        same(sol.at(sol.ts.flip(-1)), sol.ys.flip(1))

    @pytest.mark.parametrize("which", SOLVES)
    def test_equals_a_solve_that_asked_for_the_times(self, which: str) -> None:
        sol = dense(which)
        low, high = sol.ts.amin(-1, keepdim=True), sol.ts.amax(-1, keepdim=True)
        times = low + torch.linspace(0, 1, 12, dtype=torch.float64) * (high - low)
        times = times if which == "own times" else times.reshape(-1)
        given = {**SOLVES[which], "t0": SOLVES[which].get("t0", sol.ts.reshape(-1, 3)[0, 0])}
        given["ts"] = times
        asked = solve(swing, Y0, given.pop("ts"), **given)
        same(asked.ys, sol.at(times))

    @pytest.mark.parametrize("gradient", ["aca", "symplectic"])
    @pytest.mark.parametrize("which", SOLVES)
    def test_is_differentiable(self, which: str, gradient: str) -> None:
        length = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        results = []
        for how in ("direct", gradient):
            y0 = Y0.clone().requires_grad_()
            sol = dense(which, lambda t, y: swing(t, y) / length, y0, gradient=how)
            times = sol.ts + 0.37 * (sol.ts.roll(1, -1) - sol.ts)
            results.append(torch.autograd.grad((sol.at(times) ** 2).sum(), (y0, length)))
        for found, wanted in zip(*results, strict=True):
            assert torch.allclose(found, wanted, rtol=1e-12)

    def test_a_number(self) -> None:
        sol = dense("forward")
        same(sol.at(0.7), sol.ys[:, 1])
        same(solve(swing, [1.0, 0.0], [0.0, 0.7, 2.0], dense=True).at(1.0), sol.at(1.0)[0])

    def test_own_times(self) -> None:
        sol = dense("forward")
        times = torch.tensor([[0.1, 0.2], [1.9, 0.3], [0.0, 2.0]], dtype=torch.float64)
        found = sol.at(times)
        for row in range(3):
            assert torch.equal(found[row], sol.at(times[row])[row])

    def test_order(self) -> None:
        """Five for tsit5: its extension's fourth-order error, once a step, is as small as the steps' own."""
        exact = solve(swing, Y0, [0.0, 1.27], method="dop853", controller=Adaptive(1e-13, 1e-14)).ys[:, -1]
        errors = [
            float((solve(swing, Y0, [0.0, 2.0], controller=Fixed(h), dense=True).at(1.27) - exact).norm()) for h in (0.2, 0.1)
        ]
        assert log(errors[0] / errors[1]) / log(2) > 4.5

    @pytest.mark.parametrize("which", ["forward", "backward", "both ways"])
    def test_outside_is_refused(self, which: str) -> None:
        sol = dense(which)
        low, high = float(sol.ts.min()), float(sol.ts.max())
        for bad in (low - 0.1, high + 0.1, float("nan")):
            with pytest.raises(InputError, match="outside the solved span"):
                sol.at([0.5, bad])

    def test_outside_of_one_trajectory(self) -> None:
        with pytest.raises(InputError, match=r"t = 3"):
            dense("own times").at([3.0])

    def test_shape_is_checked(self) -> None:
        with pytest.raises(InputError, match=r"leading axes \(2,\)"):
            dense("forward").at(torch.zeros(2, 3))

    def test_needs_dense(self) -> None:
        with pytest.raises(InputError, match="dense=True"):
            solve(swing, Y0, [0.0, 1.0]).at(0.5)

    def test_after_a_failure(self) -> None:
        """As far as it got, and NaN from there on."""

        def field(t: Tensor, y: Tensor) -> Tensor:
            return torch.where((y > 0) | (t < 1), -y, torch.nan)

        y0 = torch.tensor([[1.0], [-1.0], [2.0]], dtype=torch.float64, requires_grad=True)
        sol = solve(field, y0, [0.0, 2.0], dense=True, on_failure="report")
        found = sol.at([0.5, 0.9, 1.1, 2.0])
        assert torch.isfinite(found[[0, 2]]).all()
        assert torch.isnan(found[1, 2:]).all()
        assert torch.allclose(found[1, :2], -found[0, :2])
        found.nansum().backward()
        assert torch.equal(y0.grad[1], torch.zeros(1, dtype=torch.float64))
        assert torch.isfinite(y0.grad).all()

    def test_after_the_parameters_have_moved(self) -> None:
        field = Pendulum()
        sol = dense("forward", field)
        with torch.no_grad():
            field.length.add_(0.1)
        with pytest.raises(GradientError, match="changed in place"):
            sol.at(0.5)

    @pytest.mark.parametrize("gradient", ["direct", "aca", "symplectic"])
    def test_the_start_may_be_edited_afterwards(self, gradient: str) -> None:
        y0 = Y0.clone().requires_grad_()
        sol = solve(swing, y0, [0.0, 0.7, 2.0], dense=True, gradient=gradient)
        before = sol.at([0.0, 0.5])
        (wanted,) = torch.autograd.grad(sol.ys.sum(), y0, retain_graph=True)
        with torch.no_grad():
            y0.zero_()
        same(sol.at([0.0, 0.5]), before)
        assert torch.equal(torch.autograd.grad(sol.ys.sum(), y0)[0], wanted)


class TestInvariants:
    def test_energy_of_a_pendulum(self) -> None:
        sol = solve(Pendulum(), Y0, torch.linspace(0, 10, 21, dtype=torch.float64), controller=Adaptive(1e-10, 1e-12))
        energy = sol.invariants()["energy"]
        assert energy.shape == (3, 21)
        assert (energy - energy[:, :1]).abs().max() < 1e-8

    def test_of_a_symplectic_method_stay_bounded(self) -> None:
        """Leapfrog's energy error does not grow with time; Euler's does."""
        ts = torch.linspace(0, 100, 101, dtype=torch.float64)
        found = {}
        for name in ("leapfrog", "midpoint"):
            with torch.no_grad():
                energy = solve(Pendulum(), Y0[:1], ts, method=name, controller=Fixed(0.1)).invariants()["energy"]
            error = (energy - energy[:, :1]).abs()
            found[name] = float(error[:, 80:].max() / error[:, :20].max())
        assert found["leapfrog"] < 1.2
        assert found["midpoint"] > 3

    def test_a_field_that_declares_none(self) -> None:
        with pytest.raises(InputError, match="declares no invariants"):
            solve(swing, Y0, [0.0, 1.0]).invariants()


class TestLooks:
    def test_plot(self) -> None:
        figure = solve(swing, Y0.clone().requires_grad_(), [0.0, 0.5, 1.0]).plot()
        assert isinstance(figure, Figure)
        assert [len(axis.lines) for axis in figure.axes] == [3, 3]
        assert figure.axes[0].get_ylabel() == "y[0]"
        figure.canvas.draw()

    def test_plot_of_one_trajectory_with_own_times(self) -> None:
        assert len(solve(swing, [1.0, 0.0], [0.0, 1.0]).plot().axes) == 2
        lines = dense("own times").plot().axes[1].lines
        assert lines[2].get_xdata().tolist() == [-3.0, -1.0, 0.0]

    def test_repr(self) -> None:
        said = repr(solve(swing, Y0, [0.0, 1.0]))
        assert "ys=(3, 2, 2)" in said
        assert "ok=3 of 3" in said
        assert "accepted" in said
        assert "ok=1 of 1" in repr(solve(swing, [1.0, 0.0], [0.0, 1.0]))


def test_what_a_solve_kept_goes_with_it() -> None:
    """No cycle keeps the records alive: they go at once, without the garbage collector."""
    y0 = Y0.clone().requires_grad_()
    gc.collect()
    gc.disable()
    try:
        for gradient in ("aca", "symplectic", "direct"):
            sol = solve(swing, y0, [0.0, 1.0], gradient=gradient)
            kept = weakref.ref(sol.pieces[0].replay.records.y)
            loss = sol.ys.sum()
            loss.backward()
            del sol, loss
            assert kept() is None
    finally:
        gc.enable()
