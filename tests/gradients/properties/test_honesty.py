"""A gradient is that of the solve made, or an error says why there is none: state, randomness, edits, second backward."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.errors import GradientError

F64 = torch.float64
TS = [0.0, 0.4, 0.97, 1.2]


class Learned(pn.SecondOrder):
    """q'' = s net(q): a learned force, with the state that ``extra`` layers keep."""

    velocity_dependent = False

    def __init__(self, *extra: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), *extra, nn.Linear(4, 1)).double()

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return self.net(q)


def edit_in_place(field: Learned) -> None:
    with torch.no_grad():
        field.net[0].weight.mul_(2)


def step_an_optimizer(field: Learned) -> None:
    optimizer = torch.optim.Adam(field.parameters(), lr=0.1)
    for parameter in field.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def load_other_weights(field: Learned) -> None:
    field.load_state_dict({name: 2 * value for name, value in field.state_dict().items()})


@pytest.mark.parametrize(
    ("edit", "create_graph"),
    [(edit_in_place, False), (step_an_optimizer, True), (step_an_optimizer, False), (load_other_weights, False)],
)
def test_a_parameter_edited_between_solve_and_backward_raises(
    family: Any, gradient: str, edit: Callable[[Learned], None], create_graph: bool, y0: Tensor
) -> None:
    """The steps made with the old value cannot be made again with the new one; PyTorch's own words say so."""
    field = Learned()
    loss = family.solve(field, y0, TS, gradient=gradient).ys.square().sum()
    edit(field)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward(create_graph=create_graph)


def test_dense_output_after_an_edit_raises(family: Any, gradient: str, y0: Tensor) -> None:
    field = Learned()
    sol = family.solve(field, y0, TS, gradient=gradient, dense=True)
    assert sol.at(0.7).requires_grad
    step_an_optimizer(field)
    with pytest.raises(GradientError, match="call solve again"):
        sol.at(0.7)


def test_a_parameter_put_in_the_place_of_another_changes_nothing(gradient: str, y0: Tensor) -> None:
    """The gradient goes to the one that was read."""
    found = []
    for replace in (False, True):
        torch.manual_seed(3)
        field = Learned()
        weight = field.net[0].weight
        loss = pn.solve(field, y0, TS, gradient=gradient).ys.square().sum()
        if replace:
            field.net[0].weight = nn.Parameter(2 * weight.detach())
        found.append(torch.autograd.grad(loss, weight)[0])
    assert torch.equal(*found)


def test_a_second_backward_is_refused_unless_asked_for_and_then_adds_the_same(family: Any, gradient: str, y0: Tensor) -> None:
    """PyTorch's rule for any graph; twice the backward is twice the gradient, to the last bit."""
    field, start = Learned(), y0.clone().requires_grad_()
    loss = family.solve(field, start, TS, gradient=gradient).ys.square().sum()
    loss.backward(retain_graph=True)
    once = [tensor.grad.clone() for tensor in (start, *field.parameters())]
    loss.backward()
    for tensor, first in zip((start, *field.parameters()), once, strict=True):
        assert torch.equal(tensor.grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_a_solve_leaves_nothing_behind(family: Any, gradient: str, y0: Tensor) -> None:
    """A second solve and its backward are the first to the last bit; no option, argument, default or generator has changed."""
    torch.manual_seed(3)
    field, times = Learned(), torch.tensor(TS, dtype=F64)
    options = {"gradient": gradient, "t0": 0.0, "args": None}
    before = (torch.get_rng_state(), dict(options), repr(family.controller), times.clone(), torch.is_grad_enabled())
    results = []
    for _ in range(2):
        start = y0.clone().requires_grad_()
        ys = family.solve(field, start, times, **options).ys
        results.append((ys.detach(), *torch.autograd.grad(ys.square().sum(), (start, *field.parameters()))))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:3] == (options, repr(family.controller))
    assert torch.equal(before[3], times)
    assert before[4] == torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in field.parameters())


@pytest.mark.parametrize(
    ("layer", "words"),
    [(nn.Dropout(0.5), "draws random numbers"), (nn.BatchNorm1d(4), "changes its buffers")],
    ids=["dropout", "norm"],
)
class TestLayersOfTwoModes:
    def test_refused_in_training(self, family: Any, gradient: str, layer: nn.Module, words: str, y0: Tensor) -> None:
        """Steps made again would not be the steps that were made."""
        with pytest.raises(GradientError, match=rf"{words}.*field\.eval\(\)"):
            family.solve(Learned(layer), y0, TS, gradient=gradient)

    def test_exact_in_evaluation_and_left_alone(
        self, family: Any, gradient: str, layer: nn.Module, words: str, y0: Tensor
    ) -> None:
        """Buffers stay what they were, forward and backward, and all gradients agree."""
        torch.manual_seed(3)
        field = Learned(layer).eval()
        buffers = {name: buffer.clone() for name, buffer in field.named_buffers()}
        results = []
        for how in (gradient, "direct"):
            start = y0.clone().requires_grad_()
            loss = family.solve(field, start, TS, gradient=how).ys.square().sum()
            results.append(torch.autograd.grad(loss, (start, *field.parameters())))
        for one, two in zip(*results, strict=True):
            assert torch.allclose(one, two, rtol=1e-12, atol=1e-14)
        for name, buffer in field.named_buffers():
            assert torch.equal(buffer, buffers[name])


