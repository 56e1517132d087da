"""The accuracy page measures what it says: its references are right, its problems are exact, and a missed limit fails it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import physnode as pn
from physnode.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def _from_the_root():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


def test_limits_are_held_and_shown():
    from benchmarks.accuracy.tables import Figure, Table

    table = Table("Title", "Text.", ("case", "error", "order"))
    table.add("good", Figure(1e-9, at_most=1e-8), Figure(4.05, at_least=3.8, at_most=4.2, form=".2f"))
    table.add("free", Figure(3.0), 12345)
    assert table.misses == []
    table.add("bad", Figure(2e-8, at_most=1e-8), Figure(3.5, at_least=3.8, at_most=4.2, form=".2f"))
    table.add("lost", Figure(float("nan"), at_most=1e-8), "–")
    assert len(table.misses) == 3
    assert "bad: error" in table.misses[0]
    assert "3.50" in table.misses[1]
    text = table.markdown()
    assert "| good | 1.0e-09 (≤ 1e-08) | 4.05 (3.8 to 4.2) |" in text
    assert "| free | 3.0e+00 | 12,345 |" in text
    assert "**2.0e-08 (limit ≤ 1e-08: missed)**" in text
    with pytest.raises(ValueError, match="2 cells under 3 columns"):
        table.add("short", 1)


def test_the_command_fails_when_a_limit_is_missed(tmp_path, capsys):
    from benchmarks.accuracy.__main__ import main
    from benchmarks.accuracy.tables import Figure, Table

    def made(value):
        table = Table("Numbers", "Text.", ("case", "error"))
        table.add("one", Figure(value, at_most=1.0))
        return table

    out = tmp_path / "page.md"
    threads = torch.get_num_threads()
    assert main(["--out", str(out)], {"good": lambda: made(0.5)}) == 0
    assert "| one | 5.0e-01 (≤ 1) |" in out.read_text()
    assert main(["--out", str(out)], {"good": lambda: made(0.5), "bad": lambda: made(2.0)}) == 1
    assert "limit missed: Numbers: one: error: 2.0e+00" in capsys.readouterr().err
    torch.set_num_threads(threads)
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])
    assert "no table is called nothing" in capsys.readouterr().err


def test_the_closed_forms_solve_their_fields():
    from benchmarks.accuracy.orders import NEAR_CIRCULAR, PROBLEMS

    for problem in (*PROBLEMS, NEAR_CIRCULAR):
        for t in (0.2, 1.1, 3.7):
            h = 1e-3
            slope = (
                problem.exact(t - 2 * h) - 8 * problem.exact(t - h) + 8 * problem.exact(t + h) - problem.exact(t + 2 * h)
            ) / (12 * h)
            y = problem.exact(t)
            torch.testing.assert_close(problem(torch.full_like(y[..., :1], t), y), slope, atol=1e-10, rtol=0)


CHEAP = sorted({"rk4", "tsit5", "dop853", "leapfrog", "kahan_li8", "gauss_radau15"} & set(pn.methods.available()))


@pytest.mark.parametrize("name", CHEAP)
def test_orders_are_measured(name):
    from benchmarks.accuracy.orders import orders

    table = orders([pn.methods.get(name)])
    assert table.misses == []
    assert table.rows[0][:2] == (name, str(pn.methods.get(name).order))


def test_a_wrong_order_is_found():
    from benchmarks.accuracy.orders import orders

    class Boastful(type(pn.methods.heun)):
        def __init__(self):
            super().__init__(pn.methods.heun.tableau)
            self.order, self.name = 3, "boastful"

    misses = orders([Boastful()]).misses
    assert any("boastful: measured" in miss for miss in misses)


def test_known_orbits_are_met():
    from benchmarks.accuracy.orbits import Rotating, known_orbits
    from benchmarks.accuracy.reference_orbits import ARENSTORF_MU, KNOWN

    table = known_orbits(["pendulum 0.5", "damped pendulum", "Duffing, driven", "Lotka-Volterra", "Pleiades"])
    assert table.misses == []
    assert len(table.rows) >= 9
    loop, start = Rotating(ARENSTORF_MU), torch.tensor(KNOWN["Arenstorf"].start, dtype=torch.float64)
    jacobi = loop.invariants(torch.zeros(1, dtype=torch.float64), start)["Jacobi constant"]
    assert abs(float(jacobi) - 2.856412520209858) < 1e-12


def test_energy_in_extended_precision_is_the_energy_of_the_system():
    from benchmarks.accuracy.runs import pairwise_energy

    system, y0 = pn.systems.ThreeBody.pythagorean()
    energy = system.invariants(torch.zeros(1, dtype=torch.float64), y0)["energy"]
    assert abs(float(pairwise_energy(y0, (3.0, 4.0, 5.0), 1.0, 2)) - float(energy)) < 1e-13
    assert abs(float(energy) + 769 / 60) < 1e-13


def test_the_numpy_force_is_the_force_of_the_system():
    from benchmarks.accuracy.runs import numpy_bodies

    gm = [1.0, 2.0, 0.5]
    system = pn.systems.NBody(gm, dimensions=2)
    y = system.initial_states(1, seed=4)[0]
    with torch.no_grad():
        expected = system(torch.zeros(1, dtype=torch.float64), y)
    torch.testing.assert_close(torch.from_numpy(numpy_bodies(gm, 2)(0.0, y.numpy())), expected, atol=1e-13, rtol=1e-13)


def test_scipy_and_physnode_agree_at_equal_tolerances():
    from benchmarks.accuracy.against_scipy import explicit_pairs

    table = explicit_pairs((1e-4, 1e-7))
    assert table.misses == []
    assert len(table.rows) == 10


def test_stiff_fields_are_those_given_to_scipy():
    from benchmarks.accuracy.against_scipy import Robertson, StiffVanDerPol, _robertson, _van_der_pol

    y = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    pair = StiffVanDerPol(torch.tensor([[7.0]], dtype=torch.float64)), _van_der_pol(7.0)
    rates = torch.tensor([[0.04, 3e7, 1e4]], dtype=torch.float64)
    for field, (plain, jacobian), state in (
        (*pair, y),
        (Robertson(rates), _robertson(0.04, 3e7, 1e4), torch.tensor([[0.9, 2e-5, 0.1]], dtype=torch.float64)),
    ):
        found = field(torch.zeros(1, 1, dtype=torch.float64), state)[0]
        torch.testing.assert_close(found, torch.from_numpy(plain(0.0, state[0].numpy())))
        slopes = torch.func.jacfwd(lambda x, field=field: field(torch.zeros(1, 1, dtype=torch.float64), x)[0])(state)[:, 0]
        torch.testing.assert_close(slopes, torch.from_numpy(jacobian(0.0, state[0].numpy())))


def test_single_precision_table_holds():
    from benchmarks.accuracy.batches import single_precision

    assert single_precision((1e-4,)).misses == []


def test_the_page_is_the_one_that_the_command_writes():
    text = (ROOT / "docs" / "accuracy.md").read_text()
    heads = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert "Written by `make accuracy`" in text
    assert heads[0] == "Orders"
    assert any("10,000 years" in head for head in heads), "written by a short run"


def test_a_method_that_no_problem_fits_is_a_miss(monkeypatch):
    from benchmarks.accuracy import orders as module

    class Picky(type(pn.methods.heun)):
        def check(self, f):
            raise InputError("nothing is good enough")

    assert module.problem_for(Picky(pn.methods.heun.tableau)) is None
    assert module.orders([Picky(pn.methods.heun.tableau)]).misses
