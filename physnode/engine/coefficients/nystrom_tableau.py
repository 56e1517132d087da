"""The table of an explicit Runge-Kutta-Nystrom method for q'' = a(t, q): its shape and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import fsum, prod
from typing import NoReturn

from physnode.engine.coefficients.order_conditions import Tree, density, misses, order, rooted_trees
from physnode.errors import InputError

__all__ = ["NystromTableau", "nystrom_trees", "nystrom_weights"]


def nystrom_trees(nodes: int) -> tuple[Tree, ...]:
    """The trees with ``nodes`` nodes that the motion q' = v, v' = a(t, q) has: rooted in an acceleration.

    An acceleration may have any number of velocities on top of it, a velocity at most one acceleration.
    """
    return tuple(tree for tree in rooted_trees(nodes) if _is_acceleration(tree))


def nystrom_weights(c: Sequence[float], a: Sequence[Sequence[float]], highest: int) -> dict[Tree, tuple[float, ...]]:
    """Phi_i(tree) of every stage i for all trees with at most ``highest`` nodes.

    Phi_i is a product over the velocities on the root: c_i for a bare one, sum_j a_ij Phi_j(branch) for one that carries a
    branch.
    """
    phi: dict[Tree, tuple[float, ...]] = {}
    for nodes in range(1, highest + 1):
        for tree in nystrom_trees(nodes):
            columns = [
                [fsum(w * f for w, f in zip(row, phi[velocity[0]], strict=False)) for row in a] if velocity else list(c)
                for velocity in tree
            ]
            phi[tree] = tuple(prod(column[i] for column in columns) for i in range(len(c)))
    return phi


def _is_acceleration(tree: Tree) -> bool:
    return all(len(velocity) < 2 and all(_is_acceleration(branch) for branch in velocity) for velocity in tree)


@dataclass(frozen=True, kw_only=True)
class NystromTableau:
    """A method for q'' = a(t, q) with v = q' and k_i = a(t + c_i h, q + c_i h v + h^2 sum_j a_ij k_j).

        q(t + h) = q + h v + h^2 sum_i b_i k_i,      v(t + h) = v + h sum_i b'_i k_i

    It has order p if and only if sum_i b'_i Phi_i(tree) = 1 / gamma(tree) for all trees rooted in an acceleration with at
    most p nodes, and sum_i b_i Phi_i(tree) = 1 / ((|tree| + 1) gamma(tree)) for those with at most p - 1: Hairer, Norsett &
    Wanner, *Solving Ordinary Differential Equations I*, 2nd ed., section II.14. The table is checked against all of them.

    Attributes:
        name: how a user asks for the method.
        order: p, of position and velocity alike.
        c: the s nodes; the first is 0.
        a: s rows, strictly lower triangular: row i has i entries, which sum to c_i^2 / 2.
        b: the s weights of the position.
        velocity_b: the s weights b' of the velocity.
        error: b - b_hat, s entries; none for a method without an estimate.
        velocity_error: b' - b'_hat likewise.
        error_order: q, where the estimates of position and velocity are both O(h^(q+1)); 0 where there are none.
        extension: row i holds the coefficients of theta^2, theta^3, ... in b_i(theta), where
            q(t + theta h) = q + theta h v + h^2 sum_i b_i(theta) k_i; the velocity is its derivative in time. Empty: none.
        extension_order: the order that velocity and position inside a step share.
        reference: where the coefficients were published.

    Raises:
        InputError: at construction, naming the table, what was found and what was needed.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    velocity_b: tuple[float, ...]
    error: tuple[float, ...] = ()
    velocity_error: tuple[float, ...] = ()
    error_order: int = 0
    extension: tuple[tuple[float, ...], ...] = ()
    extension_order: int = 0
    reference: str
    stages: int = field(init=False)
    """s, the number of accelerations."""
    first_same_as_last: bool = field(init=False)
    """Whether the last acceleration is that of the step's end, and so the next step's first."""

    def __post_init__(self) -> None:
        s = len(self.b)
        object.__setattr__(self, "stages", s)
        last = self.a[-1] if self.a else ()
        object.__setattr__(self, "first_same_as_last", s > 1 and self.c[-1] == 1.0 and self.b == (*last, 0.0))
        self._check_shapes()
        phi = nystrom_weights(self.c, self.a, max(self.order, self.extension_order))
        for tree, weights in phi.items():
            nodes, gamma = order(tree), density(tree)
            if nodes <= self.order and misses(self.velocity_b, weights, 1 / gamma):
                self._refuse(f"b' misses the condition of order {nodes} on the tree {tree}", f"order {self.order}")
            if nodes < self.order and misses(self.b, weights, 1 / (gamma * (nodes + 1))):
                self._refuse(f"b misses the condition of order {nodes + 1} on the tree {tree}", f"order {self.order}")
        self._check_error(phi)
        self._check_extension(phi)

    def _check_shapes(self) -> None:
        s = self.stages
        if s < 1 or self.order < 1:
            self._refuse("an order or a number of stages below 1", "at least 1")
        if len(self.c) != s or len(self.velocity_b) != s or [len(row) for row in self.a] != list(range(s)):
            self._refuse(
                f"{len(self.c)} nodes, {len(self.velocity_b)} weights b', rows of a of {[len(row) for row in self.a]} entries",
                f"{s} nodes and weights, rows 0 to {s - 1}",
            )
        if len(self.error) != len(self.velocity_error) or len(self.error) not in (0, s):
            self._refuse(f"error rows of {len(self.error)} and {len(self.velocity_error)} entries", f"both {s}, or neither")
        if self.extension and (len(self.extension) != s or len({len(row) for row in self.extension}) != 1):
            self._refuse(f"{len(self.extension)} rows of extension weights, or rows of unequal length", f"{s} equal rows")
        for i, (node, row) in enumerate(zip(self.c, self.a, strict=True), start=1):
            if misses(row, [1.0] * len(row), node**2 / 2):
                self._refuse(f"c = {node} beside a row of a that sums to {fsum(row)} (stage {i})", "c_i^2 / 2 = sum_j a_ij")

    def _check_error(self, phi: dict[Tree, tuple[float, ...]]) -> None:
        if not self.error:
            if self.error_order:
                self._refuse("no error rows", f"rows of order {self.error_order}, or error_order 0")
            return
        if not any(self.error) or not any(self.velocity_error):
            self._refuse("an error row that is all zero", "b - b_hat")
        seen = [order(tree) + 1 for tree, weights in phi.items() if misses(self.error, weights, 0.0)]
        seen += [order(tree) for tree, weights in phi.items() if misses(self.velocity_error, weights, 0.0)]
        found = min(seen, default=self.order + 1) - 1
        if found != self.error_order:
            self._refuse(f"error rows of order {found}", f"error_order {self.error_order}")

    def _check_extension(self, phi: dict[Tree, tuple[float, ...]]) -> None:
        if not self.extension:
            if self.extension_order:
                self._refuse("no extension weights", f"an extension of order {self.extension_order}, or extension_order 0")
            return
        for row, own, velocity in zip(self.extension, self.b, self.velocity_b, strict=True):
            if misses(row, [1.0] * len(row), own) or misses(row, [power + 2.0 for power in range(len(row))], velocity):
                self._refuse("an extension whose weights at theta = 1 are not the step's own", "b and b'")
        for tree, weights in phi.items():
            nodes = order(tree)
            if nodes > self.extension_order:
                continue
            for power, column in enumerate(zip(*self.extension, strict=True), start=2):
                wanted = 1 / (density(tree) * power) if power == nodes + 1 else 0.0
                if misses(column, weights, wanted):
                    self._refuse(
                        f"an extension that misses the condition of order {nodes} on {tree}", f"order {self.extension_order}"
                    )
            if len(self.extension[0]) < nodes:
                self._refuse(f"an extension of degree {len(self.extension[0]) + 1}", f"order {self.extension_order}")

    def _refuse(self, found: str, needed: str) -> NoReturn:
        where = f"Compare its coefficients with {self.reference}."
        raise InputError(f"Nystrom tableau {self.name!r}: found {found}; needed {needed}. {where}")
