"""Learned terms: they start at nothing, keep their scales, and keep the structure they declare."""

from __future__ import annotations

import copy

import pytest
import torch

from physnode.errors import InputError
from physnode.fields import SecondOrder, SecondOrderSum, Sum
from physnode.nn import MLP, Residual
from physnode.systems import Kepler, Pendulum

TIME = torch.tensor([0.3], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(field: Residual, seed: int = 1) -> Residual:
    """The same with a last layer that is not zero."""
    for value in field.network.layers[-1].parameters():
        torch.nn.init.normal_(value, generator=generator(seed))
    return field


@pytest.mark.parametrize("activation", ["tanh", "softplus", "silu", "gelu", "sin"])
def test_network_starts_at_zero_and_learns_from_there(activation: str) -> None:
    network = MLP(3, 2, 8, 2, activation=activation, generator=generator())
    x = torch.randn(5, 3, dtype=torch.float64, generator=generator(1))
    assert torch.equal(network(x), torch.zeros(5, 2, dtype=torch.float64))
    (network(x) - 1).square().sum().backward()
    assert (network.layers[-1].weight.grad != 0).all()


@pytest.mark.parametrize("activation", ["tanh", "softplus", "silu", "gelu", "sin"])
def test_network_is_smooth(activation: str) -> None:
    network = MLP(3, 2, 4, 2, activation=activation, zero_output=False, generator=generator())
    x = torch.randn(2, 3, dtype=torch.float64, generator=generator(1)).requires_grad_()
    assert torch.autograd.gradcheck(network, (x,))
    assert torch.autograd.gradgradcheck(network, (x,))


def test_depth_zero_is_linear() -> None:
    network = MLP(3, 2, 8, 0, zero_output=False, generator=generator())
    a, b = torch.randn(2, 3, dtype=torch.float64, generator=generator(1))
    torch.testing.assert_close(network(a) + network(b) - network(a * 0), network(a + b))
    assert len(network.layers) == 1


def test_a_generator_of_its_own_decides_the_weights() -> None:
    state = torch.get_rng_state()
    first, again, other = (MLP(2, 2, 8, 2, zero_output=False, generator=generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    x = torch.ones(2, dtype=torch.float64)
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))


def test_scales_are_kept_with_the_weights() -> None:
    network = MLP(2, 1, 8, 1, zero_output=False, generator=generator())
    x = torch.randn(4, 2, dtype=torch.float64, generator=generator(1))
    before = network(x)
    network.set_scales(input_mean=[1.0, 2.0], input_scale=[10.0, 0.1], output_scale=3.0)
    seen = x * torch.tensor([10.0, 0.1]) + torch.tensor([1.0, 2.0])
    torch.testing.assert_close(network(seen), 3 * before)
    other = MLP(2, 1, 8, 1)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(seen), network(seen))
    assert {"input_mean", "input_scale", "output_scale"} <= set(network.state_dict())
    assert len(list(network.parameters())) == 4


@pytest.mark.parametrize(
    "scales",
    [
        {"input_scale": 0.0},
        {"input_scale": [1.0, -1.0]},
        {"output_scale": float("nan")},
        {"input_mean": [1.0, 2.0, 3.0]},
        {"input_mean": float("inf")},
    ],
)
def test_scales_that_cannot_be_are_refused(scales: dict[str, object]) -> None:
    network = MLP(2, 2, 8, 1)
    with pytest.raises(InputError):
        network.set_scales(**scales)
    assert torch.equal(network.input_scale, torch.ones(2, dtype=torch.float64))


def test_network_refuses_impossible_sizes() -> None:
    for sizes in ((0, 1, 8, 1), (1, 0, 8, 1), (1, 1, 0, 1), (1, 1, 8, -1)):
        with pytest.raises(InputError):
            MLP(*sizes)
    with pytest.raises(InputError, match="tanh"):
        MLP(1, 1, 8, 1, activation="than")


