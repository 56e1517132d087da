"""Takes the accepted steps of a solve as they pass, at each trajectory's own count, within a given number of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from physnode.engine.kept_states import KeptStates
from physnode.engine.records import Records, Trial
from physnode.errors import GradientError

__all__ = ["Keep", "Recorder"]

_TIME_BYTES = 18
_RAGGED_TIME_BYTES = 27
"""What the time of one step of one trajectory takes while outputs are located among the steps, where all trajectories have as
many steps, and where they have not."""
_SPARED = 0.8
"""Part of the places that is left when times and states together have come to the limit."""


@dataclass(frozen=True)
class Keep:
    """What a solve keeps of its steps beside their times."""

    states: bool = True
    """Whether their start states are kept."""
    values_limit: int = 0
    """Bytes up to which the field's values inside steps are kept beside them."""
    limit: int | None = None
    """Bytes that all of it may take; states give way to checkpoints."""
    places: int | None = None
    """The most states that may be kept."""
    chunk: int | None = None
    """Bytes that the trials which wait for their read-out may take."""

    def shared(self, ways: int) -> Keep:
        """For each of several ways of a solve."""
        if ways == 1:
            return self
        limit = None if self.limit is None else self.limit // ways
        places = None if self.places is None else max(2, self.places // ways)
        return replace(self, values_limit=self.values_limit // ways, limit=limit, places=places)


class Recorder:
    """Collects what :class:`Keep` asks for, chunk by chunk."""

    def __init__(self, keep: Keep, t0: Tensor, safe_y: Tensor, *, with_events: bool) -> None:
        self.keep, self.t0, self.with_events = keep, t0, with_events
        self._rest = safe_y
        self._states: KeptStates | None = None
        self._count = torch.zeros(len(t0), dtype=torch.int64)
        self._ends: list[Tensor] = []
        self._events: list[Tensor] = []

    @property
    def keeps_values(self) -> bool:
        """Whether the field's values inside steps are still kept."""
        if self._states is None:
            return self.keep.states and self.keep.values_limit > 0
        return bool(self._states.widths)

    def take(self, trials: Sequence[Trial]) -> None:
        """Keep what was accepted of the next trials.

        Raises:
            GradientError: not even the times of the steps, and two states, fit into the limit.
        """
        accept = torch.stack([trial.accept for trial in trials]).cpu()
        slots = self._count + accept.cumsum(0) - 1
        before, opened = self._opened, int(slots[-1].max()) + 1 if len(slots) else 0
        self._write_times(trials, accept, slots, opened - before)
        if self.keep.states:
            self._write_states(trials, accept, slots, opened - before)
        self._count = slots[-1] + 1
        if self.keep.states:
            self._stay_within()

    def finish(self, count: Tensor) -> Records:
        """The records of all rows, of which each made ``count`` steps; slots beyond it rest, with zero length, at t0."""
        states = self._states_for(())
        t0 = self.t0.unsqueeze(0)
        times = torch.cat((t0, *self._ends))
        self._ends = []
        event = None
        if self.with_events:
            event = torch.cat(self._events) if self._events else torch.zeros_like(times[1:], dtype=torch.int64)
        t, t_end = times[:-1], times[1:]
        beyond = torch.arange(len(t), device=t.device).unsqueeze(-1) >= count
        if bool(beyond.any()):
            t, t_end = torch.where(beyond, t0, t), torch.where(beyond, t0, t_end)
            event = None if event is None else torch.where(beyond, -1, event)
        return Records(t, t_end, states.closed(count), count, event)

    @property
    def _opened(self) -> int:
        return sum(len(block) for block in self._ends)

    def _states_for(self, widths: Sequence[int]) -> KeptStates:
        if self._states is None:
            self._states = KeptStates(self._rest, widths)
            if self.keep.places is not None:
                self._states.bound(self.keep.places)
        return self._states

    def _write_times(self, trials: Sequence[Trial], accept: Tensor, slots: Tensor, more: int) -> None:
        first = self._opened
        self._ends.append(self.t0.new_zeros(more, len(self.t0)))
        if self.with_events:
            self._events.append(torch.full((more, len(self.t0)), -1, dtype=torch.int64, device=self.t0.device))
        order, rows = accept.nonzero(as_tuple=True)
        at = slots[order, rows]
        order, rows, at = (index.to(self.t0.device) for index in (order, rows, at))
        ends = torch.stack([trial.t_end for trial in trials])[order, rows]
        events = None
        if self.with_events:
            events = torch.stack([trial.event for trial in trials if trial.event is not None])[order, rows]
        for number in reversed(range(len(self._ends))):
            mine = (at >= first) & (at < first + len(self._ends[number]))
            self._ends[number][at[mine] - first, rows[mine]] = ends[mine]
            if events is not None:
                self._events[number][at[mine] - first, rows[mine]] = events[mine]
            if not len(at) or first <= int(at.min()):
                break
            first -= len(self._ends[number - 1])

    def _write_states(self, trials: Sequence[Trial], accept: Tensor, slots: Tensor, more: int) -> None:
        known = trials[0].step.known if self.keeps_values else ()
        states = self._states_for([value.shape[-1] for value in known])
        chosen = accept.any(-1).nonzero().flatten().tolist()
        if not chosen:
            return
        if states.widths and self._taken(len(chosen)) > self.keep.values_limit:
            states.forget_values()
        payloads = [_payload(trials[number], bool(states.widths)) for number in chosen]
        everyone = bool((accept.all(-1) == accept.any(-1)).all()) and bool((self._count == self._count[0]).all())
        if everyone:
            states.extend(payloads)
            return
        states.open(more)
        order, rows = accept[chosen].nonzero(as_tuple=True)
        at = slots[chosen][order, rows]
        order, rows, at = (index.to(self.t0.device) for index in (order, rows, at))
        states.write(at, rows, torch.stack(payloads)[order, rows])

    def _taken(self, coming: int) -> int:
        """Bytes of times, states and values, with those of ``coming`` slots more, which are there twice while they come."""
        assert self._states is not None
        slot = self._states.slot_bytes + sum(self._states.widths) * len(self._rest) * self._rest.element_size()
        return self._times + self._states.bytes + 2 * coming * slot

    @property
    def _times(self) -> int:
        """Bytes of the times so far."""
        each = _RAGGED_TIME_BYTES if bool((self._count != self._count[0]).any()) else _TIME_BYTES
        return each * self._opened * len(self.t0)

    def _stay_within(self) -> None:
        """Give up states, where values are gone already."""
        states, keep = self._states, self.keep
        assert states is not None
        if keep.limit is None or self._taken(0) <= keep.limit:
            return
        states.forget_values()
        times = self._times
        room = int(_SPARED * min(states.kept, (keep.limit - times) // states.slot_bytes))
        if room < 2:
            raise GradientError(
                f"the storage limit leaves {keep.limit} bytes for the steps, and the times of {self._opened} steps of "
                f"{len(self.t0)} trajectories take {times} of them; raise the limit, or take longer steps or fewer trajectories"
            )
        states.bound(room)


def _payload(trial: Trial, with_values: bool) -> Tensor:
    return torch.cat((trial.y, *trial.step.known), dim=-1) if with_values else trial.y
