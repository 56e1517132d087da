"""A solve inside ``torch.func`` transforms gives what the plain batched solve and reverse mode give, or says that it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from physnode.engine import methods
from physnode.engine.controllers import Adaptive, Fixed
from physnode.engine.events import Event
from physnode.errors import GradientError, InputError, SolveError
from physnode.fields import Hamiltonian, SecondOrder, SeparableHamiltonian
from physnode.signals import Signal
from physnode.solve import solve

# PyTorch's own, in its forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

TS = [0.0, 0.4, 0.9, 1.5]
Y0 = torch.tensor([[1.0, 0.2], [-0.6, 1.1], [0.3, -1.4]], dtype=torch.float64)
jacobian = torch.autograd.functional.jacobian


class Network(nn.Module):
    """A small learned field that also knows the time."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layers = [nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)]
        self.layers = nn.Sequential(*layers).double()
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y) - y * torch.cos(t)


class LearnedEnergy(Hamiltonian):
    """H = p²/2 + a network of both."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Network(3).layers

    def energy(self, t: Tensor, y: Tensor) -> Tensor:
        return y.square().sum(-1) / 2 + self.net(y)[..., 0]


class Pendulum(SeparableHamiltonian):
    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def kinetic(self, p: Tensor) -> Tensor:
        return p.square().sum(-1) / 2

    def potential(self, q: Tensor) -> Tensor:
        return self.k * (1 - torch.cos(q)).sum(-1)


class Swing(SecondOrder):
    velocity_dependent = False

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -torch.sin(q)


def direct(field: Any, y0: Tensor, ts: Any = TS, **options: Any) -> Tensor:
    ys: Tensor = solve(field, y0, ts, gradient="direct", **options).ys
    return ys


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


MODEL = Network()


def loss_of(parameters: dict[str, Tensor], y0: Tensor = Y0) -> Tensor:
    """A loss as a function of the parameters, put into the field from within."""
    return direct(lambda t, y: functional_call(MODEL, parameters, (t, y)), y0).square().sum()


FIELDS = [MODEL, LearnedEnergy(), Pendulum(), lambda t, y: -torch.sin(y) * (1 + t)]


@pytest.mark.parametrize("field", FIELDS, ids=["network", "learned energy", "pendulum", "function"])
class TestByTheStart:
    def test_reverse(self, field: Any) -> None:
        wanted = jacobian(lambda y: solve(field, y, TS, gradient="aca").ys, Y0)
        assert wanted.abs().max() > 0.1
        close(jacrev(lambda y: direct(field, y))(Y0), wanted)
        ys, pull = vjp(lambda y: direct(field, y), Y0)
        assert torch.equal(ys, direct(field, Y0))
        close(pull(torch.ones_like(ys))[0], wanted.sum((0, 1, 2)))

    def test_forward(self, field: Any) -> None:
        plain = direct(field, Y0)
        wanted = jacobian(lambda y: direct(field, y), Y0)
        direction = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2)
        ys, change = jvp(lambda y: direct(field, y), (Y0,), (direction,))
        assert torch.equal(ys, plain)
        close(change, (wanted * direction).sum((-1, -2)))
        close(jacfwd(lambda y: direct(field, y))(Y0), wanted)
        with forward_ad.dual_level():
            ys, change = forward_ad.unpack_dual(direct(field, forward_ad.make_dual(Y0, direction)))
            assert torch.equal(ys, plain)
            close(change, (wanted * direction).sum((-1, -2)))
        with torch.no_grad():
            close(jvp(lambda y: direct(field, y), (Y0,), (direction,))[1], (wanted * direction).sum((-1, -2)))

    def test_second_derivatives(self, field: Any) -> None:
        def loss(y: Tensor) -> Tensor:
            return direct(field, y)[-1].square().sum()

        wanted = torch.autograd.functional.hessian(loss, Y0[0])
        for first in (jacrev, jacfwd):
            for second in (jacrev, jacfwd):
                close(second(first(loss))(Y0[0]), wanted)

    def test_mapped(self, field: Any) -> None:
        wanted = torch.stack([direct(field, y) for y in Y0])
        assert torch.equal(vmap(lambda y: direct(field, y))(Y0), wanted)
        assert torch.equal(vmap(lambda y: direct(field, y), in_dims=1, out_dims=2)(Y0.T), wanted.permute(1, 2, 0))
        more = torch.stack((Y0, 0.5 * Y0))
        both = torch.stack([wanted, torch.stack([direct(field, y) for y in 0.5 * Y0])])
        close(vmap(lambda y: direct(field, y))(more), both, 1e-15)  # a batch inside
        close(vmap(vmap(lambda y: direct(field, y)))(more), both, 1e-15)

    def test_mapped_derivatives(self, field: Any) -> None:
        wanted = torch.stack([jacobian(lambda y: direct(field, y), y) for y in Y0])
        close(vmap(jacrev(lambda y: direct(field, y)))(Y0), wanted)
        close(vmap(jacfwd(lambda y: direct(field, y)))(Y0), wanted)
        ones = torch.ones_like(Y0)
        _, change = vmap(lambda y, d: jvp(lambda x: direct(field, x), (y,), (d,)))(Y0, ones)
        close(change, wanted.sum(-1))
        together = jacobian(lambda y: direct(field, y), Y0)
        close(jacrev(lambda y: vmap(lambda x: direct(field, x))(y))(Y0), together)
        close(jacfwd(lambda y: vmap(lambda x: direct(field, x))(y))(Y0), together)

    def test_a_graph_outside_vmap(self, field: Any) -> None:
        """Plain ``backward`` through a mapped solve."""
        y0 = Y0.clone().requires_grad_()
        (found,) = torch.autograd.grad(vmap(lambda y: direct(field, y))(y0).square().sum(), y0)
        (wanted,) = torch.autograd.grad(direct(field, y0).square().sum(), y0)
        close(found, wanted)


class TestByParameters:
    def check(self, found: dict[str, Tensor]) -> None:
        model = Network()
        wanted = torch.autograd.grad(direct(model, Y0).square().sum(), list(model.parameters()))
        for one, other in zip(found.values(), wanted, strict=True):
            close(one, other)

    def test_put_in_from_within(self) -> None:
        self.check(grad(loss_of)(values(Network())))
        self.check(jacfwd(loss_of)(values(Network())))

    def test_put_in_around_the_solve(self) -> None:
        class Fitted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.field = Network()

            def forward(self, y0: Tensor) -> Tensor:
                return direct(self.field, y0).square().sum()

        model = Fitted()
        self.check(grad(lambda p: functional_call(model, p, (Y0,)))(values(model)))
        self.check(jacfwd(lambda p: functional_call(model, p, (Y0,)))(values(model)))
        several = {name: torch.stack((value, 0.5 * value)) for name, value in values(model).items()}
        found = vmap(grad(lambda p: functional_call(model, p, (Y0,))))(several)
        self.check({name: value[0] for name, value in found.items()})

    def test_steps_carry_no_derivative(self) -> None:
        """An adaptive solve in forward mode, at a tolerance where the step sizes would matter."""
        k = torch.tensor(0.8, dtype=torch.float64)

        def last(k: Tensor) -> Tensor:
            return direct(lambda t, y: -k * torch.sinh(y), Y0, controller=Adaptive(1e-2, 1e-3))[:, -1]

        wanted = jacobian(last, k)
        close(jacfwd(last)(k), wanted)
        close(jacfwd(jacfwd(last))(k), jacobian(lambda k: jacobian(last, k, create_graph=True), k))
        close(jacrev(jacrev(last))(k), jacobian(lambda k: jacobian(last, k, create_graph=True), k))
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(k, torch.ones_like(k))
            close(forward_ad.unpack_dual(last(dual)).tangent, wanted)

    def test_hessian(self) -> None:
        """Of one layer's bias, by every nesting of the two modes."""
        fixed = values(Network())

        def loss(bias: Tensor) -> Tensor:
            return loss_of({**fixed, "layers.2.bias": bias})

        wanted = torch.autograd.functional.hessian(loss, fixed["layers.2.bias"])
        close(hessian(loss)(fixed["layers.2.bias"]), wanted)
        close(jacrev(jacrev(loss))(fixed["layers.2.bias"]), wanted)

    def test_per_sample_gradients(self) -> None:
        found = vmap(grad(loss_of), in_dims=(None, 0))(values(Network()), Y0)
        for row, y0 in enumerate(Y0):
            model = Network()
            direct(model, y0).square().sum().backward()
            for name, parameter in model.named_parameters():
                close(found[name][row], parameter.grad)


