"""The table of a Runge-Kutta method whose stages depend on each other: its shape, its error estimate, its checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import fsum
from typing import NoReturn

from physnode.engine.coefficients.butcher_tableau import ContinuousExtension
from physnode.engine.coefficients.order_conditions import density, elementary_weights, misses, order, rooted_trees
from physnode.errors import InputError

__all__ = ["ImplicitTableau"]


@dataclass(frozen=True, kw_only=True)
class ImplicitTableau:
    """A Runge-Kutta method with any matrix: x' = x + h sum_i b_i k_i, k_i = f(t + c_i h, x + h sum_j a_ij k_j).

    Gauss, Radau and Lobatto methods, the trapezoidal rule, and diagonally implicit methods are of this form. Tables are
    checked against all order conditions of their step, error estimate and extension.

    Attributes:
        name: how a user asks for the method.
        order: p, the order of x'.
        c: the s nodes.
        a: s rows of s entries.
        b: the s weights.
        error: the weights e_i of the estimate (I - h g J)^-1 h (e_0 f(t, x) + sum_i e_i k_i), with J the Jacobian of f at
            (t, x); none for a method without one.
        error_start: e_0.
        error_filter: g; 0 for an estimate that is not filtered. The filter keeps an estimate from growing with the stiffness:
            Hairer & Wanner, *Solving Ordinary Differential Equations II*, 2nd ed., section IV.8.
        error_order: q, where the estimate is O(h^(q+1)); 0 where there is none.
        extension: the dense output, over the s stages, or None.
        reference: where the coefficients were published.

    Raises:
        InputError: at construction, naming the table, what was found and what was needed.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] = ()
    error_start: float = 0.0
    error_filter: float = 0.0
    error_order: int = 0
    extension: ContinuousExtension | None = None
    reference: str
    stages: int = field(init=False)
    """s."""
    ends_on_stage: bool = field(init=False)
    """Whether the last stage is the end of the step (a stiffly accurate method), so that k_s is the derivative there."""

    def __post_init__(self) -> None:
        s = len(self.b)
        object.__setattr__(self, "stages", s)
        object.__setattr__(self, "ends_on_stage", bool(s) and bool(self.a) and self.a[-1] == self.b and self.c[-1] == 1.0)
        if s < 1 or self.order < 1:
            self._refuse("an order or a number of stages below 1", "at least 1")
        if len(self.c) != s or [len(row) for row in self.a] != [s] * s:
            self._refuse(f"{len(self.c)} nodes, rows of a with {[len(row) for row in self.a]} entries", f"{s} of each")
        for i, (node, row) in enumerate(zip(self.c, self.a, strict=True), start=1):
            if misses(row, [1.0] * s, node):
                self._refuse(f"c = {node} beside a row of a that sums to {fsum(row)} (stage {i})", "c_i = sum_j a_ij")
        phi = elementary_weights(self.a, self.order)
        for tree in (tree for nodes in range(1, self.order + 1) for tree in rooted_trees(nodes)):
            if misses(self.b, phi[tree], 1 / density(tree)):
                self._refuse(f"b misses the condition of order {order(tree)} on the tree {tree}", f"order {self.order}")
        self._check_error()
        self._check_extension()

    def _check_error(self) -> None:
        if not self.error:
            if self.error_order or self.error_start or self.error_filter:
                self._refuse("an order, a start or a filter of an estimate without weights", "the weights, or none of them")
            return
        if len(self.error) != self.stages:
            self._refuse(f"{len(self.error)} error weights", f"{self.stages}")
        # the derivative at the start is one more stage, an explicit one
        phi = elementary_weights(((0.0,) * (self.stages + 1), *((0.0, *row) for row in self.a)), self.order)
        weights = (self.error_start, *self.error)
        found = min((order(tree) for tree, values in phi.items() if misses(weights, values, 0.0)), default=self.order + 1) - 1
        if found != self.error_order or found < 1:
            self._refuse(f"an estimate of order {found}", f"error_order {self.error_order}, at least 1")

    def _check_extension(self) -> None:
        if self.extension is None:
            return
        weights, q = self.extension.weights, self.extension.order
        if len(weights) != self.stages or self.extension.a or len({len(row) for row in weights}) != 1 or len(weights[0]) < q:
            self._refuse(f"an extension over {len(weights)} stages", f"{self.stages} rows of one degree, at least {q}")
        if any(misses(row, [1.0] * len(row), b) for row, b in zip(weights, self.b, strict=True)):
            self._refuse("extension weights that do not end on b at theta = 1", "the step's own weights")
        phi = elementary_weights(self.a, q)
        for tree in (tree for nodes in range(1, q + 1) for tree in rooted_trees(nodes)):
            # sum_i b_i(theta) Phi_i(tree) = theta^|tree| / gamma(tree), power by power
            for power, column in enumerate(zip(*weights, strict=True), start=1):
                if misses(column, phi[tree], 1 / density(tree) if power == order(tree) else 0.0):
                    self._refuse(f"an extension that misses the condition of order {order(tree)} on {tree}", f"order {q}")

    def _refuse(self, found: str, needed: str) -> NoReturn:
        where = f"Compare its coefficients with {self.reference}."
        raise InputError(f"implicit tableau {self.name!r}: found {found}; needed {needed}. {where}")
