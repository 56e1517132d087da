"""Derivatives of implicit steps: exact to second order, in times too, transposed and linearised; and on stiff problems."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from physnode import methods
from physnode.engine.controllers import Adaptive, Fixed
from physnode.engine.field_function import FieldFunction
from physnode.errors import GradientError
from physnode.fields import as_field
from physnode.gradients import ACA, Direct, SymplecticAdjoint
from physnode.solve import solve

F64 = torch.float64
ALL = [methods.gauss2, methods.gauss4, methods.gauss6, methods.radau5]
TUNED = methods.radau5.tuned(1e-4, torch.tensor(1e-6))
BATCH, DIM = 2, 2


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """State, both times (one row rests), and a matrix of parameters."""
    generator = torch.Generator().manual_seed(2)
    y = torch.randn(BATCH, DIM, dtype=F64, generator=generator)
    w = torch.tensor([[0.3, -0.9], [0.8, 0.2]], dtype=F64)
    return y, torch.tensor([0.1, 0.2], dtype=F64), torch.tensor([0.6, 0.2], dtype=F64), w


def field_reading(read: dict[str, Tensor]) -> FieldFunction:
    """A field of the matrix that ``read["w"]`` is at the time of the call."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(2 * y @ read["w"]) + torch.cos(t * read["w"][0, 0]) * y.flip(-1)

    return FieldFunction(as_field(field), (BATCH,), F64)