class TestEnsembles:
    models = tuple(Network(seed) for seed in range(3))

    def solved(self, parameters: dict[str, Tensor], y0: Tensor = Y0) -> tuple[Tensor, ...]:
        sol = solve(lambda t, y: functional_call(self.models[0], parameters, (t, y)), y0, TS, gradient="direct")
        return sol.ys, sol.stats.accepted, sol.stats.rejected, sol.stats.evaluations, sol.status

    def test_three_parameter_sets(self) -> None:
        stacked, _ = stack_module_state(list(self.models))
        found = vmap(self.solved)(stacked)
        for row, model in enumerate(self.models):
            alone = solve(model, Y0, TS)
            close(found[0][row], alone.ys, 1e-15)
            for one, other in zip(
                found[1:4], (alone.stats.accepted, alone.stats.rejected, alone.stats.evaluations), strict=True
            ):
                assert torch.equal(one[row], other)
            assert not found[4].any()
        assert len({tuple(row.tolist()) for row in found[1]}) == 3  # each has steps of its own

    def test_with_their_own_starts(self) -> None:
        stacked, _ = stack_module_state(list(self.models))
        found = vmap(self.solved)(stacked, Y0)[0]
        for row, model in enumerate(self.models):
            close(found[row], solve(model, Y0[row], TS).ys, 1e-15)

    def test_training(self) -> None:
        """By ``backward`` outside vmap, and by grad inside it."""
        stacked, _ = stack_module_state(list(self.models))
        found = torch.autograd.grad(vmap(self.solved)(stacked)[0].square().sum(), list(stacked.values()))
        inside = vmap(grad(lambda p: self.solved(p)[0].square().sum()))({k: v.detach() for k, v in stacked.items()})
        for row, model in enumerate(self.models):
            wanted = torch.autograd.grad(direct(model, Y0).square().sum(), list(model.parameters()))
            for one, two, other in zip(found, inside.values(), wanted, strict=True):
                close(one[row], other)
                close(two[row], other)

    def test_closed_over(self) -> None:
        k = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
        found = vmap(lambda k: direct(lambda t, y: -k * y, Y0))(k)
        assert torch.equal(found, torch.stack([direct(lambda t, y, k=k: -k * y, Y0) for k in k]))


