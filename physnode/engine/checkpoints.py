"""Which of a sequence of unknown length to keep in a bounded number of places, so that all can be made again backward.

The placement is made online, since an adaptive solve does not know its number of steps. Every item has a level; the first has
the highest. A new one takes a free place, else that of an item that lies before one of a higher level (it can be made again
from what lies before it), else that of the newest item, and then stands one level above it. With c places beside that of the
newest item, and n <= C(c + r, r) items, no item is made again more than r times.

Source: Wang, Moin, Iaccarino, Minimal repetition dynamic checkpointing algorithm for unsteady adjoint calculation, SIAM J.
Sci. Comput. 31 (2009) 2549, algorithm 1; the bound is that of Griewank's binomial checkpointing (Optim. Methods Softw. 1
(1992) 35), and of Stumm, Walther, New algorithms for optimal online checkpointing, SIAM J. Sci. Comput. 32 (2010) 836.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort

__all__ = ["Checkpoints"]


class Checkpoints:
    """The numbers of the items that are kept, in order, and what makes room for the next."""

    def __init__(self, capacity: int | None = None) -> None:
        """``capacity`` places, at least two; None for as many as are asked for."""
        self.capacity = capacity
        self._kept: list[int] = []
        self._level: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, item: int) -> bool:
        return item in self._level

    @property
    def kept(self) -> tuple[int, ...]:
        """In ascending order."""
        return tuple(self._kept)

    def last_until(self, item: int) -> int:
        """The latest kept item that is not after ``item``."""
        return self._kept[bisect_right(self._kept, item) - 1]

    def place(self, item: int) -> int | None:
        """Keep ``item``, which follows the newest one kept; returns the item that gave up its place, if one did."""
        level: float = 0 if self._kept else math.inf
        dropped = None
        if self.capacity is not None and len(self._kept) >= self.capacity:
            dropped = self._dispensable()
            if dropped is None:
                dropped = self._kept[-1]
                level = self._level[dropped] + 1
            self.drop(dropped)
        insort(self._kept, item)
        self._level[item] = level
        return dropped

    def drop(self, item: int) -> None:
        """Give up the place of ``item``."""
        self._kept.remove(item)
        del self._level[item]

    def shrink(self, capacity: int) -> list[int]:
        """Do with fewer places from now on; returns the items that had to give theirs up."""
        self.capacity = capacity
        dropped = []
        while len(self._kept) > capacity:
            item = self._dispensable()
            if item is None:  # none can be made again from before a higher one: leave even gaps
                last = len(self._kept) - 1
                stay = {round(number * last / (capacity - 1)) for number in range(capacity)}
                dropped += [item for number, item in enumerate(self._kept) if number not in stay]
                self._kept = [item for number, item in enumerate(self._kept) if number in stay]
                self._level = {item: self._level[item] for item in self._kept}
            else:
                self.drop(item)
                dropped.append(item)
        return dropped

    def _dispensable(self) -> int | None:
        """The latest item that lies before one of a higher level."""
        highest: float = -1
        for item in reversed(self._kept):
            if self._level[item] < highest:
                return item
            highest = max(highest, self._level[item])
        return None
