"""Every table has the order it declares, no more and no less, and a wrong digit is refused."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from scipy.integrate import RK23, RK45, solve_ivp

from physnode.engine.coefficients.order_conditions import density, order, rooted_trees, word_coefficients
from physnode.engine.tableaus import BUTCHER, SPLITTING, ButcherTableau, ContinuousExtension, SplittingTableau
from physnode.errors import InputError

butcher = pytest.mark.parametrize("table", BUTCHER.values(), ids=list(BUTCHER))
splitting = pytest.mark.parametrize("table", SPLITTING.values(), ids=list(SPLITTING))
with_estimate = pytest.mark.parametrize("table", [t for t in BUTCHER.values() if t.error], ids=lambda t: t.name)


# A nonlinear, non-autonomous field whose solution is known, with 30 digits: the error of a step of dop853 is below 1e-15
# where its order shows.
mp = mpmath.MPContext()
mp.dps = 30
START = 1.5


def exact(t):
    return np.array([mp.sin(t), mp.exp(-t / 2)])


def field(t, x):
    def coupling(x):
        return np.array([x[0] * x[1] + x[1] ** 2, mp.sin(2 * x[0]) - x[0] * x[1]])

    return (coupling(x) - coupling(exact(t))) * (1 + t / 2) + np.array([mp.cos(t), -mp.exp(-t / 2) / 2])


def field64(t, x):
    return field(float(t), x).astype(float)


def norm(x):
    return mp.sqrt(sum(x**2))


def step(table, f, t, x, h):
    """The end of one step and the stages: own stages, end derivative, extra stages."""
    k = []
    for c, row in zip(table.c, table.a, strict=True):
        k.append(f(t + c * h, x + h * sum((w * v for w, v in zip(row, k, strict=True)), 0 * x)))
    end = x + h * sum(w * v for w, v in zip(table.b, k, strict=True))
    if table.reads_end:
        k.append(f(t + h, end))
    for c, row in zip(table.extension.c, table.extension.a, strict=True):
        k.append(f(t + c * h, x + h * sum(w * v for w, v in zip(row, k, strict=True))))
    return end, k


def weighted(row, k):
    return sum(w * v for w, v in zip(row, k, strict=False))


def slope(error, power):
    """The observed power of h in error(h), at an h where the coefficients' own rounding does not show."""
    h = 0.005 if power < 5 else 0.05 if power < 8 else 0.2
    return math.log2(error(h) / error(h / 2))


@butcher
def test_one_step_has_an_error_of_its_order_plus_one(table):
    def error(h):
        return norm(step(table, field, START, exact(START), h)[0] - exact(START + h))

    assert slope(error, table.order + 1) == pytest.approx(table.order + 1, abs=0.3)


@with_estimate
def test_the_error_estimate_has_its_declared_order(table):
    def estimate(h):
        _, k = step(table, field, START, exact(START), h)
        norms = [norm(h * weighted(row, k)) for row in table.error]
        return norms[0] if len(norms) == 1 else norms[0] ** 2 / mp.hypot(norms[0], 0.1 * norms[1])

    assert slope(estimate, table.error_order + 1) == pytest.approx(table.error_order + 1, abs=0.3)


@with_estimate
def test_an_error_row_is_the_difference_to_a_method_of_lower_order(table):
    def error(h):
        end, k = step(table, field, START, exact(START), h)
        return norm(end - h * weighted(table.error[0], k) - exact(START + h))

    q = {1: table.error_order, 2: 5}[len(table.error)]
    assert slope(error, q + 1) == pytest.approx(q + 1, abs=0.3)


@butcher
@pytest.mark.parametrize("theta", [0.37, 0.81])
def test_the_extension_has_its_declared_order_inside_the_step(table, theta):
    def error(h):
        _, k = step(table, field, START, exact(START), h)
        x = exact(START) + h * weighted(table.extension.at(theta), k)
        return norm(x - exact(START + theta * h))

    q = table.extension.order
    assert slope(error, q + 1) == pytest.approx(q + 1, abs=0.3)


