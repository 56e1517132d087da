from __future__ import annotations

import pytest
import torch

from physnode.systems import Kepler, NBody, ThreeBody

TIME = torch.zeros(1, dtype=torch.float64)


def newton(gm: list[float], q: torch.Tensor, dimensions: int) -> torch.Tensor:
    """The textbook double loop for one state."""
    r = q.view(len(gm), dimensions)
    out = torch.zeros_like(r)
    for i in range(len(gm)):
        for j in range(len(gm)):
            if i != j:
                out[i] += gm[j] * (r[j] - r[i]) / (r[j] - r[i]).norm() ** 3
    return out.flatten()


def states(bodies: int, dimensions: int, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return 3 * torch.randn(n, 2 * bodies * dimensions, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("bodies", "dimensions"), [(2, 2), (3, 2), (3, 3), (7, 3)])
@pytest.mark.parametrize("n", [1, 5, 400])
def test_acceleration_is_newtons(bodies: int, dimensions: int, n: int) -> None:
    gm = [0.0, 2.0, 1.0, 0.5, 0.25, 3.0, 0.1][:bodies]
    system = NBody(gm, dimensions)
    y = states(bodies, dimensions, n)
    q, v = y.chunk(2, dim=-1)
    truth = torch.stack([newton(gm, row, dimensions) for row in q])
    # the sum cancels, so errors are measured against its largest term
    scale = truth.abs().max(-1, keepdim=True).values
    assert ((system.acceleration(TIME, q, v) - truth) / scale).abs().max() < 1e-13
    assert ((system.float().acceleration(TIME, q.float(), v.float()) - truth) / scale).abs().max() < 1e-5


def test_compiled_form_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    system = NBody([1.0, 0.5, 0.0, 2.0])
    y = states(4, 3, 300).requires_grad_()
    expected = system(TIME, y)
    (gradient,) = torch.autograd.grad(expected.sin().sum(), y)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = system(TIME, y)
    torch.testing.assert_close(compiled, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(compiled.sin().sum(), y)[0], gradient, rtol=1e-10, atol=1e-10)
    one = y.detach()[0].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda y: system(TIME, y), (one,))


def test_large_batches_have_second_derivatives() -> None:
    system = NBody([1.0, 0.5, 2.0], 2, free=("gm",))
    y = states(3, 2, 130).requires_grad_()
    weight = torch.linspace(-1, 1, 12, dtype=torch.float64)

    def curvature(many: bool) -> torch.Tensor:
        rows = [y] if many else list(y.unbind(0))
        values = torch.stack([(system(TIME, row) * weight).sum(-1).sin().sum() for row in rows]).sum()
        (slope,) = torch.autograd.grad(values, y, create_graph=True)
        return torch.cat([part.flatten() for part in torch.autograd.grad(slope.square().sum(), (y, system.gm))])

    torch.testing.assert_close(curvature(True), curvature(False), rtol=1e-9, atol=1e-9)


def test_two_bodies_move_as_their_relative_orbit() -> None:
    gm = [0.7, 0.6]
    y = NBody(gm, 2).initial_states(4)
    r, v = y.view(4, 2, 2, 2).unbind(1)
    relative = torch.cat((r[:, 1] - r[:, 0], v[:, 1] - v[:, 0]), dim=-1)
    rates = NBody(gm, 2)(TIME, y).view(4, 2, 2, 2)
    torch.testing.assert_close(Kepler(sum(gm))(TIME, relative), (rates[:, :, 1] - rates[:, :, 0]).flatten(1))


def test_a_rotated_and_moved_system_accelerates_alike() -> None:
    system = NBody([1.0, 2.0, 0.5, 0.1])
    generator = torch.Generator().manual_seed(2)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    q, v = states(4, 3, 6).chunk(2, dim=-1)
    moved = (q.view(6, 4, 3) @ turn.mT + torch.tensor([1.0, -2.0, 3.0])).flatten(1)
    turned = (system.acceleration(TIME, q, v).view(6, 4, 3) @ turn.mT).flatten(1)
    torch.testing.assert_close(system.acceleration(TIME, moved, v), turned, rtol=1e-11, atol=1e-11)


def test_bodies_can_be_renumbered() -> None:
    gm, order = torch.tensor([1.0, 2.0, 0.5, 0.1]), torch.tensor([2, 0, 3, 1])
    q = states(4, 3, 6)[:, :12]
    straight = NBody(gm).acceleration(TIME, q, q).view(6, 4, 3)[:, order]
    swapped = NBody(gm[order]).acceleration(TIME, q.view(6, 4, 3)[:, order].flatten(1), q).view(6, 4, 3)
    torch.testing.assert_close(straight, swapped, rtol=1e-12, atol=1e-12)