class TestArguments:
    times = torch.linspace(0, 2, 9, dtype=torch.float64)
    samples = torch.sin(3 * times)
    loads = torch.tensor([[0.2], [0.7], [1.5]], dtype=torch.float64)

    def solved(self, y0: Tensor, load: Tensor, samples: Tensor, hold: str = "linear") -> Tensor:
        def field(t: Tensor, y: Tensor, args: Any) -> Tensor:
            return args["torque"] - args["load"] * y

        return direct(field, y0, args={"torque": Signal(self.times, samples, hold=hold), "load": load})

    @pytest.mark.parametrize("hold", ["previous", "linear", "cubic"])
    def test_mapped_constants(self, hold: str) -> None:
        def one(y0: Tensor, load: Tensor) -> Tensor:
            return self.solved(y0, load, self.samples, hold)

        assert torch.equal(vmap(one)(Y0, self.loads), torch.stack([one(y, c) for y, c in zip(Y0, self.loads, strict=True)]))
        wanted = torch.stack([jacobian(lambda c, y=y: one(y, c), c) for y, c in zip(Y0, self.loads, strict=True)])
        close(vmap(jacrev(one, 1))(Y0, self.loads), wanted)
        close(vmap(jacfwd(one, 1))(Y0, self.loads), wanted)

    @pytest.mark.parametrize("hold", ["previous", "linear"])
    def test_values_of_a_signal(self, hold: str) -> None:
        def by(samples: Tensor) -> Tensor:
            return self.solved(Y0, self.loads, samples, hold)

        wanted = jacobian(by, self.samples)
        close(jacrev(by)(self.samples), wanted)
        close(jacfwd(by)(self.samples), wanted)

    def test_values_of_a_spline(self) -> None:
        with pytest.raises(GradientError, match='hold="linear"'):
            grad(lambda samples: self.solved(Y0, self.loads, samples, "cubic").sum())(self.samples)

    def test_mapped_times(self) -> None:
        ts = torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.5]], dtype=torch.float64)
        field = Swing()
        assert torch.equal(vmap(lambda y, t: direct(field, y, t))(Y0, ts), solve(field, Y0, ts).ys)
        found = vmap(jacrev(lambda y, t: direct(field, y, t)))(Y0, ts)
        close(found, torch.stack([jacobian(lambda y, t=t: direct(field, y, t), y) for y, t in zip(Y0, ts, strict=True)]))
        epochs = ts[:, 0]
        found = vmap(lambda y, t0: direct(field, y, TS, t0=t0))(Y0, epochs)
        assert torch.equal(found, solve(field, Y0, TS, t0=epochs).ys)

    def test_differentiated_times(self) -> None:
        for transform in (grad, jacfwd):
            with pytest.raises(InputError, match=r"ts\.detach\(\)"):
                transform(lambda ts: direct(Swing(), Y0, ts).sum())(torch.tensor(TS, dtype=torch.float64))


