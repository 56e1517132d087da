"""The table of a symplectic splitting: kicks and drifts in turn, and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import factorial, fsum
from typing import NoReturn

from physnode.engine.coefficients.order_conditions import TOLERANCE, misses, word_coefficients
from physnode.errors import InputError

__all__ = ["SplittingTableau"]


@dataclass(frozen=True, kw_only=True)
class SplittingTableau:
    """A symmetric splitting of y = (q, p): kicks and drifts in turn, the same at both ends.

    A kick moves p by ``kicks[i] h`` times p' at fixed q; a drift moves q by ``drifts[i] h`` times q' at fixed p. Whichever
    there is one more of comes first and last. The table reads the same from both ends, so that a step of -h undoes a step of h.
    Where kicks are at the ends, the last of a step and the first of the next share one evaluation of the force.

    The order holds for every separable Hamiltonian T(p) + V(q); none is claimed from T being quadratic.

    Attributes:
        name: how a user asks for the method.
        order: its order, which is even.
        kicks: fractions of the step, summing to 1.
        drifts: fractions of the step, summing to 1; one more or one less than kicks.
        reference: where the coefficients were published.

    Raises:
        InputError: at construction, naming the table, what was found and what was needed.
    """

    name: str
    order: int
    kicks: tuple[float, ...]
    drifts: tuple[float, ...]
    reference: str
    stages: int = field(init=False)
    """The number of force evaluations a step, the shared one counted once."""
    kick_first: bool = field(init=False)
    moves: tuple[tuple[str, float], ...] = field(init=False)
    """("kick" or "drift", fraction of the step), in the order in which they are made."""

    def __post_init__(self) -> None:
        kicks, drifts = self.kicks, self.drifts
        object.__setattr__(self, "stages", min(len(kicks), len(drifts) if kicks else 0))
        if self.stages < 1 or abs(len(kicks) - len(drifts)) != 1:
            self._refuse(f"{len(kicks)} kicks and {len(drifts)} drifts", "one more of one kind, and at least one of each")
        object.__setattr__(self, "kick_first", len(kicks) > len(drifts))
        if self.order < 2 or self.order % 2:
            self._refuse(f"order {self.order}", "an even order, which every symmetric method has")
        if kicks != kicks[::-1] or drifts != drifts[::-1]:
            self._refuse("kicks or drifts that do not read the same backwards", "a symmetric table")
        for name, fractions in (("kicks", kicks), ("drifts", drifts)):
            if misses(fractions, [1.0] * len(fractions), 1.0):
                self._refuse(f"{name} that sum to {fsum(fractions)}", "1")
        outer, inner = (("kick", kicks), ("drift", drifts)) if self.kick_first else (("drift", drifts), ("kick", kicks))
        moves = [(outer[0], outer[1][0])]
        for middle, end in zip(inner[1], outer[1][1:], strict=True):
            moves += [(inner[0], middle), (outer[0], end)]
        object.__setattr__(self, "moves", tuple(moves))
        factors = [("B" if kind == "kick" else "A", fraction) for kind, fraction in moves]
        # A symmetric method that has an odd order has the next even one too.
        for word, value in word_coefficients(factors, self.order - 1).items():
            if not abs(value - 1 / factorial(len(word))) <= TOLERANCE:
                self._refuse(f"a missed condition of order {len(word)} on the word {word}", f"order {self.order}")

    @classmethod
    def composition(cls, name: str, order: int, fractions: Sequence[float], reference: str) -> SplittingTableau:
        """Leapfrog steps of g_1 h, ..., g_n h, ..., g_1 h, where ``fractions`` are g_1 to g_n, the middle step last.

        A leapfrog by itself kicks first (velocity Verlet); composed ones drift first: on Kepler and three-body orbits their
        error is 3 to 13 times smaller so, for the same number of force evaluations.
        """
        steps = (*fractions, *reversed(fractions[:-1]))
        joined = tuple((g + k) / 2 for g, k in zip((0.0, *steps), (*steps, 0.0), strict=True))
        kicks, drifts = (joined, steps) if len(steps) == 1 else (steps, joined)
        return cls(name=name, order=order, kicks=kicks, drifts=drifts, reference=reference)

    def _refuse(self, found: str, needed: str) -> NoReturn:
        where = f"Compare its coefficients with {self.reference}."
        raise InputError(f"splitting tableau {self.name!r}: found {found}; needed {needed}. {where}")
