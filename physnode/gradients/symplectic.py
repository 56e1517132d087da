"""``SymplecticAdjoint``: one evaluation of the field at a time is made again with a graph; stages are swept in reverse.

Exact. Kept from the forward solve: times and states of the accepted steps; graph alive at any time: one evaluation's;
backward evaluations: twice those of the accepted steps. The sweep itself belongs to the family of the method.
Source: Matsubara, Miyatake, Yaguchi, Symplectic Adjoint Method for Exact Gradient of Neural ODE with Minimal Memory,
NeurIPS 2021 (arXiv 2102.09750); here in a form without division, so that zero weights need no case of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from physnode.engine.readout import restep_ranks, short_end
from physnode.gradients.base import Swept
from physnode.gradients.replay import Replay
from physnode.gradients.variables import refuse_unknown

__all__ = ["SymplecticAdjoint"]


class SymplecticAdjoint(Swept):
    """The symplectic adjoint method."""

    name = "symplectic"

    def sweep(self, replay: Replay, cotangents: Tensor, theta: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """Each record's transposed step, with the cotangents of the outputs inside it entering the same stage sweep."""
        to_theta = [torch.zeros_like(tensor) for tensor in theta]
        known = {id(tensor) for tensor in theta}

        def vjp(function: Callable[[Tensor], Tensor], point: Tensor, weight: Tensor) -> Tensor:
            with torch.enable_grad():
                x = point.detach().requires_grad_()
                value = function(x)
                if not value.requires_grad:
                    return torch.zeros_like(point)
                refuse_unknown(known | {id(x)}, value)
                to_x, *parts = torch.autograd.grad(value, (x, *theta), weight, allow_unused=True)
            for total, part in zip(to_theta, parts, strict=True):
                if part is not None:
                    total += part
            return torch.zeros_like(point) if to_x is None else to_x

        to_y = cotangents.new_zeros(cotangents.shape[0], cotangents.shape[2])
        records, method, f = replay.records, replay.method, replay.f
        for slot in reversed(range(records.slots)):
            t, t_end, y = records.t[slot], records.t_end[slot], records.y[slot]
            active = records.active(slot).unsqueeze(-1)
            here = replay.plan.within(slot)
            rows, fractions = replay.plan.rows[here], replay.plan.fractions[here]
            owed = cotangents[rows, replay.plan.columns[here]]
            at_end = fractions == 1.0
            arriving = torch.where(active, to_y, 0.0).index_add(0, rows[at_end], owed[at_end])
            rows, fractions, owed = rows[~at_end], fractions[~at_end], owed[~at_end]
            to_start = torch.zeros_like(to_y)
            stage_cotangents: list[Tensor | None] = []
            if len(rows) and replay.read_out == "interpolate":
                to_start = to_start.index_add(0, rows, owed)
                scaled = (t_end - t).to(y.dtype).unsqueeze(-1)[rows] * owed
                stage_cotangents = [
                    torch.zeros_like(to_y).index_add(0, rows, weight.to(y.dtype).unsqueeze(-1) * scaled)
                    for weight in method.output_weights(fractions)
                ]
            elif len(rows):
                for entries, entry_rows in restep_ranks(rows):
                    end = short_end(t, t_end, entry_rows, fractions[entries])
                    seed = torch.zeros_like(to_y).index_put((entry_rows,), owed[entries])
                    to_start = to_start + method.pull_back(f, vjp, t, end, y, seed)
            back = method.pull_back(f, vjp, t, t_end, y, arriving, stage_cotangents)
            to_y = torch.where(active, back + to_start, to_y)
        return to_y + torch.where(replay.at_start.unsqueeze(-1), cotangents, 0.0).sum(1), to_theta
