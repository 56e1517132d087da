"""The table of an explicit Runge-Kutta method: its shape, its convention for the end of a step, its checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import fsum
from typing import NoReturn

from physnode.engine.coefficients.order_conditions import (
    Tree,
    density,
    elementary_weights,
    misses,
    order,
    rooted_trees,
)
from physnode.errors import InputError

__all__ = ["ButcherTableau", "ContinuousExtension"]


@dataclass(frozen=True, kw_only=True)
class ContinuousExtension:
    """Dense output x(t + theta h) = x + h sum_i b_i(theta) k_i with b_i(theta) = sum_k weights[i][k] theta^(k+1).

    Attributes:
        order: the uniform order q: the local error is O(h^(q+1)) at every theta in [0, 1].
        weights: one row for each own stage, then one for the end derivative where the extension reads it, then one for
            each extra stage; all rows have the same number of entries, the degree in theta.
        a: the extra stages, evaluated after the end derivative; each row runs over all the stages before it, the end
            derivative among them.
        c: the nodes of the extra stages.
    """

    order: int
    weights: tuple[tuple[float, ...], ...]
    a: tuple[tuple[float, ...], ...] = ()
    c: tuple[float, ...] = ()

    def at(self, theta: float) -> tuple[float, ...]:
        """The weights b_i(theta), one for each row of ``weights``."""
        return tuple(fsum(w * theta ** (k + 1) for k, w in enumerate(row)) for row in self.weights)


@dataclass(frozen=True, kw_only=True)
class ButcherTableau:
    """An explicit Runge-Kutta method: x' = x + h sum_i b_i k_i with k_i = f(t + c_i h, x + h sum_j a_ij k_j).

    The s own stages never include f at the step's end. That **end derivative** f(t + h, x') is a column of its own,
    after the own stages, for error estimates and extensions that read it; the step that follows takes it as its first
    stage. Tables are checked against all order conditions of their step, error estimate and extension.

    Attributes:
        name: how a user asks for the method.
        order: p, the order of x'.
        c: the s nodes; the first is 0.
        a: s rows, strictly lower triangular: row i has i entries.
        b: the s weights.
        error: rows d = b - b_hat of s entries, or s + 1 where the end derivative is read; none for a method without an
            estimate. One row estimates the local error as h sum_i d_i k_i. Two rows whose estimates have the norms
            e and e' are combined to e^2 / sqrt(e^2 + 0.01 e'^2): Hairer, Norsett & Wanner, section II.10.
        error_order: q, where the estimate is O(h^(q+1)), so that a controller scales the step by err^(-1/(q+1)). With
            two rows of orders q1 and q2 it is 2 q1 - q2. 0 where there is no estimate.
        extension: the dense output.
        reference: where the coefficients were published.

    Raises:
        InputError: at construction, naming the table, what was found and what was needed.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[tuple[float, ...], ...] = ()
    error_order: int = 0
    extension: ContinuousExtension
    reference: str
    stages: int = field(init=False)
    """s, the number of own stages."""
    reads_end: bool = field(init=False)
    """Whether an error row or the extension reads the end derivative, which is then the next step's first stage."""

    def __post_init__(self) -> None:
        s, rows = len(self.b), len(self.extension.weights)
        object.__setattr__(self, "stages", s)
        object.__setattr__(self, "reads_end", rows > s or any(len(row) > s for row in self.error))
        self._check_shapes()
        highest = max(self.order, self.extension.order)
        phi = elementary_weights((*self.a, self.b, *self.extension.a), highest)
        for tree in (tree for nodes in range(1, self.order + 1) for tree in rooted_trees(nodes)):
            if misses(self.b, phi[tree], 1 / density(tree)):
                self._refuse(f"b misses the condition of order {order(tree)} on the tree {tree}", f"order {self.order}")
        self._check_error(phi)
        self._check_extension(phi)

    def _check_shapes(self) -> None:
        s, extension = self.stages, self.extension
        if self.order < 1 or s < 1 or extension.order < 1:
            self._refuse("an order or a number of stages below 1", "at least 1")
        if len(self.c) != s or [len(row) for row in self.a] != list(range(s)):
            self._refuse(
                f"{len(self.c)} nodes, rows of a with {[len(row) for row in self.a]} entries",
                f"{s} nodes, rows 0 to {s - 1}",
            )
        if any(len(row) not in (s, s + 1) for row in self.error) or len(self.error) > 2:
            self._refuse(f"error rows with {[len(row) for row in self.error]} entries", f"at most two rows of {s} or {s + 1}")
        extra, rows = len(extension.a), len(extension.weights)
        if len(extension.c) != extra or [len(row) for row in extension.a] != [s + 1 + i for i in range(extra)]:
            self._refuse("extra stages of other lengths", f"one node each and rows of {s + 1}, {s + 2}, ... entries")
        if rows != s + 1 + extra and (extra or rows != s):
            self._refuse(f"{rows} rows of extension weights", f"{s + 1 + extra}{'' if extra else f' or {s}'}")
        if len({len(row) for row in extension.weights}) != 1:
            self._refuse("rows of extension weights of different degree", "one degree for all")
        if len(extension.weights[0]) < extension.order:
            self._refuse(f"an extension of degree {len(extension.weights[0])}", f"order {extension.order}, so at least that")
        if s > 1 and self.c[-1] == 1 and self.b == (*self.a[-1], 0.0):
            self._refuse("a last stage that is the end derivative", "the own stages without it")
        for i, (node, row) in enumerate(zip((*self.c, *extension.c), (*self.a, *extension.a), strict=True), start=1):
            if misses(row, [1.0] * len(row), node):
                self._refuse(f"c = {node} beside a row of a that sums to {fsum(row)} (stage {i})", "c_i = sum_j a_ij")

    def _check_error(self, phi: dict[Tree, tuple[float, ...]]) -> None:
        orders = []
        for row in self.error:
            seen = [order(tree) for tree, weights in phi.items() if misses(row, weights, 0.0)]
            if 1 in seen or not any(row):
                self._refuse(f"an error row that sums to {fsum(row)}, or is all zero", "a row b - b_hat, which sums to 0")
            orders.append(min(seen, default=self.order + 1) - 1)
        found = 0 if not orders else orders[0] if len(orders) == 1 else 2 * orders[0] - orders[1]
        if found != self.error_order:
            self._refuse(f"error rows of orders {orders}, an estimate of order {found}", f"error_order {self.error_order}")

    def _check_extension(self, phi: dict[Tree, tuple[float, ...]]) -> None:
        weights, q = self.extension.weights, self.extension.order
        for i, row in enumerate(weights):
            if misses(row, [1.0] * len(row), self.b[i] if i < self.stages else 0.0):
                self._refuse(f"extension weight {i + 1} with the value {fsum(row)} at theta = 1", "the step's own weight")
        for tree in (tree for nodes in range(1, q + 1) for tree in rooted_trees(nodes)):
            # sum_i b_i(theta) Phi_i(tree) = theta^|tree| / gamma(tree), for all theta: power by power.
            for power, column in enumerate(zip(*weights, strict=True), start=1):
                if misses(column, phi[tree], 1 / density(tree) if power == order(tree) else 0.0):
                    self._refuse(f"an extension that misses the condition of order {order(tree)} on {tree}", f"order {q}")

    def _refuse(self, found: str, needed: str) -> NoReturn:
        where = f"Compare its coefficients with {self.reference}."
        raise InputError(f"Butcher tableau {self.name!r}: found {found}; needed {needed}. {where}")