class TestEvents:
    y0 = torch.tensor([[1.0, 0.0], [2.0, 0.5]], dtype=torch.float64)
    ts = (0.0, 0.7, 1.1, 1.5)

    def bounced(self, y0: Tensor, rebound: Tensor | float = 0.9, gradient: str = "direct") -> Any:
        def fall(t: Tensor, y: Tensor) -> Tensor:
            return torch.stack((y[..., 1], -9.81 - 0.1 * y[..., 1] * y[..., 0].abs()), -1)

        def jump(t: Tensor, y: Tensor) -> Tensor:
            return torch.stack((y[..., 0], -rebound * y[..., 1]), -1)

        floor = Event(lambda t, y: y[..., 0], direction=-1, terminal=False, jump=jump)
        return solve(fall, y0, self.ts, events=floor, gradient=gradient)

    def all_of(self, y0: Tensor, rebound: Tensor | float = 0.9, gradient: str = "direct") -> Tensor:
        sol = self.bounced(y0, rebound, gradient)
        return torch.cat((sol.ys.flatten(), sol.events.t.nan_to_num().flatten(), sol.events.y.nan_to_num().flatten()))

    def test_derivatives(self) -> None:
        k = torch.tensor(0.9, dtype=torch.float64)
        wanted = jacobian(lambda y: self.all_of(y, gradient="aca"), self.y0)
        close(jacrev(self.all_of)(self.y0), wanted)
        close(jacfwd(self.all_of)(self.y0), wanted)
        ys, change = jvp(lambda k: self.all_of(self.y0, k), (k,), (torch.ones_like(k),))
        assert torch.equal(ys, self.all_of(self.y0))
        close(change, jacobian(lambda k: self.all_of(self.y0, k, "aca"), k))

    def test_mapped(self) -> None:
        """Two trajectories with unequal numbers of bounces."""

        def one(y0: Tensor) -> tuple[Tensor, ...]:
            sol = self.bounced(y0)
            return sol.ys, sol.events.t, sol.events.y, sol.events.index, sol.events.count

        wanted = one(self.y0)
        assert len(set(wanted[-1].tolist())) == 2
        for found, other in zip(vmap(one)(self.y0), wanted, strict=True):
            assert torch.equal(found.nan_to_num(), other.nan_to_num())

    def test_mapped_derivatives_are_refused(self) -> None:
        with pytest.raises(GradientError, match=r"events cannot be mapped.*give the mapped axis to solve"):
            vmap(grad(lambda y: self.bounced(y).ys.sum()))(self.y0)