@pytest.mark.parametrize("acts_on", ["acceleration", "state"])
@pytest.mark.parametrize("inputs", [("q", "v"), ("q",), ("v",), ("t",), ("q", "t"), ("q", "v", "t"), "q"])
def test_learned_term_starts_at_nothing(acts_on: str, inputs: tuple[str, ...]) -> None:
    term = Residual(4, 8, 2, acts_on=acts_on, inputs=inputs, generator=generator())
    kepler = Kepler()
    y = kepler.initial_states(6)
    t = TIME.expand(6, 1)
    assert torch.equal((kepler + term)(t, y), kepler(t, y))
    v = y[:, 2:]
    expected = torch.cat((v, torch.zeros_like(v)), dim=-1) if acts_on == "acceleration" else torch.zeros_like(y)
    assert torch.equal(term(t, y), expected)


@pytest.mark.parametrize("inputs", [("q", "v"), ("q",), ("v",), ("t",), ("q", "v", "t")])
def test_learned_acceleration_sees_what_it_says(inputs: tuple[str, ...]) -> None:
    term = trained(Residual(4, 8, 2, inputs=inputs, generator=generator()))
    assert isinstance(term, SecondOrder)
    assert term.velocity_dependent == ("v" in inputs)
    given = {
        name: torch.randn(3, width, dtype=torch.float64, generator=generator(2))
        for name, width in (("t", 1), ("q", 2), ("v", 2))
    }
    base = term.acceleration(**given)
    assert base.shape == (3, 2)
    for name in given:
        changed = term.acceleration(**{**given, name: given[name] + 0.5})
        assert torch.equal(changed, base) != (name in inputs), name


def test_structure_of_sums() -> None:
    free_of_velocity = Pendulum() + Residual(2, 8, 1, inputs=("q",))
    assert isinstance(free_of_velocity, SecondOrderSum)
    assert not free_of_velocity.velocity_dependent
    assert (Pendulum() + Residual(2, 8, 1)).velocity_dependent  # type: ignore[attr-defined]
    term = Residual(2, 8, 1, acts_on="state")
    assert not isinstance(term, SecondOrder)
    assert type(Pendulum() + term) is Sum


def test_odd_states_have_no_halves() -> None:
    y = torch.randn(5, 3, dtype=torch.float64, generator=generator())
    assert Residual(3, 8, 1, acts_on="state")(TIME, y).shape == (5, 3)
    assert Residual(3, 8, 1, acts_on="state", inputs=("q", "v", "t"))(TIME, y).shape == (5, 3)
    for arguments in ({}, {"acts_on": "state", "inputs": ("q",)}):
        with pytest.raises(InputError, match="halves"):
            Residual(3, 8, 1, **arguments)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(InputError, match="acceleration"):
        Residual(2, 8, 1, acts_on="velocity")  # type: ignore[arg-type]
    for inputs in ((), ("x",), ("q", "p")):
        with pytest.raises(InputError, match="inputs"):
            Residual(2, 8, 1, inputs=inputs)


