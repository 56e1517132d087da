"""What the coefficients of a method must satisfy to have an order: rooted trees for Runge-Kutta, words for splittings.

A table is checked against these when it is built, so that a mistyped digit cannot become a slightly wrong integrator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from math import factorial, fsum, prod

__all__ = [
    "TOLERANCE",
    "Tree",
    "density",
    "elementary_weights",
    "misses",
    "order",
    "rooted_trees",
    "splitting_words",
    "word_coefficients",
]

TOLERANCE = 2e-14
"""How far a condition may be from holding, in units of the sum of |weights| where that is above one."""

Tree = tuple["Tree", ...]
"""A rooted tree is the tuple of the subtrees at its root; ``()`` is the single node."""


@cache
def order(tree: Tree) -> int:
    """The number of nodes |tree|."""
    return 1 + sum(map(order, tree))


@cache
def density(tree: Tree) -> int:
    """gamma(tree) = |tree| times the densities of the subtrees at its root."""
    return order(tree) * prod(map(density, tree))


@cache
def rooted_trees(nodes: int) -> tuple[Tree, ...]:
    """All rooted trees with exactly ``nodes`` nodes: 1, 1, 2, 4, 9, 20, 48, 115 of them for 1 to 8 nodes.

    A Runge-Kutta method has order p if and only if sum_i b_i Phi_i(tree) = 1 / gamma(tree) for every tree with at most
    p nodes: Hairer, Norsett & Wanner, *Solving Ordinary Differential Equations I*, 2nd ed., theorem II.2.13.
    """

    def forests(total: int, largest: int) -> Iterator[Tree]:
        if total == 0:
            yield ()
        for size in range(min(total, largest), 0, -1):
            for tree in rooted_trees(size):
                for rest in forests(total - size, size):
                    # Equal-sized siblings in one fixed order, so that no tree is met twice.
                    if not rest or order(rest[0]) < size or rest[0] <= tree:
                        yield (tree, *rest)

    return tuple(forests(nodes - 1, nodes - 1))


def elementary_weights(a: Sequence[Sequence[float]], highest: int) -> dict[Tree, tuple[float, ...]]:
    """Phi_i(tree) of every stage i, for all trees with at most ``highest`` nodes.

    ``a`` has one row per stage, over the stages before it. Phi_i(tree) is the product, over the subtrees at the root,
    of sum_j a_ij Phi_j(subtree); Phi_i of the single node is 1.
    """
    phi: dict[Tree, tuple[float, ...]] = {}
    grafted: dict[Tree, tuple[float, ...]] = {}
    for nodes in range(1, highest + 1):
        for tree in rooted_trees(nodes):
            phi[tree] = tuple(prod(grafted[child][i] for child in tree) for i in range(len(a)))
            grafted[tree] = tuple(fsum(w * f for w, f in zip(row, phi[tree], strict=False)) for row in a)
    return phi


@cache
def splitting_words(longest: int) -> tuple[str, ...]:
    """All words of 0 to ``longest`` letters from {A, B}, short words first."""
    words = [""]
    for word in words:
        if len(word) == longest:
            break
        words += [word + "A", word + "B"]
    return tuple(words)


def word_coefficients(factors: Sequence[tuple[str, float]], longest: int) -> dict[str, float]:
    """The series of exp(x_1 L_1) exp(x_2 L_2) ... in the non-commuting letters A and B, word by word.

    ``factors`` are the pairs (letter, x). A splitting of dy/dt = (A + B) y with these factors has order p, whatever A
    and B are, if and only if every word of n <= p letters has the coefficient 1 / n!, as in exp(A + B). Hairer,
    Lubich & Wanner, *Geometric Numerical Integration*, 2nd ed., section III.5.
    """
    series = dict.fromkeys(splitting_words(longest), 0.0)
    series[""] = 1.0
    for letter, x in factors:
        powers = [x**k / factorial(k) for k in range(longest + 1)]
        # Longest first: a word only takes from its own shorter beginnings, which must still be the old ones.
        for word in reversed(splitting_words(longest)):
            run = len(word) - len(word.rstrip(letter))
            series[word] = fsum(powers[k] * series[word[: len(word) - k]] for k in range(run + 1))
    return series


def misses(weights: Sequence[float], values: Sequence[float], target: float) -> bool:
    """Whether sum_i weights_i values_i is not ``target``, for values of size 1 or below; not-a-number always misses."""
    found = fsum(w * v for w, v in zip(weights, values, strict=False))
    return not abs(found - target) <= TOLERANCE * max(1.0, fsum(map(abs, weights)))
