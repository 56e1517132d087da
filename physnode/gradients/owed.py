"""What a backward sweep owes to the state and time it has come to, and to the parameters; one record pulled back at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.engine.readout import restep_ranks, short_end
from physnode.gradients.events import Outputs
from physnode.gradients.replay import Replay
from physnode.gradients.variables import refuse_unknown

__all__ = ["Owed"]


@dataclass
class Owed:
    """The adjoint state of a sweep over the records, from the last slot to the first."""

    replay: Replay
    cotangents: Outputs
    theta: tuple[Tensor, ...]
    to_y: Tensor
    """λ, ``(B, dim)``: what is owed to the state at the start of the last slot pulled back."""
    to_t: Tensor
    """``(B,)``: what is owed to the time there; it matters where that time is an event's."""
    to_theta: list[Tensor]

    @classmethod
    def at_the_end(cls, replay: Replay, cotangents: Outputs, theta: tuple[Tensor, ...]) -> Owed:
        """Nothing is owed yet."""
        ys = cotangents.ys
        to_y = ys.new_zeros(ys.shape[0], ys.shape[2])
        return cls(
            replay, cotangents, theta, to_y, torch.zeros_like(replay.span.t0), [torch.zeros_like(tensor) for tensor in theta]
        )

    def at_the_start(self) -> tuple[Tensor, list[Tensor]]:
        """What is owed to y0, outputs at the very start included, and to each of ``theta``."""
        first = torch.where(self.replay.at_start.unsqueeze(-1), self.cotangents.ys, 0.0).sum(1)
        return self.to_y + first, self.to_theta

    def pull_back_whole(self, slot: int) -> None:
        """One slot made again with a graph, differentiated, and dropped."""
        replay, theta = self.replay, self.theta
        active = replay.records.active(slot).unsqueeze(-1)
        here = replay.plan.within(slot)
        to_values = self.cotangents.ys[replay.plan.rows[here], replay.plan.columns[here]]
        with torch.enable_grad():
            y = replay.records.y[slot].detach().requires_grad_()
            if not replay.moves(slot):
                step, values = replay.step(replay.f, slot, y)
                pairs = [(step.y, torch.where(active, self.to_y, 0.0)), (values, to_values)]
                inputs: tuple[Tensor, ...] = (y,)
            else:
                t = replay.records.t[slot].detach().requires_grad_()
                made = replay.make(replay.f, slot, y, t)
                assert replay.events is not None
                rows, places = replay.events.rows[slot], replay.events.places[slot]
                pairs = [
                    (made.y, torch.where(active, self.to_y, 0.0)),
                    (made.values, to_values),
                    (made.t_end, torch.where(active[:, 0], self.to_t, 0.0)),
                    (made.t_end[rows], self.cotangents.event_times[rows, places]),
                    (made.arrival[rows], self.cotangents.event_states[rows, places]),
                ]
                inputs = (y, t)
            pairs = [(out, owed) for out, owed in pairs if out.requires_grad]
            outs, owed = [out for out, _ in pairs], [owed for _, owed in pairs]
            refuse_unknown({id(tensor) for tensor in (*theta, *inputs)}, *outs)
            back = torch.autograd.grad(outs, (*inputs, *theta), owed, allow_unused=True)
        to_start = torch.zeros_like(self.to_y) if back[0] is None else back[0]
        self.to_y = torch.where(active, to_start, self.to_y)
        self._owe_time(slot, back[1] if len(inputs) == 2 else None)
        for total, part in zip(self.to_theta, back[len(inputs) :], strict=True):
            if part is not None:
                total += part

    def pull_back_by_stages(self, slot: int) -> None:
        """One slot pulled back by the transposed step of its method, one evaluation's graph alive at a time."""
        replay, method, records, plan = self.replay, self.replay.method, self.replay.records, self.replay.plan
        t, t_end, y = records.t[slot], records.t_end[slot], records.y[slot]
        f = replay.f.on_step(t, t_end)
        active = records.active(slot).unsqueeze(-1)
        here = plan.within(slot)
        rows, fractions = plan.rows[here], plan.fractions[here]
        owed = self.cotangents.ys[rows, plan.columns[here]]
        at_end = fractions == 1.0
        arriving = torch.where(active, self.to_y, 0.0).index_add(0, rows[at_end], owed[at_end])
        rows, fractions, owed = rows[~at_end], fractions[~at_end], owed[~at_end]
        to_start = torch.zeros_like(self.to_y)
        stage_cotangents: list[Tensor | None] = []
        if len(rows) and replay.read_out == "interpolate":
            to_start = to_start.index_add(0, rows, owed)
            scaled = (t_end - t).to(y.dtype).unsqueeze(-1)[rows] * owed
            stage_cotangents = [
                torch.zeros_like(to_start).index_add(0, rows, weight.to(y.dtype).unsqueeze(-1) * scaled)
                for weight in method.output_weights(fractions)
            ]
        elif len(rows):
            for entries, entry_rows in restep_ranks(rows):
                end = short_end(t, t_end, entry_rows, fractions[entries])
                seed = torch.zeros_like(to_start).index_put((entry_rows,), owed[entries])
                to_start = to_start + method.pull_back(f, self._vjp, t, end, y, seed)
        back = method.pull_back(f, self._vjp, t, t_end, y, arriving, stage_cotangents)
        self.to_y = torch.where(active, back + to_start, self.to_y)
        self._owe_time(slot, None)

    def _vjp(self, function: Callable[[Tensor], Tensor], point: Tensor, weight: Tensor) -> Tensor:
        """J(point)ᵀ weight of one evaluation; what it owes to the parameters is added up."""
        with torch.enable_grad():
            x = point.detach().requires_grad_()
            value = function(x)
            if not value.requires_grad:
                return torch.zeros_like(point)
            refuse_unknown({id(tensor) for tensor in (x, *self.theta)}, value)
            to_x, *parts = torch.autograd.grad(value, (x, *self.theta), weight, allow_unused=True)
        for total, part in zip(self.to_theta, parts, strict=True):
            if part is not None:
                total += part
        return torch.zeros_like(point) if to_x is None else to_x

    def _owe_time(self, slot: int, back: Tensor | None) -> None:
        """Keep what is owed to the starting time where that is the time of an event."""
        event = self.replay.records.event
        if event is None:
            return
        if slot == 0 or back is None:
            self.to_t = torch.zeros_like(self.to_t)
        else:
            self.to_t = torch.where(self.replay.records.active(slot) & (event[slot - 1] >= 0), back, 0.0)
