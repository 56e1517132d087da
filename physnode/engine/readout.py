"""Values at the requested times, read from steps as they pass.

Either by the method's continuous extension, x(t + θh) = x + h Σ b_i(θ) k_i, which costs no evaluation a time, or by a step
of length θh from the record's start, which has the method's full order. A time on a step's end is that end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from physnode.engine.controllers import Span
from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.engine.records import OutputPlan, Trial, pack, plan_outputs
from physnode.errors import InputError

__all__ = ["OutputBoard", "ReadOut", "choose_read_out", "interpolate", "read_slot", "restep_ranks", "short_end"]

ReadOut = Literal["interpolate", "restep"]

_PIECE_BYTES = 2**20
"""About what may lie between the stages of a chunk of trials and the outputs read from them."""


def choose_read_out(method: Method, read_out: str) -> ReadOut:
    """``"auto"``: the continuous extension where the method has one, else a step of its own.

    Raises:
        InputError: an unknown word, or interpolation asked of a method that has no continuous extension.
    """
    if read_out == "auto":
        return "restep" if method.extension_order is None or method.prefers_restep else "interpolate"
    if read_out == "interpolate" and method.extension_order is None:
        raise InputError(f'{method.name} has no continuous extension; use read_out="restep", which has its full order')
    if read_out == "interpolate":
        return "interpolate"
    if read_out == "restep":
        return "restep"
    raise InputError(f'read_out must be "auto", "interpolate" or "restep"; found {read_out!r}')


def interpolate(weights: Sequence[Tensor], h: Tensor, y: Tensor, stages: Sequence[Tensor]) -> Tensor:
    """x + h Σ b_i(θ) k_i for M outputs: ``weights`` ``(M,)`` each, ``h`` ``(M, 1)``, ``y`` and stages ``(M, dim)``."""
    total = torch.zeros_like(y)
    for weight, stage in zip(weights, stages, strict=True):
        total = torch.addcmul(total, weight.unsqueeze(-1), stage)
    return torch.addcmul(y, h, total)


def restep_ranks(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Share M outputs of one slot among steps of the whole batch: pairs (entries, their rows), each row at most once."""
    ranks = torch.zeros_like(rows)
    order = rows.argsort(stable=True)
    ordered = rows[order]
    position = torch.arange(len(rows), device=rows.device)
    first = torch.searchsorted(ordered, ordered)
    ranks[order] = position - first
    total = int(ranks.max()) + 1 if len(rows) else 0
    return [((ranks == rank).nonzero().flatten(), rows[ranks == rank]) for rank in range(total)]


