"""Every tensor that a field reads gets its gradient, wherever the field keeps it, or the solve says that it cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from physnode.errors import GradientError, InputError
from physnode.fields import VectorField
from physnode.gradients import ACA, get
from physnode.solve import solve

Y0 = torch.tensor([[1.0, 0.0], [2.0, 0.1]], dtype=torch.float64)
TS = [0.0, 0.4, 1.0]
ALL = ["direct", "aca", "symplectic"]
SWEPT = ["aca", "symplectic"]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def loss(field: Callable[[Tensor, Tensor], Tensor], gradient: str, y0: Tensor = Y0) -> Tensor:
    return (solve(field, y0, TS, gradient=gradient).ys ** 2).sum()


def same(make: Callable[[], tuple[Callable[[Tensor, Tensor], Tensor], tuple[Tensor, ...]]], gradient: str) -> None:
    """Gradients by all tensors of a freshly made problem equal those of ``Direct``, plain and with a graph of their own."""
    field, wanted_by = make()
    wanted = torch.autograd.grad(loss(field, "direct"), wanted_by)
    for create_graph in (False, True):
        field, by = make()
        found = torch.autograd.grad(loss(field, gradient), by, create_graph=create_graph)
        for one, other in zip(found, wanted, strict=True):
            assert other.abs().max() > 0
            assert torch.allclose(one.detach(), other, rtol=1e-12)


@pytest.mark.parametrize("gradient", ALL)
class TestFound:
    def test_closed_over(self, gradient: str) -> None:
        def make():
            a, linear = scalar(0.7), nn.Linear(2, 2).double()
            torch.nn.init.constant_(linear.weight, 0.3)
            torch.nn.init.constant_(linear.bias, 0.1)
            return lambda t, y: torch.tanh(linear(a * y)), (a, linear.weight, linear.bias)

        same(make, gradient)

    def test_read_in_other_ways(self, gradient: str) -> None:
        """By index, by attribute, in a list, through a torch.func.grad."""

        def make():
            table, rows, k = scalar(0.7).repeat(2, 2).detach().requires_grad_(), [scalar(0.2), scalar(0.3)], scalar(1.1)
            scales = table.detach().clone().requires_grad_()

            def field(t: Tensor, y: Tensor) -> Tensor:
                pull = torch.func.grad(lambda x: (k * torch.cosh(x)).sum())(y)
                return y @ scales.T * table[0, 1] + torch.stack(rows) - pull

            return field, (table, scales, *rows, k)

        same(make, gradient)

    def test_computed_beforehand(self, gradient: str) -> None:
        """A mass from its logarithm."""

        def make():
            log_mass = scalar(-0.3)
            mass = log_mass.exp()
            return lambda t, y: mass * y, (log_mass,)

        same(make, gradient)

    def test_one_computed_from_another(self, gradient: str) -> None:
        """Both are read by the field: the share of one must not be counted again through the other."""

        def make():
            a = scalar(0.7)
            b = a.exp()
            c = a * b
            return lambda t, y: a * y - b * torch.sin(y) + 0.1 * c, (a,)

        same(make, gradient)

    def test_a_state_computed_from_a_parameter(self, gradient: str) -> None:
        a = scalar(0.7)
        y0 = torch.stack((a.exp(), a * 3))
        results = []
        for how, create_graph in (("direct", False), (gradient, False), (gradient, True)):
            value = loss(lambda t, y: a * y, how, y0)
            (found,) = torch.autograd.grad(value, a, create_graph=create_graph, retain_graph=True)
            results.append(found.detach())
        assert torch.allclose(results[1], results[0], rtol=1e-13)
        assert torch.allclose(results[2], results[0], rtol=1e-13)

    def test_a_state_that_the_field_reads_too(self, gradient: str) -> None:
        """y' = y0: y(1) = 2 y0."""
        y0 = Y0.clone().requires_grad_()
        solve(lambda t, y: y0.expand_as(y), y0, TS, gradient=gradient).ys[:, -1].sum().backward()
        assert torch.allclose(y0.grad, torch.full_like(Y0, 2.0))

    def test_gradient_hooks_run_once(self, gradient: str) -> None:
        results = []
        for hooked in (False, True):
            linear = nn.Linear(2, 2).double()
            torch.nn.init.constant_(linear.weight, 0.3)
            torch.nn.init.zeros_(linear.bias)
            calls = []
            if hooked:
                linear.weight.register_hook(lambda g, calls=calls: calls.append(1) or 2 * g)
            loss(lambda t, y, f=linear: f(y), gradient).backward()
            assert len(calls) == hooked
            results.append(linear.weight.grad)
        assert torch.allclose(results[1], 2 * results[0])

    def test_shared_parameter(self, gradient: str) -> None:
        shared = nn.Linear(2, 2).double()
        separate = [nn.Linear(2, 2).double() for _ in range(2)]
        for copy in separate:
            copy.load_state_dict(shared.state_dict())
        tied, untied = Stack(shared, shared), Stack(*separate)
        loss(tied, gradient).backward()
        loss(untied, gradient).backward()
        assert torch.allclose(shared.weight.grad, separate[0].weight.grad + separate[1].weight.grad, rtol=1e-12)

    def test_unused_parameter_gets_zeros(self, gradient: str) -> None:
        field = Stack(nn.Linear(2, 2).double())
        field.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
        used, spare = torch.autograd.grad(loss(field, gradient), (field.layers[0].weight, field.spare), allow_unused=True)
        assert used.any()
        assert spare is None or not spare.any()
        if gradient != "direct":
            assert spare is not None

    def test_frozen_parameter_gets_none(self, gradient: str) -> None:
        field = Stack(nn.Linear(2, 2).double(), nn.Linear(2, 2).double())
        field.layers[0].requires_grad_(False)
        loss(field, gradient).backward()
        assert field.layers[0].weight.grad is None
        assert field.layers[1].weight.grad is not None

    def test_field_without_the_state(self, gradient: str) -> None:
        """y' = k t: dy(1)/dk = 1/2, dy(1)/dy0 = 1."""
        k, y0 = scalar(2.0), Y0.clone().requires_grad_()
        ys = solve(lambda t, y: k * t.expand_as(y), y0, TS, gradient=gradient).ys
        to_k, to_y0 = torch.autograd.grad(ys[:, -1].sum(), (k, y0))
        assert to_k.item() == pytest.approx(0.5 * 4)
        assert torch.equal(to_y0, torch.ones_like(Y0))

    def test_constant_field(self, gradient: str) -> None:
        y0 = Y0.clone().requires_grad_()
        solve(lambda t, y: torch.ones_like(y), y0, TS, gradient=gradient).ys.sum().backward()
        assert torch.equal(y0.grad, torch.full_like(Y0, 3.0))

    def test_nothing_wants_a_gradient(self, gradient: str) -> None:
        assert not solve(lambda t, y: -y, Y0, TS, gradient=gradient).ys.requires_grad

    def test_one_output_at_the_start(self, gradient: str) -> None:
        y0 = Y0.clone().requires_grad_()
        solve(lambda t, y: -y, y0, [0.0], gradient=gradient).ys.sum().backward()
        assert torch.equal(y0.grad, torch.ones_like(Y0))