@butcher
def test_the_extension_meets_both_ends_of_the_step(table):
    end, k = step(table, field, START, exact(START), 0.2)
    assert norm(weighted(table.extension.at(0.0), k)) == 0
    assert norm(exact(START) + 0.2 * weighted(table.extension.at(1.0), k) - end) < 1e-14


@pytest.mark.parametrize("name", ["bosh3", "dopri5", "dop853"])
def test_extensions_of_hermite_form_are_smooth_across_steps(name):
    end, k = step(BUTCHER[name], field, START, exact(START), 0.2)
    d = 1e-6
    at = [0.2 * weighted(BUTCHER[name].extension.at(theta), k) for theta in (d, 1 - d, 1.0)]
    assert norm(at[0] / (0.2 * d) - k[0]) < 1e-5
    assert norm((at[2] - at[1]) / (0.2 * d) - field(START + 0.2, end)) < 1e-5


@pytest.mark.parametrize(("name", "other"), [("bosh3", RK23), ("dopri5", RK45)])
def test_tables_agree_with_scipy(name, other):
    table = BUTCHER[name]
    np.testing.assert_allclose(table.b, other.B, rtol=1e-15)
    np.testing.assert_allclose(np.abs(table.error[0]), np.abs(other.E), rtol=1e-14)
    np.testing.assert_allclose(table.extension.weights, other.P, rtol=1e-14, atol=1e-14)


def test_dop853_agrees_with_scipy_inside_a_step():
    h, x0 = 0.5, exact(0.25).astype(float)
    sol = solve_ivp(field64, (0.25, 0.25 + h), x0, "DOP853", first_step=h, rtol=1.0, atol=1.0, dense_output=True)
    assert len(sol.t) == 2
    end, k = step(BUTCHER["dop853"], field64, 0.25, x0, h)
    np.testing.assert_allclose(end, sol.y[:, -1], rtol=1e-15)
    for theta in np.linspace(0, 1, 9):
        x = x0 + h * weighted(BUTCHER["dop853"].extension.at(theta), k)
        np.testing.assert_allclose(x, sol.sol(0.25 + theta * h), rtol=0, atol=1e-13)


def test_which_methods_read_the_derivative_at_the_end_of_the_step():
    assert {name: (t.stages, t.reads_end) for name, t in BUTCHER.items()} == {
        "euler": (1, False),
        "midpoint": (2, False),
        "heun": (2, False),
        "rk4": (4, False),
        "bosh3": (3, True),
        "dopri5": (6, True),
        "tsit5": (6, True),
        "dop853": (12, True),
        "dopri8": (13, True),
    }


# What a table may not say.


def nudged(rows, i, j, by=1e-10):
    row = list(rows[i])
    row[j] += by
    return (*rows[:i], tuple(row), *rows[i + 1 :])


@butcher
def test_declaring_a_higher_order_is_refused(table):
    with pytest.raises(InputError, match=rf"{table.name}.*order {table.order + 1}"):
        replace(table, order=table.order + 1)
    extension = replace(table.extension, order=table.extension.order + 1)
    with pytest.raises(InputError, match=rf"{table.name}.*extension.*order {extension.order}"):
        replace(table, extension=extension)
    with pytest.raises(InputError, match=rf"{table.name}.*error_order {table.error_order + 1}"):
        replace(table, error_order=table.error_order + 1)


@butcher
def test_a_wrong_digit_is_refused_wherever_it_is(table):
    name, extension = table.name, table.extension
    for i in range(table.stages):
        with pytest.raises(InputError, match=name):
            replace(table, b=nudged((table.b,), 0, i)[0])
        with pytest.raises(InputError, match=name):
            replace(table, c=nudged((table.c,), 0, i)[0])
        # Two entries against each other, so that the row still sums to c.
        if i > 1 and table.order > 2:
            by = 1e-8 if name == "dopri8" else 1e-10  # what its third stage does is scaled down by those after it
            with pytest.raises(InputError, match=rf"{name}.*order"):
                replace(table, a=nudged(nudged(table.a, i, 0, by), i, i - 1, -by))
    for i, row in enumerate(table.error):
        for j in range(len(row)):
            with pytest.raises(InputError, match=rf"{name}.*error row"):
                replace(table, error=nudged(table.error, i, j))
    for i, row in enumerate(extension.weights):
        for j in range(len(row)):
            with pytest.raises(InputError, match=rf"{name}.*extension weight {i + 1}"):
                replace(table, extension=replace(extension, weights=nudged(extension.weights, i, j)))
        if len(row) > 1:
            weights = nudged(nudged(extension.weights, i, 0), i, 1, -1e-10)
            with pytest.raises(InputError, match=rf"{name}.*extension that misses"):
                replace(table, extension=replace(extension, weights=weights))
    for i, row in enumerate(extension.a):
        for j in range(len(row)):
            with pytest.raises(InputError, match=rf"{name}.*c ="):
                replace(table, extension=replace(extension, a=nudged(extension.a, i, j)))