@pytest.mark.parametrize(
    "method", ["midpoint", "dop853", "leapfrog", "kahan_li8", "dprkn6", "gauss_radau15", "gauss4", "radau5"]
)
class TestMethods:
    def solved(self, y0: Tensor, method: str, **options: Any) -> Tensor:
        controller = Adaptive() if methods.get(method).error_order else Fixed(0.1)
        return direct(Swing(), y0, method=method, controller=controller, **options)

    def test_mapped_values(self, method: str) -> None:
        found = vmap(lambda y: self.solved(y, method))(Y0)
        assert torch.equal(found, torch.stack([self.solved(y, method) for y in Y0]))

    def test_derivatives(self, method: str) -> None:
        wanted = jacobian(lambda y: self.solved(y, method), Y0[0])
        close(jacrev(lambda y: self.solved(y, method))(Y0[0]), wanted)
        close(jacfwd(lambda y: self.solved(y, method))(Y0[0]), wanted)
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(Y0[0], torch.ones(2, dtype=torch.float64))
            change = forward_ad.unpack_dual(self.solved(dual, method)).tangent
        close(change, wanted.sum(-1))

    def test_second_derivatives(self, method: str) -> None:
        """Forward over reverse, and forward twice."""

        def loss(y: Tensor) -> Tensor:
            return self.solved(y, method)[-1].square().sum()

        wanted = torch.autograd.functional.hessian(loss, Y0[0])
        close(jacfwd(jacrev(loss))(Y0[0]), wanted)
        close(jacfwd(jacfwd(loss))(Y0[0]), wanted)

    def test_mapped_derivatives(self, method: str) -> None:
        def by(y0: Tensor) -> Tensor:
            return vmap(jacrev(lambda y: self.solved(y, method, t0=0.7, read_out="restep")))(y0)

        if method in ("gauss_radau15", "gauss4", "radau5"):
            with pytest.raises(GradientError, match=f"{method}, which iterates"):
                by(Y0)
            return
        close(by(Y0), torch.stack([jacobian(lambda y: self.solved(y, method, t0=0.7, read_out="restep"), y) for y in Y0]))


class TestSolutions:
    def test_float32(self) -> None:
        y0 = Y0.float()
        field = FIELDS[-1]
        wanted = jacobian(lambda y: direct(field, y), y0)
        assert torch.equal(vmap(lambda y: direct(field, y))(y0), torch.stack([direct(field, y) for y in y0]))
        for found in (jacrev(lambda y: direct(field, y))(y0), jacfwd(lambda y: direct(field, y))(y0)):
            assert found.dtype == torch.float32
            close(found, wanted, 1e-6)

    def test_structured_states(self) -> None:
        def both(q: Tensor, v: Tensor) -> dict[str, Tensor]:
            ys: dict[str, Tensor] = solve(lambda t, y: {"q": y["v"], "v": -y["q"]}, {"q": q, "v": v}, TS, gradient="direct").ys
            return ys

        for name, found in vmap(both)(Y0, 2 * Y0).items():
            assert torch.equal(found, torch.stack([both(y, 2 * y)[name] for y in Y0]))
        close(jacfwd(lambda q: both(q, q)["v"])(Y0), jacobian(lambda q: both(q, q)["v"], Y0))

    def test_dense_output(self) -> None:
        def at(y: Tensor) -> Tensor:
            found: Tensor = solve(Swing(), y, TS, gradient="direct", dense=True).at([0.2, 1.0])
            return found

        wanted = jacobian(at, Y0)
        close(jacfwd(at)(Y0), wanted)
        close(jacrev(at)(Y0), wanted)
        k = torch.tensor(0.8, dtype=torch.float64)

        def by(k: Tensor) -> Tensor:
            found: Tensor = solve(lambda t, y: -k * y, Y0, TS, gradient="direct", dense=True).at([0.2, 1.0])
            return found

        close(jacrev(by)(k), jacobian(by, k))
        close(jacfwd(by)(k), jacobian(by, k))
        with pytest.raises(InputError, match="ask for all times in ts"):
            vmap(at)(Y0)

    def test_failures(self) -> None:
        """y' = y² reaches infinity at t = 1 / y0."""
        y0 = torch.tensor([[0.1], [3.0], [0.2]], dtype=torch.float64)

        def reported(y: Tensor) -> tuple[Tensor, Tensor]:
            sol = solve(lambda t, y: y**2, y, [0.0, 0.2, 2.0], gradient="direct", on_failure="report")
            return sol.ys.nan_to_num(), sol.status

        ys, status = vmap(reported)(y0)
        assert torch.equal(ys, reported(y0)[0])
        assert torch.equal(status, reported(y0)[1])
        found = vmap(grad(lambda y: reported(y)[0].sum()))(y0)
        assert found[1] == 0
        for row in (0, 2):
            close(found[row], jacobian(lambda y: reported(y)[0].sum(), y0[row]))
        with pytest.raises(SolveError, match=r"trajectory 1 at t = 0\.33"):
            vmap(lambda y: direct(lambda t, x: x**2, y, [0.0, 2.0]))(y0)

    def test_can_be_printed(self) -> None:
        shown = []
        vmap(lambda y: shown.append(repr(solve(Swing(), y, TS, gradient="direct"))) or y)(Y0)
        assert shown == ["Solution(ys=(4, 2), inside torch.func.vmap)"]