@pytest.mark.parametrize("acts_on", ["acceleration", "state"])
def test_a_batch_equals_its_rows(acts_on: str) -> None:
    term = trained(Residual(4, 8, 2, acts_on=acts_on, inputs=("q", "v", "t"), generator=generator()))
    y = torch.randn(6, 4, dtype=torch.float64, generator=generator(2))
    t = torch.linspace(0, 1, 6, dtype=torch.float64).unsqueeze(-1)
    rows = torch.stack([term(t[i], y[i]) for i in range(6)])
    torch.testing.assert_close(term(t, y), rows, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.func.vmap(term)(t, y), rows, rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradcheck(term, (t[0].requires_grad_(), y[0].requires_grad_()))
    assert torch.autograd.gradgradcheck(term, (t[0].requires_grad_(), y[0].requires_grad_()))


@pytest.mark.parametrize("inputs", [("q", "v"), ("v", "t"), ("q", "v", "t")])
def test_calibration_standardises_what_the_network_sees(inputs: tuple[str, ...]) -> None:
    y = torch.randn(2000, 4, dtype=torch.float64, generator=generator()) * torch.tensor([1e8, 1e-3, 1.0, 5.0]) + 7.0
    t = torch.linspace(100, 200, 2000, dtype=torch.float64).unsqueeze(-1)
    term = trained(Residual(4, 8, 2, inputs=inputs, generator=generator()))
    term.calibrate(y, rate_scale=[2.0, 1e-6], t=t)
    network = term.network
    seen = (term.features(t, y) - network.input_mean) / network.input_scale
    torch.testing.assert_close(seen.mean(0), torch.zeros(seen.shape[1], dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(seen.shape[1], dtype=torch.float64))
    ratio = term.acceleration(t, *y.chunk(2, dim=-1)).std(0)
    assert 1e4 < ratio[0] / ratio[1] < 1e8


def test_calibration_survives_an_input_that_does_not_vary() -> None:
    y = torch.randn(50, 2, dtype=torch.float64, generator=generator())
    y[:, 1] = 0.1
    term = trained(Residual(2, 8, 1, generator=generator()))
    term.calibrate(y)
    assert torch.equal(term.network.input_scale[1], torch.tensor(1.0, dtype=torch.float64))
    assert torch.isfinite(term(TIME, y)).all()
    assert torch.equal(term.network.output_scale, torch.ones(1, dtype=torch.float64))
    shaped = copy.deepcopy(term)
    shaped.calibrate(y.view(5, 10, 2))
    torch.testing.assert_close(shaped.network.input_mean, term.network.input_mean)


def test_calibration_refuses_what_it_cannot_use() -> None:
    term = Residual(2, 8, 1)
    for y in (torch.zeros(5, 3), torch.zeros(2), torch.zeros(0, 2), torch.full((5, 2), float("nan"))):
        with pytest.raises(InputError):
            term.calibrate(y)
    with pytest.raises(InputError):
        term.calibrate(torch.rand(5, 2), rate_scale=0.0)
    with pytest.raises(InputError, match="time"):
        Residual(2, 8, 1, inputs=("q", "t")).calibrate(torch.rand(5, 2))


def test_precision_of_state_and_network_may_differ() -> None:
    term = trained(Residual(2, 8, 2, inputs=("q", "v", "t"), generator=generator()))
    y = torch.randn(4, 2, dtype=torch.float64, generator=generator(2))
    exact = term(TIME, y)
    mixed = term(TIME.float(), y.float())
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.double(), exact, rtol=1e-5, atol=1e-5)
    single = term.float()
    assert single(TIME, y).dtype == torch.float64
    torch.testing.assert_close(single(TIME.float(), y.float()).double(), exact, rtol=1e-4, atol=1e-4)
    assert Residual(2, 8, 2, dtype=torch.float32).network.layers[0].weight.dtype == torch.float32


@pytest.mark.parametrize("acts_on", ["acceleration", "state"])
def test_copies_and_saved_weights_are_the_same_field(acts_on: str) -> None:
    term = trained(Residual(2, 8, 2, acts_on=acts_on, generator=generator()))
    term.calibrate(torch.rand(20, 2, dtype=torch.float64, generator=generator(5)), 3.0)
    y = torch.randn(4, 2, dtype=torch.float64, generator=generator(2))
    twin = copy.deepcopy(term)
    assert isinstance(twin, Residual)
    assert torch.equal(twin(TIME, y), term(TIME, y))
    other = Residual(2, 8, 2, acts_on=acts_on)
    other.load_state_dict(term.state_dict())
    assert torch.equal(other(TIME, y), term(TIME, y))
    assert not torch.equal(trained(twin, seed=9)(TIME, y), term(TIME, y))


def test_it_learns_the_friction_that_a_pendulum_lacks() -> None:
    truth = Pendulum(1.0, 0.3)
    model = Pendulum() + Residual(2, 16, 1, generator=generator())
    y = truth.initial_states(256)
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (model(TIME, y) - truth(TIME, y)).square().mean()
        loss.backward()
        optimizer.step()
    missing = (Pendulum()(TIME, y) - truth(TIME, y)).square().mean()
    assert loss.detach() < 1e-3 * missing