heun, dopri5, dop853 = BUTCHER["heun"], BUTCHER["dopri5"], BUTCHER["dop853"]


@pytest.mark.parametrize(
    ("table", "changes", "found"),
    [
        (heun, {"order": 0}, "below 1"),
        (heun, {"c": (0.0, 0.5, 1.0)}, "3 nodes"),
        (heun, {"a": ((), (0.5, 0.5))}, r"entries \[0, 2\]|\[0, 2\] entries"),
        (heun, {"b": (0.5, math.nan)}, "order 1"),
        (heun, {"error": ((1.0, -1.0, 0.0, 0.0),)}, r"\[4\] entries"),
        (heun, {"error": ((0.0, 0.0),)}, "all zero"),
        (heun, {"error": ((-0.5, 0.6),)}, "sums to 0.09"),
        (heun, {"error": ((-0.5, 0.5),) * 3}, r"\[2, 2, 2\] entries"),
        (heun, {"error_order": 0}, "estimate of order 1"),
        (heun, {"error": ()}, "estimate of order 0"),
        (heun, {"extension": ContinuousExtension(order=1, weights=((1.0,),))}, "1 rows of extension weights"),
        (heun, {"extension": ContinuousExtension(order=1, weights=((0.5,), (0.5, 0.0)))}, "different degree"),
        (heun, {"extension": replace(heun.extension, weights=((0.5,), (0.5,)))}, "degree 1"),
        (heun, {"extension": replace(heun.extension, order=0)}, "below 1"),
        (dop853, {"extension": replace(dop853.extension, c=(0.1, 0.2))}, "extra stages"),
        (dop853, {"extension": replace(dop853.extension, a=dop853.extension.a[1:])}, "extra stages"),
        (dop853, {"extension": replace(dop853.extension, weights=dop853.extension.weights[:12])}, "12 rows"),
        (dop853, {"error": dop853.error[::-1]}, r"orders \[3, 5\]"),
        (dopri5, {"a": (*dopri5.a, dopri5.b), "b": (*dopri5.b, 0.0), "c": (*dopri5.c, 1.0)}, "end derivative"),
    ],
)
def test_a_misshapen_table_is_refused_by_name(table, changes, found):
    with pytest.raises(InputError, match=rf"{table.name}.*({found}).*needed"):
        replace(table, **changes)


# Splittings.


def kinetic_rate(p):
    return p + p**3


def force(q):
    return -np.sin(q) + 0.3 * np.cos(2 * q)


def energy(q, p):
    return p**2 / 2 + p**4 / 4 - np.cos(q) - 0.15 * np.sin(2 * q)


def split_step(table, q, p, h):
    for kind, fraction in table.moves:
        if kind == "kick":
            p = p + fraction * h * force(q)
        else:
            q = q + fraction * h * kinetic_rate(p)
    return q, p


@splitting
def test_a_splitting_converges_with_its_order_for_any_kinetic_energy(table):
    def rhs(_, y):
        return [kinetic_rate(y[1]), force(y[0])]

    q1, p1 = solve_ivp(rhs, (0, 2), [0.4, 0.7], "DOP853", rtol=1e-13, atol=1e-14).y[:, -1]

    def error(n):
        q, p = 0.4, 0.7
        for _ in range(n):
            q, p = split_step(table, q, p, 2 / n)
        return math.hypot(q - q1, p - p1)

    n = {2: 100, 4: 100, 6: 32, 8: 10}[table.order]
    assert math.log2(error(n) / error(2 * n)) == pytest.approx(table.order, abs=0.4)


