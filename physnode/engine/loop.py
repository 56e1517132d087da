"""The loop of one solve: ``advance`` tries one step for the whole batch; the eager driver repeats it until all have ended.

``advance`` is arithmetic on tensors, without a branch on data, each trajectory with its own time and step. Trajectories that
have ended rest: their trials have zero length. One that has failed rests at a safe state, so that what is wrong with it
reaches neither its neighbours nor their gradients. No graph is ever built here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from physnode.engine.controllers import Controller, Span
from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.engine.readout import OutputBoard
from physnode.engine.records import Records, Trial, pack
from physnode.engine.status import Status

__all__ = ["Setting", "Trace", "advance", "integrate"]

_CHUNK_BYTES = 64 * 2**20
_CHUNK_TRIALS = 64


@dataclass(frozen=True)
class Setting:
    """Everything that stays the same during a solve."""

    f: FieldFunction
    method: Method
    controller: Controller
    span: Span
    safe_y: Tensor
    safe_carry: Tensor | None
    max_steps: int


class State(NamedTuple):
    """Everything that moves, one entry a trajectory."""

    t: Tensor
    y: Tensor
    """The last state reached, also by a trajectory that has failed since."""
    lost: Tensor
    """What rounding has cut off ``y`` so far: the next step adds it back (Kahan's compensated sum)."""
    dt: Tensor
    carry: Tensor | None
    memory: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    reached: Tensor


@dataclass(frozen=True)
class Trace:
    """What a solve found."""

    ys: Tensor
    """Values at the output times, ``(B, T, dim)``; NaN where a trajectory did not get so far."""
    status: Tensor
    reached: Tensor
    """The last time each trajectory reached, ``(B,)``."""
    accepted: Tensor
    rejected: Tensor
    evaluations: Tensor
    records: Records | None


def advance(setting: Setting, state: State) -> tuple[State, Trial]:
    """Try one step for every trajectory that is still running."""
    running = state.status == Status.RUNNING
    proposed = setting.controller.propose(setting.span, state.t, state.dt, state.accepted)
    t_end = torch.where(running, proposed, state.t)
    y = torch.where((state.status > 0).unsqueeze(-1), setting.safe_y, state.y)
    step, lost = _compensated(setting.method.step(setting.f, state.t, t_end, y, state.carry), y, state.lost)
    verdict = setting.controller.judge(setting.method, running, state.t, t_end, state.dt, y, step, state.memory)
    accept = verdict.accept & running
    accepted = state.accepted + accept
    rejected = state.rejected + (running & ~accept)
    arrived = accept & (t_end == setting.span.t1)
    finite = torch.isfinite(step.y.sum(-1))
    for error in step.error:
        finite = finite & torch.isfinite(error.sum(-1))
    stuck = running & verdict.stuck
    spent = running & ~arrived & (accepted + rejected >= setting.max_steps)
    status = torch.where(spent, int(Status.TOO_MANY_STEPS), state.status)
    status = torch.where(stuck, torch.where(finite, int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE)), status)
    status = torch.where(arrived, int(Status.OK), status)
    failed, moved = (status > 0).unsqueeze(-1), accept.unsqueeze(-1)
    carry = step.carry
    if carry is not None and state.carry is not None and setting.safe_carry is not None:
        carry = torch.where(failed, setting.safe_carry, torch.where(moved, carry, state.carry))
    trial = Trial(state.t, t_end, y, state.carry, step, accept)
    following = State(
        t=torch.where(accept, t_end, state.t),
        y=torch.where(moved, step.y, state.y),
        lost=torch.where(moved, lost, state.lost),
        dt=verdict.dt,
        carry=carry,
        memory=verdict.memory,
        accepted=accepted,
        rejected=rejected,
        status=status,
        reached=torch.where(accept, t_end, state.reached),
    )
    return following, trial


def integrate(
    setting: Setting,
    y0: Tensor,
    derivative: Tensor,
    carry: Tensor | None,
    status: Tensor,
    board: OutputBoard,
    *,
    keep_records: bool,
    spent: int,
) -> Trace:
    """Run the eager driver from ``y0`` ``(B, dim)``.

    ``status`` marks trajectories that have already ended (zero span, or a field that is not finite at the start), ``board``
    collects the outputs, and ``spent`` is how many field evaluations have been made.
    """
    span, method = setting.span, setting.method
    safe = (status > 0).unsqueeze(-1)
    dt, memory, on_start = setting.controller.start(method, setting.f, span, torch.where(safe, setting.safe_y, y0), derivative)
    zeros = torch.zeros_like(status)
    state = State(span.t0, y0, torch.zeros_like(y0), dt, carry, memory, zeros, zeros, status, span.t0)
    evaluations = zeros + (spent + on_start)
    chunk_limit = _chunk_limit(y0, method)
    chunk: list[Trial] = []
    kept: list[Trial] = []
    while bool((state.status == Status.RUNNING).any()):
        while len(chunk) < chunk_limit and bool((state.status == Status.RUNNING).any()):
            tried = state.status == Status.RUNNING
            state, trial = advance(setting, state)
            spent_now = method.evaluations if trial.step.spent is None else trial.step.spent
            evaluations = evaluations + spent_now * tried
            chunk.append(trial)
        evaluations = evaluations + board.read(setting.f, method, chunk)
        if keep_records:
            kept += [trial._replace(step=_NOTHING, carry=None) for trial in chunk]
        chunk = []
    records = _records(setting, kept, state) if keep_records else None
    return Trace(board.values, state.status, state.reached, state.accepted, state.rejected, evaluations, records)


_NOTHING = Step(torch.empty(0), (), None, ())


def _compensated(step: Step, y: Tensor, lost: Tensor) -> tuple[Step, Tensor]:
    """The step's end with what earlier roundings have cut off added back, and what is cut off now.

    Source: Kahan, Further remarks on reducing truncation errors, CACM 8 (1965); Hairer, Lubich, Wanner, Geometric Numerical
    Integration, VIII.5.
    """
    if step.change is None:
        return step, lost
    owed = step.change + lost
    end = y + owed
    return replace(step, y=end), owed - (end - y)


def _chunk_limit(y: Tensor, method: Method) -> int:
    """Trials in a chunk: their stages, which wait for the read-out, stay within a fixed number of bytes."""
    size = max(1, y.numel() * y.element_size() * (method.evaluations + method.extra_evaluations + 4))
    return max(4, min(_CHUNK_TRIALS, _CHUNK_BYTES // size))


def _records(setting: Setting, trials: list[Trial], state: State) -> Records:
    """Pack the accepted trials; slots beyond a row's count rest, with zero length, at a safe state."""
    if not trials:
        empty = setting.span.t0.new_zeros(0, len(setting.span.t0))
        return Records(empty, empty, setting.safe_y.new_zeros(0, *setting.safe_y.shape), state.accepted)
    accept = torch.stack([trial.accept for trial in trials])
    _, t, t_end, y = pack(
        accept,
        torch.stack([trial.t for trial in trials]),
        torch.stack([trial.t_end for trial in trials]),
        torch.stack([trial.y for trial in trials]),
    )
    beyond = torch.arange(len(t), device=t.device).unsqueeze(-1) >= state.accepted
    if bool(beyond.any()):
        t, t_end = torch.where(beyond, setting.span.t0, t), torch.where(beyond, setting.span.t0, t_end)
        y = torch.where(beyond.unsqueeze(-1), setting.safe_y, y)
    return Records(t, t_end, y, state.accepted)