class Stack(VectorField):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers:
            y = torch.tanh(layer(y))
        return y


@pytest.mark.parametrize("gradient", SWEPT)
def test_a_tensor_that_the_first_call_did_not_read_is_refused(gradient: str) -> None:
    early, late = scalar(0.5), scalar(0.5)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return (early if float(t.detach().max()) < 0.5 else late) * y

    with pytest.raises(GradientError, match=r'first call did not read.*gradient="direct"'):
        loss(field, gradient).backward()
    to_late = torch.autograd.grad(loss(field, "direct"), late)[0]
    assert to_late.abs() > 0


@pytest.mark.parametrize("gradient", SWEPT)
def test_a_jump_in_time_at_a_step_end_stays_on_its_side(gradient: str) -> None:
    """The field changes at t = 1/2, where a step ends; its last stage is evaluated on the same side both ways."""
    a, b = scalar(0.4), scalar(0.9)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return y * torch.where(t < 0.5, a, b)

    found, wanted = (torch.autograd.grad(loss(field, how), (a, b)) for how in (gradient, "direct"))
    assert torch.allclose(torch.stack(found), torch.stack(wanted), rtol=1e-13)


class Model(nn.Module):
    """A whole model around a solve: an encoder of the state, a field, a read-out."""

    def __init__(self, gradient: str) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2).double()
        self.field = Stack(nn.Linear(2, 2).double())
        self.gradient = gradient

    def forward(self, x: Tensor) -> Tensor:
        return (solve(self.field, self.encoder(x), TS, gradient=self.gradient).ys ** 2).sum()