class TestRefused:
    @pytest.mark.parametrize("gradient", ["aca", "symplectic"])
    def test_sweeps(self, gradient: str) -> None:
        for transform in (grad, jacfwd, hessian, vmap):
            with pytest.raises(GradientError, match='use gradient="direct"'):
                transform(lambda y: solve(Swing(), y, TS, gradient=gradient).ys.sum())(Y0)
        with forward_ad.dual_level(), pytest.raises(GradientError, match='use gradient="direct"'):
            solve(Swing(), forward_ad.make_dual(Y0, Y0), TS, gradient=gradient)

    def test_a_field_that_differentiates_with_autograd(self) -> None:
        def field(t: Tensor, y: Tensor) -> Tensor:
            with torch.enable_grad():
                x = y if y.requires_grad else y.detach().requires_grad_()
                return torch.autograd.grad(torch.cos(x).sum(), x, create_graph=True)[0]

        close(direct(field, Y0), direct(lambda t, y: -torch.sin(y), Y0))
        for transform in (grad, jacfwd, vmap):
            with pytest.raises(GradientError, match=r"use torch\.func\.grad inside the field"):
                transform(lambda y: direct(field, y).sum())(Y0)
        with forward_ad.dual_level(), pytest.raises(GradientError, match=r"use torch\.func\.grad inside the field"):
            direct(field, forward_ad.make_dual(Y0, Y0))

    def test_a_field_that_asks_for_values(self) -> None:
        with pytest.raises(InputError, match=r"torch\.where"):
            vmap(lambda y: direct(lambda t, x: -x if bool(x.sum() > 0) else x, y))(Y0)

    def test_a_field_that_draws_random_numbers(self) -> None:
        def field(t: Tensor, y: Tensor) -> Tensor:
            return torch.nn.functional.dropout(y, 0.5)

        with pytest.raises(InputError, match=r"field\.eval\(\)"):
            vmap(lambda y: direct(field, y))(Y0)
        with pytest.raises(GradientError, match=r"field\.eval\(\)"):
            grad(lambda y: direct(field, y).sum())(Y0)
        with pytest.raises(GradientError, match=r"field\.eval\(\)"):
            jvp(lambda y: direct(field, y).sum(), (Y0,), (Y0,))

    def test_a_tensor_that_is_read_late(self) -> None:
        k = torch.tensor([0.5, 1.0], dtype=torch.float64)

        def late(k: Tensor) -> Tensor:
            return direct(lambda t, y: -k * y if float(t.max()) > 0.5 else -y, Y0[0])

        def always(k: Tensor) -> Tensor:
            return direct(lambda t, y: torch.where(t > 0.5, -k, -1.0) * y, Y0[0]).sum()

        with pytest.raises(GradientError, match="first call did not read"):
            vmap(late)(k)
        close(grad(lambda k: late(k).sum())(k[0]), jacobian(always, k[0]))
        close(jacfwd(lambda k: late(k).sum())(k[0]), jacobian(always, k[0]))