def draws() -> dict[str, Callable[[Tensor], Tensor]]:
    """Noise like ``y`` from every source that a first call shows."""
    generator = torch.Generator().manual_seed(0)
    return {
        "torch": torch.rand_like,
        "a generator": lambda y: torch.rand(y.shape, generator=generator, dtype=y.dtype),
        "in place": lambda y: torch.empty_like(y).bernoulli_(0.5, generator=generator),
        "numpy": lambda y: y * float(np.random.rand()),  # noqa: NPY002
        "random": lambda y: y * random.random(),
    }


@pytest.mark.parametrize("source", list(draws()))
def test_random_fields_are_refused(source: str, gradient: str, y0: Tensor) -> None:
    noise = draws()[source]
    with pytest.raises(GradientError, match="draws random numbers"):
        pn.solve(lambda t, y: -y + 0.1 * noise(y), y0.clone().requires_grad_(), TS, gradient=gradient)


def test_noise_that_is_the_same_at_every_call_is_no_randomness(gradient: str, y0: Tensor) -> None:
    """A generator seeded anew in each call, or noise drawn beforehand."""
    noise = torch.rand(y0.shape, dtype=F64)

    def seeded(t: Tensor, y: Tensor) -> Tensor:
        again = torch.rand(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
        return -y + again + noise

    results = []
    for how in (gradient, "direct"):
        start = y0.clone().requires_grad_()
        results.append(torch.autograd.grad(pn.solve(seeded, start, TS, gradient=how).ys.sum(), start)[0])
    assert torch.allclose(*results, rtol=1e-13)


def test_second_derivatives_are_true(family: Any, gradient: str, swing: Any, y0: Tensor) -> None:
    """A Hessian times a direction, by y0, a parameter and a closed-over tensor, against extrapolated central differences of
    the gradient on steps of equal length; never a gradient that is cut off."""
    controller = pn.Fixed(0.3 if family.name in ("kahan_li8", "gauss_radau15") else 0.2)
    direction = torch.tensor([0.3, -0.5, 0.7, 0.2, -0.4, 0.6], dtype=F64)

    def first(shift: float, create_graph: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        moved = shift * direction
        gain, start = (0.35 + moved[0]).requires_grad_(), (y0 + moved[1:5].view(2, 2)).requires_grad_()
        field = swing(gain)
        with torch.no_grad():
            field.stiffness.add_(moved[5])
        inputs = (gain, start, field.stiffness)
        loss = (family.solve(field, start, TS, gradient=gradient, controller=controller).ys ** 3).sum()
        found = torch.autograd.grad(loss, inputs, create_graph=create_graph)
        return torch.cat([part.flatten() for part in found]), inputs

    slope, inputs = first(0.0, create_graph=True)
    found = torch.cat([part.flatten() for part in torch.autograd.grad(slope @ direction, inputs)])
    coarse, fine = ((first(e)[0] - first(-e)[0]) / (2 * e) for e in (4e-3, 2e-3))
    wanted = (4 * fine - coarse) / 3
    assert float(wanted.abs().min()) > 1e-3
    assert float((found - wanted).norm()) < 1e-8 * float(wanted.norm())


def test_second_derivatives_on_adaptive_steps_belong_to_the_solve(gradient: str) -> None:
    """z' = k z: z_N is linear in z0, so the second derivative of z_N² is 2 (z_N / z0)², to rounding."""
    for name in ("tsit5", "dop853", "dopri8", "radau5"):
        z0 = torch.tensor([1.7], dtype=F64, requires_grad=True)
        ys = pn.solve(lambda t, z: -0.2 * z, z0, [0.0, 3.3, 9.0], method=name, gradient=gradient).ys
        for z in ys[1:]:
            (slope,) = torch.autograd.grad(z.square().sum(), z0, create_graph=True)
            (second,) = torch.autograd.grad(slope.sum(), z0, retain_graph=True)
            assert float((second * z0.detach() ** 2 / (2 * z.detach() ** 2) - 1).abs()) < 1e-12
