"""What a backward sweep owes to the state and time it has come to, to the parameters, and to the times of the solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.engine.readout import restep_ranks, short_end
from physnode.gradients.events import Outputs
from physnode.gradients.moving import shares
from physnode.gradients.replay import Replay
from physnode.gradients.sums import CompensatedSum, ParameterSums
from physnode.gradients.swept_step import swept_step
from physnode.gradients.variables import refuse_unknown

__all__ = ["Owed"]


@dataclass
class Owed:
    """The adjoint state of a sweep over the records, from the last slot to the first; one record pulled back at a time."""

    replay: Replay
    cotangents: Outputs
    theta: tuple[Tensor, ...]
    to_y: CompensatedSum
    """λ, ``(B, dim)``: what is owed to the state at the start of the last slot pulled back."""
    to_event: Tensor
    """``(B,)``: what is owed to the time there, where that time is an event's."""
    to_theta: ParameterSums
    to_t0: Tensor
    """``(B,)``."""
    to_t1: Tensor
    """``(B,)``."""
    to_times: Tensor
    """``(B, T)``: what is owed to the output times."""

    @classmethod
    def at_the_end(cls, replay: Replay, cotangents: Outputs, theta: tuple[Tensor, ...]) -> Owed:
        """Nothing is owed yet."""
        ys, none = cotangents.ys, torch.zeros_like(replay.span.t0)
        to_y = CompensatedSum(ys.new_zeros(ys.shape[0], ys.shape[2]))
        times = replay.times[:, :0] if replay.moving is None else replay.times
        return cls(replay, cotangents, theta, to_y, none, ParameterSums(theta), none, none, torch.zeros_like(times))

    def at_the_start(self) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], list[Tensor]]:
        """What is owed to y0, outputs at the very start included, to t0, t1 and the output times, and to each of ``theta``."""
        first = torch.where(self.replay.at_start.unsqueeze(-1), self.cotangents.ys, 0.0).sum(1)
        self.to_y.add(first)
        return self.to_y.value, (self.to_t0, self.to_t1, self.to_times), self.to_theta.gradients()

    def pull_back_whole(self, slot: int, y: Tensor) -> None:
        """One slot made again from ``y`` with a graph, differentiated, and dropped."""
        replay, theta = self.replay, self.theta
        owed = self._of_moving(slot, self.to_y.value)
        with torch.enable_grad():
            with self.to_theta.sunk():
                y = y.detach().requires_grad_()
                inputs: tuple[Tensor, ...] = (y,)
                kept = not replay.moves(slot) and replay.moving is None
                if kept:
                    step, values = replay.step(replay.f, slot, y)
                    # the change alone: that the start is owed λ itself needs no graph, and no rounding
                    kept = step.change is not None
                    pairs = [(step.y if step.change is None else step.change, owed), (values, self._to_values(slot))]
                else:
                    pairs, inputs = self._moving_pairs(slot, y, owed)
            pairs = [(out, part) for out, part in pairs if out.requires_grad and len(out)]
            outs, parts = [out for out, _ in pairs], [part for _, part in pairs]
            refuse_unknown({id(tensor) for tensor in (*theta, *inputs)}, *outs)
            every = (*inputs, *theta)
            back = torch.autograd.grad(outs, every, parts, allow_unused=True) if outs else (None,) * len(every)
        to_start = torch.zeros_like(owed) if back[0] is None else back[0]
        self.to_y.add(to_start if kept else to_start - owed)
        self._owe_times(slot, *back[1 : len(inputs)])
        self.to_theta.add(back[len(inputs) :])

    def pull_back_by_stages(self, slot: int, y: Tensor, known: Sequence[Tensor]) -> None:
        """One slot pulled back by the transposed step of its method, one evaluation's graph alive at a time."""
        replay, method, records = self.replay, self.replay.method, self.replay.records
        t, t_end = records.t[slot], records.t_end[slot]
        f = replay.f.on_step(t, t_end)
        rows, fractions, inside = replay.inside(slot, t, t_end)
        owed = self._to_values(slot)
        if len(rows):
            self._arrive(rows[~inside], owed[~inside])
            rows, fractions, owed = rows[inside], fractions[inside], owed[inside]
        arriving = self._of_moving(slot, self.to_y.value)
        change = torch.zeros_like(arriving)
        stage_cotangents: list[Tensor | None] = []
        if len(rows) and replay.read_out == "interpolate":
            change = change.index_add(0, rows, owed)
            scaled = (t_end - t).to(y.dtype).unsqueeze(-1)[rows] * owed
            stage_cotangents = [
                torch.zeros_like(change).index_add(0, rows, weight.to(y.dtype).unsqueeze(-1) * scaled)
                for weight in method.output_weights(fractions)
            ]
        elif len(rows):
            for entries, entry_rows in restep_ranks(rows):
                end = short_end(t, t_end, entry_rows, fractions[entries])
                seed = torch.zeros_like(change).index_put((entry_rows,), owed[entries])
                change = change + seed + method.pull_back(f, self._vjp(), t, end, y, seed)
        change = change + method.pull_back(f, self._vjp(), t, t_end, y, arriving, stage_cotangents, known)
        self.to_y.add(self._of_moving(slot, change))
        self._owe_times(slot)

    def pull_back_moving(self, slot: int, y: Tensor) -> None:
        """The same where gradients of times are wanted: a graph of sums and products around steps that are swept by stages."""
        replay = self.replay
        times = replay.wanted(slot)
        assert times is not None
        arriving = self._of_moving(slot, self.to_y.value)
        with torch.enable_grad():
            ends = replay.records.t[slot], replay.records.t_end[slot]
            inputs = tuple(part.detach().requires_grad_() for part in (y, *ends, times))
            end, values = swept_step(replay, slot, self._vjp, *inputs)
            back = torch.autograd.grad((end, values), inputs, (arriving, self._to_values(slot)), allow_unused=True)
        assert back[0] is not None
        self.to_y.add(self._of_moving(slot, back[0] - arriving))
        self._owe_times(slot, *back[1:])

    def _of_moving(self, slot: int, owed: Tensor) -> Tensor:
        """``owed`` ``(B, ...)``, zero for rows that rest in the slot."""
        records = self.replay.records
        if slot < records.fewest:
            return owed
        return torch.where(records.active(slot).view(-1, *[1] * (owed.ndim - 1)), owed, 0.0)

    def _to_values(self, slot: int) -> Tensor:
        """The cotangents of the outputs in a slot, ``(M, dim)``."""
        here = self.replay.plan.within(slot)
        return self.cotangents.ys[self.replay.plan.rows[here], self.replay.plan.columns[here]]

    def _arrive(self, rows: Tensor, owed: Tensor) -> None:
        """Outputs at the end of the rows' steps."""
        if len(rows):
            self.to_y.add(torch.zeros_like(self.to_y.value).index_add(0, rows, owed))

    def _moving_pairs(self, slot: int, y: Tensor, owed: Tensor) -> tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, ...]]:
        """A slot as a function of times too: what it gives, with what is owed to that, and what it is a function of."""
        replay = self.replay
        t, t_end = (part.detach().requires_grad_() for part in (replay.records.t[slot], replay.records.t_end[slot]))
        times = replay.wanted(slot)
        inputs = (y, t, t_end) if times is None else (y, t, t_end, times.detach().requires_grad_())
        made = replay.make(replay.f, slot, *inputs)
        pairs = [(made.y, owed), (made.values, self._to_values(slot))]
        if replay.events is not None:
            rows, places = replay.events.rows[slot], replay.events.places[slot]
            pairs += [
                (made.t_end, self._of_moving(slot, self.to_event)),
                (made.t_end[rows], self.cotangents.event_times[rows, places]),
                (made.arrival[rows], self.cotangents.event_states[rows, places]),
            ]
        return pairs, inputs

    def _vjp(self, more: Sequence[Tensor] = (), to_more: Sequence[Tensor] = ()) -> Callable[..., Tensor]:
        """J(point)ᵀ weight of one evaluation; what it owes to the parameters, and to ``more`` tensors, is added up."""

        def vjp(function: Callable[[Tensor], Tensor], point: Tensor, weight: Tensor) -> Tensor:
            with torch.enable_grad():
                x = point.detach().requires_grad_()
                with self.to_theta.sunk():
                    value = function(x)
                if not value.requires_grad:
                    return torch.zeros_like(point)
                refuse_unknown({id(tensor) for tensor in (x, *more, *self.theta)}, value)
                to_x, *parts = torch.autograd.grad(value, (x, *more, *self.theta), weight, allow_unused=True)
            for total, part in zip(to_more, parts, strict=False):
                if part is not None:
                    total += part
            self.to_theta.add(parts[len(more) :])
            return torch.zeros_like(point) if to_x is None else to_x

        return vjp

    def _owe_times(
        self, slot: int, to_t: Tensor | None = None, to_end: Tensor | None = None, to_times: Tensor | None = None
    ) -> None:
        """Hand on what is owed to the ends of a slot's steps: to the time of an event, or to the ends of the span."""
        replay, records = self.replay, self.replay.records
        if replay.events is None and replay.moving is None:
            return
        to_t = torch.zeros_like(self.to_event) if to_t is None else self._of_moving(slot, to_t)
        on_event = replay.on_event(slot)
        self.to_event = torch.where(on_event, to_t, 0.0)
        if replay.moving is None:
            return
        to_end = torch.zeros_like(to_t) if to_end is None else self._of_moving(slot, to_end)
        for time, owed in ((records.t[slot], torch.where(on_event, 0.0, to_t)), (records.t_end[slot], to_end)):
            first, last = shares(replay.span, replay.jumps, time)
            self.to_t0, self.to_t1 = self.to_t0 + first * owed, self.to_t1 + last * owed
        if to_times is not None:
            here = replay.plan.within(slot)
            self.to_times[replay.plan.rows[here], replay.plan.columns[here]] = to_times
