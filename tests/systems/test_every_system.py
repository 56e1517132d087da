"""What every system promises, whatever its physics."""

from __future__ import annotations

import pytest
import torch

from physnode.errors import InputError
from physnode.fields import SecondOrder
from physnode.systems import Duffing, Kepler, NBody, Pendulum, System, ThreeBody, registry

TIME = torch.tensor([0.3], dtype=torch.float64)


def test_registry_names_systems_with_a_description() -> None:
    known = registry()
    assert {"pendulum", "harmonic-oscillator", "kepler", "n-body", "three-body"} <= set(known)
    for name, kind in known.items():
        assert issubclass(kind, System)
        assert kind.description
        assert name == name.lower()
        assert set(kind.units) == set(kind.domains)


def test_state_is_named_and_starts_are_reproducible(system: System) -> None:
    starts = system.initial_states(5, seed=3)
    assert starts.shape == (5, system.dim)
    assert starts.dtype == torch.float64
    assert len(set(system.labels)) == system.dim
    assert torch.equal(starts, system.initial_states(5, seed=3))
    assert not torch.equal(starts, system.initial_states(5, seed=4))
    assert torch.isfinite(system(TIME, starts)).all()


def test_starts_leave_the_global_generator_alone(system: System) -> None:
    before = torch.get_rng_state()
    system.initial_states(3, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_equals_its_rows(system: System) -> None:
    y = system.initial_states(200)
    t = torch.linspace(0, 3, 200, dtype=torch.float64).unsqueeze(-1)
    rows = torch.stack([system(t[i], y[i]) for i in range(200)])
    torch.testing.assert_close(system(t, y), rows, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(system(t.view(4, 50, 1), y.view(4, 50, -1)).flatten(0, 1), rows, rtol=1e-13, atol=1e-13)


def test_invariants_keep_the_leading_axes(system: System) -> None:
    y = system.initial_states(6)
    single = system.invariants(TIME, y[0])
    times = torch.tensor([[0.3], [0.3]], dtype=torch.float64)
    for name, value in system.invariants(times, y.view(3, 2, -1)).items():
        assert value.shape == (3, 2)
        assert single[name].shape == ()
        torch.testing.assert_close(value[0, 0], single[name])


def test_invariants_are_constant_along_the_motion(system: System, integrate) -> None:
    ts = torch.linspace(0, 4, 9, dtype=torch.float64)
    ys = integrate(system, system.initial_states(1, seed=2)[0], ts)
    for name, value in system.invariants(ts.unsqueeze(-1), ys).items():
        assert (value - value[0]).abs().max() < 1e-10, name


def test_invariants_notice_another_motion(system: System, integrate) -> None:
    push = 0.1 * torch.arange(1.0, system.dim + 1, dtype=torch.float64)
    ts = torch.linspace(0, 2, 5, dtype=torch.float64)
    ys = integrate(system + (lambda t, y: push), system.initial_states(1, seed=2)[0], ts, rtol=1e-9)
    for name, value in system.invariants(ts.unsqueeze(-1), ys).items():
        assert (value - value[0]).abs().max() > 1e-3, name


def test_damped_and_driven_systems_claim_no_invariant() -> None:
    y = torch.tensor([0.4, 0.1], dtype=torch.float64)
    assert Pendulum().invariants(TIME, y)
    assert not Pendulum(damping=0.1).invariants(TIME, y)
    assert not Pendulum(free=("damping",)).invariants(TIME, y)
    assert not Duffing(drive=0.1).invariants(TIME, y)


def test_first_and_second_derivatives(system: System) -> None:
    y = system.initial_states(1, seed=5)[0].requires_grad_()
    names = list(system.constants())
    values = [value.detach().clone().requires_grad_() for value in system.constants().values()]

    def rate(y: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(system, dict(zip(names, values, strict=True)), (TIME, y))

    assert torch.autograd.gradcheck(rate, (y, *values))
    assert torch.autograd.gradgradcheck(rate, (y, *values))


def test_invariants_are_differentiable(system: System) -> None:
    y = system.initial_states(1, seed=5)[0].requires_grad_()
    for name in system.invariants(TIME, y):
        assert torch.autograd.gradcheck(lambda y, name=name: system.invariants(TIME, y)[name], (y,))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own, on the first forward mode
def test_function_transforms_agree_with_autograd(system: System) -> None:
    y = system.initial_states(7, seed=5)
    t = TIME.expand(7, 1)
    torch.testing.assert_close(torch.func.vmap(system)(t, y), system(t, y), rtol=1e-13, atol=1e-13)
    forward = torch.func.vmap(torch.func.jacfwd(system, 1))(t, y)
    backward = torch.func.vmap(torch.func.jacrev(system, 1))(t, y)
    torch.testing.assert_close(forward, backward, rtol=1e-11, atol=1e-11)


def test_single_precision_states_stay_single(system: System) -> None:
    y = system.initial_states(4)
    single = system(TIME.float(), y.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), system(TIME, y), rtol=1e-4, atol=1e-4)
    for value in system.invariants(TIME.float(), y.float()).values():
        assert value.dtype == torch.float32
    assert system.float()(TIME, y).dtype == torch.float64


def test_input_is_not_written_to(system: System) -> None:
    y = system.initial_states(4)
    before = y.clone()
    system(TIME, y)
    system.invariants(TIME, y)
    assert torch.equal(y, before)


def test_constants_are_parameters_that_free_switches(system: System) -> None:
    assert system.free == ()
    assert not any(value.requires_grad for value in system.parameters())
    assert set(system.state_dict()) == set(system.domains) == set(system.constants())
    name = next(iter(system.domains))
    system.set_free(name)
    assert system.free == (name,)
    assert [key for key, value in system.named_parameters() if value.requires_grad] == [name]
    system.set_free(())
    assert system.free == ()


def test_typo_in_free_is_refused_with_the_names(system: System) -> None:
    with pytest.raises(InputError, match=next(iter(system.domains))):
        system.set_free(("dampling",))


def test_velocity_dependence_is_declared_truly(system: System) -> None:
    if not isinstance(system, SecondOrder):
        return
    y = system.initial_states(3)
    q, v = y.chunk(2, dim=-1)
    same = torch.equal(system.acceleration(TIME, q, v), system.acceleration(TIME, q, v + 1))
    assert same != system.velocity_dependent


def test_free_constants_change_no_number(system: System) -> None:
    starts = system.initial_states(3)
    fixed = getattr(system, "exact", None)
    fixed = fixed([0.0, 1.0], starts) if fixed and not getattr(system, "velocity_dependent", False) else None
    system.set_free([name for name in system.domains if name != "damping"])
    assert torch.equal(system.initial_states(3), starts)
    assert not system.initial_states(3).requires_grad
    if fixed is not None:
        assert torch.equal(system.exact([0.0, 1.0], starts), fixed)


def test_constants_of_a_trajectory_broadcast() -> None:
    y = Pendulum().initial_states(3)
    each = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    together = torch.func.functional_call(Pendulum(), {"frequency": each}, (TIME, y))
    apart = torch.stack([Pendulum(float(value))(TIME, row) for value, row in zip(each, y, strict=True)])
    torch.testing.assert_close(together, apart)

    bodies = NBody([1.0, 0.5, 0.2])
    y = bodies.initial_states(2)
    masses = torch.tensor([[1.0, 0.5, 0.2], [2.0, 0.1, 0.0]], dtype=torch.float64)
    together = torch.func.functional_call(bodies, {"gm": masses}, (TIME, y))
    apart = torch.stack([NBody(gm)(TIME, row) for gm, row in zip(masses, y, strict=True)])
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Pendulum(frequency=-1.0),
        lambda: Pendulum(frequency=0.0),
        lambda: Pendulum(damping=-0.1),
        lambda: Pendulum(frequency=float("nan")),
        lambda: Pendulum(frequency="fast"),  # type: ignore[arg-type]
        lambda: Pendulum(free=("dampling",)),
        lambda: Kepler(gm=0.0),
        lambda: Kepler(dimensions=4),
        lambda: NBody([1.0, -1.0]),
        lambda: NBody([1.0]),
        lambda: NBody([[1.0, 2.0]]),  # type: ignore[list-item]
        lambda: NBody([1.0, 2.0], dimensions=1),
        lambda: ThreeBody((1.0, 1.0)),
        lambda: ThreeBody((1.0, 1.0, -1.0)),
        lambda: ThreeBody(gravitational_constant=-1.0),
        lambda: Duffing(damping=-1.0),
    ],
)
def test_unphysical_constants_are_refused(build) -> None:
    with pytest.raises(InputError):
        build()


def test_zero_mass_and_zero_friction_are_physical() -> None:
    assert Pendulum(damping=0.0, free=("damping",)).free == ("damping",)
    assert torch.isfinite(ThreeBody((1.0, 0.0, 0.0)).initial_states(2)).all()


def test_constants_are_shown() -> None:
    assert "damping=0.1 (free)" in repr(Pendulum(damping=0.1, free=("damping",)))