@splitting
def test_a_splitting_runs_back_and_keeps_the_energy_without_drift(table):
    q, p = 0.4, 0.7
    back = split_step(table, *split_step(table, q, p, 0.2), -0.2)
    assert back == pytest.approx((q, p), abs=1e-14)
    errors = []
    for _ in range(4000):
        q, p = split_step(table, q, p, 0.1)
        errors.append(abs(energy(q, p) - energy(0.4, 0.7)))
    assert max(errors[2000:]) < 1.05 * max(errors[:2000]) + 1e-13
    assert max(errors) < {2: 3e-3, 4: 5e-5, 6: 2e-7, 8: 1e-11}[table.order]


@splitting
def test_a_wrong_digit_in_a_splitting_is_refused(table):
    with pytest.raises(InputError, match=rf"{table.name}.*order {table.order + 2}"):
        replace(table, order=table.order + 2)
    for name in ("kicks", "drifts"):
        fractions = np.array(getattr(table, name))
        for i in range((len(fractions) + 1) // 2):
            d = np.zeros(len(fractions))
            d[[i, -1 - i]] += 1e-10
            with pytest.raises(InputError, match=rf"{table.name}.*{name} that sum"):
                replace(table, **{name: tuple(fractions + d)})
            if i and table.order > 2:
                d[[0, -1]] -= d.sum() / 2
                with pytest.raises(InputError, match=rf"{table.name}.*word"):
                    replace(table, **{name: tuple(fractions + d)})


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"kicks": (1.0,)}, "1 kicks and 1 drifts"),
        ({"kicks": (1.0,), "drifts": ()}, "0 drifts"),
        ({"kicks": (), "drifts": (1.0,)}, "0 kicks"),
        ({"kicks": (0.25, 0.75)}, "backwards"),
        ({"kicks": (math.nan, math.nan)}, "backwards|sum"),
        ({"order": 3}, "order 3"),
        ({"order": 0}, "order 0"),
    ],
)
def test_a_misshapen_splitting_is_refused_by_name(changes, found):
    with pytest.raises(InputError, match=rf"leapfrog.*({found}).*needed"):
        replace(SPLITTING["leapfrog"], **changes)


def test_a_composition_joins_neighbouring_drifts():
    table = SplittingTableau.composition("half steps", 2, (0.25, 0.5), "a test")
    assert table.kicks == (0.25, 0.5, 0.25)
    assert table.drifts == (0.125, 0.375, 0.375, 0.125)
    assert table.moves[:3] == (("drift", 0.125), ("kick", 0.25), ("drift", 0.375))


# The order conditions themselves.


def symmetry(tree):
    return math.prod(math.factorial(m) * symmetry(t) ** m for t, m in Counter(tree).items())


def test_rooted_trees_are_complete_and_weighted_right():
    assert [len(set(rooted_trees(n))) for n in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]
    for n in range(1, 9):
        trees = rooted_trees(n)
        assert all(order(tree) == n for tree in trees)
        # The increasing labellings n! / (sigma gamma) of all trees with n nodes number (n - 1)!.
        labellings = [math.factorial(n) // (symmetry(tree) * density(tree)) for tree in trees]
        assert sum(labellings) == math.factorial(n - 1)


def test_words_of_a_product_of_exponentials():
    series = word_coefficients([("A", 2.0), ("B", 3.0), ("A", 1.0)], 3)
    assert series[""] == 1.0
    assert series["A"] == 3.0
    assert series["AB"] == 6.0
    assert series["BA"] == 3.0
    assert series["AA"] == 4.5
    assert series["ABA"] == 6.0
    assert series["BAB"] == 0.0
    assert series["ABB"] == 9.0


def test_a_table_is_built_from_any_published_method():
    ralston = ButcherTableau(
        name="ralston",
        order=2,
        c=(0.0, 2 / 3),
        a=((), (2 / 3,)),
        b=(1 / 4, 3 / 4),
        extension=ContinuousExtension(order=2, weights=((1.0, -3 / 4), (0.0, 3 / 4))),
        reference="Ralston, Math. Comp. 16 (1962) 431",
    )
    assert (ralston.stages, ralston.reads_end) == (2, False)