@pytest.mark.parametrize("gradient", ALL)
class TestFunctionalCall:
    def test_backward_outside_of_it(self, gradient: str) -> None:
        model = Model(gradient)
        other = {name: (0.5 * p.detach() + 0.1).requires_grad_() for name, p in model.named_parameters()}
        found = torch.autograd.grad(torch.func.functional_call(model, other, (Y0,)), list(other.values()))
        model.load_state_dict({name: p.detach() for name, p in other.items()})
        wanted = torch.autograd.grad(model(Y0), list(model.parameters()))
        for one, two in zip(found, wanted, strict=True):
            assert torch.allclose(one, two, rtol=1e-12)

    def test_through_an_inner_step_of_descent(self, gradient: str) -> None:
        """The parameters of the second solve are computed from those of the first: a gradient of a gradient."""
        results = []
        for how in ("direct", gradient):
            torch.manual_seed(3)
            model = Model(how)
            names, values = zip(*model.named_parameters(), strict=True)
            inner = torch.autograd.grad(model(Y0), values, create_graph=True)
            moved = {name: p - 0.05 * g for name, p, g in zip(names, values, inner, strict=True)}
            results.append(torch.autograd.grad(torch.func.functional_call(model, moved, (0.5 * Y0,)), values))
        for one, two in zip(*results, strict=True):
            assert torch.allclose(one, two, rtol=1e-10)

    def test_dense_output_keeps_the_parameters_of_the_solve(self, gradient: str) -> None:
        field = Stack(nn.Linear(2, 2).double())
        other = {"layers.0.weight": torch.eye(2, dtype=torch.float64).requires_grad_()}
        holder = Holder(field, gradient)
        sol = torch.func.functional_call(holder, {f"field.{k}": v for k, v in other.items()}, (Y0,))
        torch.testing.assert_close(sol.at(TS), sol.ys, rtol=1e-15, atol=0)  # sums are compensated in the solve alone
        found = torch.autograd.grad(sol.at(TS).sum(), other["layers.0.weight"])[0]
        wanted = torch.autograd.grad(sol.ys.sum(), other["layers.0.weight"])[0]
        assert torch.allclose(found, wanted, rtol=1e-12)


class Holder(nn.Module):
    def __init__(self, field: nn.Module, gradient: str) -> None:
        super().__init__()
        self.field, self.gradient = field, gradient

    def forward(self, x: Tensor):
        return solve(self.field, x, TS, gradient=self.gradient, dense=True)


@pytest.mark.parametrize("gradient", ALL)
class TestBackwardTwice:
    def test_needs_to_be_asked_for(self, gradient: str) -> None:
        y0 = Y0.clone().requires_grad_()
        value = loss(lambda t, y: -torch.sin(y), gradient, y0)
        value.backward()
        with pytest.raises(RuntimeError, match="second time"):
            value.backward()

    def test_doubles(self, gradient: str) -> None:
        y0 = Y0.clone().requires_grad_()
        value = loss(lambda t, y: -torch.sin(y), gradient, y0)
        value.backward(retain_graph=True)
        once = y0.grad.clone()
        value.backward()
        assert torch.equal(y0.grad, 2 * once)

    def test_a_parameter_edited_in_between_raises(self, gradient: str) -> None:
        linear = nn.Linear(2, 2).double()
        value = loss(lambda t, y: linear(torch.tanh(y)), gradient, Y0.clone().requires_grad_())
        with torch.no_grad():
            linear.weight.mul_(2)
        with pytest.raises(RuntimeError, match="inplace"):
            value.backward()

    def test_a_solve_leaves_no_state_behind(self, gradient: str) -> None:
        linear = nn.Linear(2, 2).double()
        first, second = (
            torch.autograd.grad(loss(lambda t, y: linear(torch.tanh(y)), gradient), tuple(linear.parameters()))
            for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class TestTransforms:
    """torch.func sees ``Direct`` only; what it would silently get wrong is refused."""

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        return -torch.sin(y)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own, in its forward mode
    def test_forward_mode_is_refused_for_sweeps(self) -> None:
        for gradient in SWEPT:
            with pytest.raises(GradientError, match='gradient="direct"'):
                torch.func.jvp(lambda y, g=gradient: solve(self.field, y, TS, gradient=g).ys, (Y0,), (Y0,))

    def test_grad_is_refused_for_sweeps(self) -> None:
        for gradient in SWEPT:
            with pytest.raises(GradientError, match='gradient="direct"'):
                torch.func.grad(lambda y, g=gradient: solve(self.field, y, TS, gradient=g).ys.sum())(Y0)

    def test_direct(self) -> None:
        wanted = torch.autograd.functional.jacobian(lambda y: solve(self.field, y, TS).ys, Y0)
        found = torch.func.jacrev(lambda y: solve(self.field, y, TS, gradient="direct").ys)(Y0)
        assert torch.allclose(found, wanted, rtol=1e-13)

    def test_direct_by_a_closed_over_tensor(self) -> None:
        def value(k: Tensor, gradient: str = "direct") -> Tensor:
            return solve(lambda t, y: -k * torch.sin(y), Y0, TS, gradient=gradient).ys.sum()

        k = scalar(0.8)
        assert torch.allclose(torch.func.grad(value)(k.detach()), torch.autograd.grad(value(k, "aca"), k)[0], rtol=1e-13)


class TestNames:
    def test_get(self) -> None:
        for name in ALL:
            assert get(name).name == name
        mine = ACA()
        assert get(mine) is mine
        assert repr(mine) == "<gradient aca>"

    def test_unknown(self) -> None:
        with pytest.raises(InputError, match=r'Did you mean "symplectic"\?.*direct, aca, symplectic'):
            solve(lambda t, y: -y, Y0, TS, gradient="simplectic")
        with pytest.raises(InputError, match="Known gradients"):
            get(3)
