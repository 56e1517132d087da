"""The states from which the accepted steps of a solve started: all of them, or as many as there is room for.

They lie in blocks, one place a slot. As long as memory allows, the values that the field took inside each step lie beside them,
so that the step's transpose need not evaluate them again. Where memory is bounded, a slot gives its place to another
(:mod:`physnode.engine.checkpoints`), and is made again from the last one before it that is kept.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from physnode.engine.checkpoints import Checkpoints
from physnode.errors import GradientError

__all__ = ["KeptStates"]

_BLOCK = 16
"""Places that are made at once where slots come one by one."""


class KeptStates:
    """Start states ``(B, dim)`` by slot; rows that rest in a slot are shown in a safe state."""

    def __init__(self, rest: Tensor, widths: Sequence[int] = ()) -> None:
        """``rest`` ``(B, dim)`` is the safe state, ``widths`` are those of the values kept beside each state."""
        self.rest = rest
        self.widths = tuple(widths)
        self.opened = 0
        """How many slots there are, kept or not."""
        self.checkpoints: Checkpoints | None = None
        """Which slots are kept, where not all are."""
        self._blocks: list[Tensor] = []
        self._first: list[int] = []
        self._place: dict[int, int] = {}
        self._free: list[int] = []
        self._count: Tensor | None = None
        self._fewest = 0
        """The slot from which on rows may rest."""
        self._stand_in: tuple[Tensor, Tensor] | None = None

    @property
    def bytes(self) -> int:
        """What the blocks take."""
        return sum(block.numel() * block.element_size() for block in self._blocks)

    @property
    def slot_bytes(self) -> int:
        """What one state takes, without values beside it."""
        return self.rest.numel() * self.rest.element_size()

    @property
    def kept(self) -> int:
        """How many slots are kept."""
        return self.opened if self.checkpoints is None else len(self.checkpoints)

    @property
    def safe(self) -> Tensor:
        """The states ``(B, dim)`` in which rows rest."""
        return self.rest if self._stand_in is None else torch.where(self._stand_in[0], self.rest, self._stand_in[1])

    def has(self, slot: int) -> bool:
        """Whether the slot is kept."""
        return slot < self.opened if self.checkpoints is None else slot in self.checkpoints

    def last_until(self, slot: int) -> int:
        """The latest kept slot that is not after ``slot``."""
        return slot if self.checkpoints is None else self.checkpoints.last_until(slot)

    def state(self, slot: int) -> Tensor:
        """The state ``(B, dim)`` of a kept slot.

        Raises:
            GradientError: it was not kept.
        """
        if not self.has(slot):
            raise GradientError(
                "the states of all steps are needed, and this solve has not kept them; solve with dense=True, or with a "
                'gradient that keeps them, such as "aca" without a bound in its Storage'
            )
        return self._shown(slot, self._payload(slot)[..., : self.rest.shape[-1]])

    __getitem__ = state

    def values(self, slot: int) -> tuple[Tensor, ...]:
        """What is kept beside it, each ``(B, width)``; zeros for rows that rest in the slot."""
        if not self.widths:
            return ()
        values = self._payload(slot)[..., self.rest.shape[-1] :]
        if self._count is not None and slot >= self._fewest:
            values = torch.where((slot < self._count).unsqueeze(-1), values, 0.0)
        return torch.split(values, list(self.widths), dim=-1)

    def stacked(self, first: int, last: int) -> Tensor:
        """The states of slots ``first`` to ``last - 1``, ``(S, B, dim)``."""
        return torch.stack([self.state(slot) for slot in range(first, last)])

    def closed(self, count: Tensor) -> KeptStates:
        """The states of a solve that has ended, with ``count`` steps of each row ``(B,)``."""
        other = copy.copy(self)
        if len(count):
            other._fewest, most = torch.stack((count.amin(), count.amax())).tolist()
            other._count = None if other._fewest == most else count
        return other

    def without(self, ok: Tensor, count: Tensor, stand_in: Tensor) -> KeptStates:
        """The same with the state ``stand_in`` ``(dim,)`` in the place of every row that is not ``ok``."""
        other = self.closed(count)
        other._stand_in = (ok.unsqueeze(-1), stand_in)
        return other

    def extend(self, payloads: Sequence[Tensor]) -> None:
        """Further slots, the same for all rows: state and values side by side, ``(B, width)`` each."""
        if not payloads:
            return
        if self.checkpoints is None:
            self._add_block(torch.stack(list(payloads)))
            self.opened += len(payloads)
            return
        first = self.opened
        self.open(len(payloads))
        for slot, payload in enumerate(payloads, first):
            if slot in self._place:
                self._at(self._place[slot]).copy_(payload)

    def open(self, more: int) -> None:
        """Make room for ``more`` slots whose rows will be written one by one."""
        if not more:
            return
        if self.checkpoints is None:
            self._add_block(self.rest.new_empty(more, len(self.rest), self.rest.shape[-1] + sum(self.widths)))
            self.opened += more
            return
        for _ in range(more):
            self._open_one(self.opened)
            self.opened += 1

    def write(self, slots: Tensor, rows: Tensor, payload: Tensor) -> None:
        """Entries ``payload`` ``(M, width)`` of the (slot, row) pairs that are kept."""
        if not len(slots):
            return
        low, high = int(slots.min()), int(slots.max()) + 1
        if self.checkpoints is None:
            places = slots
        else:
            table = torch.tensor([self._place.get(slot, -1) for slot in range(low, high)], device=slots.device)
            places = table[slots - low]
        for number in range(len(self._blocks)):
            first, block = self._first[number], self._blocks[number]
            if self.checkpoints is None and not (first < high and low < first + len(block)):
                continue
            mine = (places >= first) & (places < first + len(block))
            block[places[mine] - first, rows[mine]] = payload[mine]

    def forget_values(self) -> None:
        """Keep the states alone."""
        if not self.widths:
            return
        self.widths = ()
        dim = self.rest.shape[-1]
        for number, block in enumerate(self._blocks):
            self._blocks[number] = block[..., :dim].clone()

    def bound(self, capacity: int) -> None:
        """Keep no more than ``capacity`` slots from now on."""
        if self.checkpoints is None:
            self.checkpoints = Checkpoints()
            for slot in range(self.opened):
                self.checkpoints.place(slot)
                self._place[slot] = slot
        for slot in self.checkpoints.shrink(capacity):
            del self._place[slot]
        self._compact()

    def release(self, slot: int) -> None:
        """Give the place of a slot that a backward pass has used to others; the first slot keeps its own."""
        if self.checkpoints is not None and slot:
            self.checkpoints.drop(slot)
            self._free.append(self._place.pop(slot))

    def put(self, slot: int, y: Tensor) -> None:
        """Keep a state that was made again, the one after the latest kept slot before it."""
        self._open_one(slot)
        self._at(self._place[slot]).copy_(y)

    def _add_block(self, block: Tensor) -> None:
        self._first.append(self._first[-1] + len(self._blocks[-1]) if self._blocks else 0)
        self._blocks.append(block)

    def _open_one(self, slot: int) -> None:
        assert self.checkpoints is not None
        dropped = self.checkpoints.place(slot)
        if dropped is not None:
            self._place[slot] = self._place.pop(dropped)
        elif self._free:
            self._place[slot] = self._free.pop()
        else:
            capacity = self.checkpoints.capacity or _BLOCK
            size = max(1, min(_BLOCK, capacity - len(self._place)))
            self._add_block(self.rest.new_empty(size, len(self.rest), self.rest.shape[-1]))
            self._place[slot] = self._first[-1]
            self._free += range(self._first[-1] + size - 1, self._first[-1], -1)

    def _compact(self) -> None:
        """Give back the places of slots that were dropped."""
        slots = {place: slot for slot, place in self._place.items()}
        blocks, first = [], 0
        starts = []
        for number, block in enumerate(self._blocks):
            start = self._first[number]
            used = [offset for offset in range(len(block)) if start + offset in slots]
            if not used:
                continue
            for index, offset in enumerate(used):
                self._place[slots[start + offset]] = first + index
            starts.append(first)
            blocks.append(block if len(used) == len(block) else block[torch.tensor(used, device=block.device)])
            first += len(used)
            self._blocks[number] = block[:0].clone()
        self._blocks, self._first, self._free = blocks, starts, []

    def _payload(self, slot: int) -> Tensor:
        return self._at(slot if self.checkpoints is None else self._place[slot])

    def _at(self, place: int) -> Tensor:
        number = bisect_right(self._first, place) - 1
        return self._blocks[number][place - self._first[number]]

    def _shown(self, slot: int, y: Tensor) -> Tensor:
        if self._count is not None and slot >= self._fewest:
            y = torch.where((slot < self._count).unsqueeze(-1), y, self.rest)
        if self._stand_in is not None:
            ok, stand_in = self._stand_in
            y = torch.where(ok, y, stand_in)
        return y
