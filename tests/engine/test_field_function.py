"""What a solve sees of a field, and what it refuses to be told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from physnode.engine.controllers import Fixed
from physnode.errors import GradientError, InputError
from physnode.fields import SecondOrder, VectorField
from physnode.solve import solve

Y0 = torch.tensor([[1.0, 0.0], [2.0, 0.1]], dtype=torch.float64)
TS = [0.0, 0.5, 1.0]
FIXED = Fixed(0.1)


class TestWhatTheFieldGets:
    @pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
    def test_shapes(self, batch: tuple[int, ...]) -> None:
        seen = set()

        def field(t: Tensor, y: Tensor) -> Tensor:
            seen.add((tuple(t.shape), tuple(y.shape), t.dtype, y.dtype))
            return y * torch.cos(t)

        y0 = torch.ones(*batch, 2, dtype=torch.float32, requires_grad=True)
        for gradient in ("direct", "aca", "symplectic"):
            sol = solve(field, y0, TS, gradient=gradient)
            sol.ys.sum().backward()
            assert sol.ys.shape == (*batch, 3, 2)
            assert sol.stats.accepted.shape == sol.status.shape == sol.ok.shape == sol.reached.shape == batch
        assert seen == {((*batch, 1), (*batch, 2), torch.float32, torch.float32)}

    def test_own_time_for_each_trajectory(self) -> None:
        ts = torch.tensor([[0.0, 1.0], [10.0, 11.0]], dtype=torch.float64)
        sol = solve(lambda t, y: t.expand_as(y), torch.zeros(2, 1, dtype=torch.float64), ts)
        assert torch.allclose(sol.ys[:, -1, 0], torch.tensor([0.5, 10.5], dtype=torch.float64))


class TestRefusedOutputs:
    @pytest.mark.parametrize(
        ("field", "words"),
        [
            (lambda t, y: y.sum(-1, keepdim=True), r"shape of y, \(2, 2\); found \(2, 1\)"),
            (lambda t, y: y[0], r"found \(2,\)"),
            (lambda t, y: y.float(), "float32 for a state of torch.float64"),
            (lambda t, y: y.tolist(), "must return a tensor .* found list"),
            (lambda t, y: None, "found NoneType"),
            (lambda t, y: torch.empty_like(y, device="meta"), "meta"),
        ],
    )
    def test_shape_dtype_device_type(self, field: Callable[[Tensor, Tensor], Tensor], words: str) -> None:
        with pytest.raises(InputError, match=words):
            solve(field, Y0, TS)

    def test_float32_state_and_float64_parameters(self) -> None:
        k = torch.full((2,), 0.5, dtype=torch.float64)
        with pytest.raises(InputError, match=r"field\.to\(torch\.float32\)"):
            solve(lambda t, y: k * y, Y0.float(), TS)

    def test_no_field(self) -> None:
        with pytest.raises(InputError, match="found int"):
            solve(3, Y0, TS)

    def test_its_own_errors_pass(self) -> None:
        with pytest.raises(IndexError):
            solve(lambda t, y: y[..., 7], Y0, TS)
        with pytest.raises(RuntimeError, match="must match"):
            solve(lambda t, y: y + torch.ones(5), Y0, TS)


class TestRefusedWrites:
    def test_into_the_state(self) -> None:
        def field(t: Tensor, y: Tensor) -> Tensor:
            y[..., 0] = 0
            return -y

        with pytest.raises(InputError, match="writes into the state"):
            solve(field, Y0, TS)

    def test_into_the_time(self) -> None:
        with pytest.raises(InputError, match="writes into the state or time"):
            solve(lambda t, y: y * t.add_(1), Y0, TS)

    def test_into_a_tensor_it_returns_again(self) -> None:
        kept = torch.zeros_like(Y0)

        def field(t: Tensor, y: Tensor) -> Tensor:
            kept[:] = -y
            return kept

        with pytest.raises(InputError, match="return a new tensor"):
            solve(field, Y0, TS)
        assert torch.allclose(
            solve(lambda t, y: field(t, y) + 0, Y0, TS).ys[:, -1], Y0 * torch.exp(torch.tensor(-1.0)), rtol=1e-5
        )

    def test_work_in_place_on_its_own_tensors_is_fine(self) -> None:
        def field(t: Tensor, y: Tensor) -> Tensor:
            slope = torch.func.grad(lambda x: (x**2).sum())(y)
            slope *= -0.5
            return slope

        y0 = Y0.clone().requires_grad_()
        solve(field, y0, TS).ys.sum().backward()
        assert torch.allclose(y0.grad, torch.full_like(Y0, 1.97441), rtol=1e-5)

    def test_a_constant_is_fine(self) -> None:
        rate = torch.ones_like(Y0)
        assert torch.allclose(solve(lambda t, y: rate, Y0, TS).ys[:, -1], Y0 + 1)
        assert torch.equal(rate, torch.ones_like(Y0))


class TestFieldsThatCannotBeMadeAgain:
    """A gradient makes steps again; a field that answers otherwise the second time would make it silently wrong."""

    def dropout(self) -> nn.Module:
        return Net(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    def batch_norm(self) -> nn.Module:
        return Net(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    @pytest.mark.parametrize("gradient", ["direct", "aca", "symplectic"])
    def test_refused_with_a_gradient(self, gradient: str) -> None:
        with pytest.raises(GradientError, match=r"random numbers .*field\.eval\(\)"):
            solve(self.dropout(), Y0, TS, gradient=gradient)
        with pytest.raises(GradientError, match=r"buffers .*field\.eval\(\)"):
            solve(self.batch_norm(), Y0, TS, gradient=gradient)

    def test_fine_in_evaluation_mode(self) -> None:
        for field in (self.dropout(), self.batch_norm()):
            y0 = Y0.clone().requires_grad_()
            solve(field.eval(), y0, TS).ys.sum().backward()
            assert torch.isfinite(y0.grad).all()

    def test_fine_without_a_gradient(self) -> None:
        with torch.no_grad():
            assert solve(self.batch_norm(), Y0, TS).ok.all()
            assert solve(lambda t, y: -y + 0.01 * torch.rand_like(y), Y0, TS, method="rk4", controller=FIXED).ok.all()

    def test_a_tensor_that_counts_calls(self) -> None:
        calls = torch.zeros(())

        def field(t: Tensor, y: Tensor) -> Tensor:
            calls.add_(1)
            return -y

        with pytest.raises(GradientError):
            solve(field, Y0.clone().requires_grad_(), TS)
        assert solve(field, Y0, TS).ok.all()

    def test_the_random_state_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        solve(lambda t, y: -y, Y0.clone().requires_grad_(), TS).ys.sum().backward()
        assert torch.equal(before, torch.get_rng_state())


class Net(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y)


class Energy(nn.Module):
    """A Hamiltonian network as it is often written: it differentiates with torch.autograd itself."""

    def __init__(self, *, careful: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 0.7], dtype=torch.float64))
        self.careful = careful

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.careful:
            with torch.enable_grad():
                return self.slope(y)
        return self.slope(y)

    def slope(self, y: Tensor) -> Tensor:
        y = y if y.requires_grad else y.requires_grad_()
        energy = (torch.cosh(y) * self.weight).sum()
        (slope,) = torch.autograd.grad(energy, y, create_graph=True)
        return torch.stack((slope[..., 1], -slope[..., 0]), -1)


@pytest.mark.parametrize("careful", [True, False])
class TestFieldsThatDifferentiate:
    def test_without_a_gradient(self, careful: bool) -> None:
        plain = solve(lambda t, y: torch.stack((0.7 * torch.sinh(y[..., 1]), -torch.sinh(y[..., 0])), -1), Y0, TS)
        with torch.no_grad():
            found = solve(Energy(careful=careful), Y0, TS)
        assert torch.allclose(found.ys, plain.ys, rtol=1e-12)
        assert not found.ys.requires_grad

    @pytest.mark.parametrize("gradient", ["direct", "aca", "symplectic"])
    def test_gradients(self, careful: bool, gradient: str) -> None:
        weight = torch.tensor([1.0, 0.7], dtype=torch.float64, requires_grad=True)

        def plain(t: Tensor, y: Tensor) -> Tensor:
            return torch.stack((weight[1] * torch.sinh(y[..., 1]), -weight[0] * torch.sinh(y[..., 0])), -1)

        y0 = Y0.clone().requires_grad_()
        wanted = torch.autograd.grad((solve(plain, y0, TS).ys ** 2).sum(), (y0, weight))
        field = Energy(careful=careful)
        found = torch.autograd.grad((solve(field, y0, TS, gradient=gradient).ys ** 2).sum(), (y0, field.weight))
        for one, other in zip(found, wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-11)


def test_inference_mode() -> None:
    with torch.inference_mode():
        field = Net(nn.Linear(2, 2))
        sol = solve(field, Y0.clone(), TS, dense=True)
        assert torch.allclose(sol.at(1.0), sol.ys[:, -1])


class TestKindsOfFields:
    def test_agree(self) -> None:
        linear = nn.Linear(2, 2).double()

        class Field(VectorField):
            def __init__(self) -> None:
                super().__init__()
                self.linear = linear

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return self.linear(y)

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = linear

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return self.linear(y)

        def function(t: Tensor, y: Tensor) -> Tensor:
            return linear(y)

        found = []
        for field in (Field(), Module(), function, lambda t, y: linear(y), Module().forward):
            linear.zero_grad()
            sol = solve(field, Y0, TS)
            sol.ys.sum().backward()
            found.append((sol.ys.detach(), linear.weight.grad.clone(), linear.bias.grad.clone()))
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


class TestSplitting:
    class Swing(SecondOrder):
        def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
            return -torch.sin(q) - 0.1 * v

    def test_refuses_a_field_that_depends_on_velocity(self) -> None:
        with pytest.raises(InputError, match=r"declared to depend on velocity.*tsit5"):
            solve(self.Swing(), Y0, TS, method="leapfrog", controller=FIXED)

    def test_refuses_a_field_without_structure(self) -> None:
        with pytest.raises(InputError, match="neither a SeparableHamiltonian nor a SecondOrder"):
            solve(lambda t, y: -y, Y0, TS, method="yoshida4", controller=FIXED)

    def test_refuses_an_odd_state(self) -> None:
        class Free(SecondOrder):
            velocity_dependent = False

            def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
                return -q

        with pytest.raises(InputError, match="even number"):
            solve(Free(), [1.0, 2.0, 3.0], TS, method="leapfrog", controller=FIXED)
