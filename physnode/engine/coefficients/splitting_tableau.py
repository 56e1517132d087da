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
    """A symmetric splitting of y = (q, p): kick_0, drift_0, kick_1, ..., drift_(m-1), kick_m, in this order in time.

    A kick moves p by ``kicks[i] h`` times p' at fixed q; a drift moves q by ``drifts[i] h`` times q' at fixed p. There
    are m + 1 kicks and m drifts, and the table reads the same from both ends, so that a step of -h undoes a step of h.
    The last kick of a step and the first of the next are at the same q and share one evaluation of the force.

    The order holds for every separable Hamiltonian T(p) + V(q); none is claimed from T being quadratic.

    Attributes:
        name: how a user asks for the method.
        order: its order, which is even.
        kicks: m + 1 fractions of the step, summing to 1.
        drifts: m fractions of the step, summing to 1.
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
    """m, the number of force evaluations a step, the shared one counted once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", len(self.drifts))
        kicks, drifts, m = self.kicks, self.drifts, self.stages
        if m < 1 or len(kicks) != m + 1:
            self._refuse(f"{len(kicks)} kicks and {m} drifts", "one kick more than drifts, and at least one drift")
        if self.order < 2 or self.order % 2:
            self._refuse(f"order {self.order}", "an even order, which every symmetric method has")
        if kicks != kicks[::-1] or drifts != drifts[::-1]:
            self._refuse("kicks or drifts that do not read the same backwards", "a symmetric table")
        for name, fractions in (("kicks", kicks), ("drifts", drifts)):
            if misses(fractions, [1.0] * len(fractions), 1.0):
                self._refuse(f"{name} that sum to {fsum(fractions)}", "1")
        factors = [("B", kicks[0])]
        for drift, kick in zip(drifts, kicks[1:], strict=True):
            factors += [("A", drift), ("B", kick)]
        # A symmetric method that has an odd order has the next even one too.
        for word, value in word_coefficients(factors, self.order - 1).items():
            if not abs(value - 1 / factorial(len(word))) <= TOLERANCE:
                self._refuse(f"a missed condition of order {len(word)} on the word {word}", f"order {self.order}")

    @classmethod
    def composition(cls, name: str, order: int, fractions: Sequence[float], reference: str) -> SplittingTableau:
        """Leapfrog steps of g_1 h, ..., g_n h, ..., g_1 h, where ``fractions`` are g_1 to g_n, the middle step last."""
        steps = (*fractions, *reversed(fractions[:-1]))
        kicks = tuple((g + k) / 2 for g, k in zip((0.0, *steps), (*steps, 0.0), strict=True))
        return cls(name=name, order=order, kicks=kicks, drifts=steps, reference=reference)

    def _refuse(self, found: str, needed: str) -> NoReturn:
        where = f"Compare its coefficients with {self.reference}."
        raise InputError(f"splitting tableau {self.name!r}: found {found}; needed {needed}. {where}")
