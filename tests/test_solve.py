"""The arguments of ``solve``: what it takes, and what it refuses in words that help."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from physnode import methods
from physnode.engine.controllers import Adaptive, Fixed
from physnode.errors import InputError
from physnode.solve import solve

TS = [0.0, 0.5, 1.0]


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def driven(t: Tensor, y: Tensor) -> Tensor:
    return torch.cos(t) - torch.sin(y)


class TestStates:
    def test_lists_and_arrays_become_float64(self) -> None:
        for y0 in ([1.0, 2.0], [1, 2], (1.0, 2.0), np.array([1, 2]), np.array([1, 2], dtype=np.float32)):
            sol = solve(decay, y0, TS)
            assert sol.ys.dtype == torch.float64
            assert torch.allclose(sol.ys[-1], torch.tensor([1.0, 2.0], dtype=torch.float64) / math.e, rtol=1e-5)

    @pytest.mark.parametrize("y0", [torch.tensor([1, 2]), torch.tensor([True])])
    def test_tensors_of_other_kinds_are_refused(self, y0: Tensor) -> None:
        with pytest.raises(InputError, match="floating-point"):
            solve(decay, y0, TS)

    @pytest.mark.parametrize("y0", [np.array(["a"]), [None]])
    def test_arrays_of_other_kinds_are_refused(self, y0: object) -> None:
        with pytest.raises(InputError, match="real numbers"):
            solve(decay, y0, TS)

    def test_a_tuple_of_tensors_is_a_state(self) -> None:
        """Not a batch: the field sees a tuple, and the outputs are one."""
        sol = solve(lambda t, y: (-y[0], -2 * y[1]), (torch.ones(2), torch.ones(3)), TS)
        assert [tuple(part.shape) for part in sol.ys] == [(len(TS), 2), (len(TS), 3)]
        torch.testing.assert_close(sol.ys[1][-1], torch.full((3,), math.exp(-2)), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("y0", [torch.tensor(1.0), torch.zeros(0), torch.zeros(3, 0), torch.zeros(0, 3), 1.0])
    def test_empty_states_are_refused(self, y0: Tensor) -> None:
        with pytest.raises(InputError, match=r"\(\*batch, dim\)"):
            solve(decay, y0, TS)

    def test_any_memory_layout(self) -> None:
        plain = torch.randn(2, 3, 4, dtype=torch.float64)
        wanted = solve(driven, plain, TS).ys
        for other in (plain.transpose(0, 1).contiguous().transpose(0, 1), plain[..., None].expand(2, 3, 4, 2)[..., 0]):
            y0 = other.requires_grad_() if other.is_leaf else other
            assert torch.equal(solve(driven, y0, TS).ys, wanted)

    def test_the_state_is_not_changed(self) -> None:
        y0 = torch.ones(2, dtype=torch.float64)
        sol = solve(decay, y0, TS)
        assert torch.equal(y0, torch.ones(2, dtype=torch.float64))
        y0.zero_()
        assert torch.equal(sol.ys[0], torch.ones(2, dtype=torch.float64))


class TestPrecision:
    def test_float32_states_and_float64_times(self) -> None:
        """At t = 1e6 a float32 time resolves 0.06; the solve does not care."""
        ts = torch.tensor([1e6, 1e6 + 0.5, 1e6 + 1], dtype=torch.float64)
        sol = solve(decay, torch.ones(1), ts)
        assert sol.ys.dtype == torch.float32
        assert sol.ts.dtype == torch.float64
        assert torch.allclose(sol.ys[:, 0], torch.exp(-(ts - 1e6)).float(), rtol=1e-4)
        fixed = solve(decay, torch.ones(1), ts, method="rk4", controller=Fixed(0.01))
        assert fixed.stats.accepted == 100
        assert torch.allclose(fixed.ys[:, 0], torch.exp(-(ts - 1e6)).float(), rtol=1e-6)

    def test_float32_agrees_with_float64(self) -> None:
        y0 = torch.randn(4, 2, dtype=torch.float64)
        for name, method in methods.available().items():
            if method.extension_order is None or method.name in ("dprkn6", "gauss_radau15"):
                continue
            wanted = solve(driven, y0, TS, method=name, controller=Fixed(0.05)).ys
            found = solve(driven, y0.float(), TS, method=name, controller=Fixed(0.05)).ys
            assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-6)


class TestTimes:
    @pytest.mark.parametrize("ts", [[0.0, 2.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [0.0, 0.0]])
    def test_must_be_strictly_monotone(self, ts: list[float]) -> None:
        with pytest.raises(InputError, match="strictly increasing or strictly decreasing"):
            solve(decay, [1.0], ts)

    def test_are_checked_for_each_trajectory(self) -> None:
        ts = torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]], dtype=torch.float64)
        with pytest.raises(InputError, match="trajectory 1"):
            solve(decay, torch.ones(2, 1, dtype=torch.float64), ts)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_must_be_finite(self, bad: float) -> None:
        with pytest.raises(InputError, match="not finite"):
            solve(decay, [1.0], [0.0, bad])
        with pytest.raises(InputError, match="t0 is not finite"):
            solve(decay, [1.0], [0.0, 1.0], t0=bad)

    @pytest.mark.parametrize("ts", [[], 1.0, torch.zeros(2, 0)])
    def test_must_be_some(self, ts: object) -> None:
        with pytest.raises(InputError, match="at least one time"):
            solve(decay, torch.ones(2, 1, dtype=torch.float64), ts)

    def test_of_another_batch(self) -> None:
        with pytest.raises(InputError, match=r"leading axes \(3,\) but y0 has the batch \(2,\)"):
            solve(decay, torch.ones(2, 1, dtype=torch.float64), torch.tensor([[0.0, 1.0]] * 3))
        with pytest.raises(InputError, match=r"batch shape \(2,\); found \(3,\)"):
            solve(decay, torch.ones(2, 1, dtype=torch.float64), TS, t0=[0.0, 0.0, 0.0])

    def test_of_jumps_that_want_a_gradient(self) -> None:
        with pytest.raises(InputError, match=r"jump_times\.detach\(\)"):
            solve(decay, [1.0], TS, jump_times=torch.tensor([0.5], requires_grad=True))

    def test_on_another_device(self) -> None:
        with pytest.raises(InputError, match="meta"):
            solve(decay, [1.0], torch.tensor(TS, device="meta"))

    def test_integers(self) -> None:
        assert torch.equal(solve(decay, [1.0], torch.tensor([0, 1, 2])).ys, solve(decay, [1.0], [0.0, 1.0, 2.0]).ys)

    def test_own_times_of_each_trajectory(self) -> None:
        y0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
        ts = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.1, 9.0], [1.0, 0.5, -1.0]], dtype=torch.float64)
        sol = solve(driven, y0, ts)
        for row in range(3):
            assert torch.equal(sol.ys[row], solve(driven, y0[row], ts[row]).ys)

    @pytest.mark.parametrize("gradient", ["direct", "aca", "symplectic"])
    @pytest.mark.parametrize("read_out", ["interpolate", "restep"])
    def test_ragged_times_are_padded_by_the_last(self, gradient: str, read_out: str) -> None:
        """A repeated last time holds the last value again, and its cotangents add."""
        ts = torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, 0.5, 1.0, 2.0], [3.0, 2.5, 2.0, 2.0]], dtype=torch.float64)
        y0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64, requires_grad=True)
        sol = solve(driven, y0, ts, gradient=gradient, read_out=read_out)
        assert torch.equal(sol.ys[0, 1], sol.ys[0, 2])
        assert torch.equal(sol.ys[0, 1], sol.ys[0, 3])
        (found,) = torch.autograd.grad(sol.ys[0, 1:].sum(), y0, retain_graph=True)
        (once,) = torch.autograd.grad(sol.ys[0, 1].sum(), y0)
        assert torch.allclose(found, 3 * once)
        with pytest.raises(InputError, match="trajectory 0"):
            solve(driven, y0, torch.tensor([[0.0, 1.0, 1.0, 2.0]] * 3, dtype=torch.float64))

    def test_decreasing_times_go_back(self) -> None:
        there = solve(driven, [[1.0], [2.0]], TS, controller=Adaptive(1e-10))
        back = solve(driven, there.ys[:, -1], TS[::-1], controller=Adaptive(1e-10))
        assert torch.allclose(back.ys.flip(1), there.ys, rtol=1e-8)

    def test_one_time_keeps_its_axis(self) -> None:
        assert solve(decay, [[1.0, 2.0]], [0.0]).ys.tolist() == [[[1.0, 2.0]]]
        sol = solve(decay, [[1.0, 2.0]], [1.0], t0=0.0)
        assert sol.ys.shape == (1, 1, 2)
        assert sol.ys[0, 0, 0].item() == pytest.approx(1 / math.e, rel=1e-5)


class TestEpoch:
    def test_inside_the_times(self) -> None:
        """Equal to two solves, forward and backward."""
        sol = solve(driven, [[1.0], [2.0]], [-1.0, 0.0, 0.5, 2.0], t0=0.0)
        ahead = solve(driven, [[1.0], [2.0]], [0.0, 0.5, 2.0])
        behind = solve(driven, [[1.0], [2.0]], [0.0, -1.0])
        assert torch.equal(sol.ys[:, 1:], ahead.ys)
        assert torch.equal(sol.ys[:, :1], behind.ys[:, 1:])
        assert torch.equal(sol.stats.accepted, ahead.stats.accepted + behind.stats.accepted)

    def test_outside_the_times(self) -> None:
        sol = solve(driven, [[1.0]], [1.0, 2.0], t0=0.0)
        assert torch.allclose(sol.ys, solve(driven, [[1.0]], [0.0, 1.0, 2.0]).ys[:, 1:])
        sol = solve(driven, [[1.0]], [1.0, 2.0], t0=3.0)
        assert torch.allclose(sol.ys, solve(driven, [[1.0]], [3.0, 2.0, 1.0]).ys.flip(1)[:, :2])

    def test_one_for_each_trajectory(self) -> None:
        y0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
        t0 = [0.0, 0.5, 2.0]
        sol = solve(driven, y0, TS, t0=t0)
        for row in range(3):
            assert torch.equal(sol.ys[row], solve(driven, y0[row], TS, t0=t0[row]).ys)

    def test_gradient_of_both_ways(self) -> None:
        """dy(t)/dy0 of y' = -y is exp(-t), either side of the epoch."""
        for gradient in ("direct", "aca", "symplectic"):
            y0 = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
            ys = solve(decay, y0, [-1.0, 1.0], t0=0.0, gradient=gradient).ys[:, 0]
            found = [torch.autograd.grad(ys[i], y0, retain_graph=True)[0].item() for i in range(2)]
            assert found == pytest.approx([math.e, 1 / math.e], rel=1e-5)