def test_reversed_velocities_bring_the_system_back(integrate) -> None:
    system = NBody([1.0, 0.3, 0.2], 2)
    y0 = system.initial_states(1)[0]
    sign = torch.tensor([1.0] * 6 + [-1.0] * 6, dtype=torch.float64)
    end = integrate(system, y0, [0.0, 5.0])[1]
    assert (integrate(system, end * sign, [0.0, 5.0])[1] * sign - y0).abs().max() < 1e-11


def test_bodies_without_weight_follow_and_do_not_pull() -> None:
    y = states(3, 3, 2)
    with_light = NBody([1.0, 2.0, 0.0])(TIME, y).view(2, 2, 3, 3)
    without = NBody([1.0, 2.0])(TIME, y.view(2, 2, 3, 3)[:, :, :2].flatten(1)).view(2, 2, 2, 3)
    torch.testing.assert_close(with_light[:, :, :2], without)
    assert with_light[:, 1, 2].abs().min() > 0
    assert torch.equal(NBody([0.0, 0.0])(TIME, torch.arange(12.0))[6:], torch.zeros(6))


def test_pleiades(case, integrate) -> None:
    entry = case("pleiades")

    def state(row: dict[str, list[str]]) -> torch.Tensor:
        rows = [[float(x) for x in row[key]] for key in ("x", "y", "vx", "vy")]
        x, y, vx, vy = torch.tensor(rows, dtype=torch.float64)
        return torch.stack((torch.stack((x, y), -1), torch.stack((vx, vy), -1))).flatten()

    system = NBody([float(m) for m in entry["parameters"]["masses"]], 2)
    y0 = state(entry["initial_conditions"])
    assert float(system.energy(TIME, y0)) == pytest.approx(float(entry["invariants"]["E"]), rel=1e-14)
    assert (integrate(system, y0, [0.0, 3.0])[1] - state(entry["reference"][0])).abs().max() < 1e-8


def test_outer_solar_system(case, integrate) -> None:
    entry = case("outer_solar_system_1186yr")

    def state(row: dict[str, list[list[str]]]) -> torch.Tensor:
        both = [[[float(x) for x in body] for body in row[key]] for key in ("position", "velocity")]
        return torch.tensor(both, dtype=torch.float64).flatten()

    g = float(entry["parameters"]["G"])
    system = NBody([g * float(m) for m in entry["parameters"]["masses"]])
    row = entry["reference"][0]
    y = integrate(system, state(entry["initial_conditions"]), [0.0, float(row["t"])])[1]
    truth = torch.tensor([[float(x) for x in body] for body in row["position"]], dtype=torch.float64)
    assert (y[:15].view(5, 3) - truth).abs().max() < 1e-7


@pytest.mark.parametrize("gm", [[1.0, 1.0, 1.0], [1.0, 1e-3, 3e-4, 5e-5, 4e-5], [0.0, 1.0, 0.0], [1.0] * 6, [0.0, 0.0]])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_starts_are_bound_apart_and_at_rest_as_a_whole(gm: list[float], dimensions: int) -> None:
    system = NBody(gm, dimensions)
    y = system.initial_states(50, seed=1)
    r, v = y.view(50, 2, len(gm), dimensions).unbind(1)
    weight = torch.tensor(gm, dtype=torch.float64).unsqueeze(-1)
    assert (weight * r).sum(1).abs().max() < 1e-12
    assert (weight * v).sum(1).abs().max() < 1e-13
    apart = (r.unsqueeze(1) - r.unsqueeze(2)).norm(dim=-1)[:, *torch.triu_indices(len(gm), len(gm), 1)]
    assert apart.min() > 0.15
    if sum(value > 0 for value in gm) > 1:
        assert (system.energy(TIME, y) < 0).all()


def test_starts_stay_in_their_hierarchy(integrate) -> None:
    system = NBody([1.0, 0.8, 0.6], 3)
    for y0 in system.initial_states(3):
        ys = integrate(system, y0, torch.linspace(0, 60, 121), rtol=1e-9)
        inner = (ys[:, :3] - ys[:, 3:6]).norm(dim=-1)
        assert 0.6 < inner.min() < inner.max() < 1.6


def test_centre_of_mass_of_a_moving_system(integrate) -> None:
    system = ThreeBody((1.0, 0.5, 0.25))
    y0 = system.initial_states(1)[0] + 0.3
    ts = torch.linspace(0, 3, 4, dtype=torch.float64)
    ys = integrate(system, y0, ts)
    values = system.invariants(ts.unsqueeze(-1), ys)
    torch.testing.assert_close(values["centre_of_mass_x"], torch.full((4,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(values["momentum_y"], torch.full((4,), 1.75 * 0.3, dtype=torch.float64))