def stepped(method: methods.Method, y: Tensor, t: Tensor, t_end: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """End state and stages, as a function of tensors."""
    step = method.step(field_reading({"w": w}), t, t_end, y)
    return step.y, *step.stages


def loss(method: methods.Method, *tensors: Tensor) -> Tensor:
    return sum(((part**3).sum() for part in stepped(method, *tensors)), torch.zeros((), dtype=F64))


class TestOneStep:
    @pytest.mark.parametrize("method", [*ALL, TUNED], ids=repr)
    def test_first_derivatives(self, method: methods.Method) -> None:
        tensors = [part.requires_grad_() for part in inputs()]
        assert torch.autograd.gradcheck(lambda *x: stepped(method, *x), tensors)

    @pytest.mark.parametrize("method", [methods.gauss4, TUNED], ids=repr)
    def test_second_derivatives(self, method: methods.Method) -> None:
        tensors = [part.requires_grad_() for part in inputs()]
        assert torch.autograd.gradgradcheck(lambda *x: loss(method, *x), tensors)

    @pytest.mark.parametrize("method", [methods.gauss4, TUNED], ids=repr)
    def test_inside_transforms(self, method: methods.Method) -> None:
        """grad, jvp, vmap of tangents, and forward over reverse, with gradients enabled and not."""
        tensors = inputs()
        live = [part.clone().requires_grad_() for part in tensors]
        wanted = torch.autograd.grad(loss(method, *live), live)
        found = torch.func.grad(lambda *x: loss(method, *x), (0, 1, 2, 3))(*tensors)
        for one, two in zip(found, wanted, strict=True):
            assert torch.allclose(one, two, rtol=1e-13, atol=1e-14)
        directions = [torch.randn(5, *part.shape, dtype=F64) for part in tensors]
        along = sum((g * d).flatten(1).sum(1) for g, d in zip(wanted, directions, strict=True))
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                changes = torch.func.vmap(lambda *d: torch.func.jvp(lambda *x: loss(method, *x), tensors, d)[1])(*directions)
            assert torch.allclose(changes, along, rtol=1e-12, atol=1e-13)
        w = tensors[3]
        hessian = torch.func.hessian(lambda v: loss(method, *tensors[:3], v))(w)
        reverse = torch.autograd.functional.hessian(lambda v: loss(method, *tensors[:3], v), w)
        assert torch.allclose(hessian, reverse, rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("method", ALL, ids=repr)
    def test_the_graph_changes_no_value(self, method: methods.Method) -> None:
        y, t, t_end, w = inputs()
        with torch.no_grad():
            plain = stepped(method, y, t, t_end, w)
        for one, two in zip(stepped(method, y, t, t_end, w), plain, strict=True):
            assert torch.allclose(one, two, rtol=2e-15, atol=2e-15)

    @pytest.mark.parametrize("method", ALL, ids=repr)
    def test_transposed_and_linearised(self, method: methods.Method) -> None:
        """``pull_back`` with cotangents of the end and of every stage, ``push_forward`` with the stages' changes."""
        y, t, t_end, w = inputs()
        w.requires_grad_()
        read = {"w": w}
        f = field_reading(read)
        start = y.clone().requires_grad_()
        found = stepped(method, start, t, t_end, w)
        seeds = [torch.randn_like(part) for part in found]
        wanted = torch.autograd.grad(found, (start, w), seeds)
        to_w = torch.zeros_like(w)

        def vjp(function: object, point: Tensor, weight: Tensor) -> Tensor:
            with torch.enable_grad():
                x = point.detach().requires_grad_()
                to_x, part = torch.autograd.grad(function(x), (x, w), weight)
            to_w.add_(part)
            return to_x

        back = seeds[0] + method.pull_back(f, vjp, t, t_end, y, seeds[0], seeds[1:])
        assert torch.allclose(back, wanted[0], rtol=1e-13, atol=1e-14)
        assert torch.allclose(to_w, wanted[1], rtol=1e-13, atol=1e-14)

        dy, dw = torch.randn(3, *y.shape, dtype=F64), torch.randn(3, *w.shape, dtype=F64)
        _, changes = torch.func.jvp(lambda x, v: stepped(method, x, t, t_end, v), (y, w.detach()), (dy[0], dw[0]))

        def jvp(function: object, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
            def pure(v: Tensor, point: Tensor) -> Tensor:
                read["w"] = v
                return function(point)

            pairs = [torch.func.jvp(pure, (w.detach(), x), (dv, d)) for dv, d in zip(dw, dx, strict=True)]
            read["w"] = w
            return pairs[0][0], torch.stack([pair[1] for pair in pairs])

        end, change, stages, stage_changes = method.push_forward(f, jvp, t, t_end, y, dy, outputs=True)
        for one, two in zip((end, *stages), found, strict=True):
            assert torch.allclose(one, two, rtol=1e-14, atol=1e-14)
        for one, two in zip((change, *stage_changes), changes, strict=True):
            assert torch.allclose(one[0], two, rtol=1e-12, atol=1e-13)

    def test_equations_without_a_solution_have_no_gradient(self) -> None:
        f = FieldFunction(as_field(lambda t, y: y * y), (2,), F64)
        y = torch.tensor([[0.1], [1.0]], dtype=F64, requires_grad=True)
        t = torch.zeros(2, dtype=F64)
        with pytest.raises(GradientError, match="trajectory 1"):
            methods.gauss2.step(f, t, t + 1, y)
        with pytest.raises(GradientError, match="could not be"):
            methods.gauss2.pull_back(f, lambda function, x, weight: weight, t, t + 1, y.detach(), y.detach())


class TestWholeSolves:
    def gradients(self, gradient: object, rtol: float) -> list[Tensor]:
        rate = torch.tensor([[5.0], [30.0]], dtype=F64, requires_grad=True)
        y0 = torch.tensor([[2.0, 0.0], [1.5, 0.3]], dtype=F64, requires_grad=True)
        sol = solve(
            lambda t, y: torch.cat((y[..., 1:], rate * (1 - y[..., :1] ** 2) * y[..., 1:] - y[..., :1]), -1),
            y0,
            [0.0, 0.4, 1.0],
            method=methods.radau5.tuned(rtol, torch.tensor(rtol)),
            controller=Adaptive(rtol, rtol),
            gradient=gradient,
        )
        return list(torch.autograd.grad((sol.ys**2).sum(), (rate, y0)))

    @pytest.mark.parametrize("rtol", [1e-4, 1e-7])
    def test_adaptive_radau_agrees_to_a_part_of_its_tolerance(self, rtol: float) -> None:
        """The states that sweeps start from carry the error of Newton's iteration, which a replay has not: the gradients are
        exact at states that differ by that much."""
        wanted = self.gradients(Direct(), rtol)
        aca, symplectic = self.gradients(ACA(), rtol), self.gradients(SymplecticAdjoint(), rtol)
        for direct, one, two in zip(wanted, aca, symplectic, strict=True):
            assert float((one - direct).norm()) < rtol * float(direct.norm())
            assert float((one - two).norm()) < 1e-11 * float(direct.norm())

    @pytest.mark.parametrize("gradient", [ACA(), SymplecticAdjoint()], ids=repr)
    def test_stiff_kinetics_against_differences(self, gradient: object) -> None:
        """Robertson's problem until t = 4, by the logarithms of its rates."""

        def value(shift: float) -> tuple[Tensor, Tensor]:
            logarithms = (torch.log(torch.tensor([0.04, 3e7, 1e4], dtype=F64)) + shift).requires_grad_()
            k = torch.exp(logarithms)

            def field(t: Tensor, y: Tensor) -> Tensor:
                slow, fast, back = k[0] * y[..., :1], k[1] * y[..., 1:2] ** 2, k[2] * y[..., 1:2] * y[..., 2:]
                return torch.cat((back - slow, slow - back - fast, fast), -1)

            method = methods.radau5.tuned(1e-7, torch.tensor(1e-11))
            controller = Adaptive(1e-7, 1e-11)
            y0 = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
            ys = solve(field, y0, [0.0, 0.4, 4.0], method=method, controller=controller, gradient=gradient).ys
            return (ys * torch.tensor([1.0, 1e4, -1.0], dtype=F64)).sum(), logarithms

        found, logarithms = value(0.0)
        (slope,) = torch.autograd.grad(found, logarithms)
        wanted = (value(1e-3)[0] - value(-1e-3)[0]).item() / 2e-3
        assert float(slope.sum()) == pytest.approx(wanted, rel=1e-5)

    @pytest.mark.parametrize("gradient", [Direct(), ACA(), SymplecticAdjoint()], ids=repr)
    def test_a_field_that_differentiates_itself(self, gradient: object) -> None:
        """Against the same force written out."""

        def energy_force(stiffness: Tensor, t: Tensor, y: Tensor) -> Tensor:
            q, p = y.chunk(2, -1)
            with torch.enable_grad():
                x = q if q.requires_grad else q.detach().requires_grad_()
                force = -torch.autograd.grad((stiffness * x**4 / 4).sum(), x, create_graph=True)[0]
            return torch.cat((p, force), -1)

        def written_out(stiffness: Tensor, t: Tensor, y: Tensor) -> Tensor:
            q, p = y.chunk(2, -1)
            return torch.cat((p, -stiffness * q**3), -1)

        results = []
        for force in (energy_force, written_out):
            stiffness = torch.tensor(1.3, dtype=F64, requires_grad=True)
            y0 = torch.tensor([[0.5, 0.2], [1.0, -0.3]], dtype=F64, requires_grad=True)
            sol = solve(
                lambda t, y, force=force, k=stiffness: force(k, t, y),
                y0,
                [0.0, 0.35, 1.0],
                method="gauss4",
                controller=Fixed(0.1),
                gradient=gradient,
            )
            results.append([sol.ys.detach(), *torch.autograd.grad((sol.ys**2).sum(), (y0, stiffness))])
        for one, two in zip(*results, strict=True):
            assert torch.allclose(one, two, rtol=1e-12, atol=1e-13)