def read_slot(
    f: FieldFunction,
    method: Method,
    read_out: ReadOut,
    t: Tensor,
    t_end: Tensor,
    y: Tensor,
    carry: Tensor | None,
    step: Step,
    rows: Tensor,
    fractions: Tensor,
    inside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Values ``(M, dim)`` of the outputs (rows, fractions) inside one step of the batch, and evaluations spent ``(B,)``.

    Those that are not ``inside`` ``(M,)`` bool, by default those of fraction 1, are the step's end.
    """
    values, spent = step.y[rows], torch.zeros_like(t, dtype=torch.int64)
    if not len(rows):
        return values, spent
    inner = (fractions != 1.0 if inside is None else inside).nonzero().flatten()
    if not len(inner):
        return values, spent
    inner_rows, inner_fractions = rows[inner], fractions[inner]
    if read_out == "interpolate":
        stages = method.extend(f, t, t_end, y, step.stages)
        weights = [weight.to(y.dtype) for weight in method.output_weights(inner_fractions)]
        h = (t_end - t).to(y.dtype).unsqueeze(-1)[inner_rows]
        found = interpolate(weights, h, y[inner_rows], [stage[inner_rows] for stage in stages])
        spent = spent.index_fill(0, inner_rows, method.extra_evaluations)
        return values.index_put((inner,), found), spent
    for entries, entry_rows in restep_ranks(inner_rows):
        short = method.step(f, t, short_end(t, t_end, entry_rows, inner_fractions[entries]), y, carry)
        values = values.index_put((inner[entries],), short.y[entry_rows])
        made = torch.full_like(spent, method.evaluations) if short.spent is None else short.spent
        spent = spent.index_add(0, entry_rows, made[entry_rows])
    return values, spent


def short_end(t: Tensor, t_end: Tensor, rows: Tensor, fractions: Tensor) -> Tensor:
    """t + θh for ``rows``, t itself for the others: where the short steps of one round end, ``(B,)``."""
    return t + torch.zeros_like(t).index_put((rows,), fractions * (t_end - t)[rows])


class OutputBoard:
    """The outputs of one solve, filled chunk by chunk."""

    def __init__(self, span: Span, times: Tensor, y0: Tensor, read_out: ReadOut) -> None:
        """``times`` ``(B, T)`` lie within the span of their row; those on its start are ``y0`` ``(B, dim)``."""
        self.span, self.times, self.read_out = span, times, read_out
        at_start = times == span.t0.unsqueeze(-1)
        self.pending = ~at_start
        self._sign = span.direction.unsqueeze(-1)
        self.values = torch.where(at_start.unsqueeze(-1), y0.unsqueeze(1), torch.nan)

    @cached_property
    def _ahead(self) -> Tensor:
        """The times in the order in which they are passed, ``(B, T)``."""
        return (self._sign * self.times).sort(dim=-1).values.contiguous()

    @cached_property
    def _around(self) -> Tensor:
        """How far before a step's start and behind its end an output may count as lying on it, ``(B, 2)``."""
        near = 8 * torch.finfo(torch.float64).eps * torch.maximum(self.span.t0.abs(), self.span.t1.abs())
        return torch.stack((-near, near), dim=-1)

    def lies_in(self, trial: Trial) -> Tensor:
        """Whether some output may lie inside a trial, or on its end, 0-dim bool."""
        ends = torch.stack((trial.t, trial.t_end), dim=-1)
        passed = torch.searchsorted(self._ahead, torch.addcmul(self._around, self._sign, ends))
        return (passed[:, 0] != passed[:, 1]).any()

    def read(self, f: FieldFunction, method: Method, trials: Sequence[Trial]) -> Tensor:
        """Fill in what lies inside the accepted trials; returns the field evaluations this took, ``(B,)``."""
        accept, last = torch.stack([trial.accept for trial in trials]), trials[-1]
        count = accept.sum(0)
        order, t, t_end = pack(
            accept, count, torch.stack([trial.t for trial in trials]), torch.stack([trial.t_end for trial in trials])
        )
        spent = torch.zeros_like(count)
        if not len(t):
            return spent
        reached = torch.where(last.accept, last.t_end, last.t).masked_fill(count == 0, torch.nan)
        fast = self.read_out == "interpolate" and not method.extra_evaluations
        for columns in self._pieces(whole=not fast):
            times, pending = self.times[:, columns], self.pending[:, columns]
            near = 4 * torch.finfo(torch.float64).eps * times.abs()
            wanted = pending & (self._sign * times - near <= self._sign * reached.unsqueeze(-1))
            plan = plan_outputs(t, t_end, count, self.span, times, wanted)
            if not len(plan.rows):
                continue
            self.pending[:, columns] = pending & ~wanted
            index = order[plan.slots, plan.rows]
            if fast:
                values = self._at_once(method, trials, plan, index)
            else:
                values, spent = self._trial_by_trial(f, method, trials, plan, index)
            self.values[plan.rows, plan.columns + columns.start] = values
        return spent

    def _pieces(self, *, whole: bool) -> list[slice]:
        """Columns of the outputs that are read together, so that what is in between stays small."""
        rows, count, dim = self.values.shape
        size = count if whole else max(1, _PIECE_BYTES // (rows * (5 * dim * self.values.element_size() + 100)))
        return [slice(first, min(first + size, count)) for first in range(0, count, size)]

    def _at_once(self, method: Method, trials: Sequence[Trial], plan: OutputPlan, index: Tensor) -> Tensor:
        """All outputs of the chunk from the stages the steps have left."""
        numbers, index = torch.unique(index, return_inverse=True)
        trials = [trials[number] for number in numbers.tolist()]

        def each(values: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(values))[index, plan.rows]

        y = each([trial.y for trial in trials])
        h = (each([trial.t_end for trial in trials]) - each([trial.t for trial in trials])).to(y.dtype).unsqueeze(-1)
        total = torch.zeros_like(y)
        for i, weight in enumerate(method.output_weights(plan.fractions)):  # one stage of all trials at a time
            total.addcmul_(weight.to(y.dtype).unsqueeze(-1), each([trial.step.stages[i] for trial in trials]))
        ends = each([trial.step.y for trial in trials])
        return torch.where((plan.fractions == 1.0).unsqueeze(-1), ends, torch.addcmul(y, h, total))

    def _trial_by_trial(
        self, f: FieldFunction, method: Method, trials: Sequence[Trial], plan: OutputPlan, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs that need further evaluations, made once for each trial that holds one."""
        values = self.values.new_empty(len(plan.rows), self.values.shape[-1])
        spent = torch.zeros(len(self.times), dtype=torch.int64, device=self.times.device)
        for number in sorted(set(index.tolist())):
            trial = trials[number]
            entries = (index == number).nonzero().flatten()
            rows, fractions = plan.rows[entries], plan.fractions[entries]
            inside = f.on_step(trial.t, trial.t_end)
            values[entries], made = read_slot(
                inside, method, self.read_out, trial.t, trial.t_end, trial.y, trial.carry, trial.step, rows, fractions
            )
            spent += made
        return values, spent