class TestOptions:
    @pytest.mark.parametrize(("name", "near"), [("tsit", "tsit5"), ("dopri55", "dopri5"), ("leap_frog", "leapfrog")])
    def test_unknown_method(self, name: str, near: str) -> None:
        with pytest.raises(InputError, match=f'Did you mean "{near}".*Known methods: .*kahan_li8'):
            solve(decay, [1.0], TS, method=name)

    def test_a_method_is_a_value_too(self) -> None:
        assert torch.equal(solve(decay, [1.0], TS, method=methods.dop853).ys, solve(decay, [1.0], TS, method="dop853").ys)

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"method": 5}, "unknown method"),
            ({"controller": 0.1}, r"pn\.Fixed\(dt\)"),
            ({"controller": Adaptive}, r"pn\.Adaptive"),
            ({"max_steps": 0}, "max_steps"),
            ({"max_steps": 1.5}, "max_steps"),
            ({"read_out": "linear"}, "read_out"),
        ],
    )
    def test_refused(self, options: dict[str, object], word: str) -> None:
        with pytest.raises(InputError, match=word):
            solve(decay, [1.0], TS, **options)

    def test_a_misspelt_option(self) -> None:
        with pytest.raises(TypeError, match="methd"):
            solve(decay, [1.0], TS, methd="rk4")

    def test_interpolation_where_there_is_none(self) -> None:
        with pytest.raises(InputError, match="restep"):
            solve(decay, [1.0, 2.0], TS, method="leapfrog", controller=Fixed(0.1), read_out="interpolate")

    def test_options_are_not_changed_by_a_solve(self) -> None:
        controller = Adaptive(1e-6, [1e-9, 1e-8])
        before = repr(vars(controller))
        first = solve(driven, [1.0, 2.0], TS, controller=controller)
        second = solve(driven, [1.0, 2.0], TS, controller=controller)
        assert repr(vars(controller)) == before
        assert torch.equal(first.ys, second.ys)

    def test_nothing_global_changes(self) -> None:
        before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
        solve(driven, torch.ones(2, requires_grad=True), TS).ys.sum().backward()
        assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == before
