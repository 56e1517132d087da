"""The loop of one solve: ``advance`` tries one step for the whole batch; a driver repeats it until all have ended.

``advance`` is arithmetic on tensors, without a branch on data, each trajectory with its own time and step. Trajectories that
have ended rest: their trials have zero length. One that has failed rests at a safe state, so that what is wrong with it
reaches neither its neighbours nor their gradients. No graph is ever built here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from physnode.engine.controllers import Controller, Span
from physnode.engine.event_search import TrialStep, search
from physnode.engine.events import Watch
from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.engine.jumps import Jumps
from physnode.engine.readout import OutputBoard
from physnode.engine.recorder import Keep, Recorder
from physnode.engine.records import Met, Records, Trial
from physnode.engine.status import Status

if TYPE_CHECKING:
    from physnode.engine.graphed import Graphs

__all__ = [
    "Setting",
    "State",
    "Trace",
    "advance",
    "begin",
    "compensated",
    "first_status",
    "integrate",
    "moved",
    "send",
    "trial_bytes",
]

_CROWD = 12
"""Events in a row at one time that are more than several conditions met at once."""
_CHUNK_TRIALS = 64
_CHUNK_BYTES = 2**20
"""What trials that wait for their read-out may hold, stages and all, before they are read."""
_TRIALS_A_WAIT = 8
"""Trials that are sent to a device before the loop waits to hear whether any trajectory still moves; those that have ended
rest meanwhile. On the CPU, where nothing runs ahead, it is one."""


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
    jumps: Jumps | None = None
    watch: Watch | None = None
    observe: Callable[[Trial], None] | None = None
    """Called after every trial."""


class State(NamedTuple):
    """Everything that moves, one entry a trajectory."""

    t: Tensor
    """The last time reached, ``(B,)``."""
    y: Tensor
    """The state there, also by a trajectory that has failed since."""
    lost: Tensor
    """What rounding has cut off ``y`` so far: the next step adds it back (Kahan's compensated sum)."""
    dt: Tensor
    carry: Tensor | None
    memory: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    fresh: Tensor
    """Whether the carry does not fit the state, since the state or the field has just jumped, ``(B,)`` bool."""
    signs: Tensor
    """The last signs of the event conditions, ``(B, E)``."""
    evaluations: Tensor
    tried: Tensor
    """The length of the last trial, ``(B,)``."""
    crowd: Tensor
    """How many events in a row left the time where it was, ``(B,)``."""
    leaving: Tensor
    """Conditions that are zero since their event has just been, ``(B, E)`` bool."""


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
    met: Met | None
    """The events, where there were any to meet."""
    last_y: Tensor
    """The last state that each trajectory reached, ``(B, dim)``."""
    last_step: Tensor
    """The length of each row's last trial, ``(B,)``."""


def advance(setting: Setting, state: State) -> tuple[State, Trial]:
    """Try one step for every trajectory that is still running."""
    method, span, running = setting.method, setting.span, state.status == Status.RUNNING
    proposed = setting.controller.propose(span, state.t, state.dt)
    if setting.jumps is not None:
        proposed = setting.jumps.stop(span, state.t, proposed)
    t_end = torch.where(running, proposed, state.t)
    f = setting.f.on_step(state.t, t_end)
    failed = (state.status > 0).unsqueeze(-1)
    y = torch.where(failed, setting.safe_y, state.y)
    carry, evaluations = _carry(setting, f, state, y, running, failed)
    step = method.step(f, state.t, t_end, y, carry)
    if step.spent is None:
        evaluations = torch.add(evaluations, running, alpha=method.evaluations)
    else:
        evaluations = evaluations + running * step.spent
    step, lost = compensated(step, y, state.lost)
    broken = _broken(step)
    verdict = setting.controller.judge(method, running, state.t, t_end, state.dt, y, step, state.memory)
    accept = verdict.accept & running
    after = _resolve_events(setting, f, state, t_end, y, carry, step, lost, accept)
    accept, t_end, step, event = after.accept, after.t_end, after.step, after.event
    accepted, rejected = state.accepted + accept, state.rejected + (running ^ accept)
    spent = running & (accepted + rejected >= setting.max_steps)
    status = _status(state.status, spent, running & verdict.stuck, broken, step.unsolved, after)
    moved = accept.unsqueeze(-1)
    following = State(
        t=torch.where(accept, t_end, state.t),
        y=torch.where(moved, after.y, state.y),
        lost=torch.where(moved, after.lost, state.lost),
        dt=verdict.dt,
        carry=step.carry if step.carry is None or carry is None else torch.where(moved, step.carry, carry),
        memory=verdict.memory,
        accepted=accepted,
        rejected=rejected,
        status=status,
        fresh=_needs_fresh_carry(setting, state, accept, t_end, event),
        signs=after.signs,
        evaluations=evaluations + after.spent,
        tried=torch.where(running, (t_end - state.t).abs(), state.tried),
        crowd=after.crowd,
        leaving=after.leaving,
    )
    return following, Trial(state.t, t_end, y, carry, step, accept, event)


def first_status(span: Span, y0: Tensor, derivative: Tensor) -> Tensor:
    """How each trajectory stands before its first trial: running, at its end already, or where the field is not finite."""
    good = torch.isfinite((y0 + derivative).sum(-1))
    status = torch.where(span.t1 == span.t0, int(Status.OK), int(Status.RUNNING))
    return status.masked_fill(~good, int(Status.NON_FINITE))


def begin(setting: Setting, y0: Tensor, derivative: Tensor, carry: Tensor | None, status: Tensor, spent: int) -> State:
    """Where the loop stands before its first trial from ``y0`` ``(B, dim)``, ``spent`` evaluations having been made."""
    span, safe = setting.span, (status > 0).unsqueeze(-1)
    start = torch.where(safe, setting.safe_y, y0)
    dt, memory, on_start = setting.controller.start(setting.method, setting.f, span, start, derivative)
    zeros = torch.zeros_like(status)
    signs = zeros.unsqueeze(-1)[:, :0]
    if setting.watch is not None:
        signs = setting.watch.signs(setting.f, span.t0, start, span.direction)
    return State(
        t=span.t0,
        y=y0,
        lost=torch.zeros_like(y0),
        dt=dt,
        carry=carry,
        memory=memory,
        accepted=zeros,
        rejected=zeros,
        status=status,
        fresh=torch.zeros_like(safe[:, 0]) if setting.jumps is None else setting.jumps.on(span.t0),
        signs=signs,
        evaluations=torch.full_like(status, spent + on_start),
        tried=dt,
        crowd=zeros,
        leaving=torch.zeros_like(signs, dtype=torch.bool),
    )


def integrate(
    setting: Setting,
    y0: Tensor,
    derivative: Tensor,
    carry: Tensor | None,
    status: Tensor,
    board: OutputBoard,
    *,
    keep: Keep | None,
    spent: int,
    graphs: Graphs | None = None,
) -> Trace:
    """Solve from ``y0`` ``(B, dim)``, by the eager driver or, where there are ``graphs``, by trials that were captured.

    ``status`` marks trajectories that have already ended (zero span, or a field that is not finite at the start), ``board``
    collects the outputs, ``keep`` says what is kept of the steps (None: nothing), and ``spent`` is how many field evaluations
    have been made. Trials come in chunks, and what is kept of a chunk is copied from it before the next one comes.
    """
    span, method = setting.span, setting.method
    state = begin(setting, y0, derivative, carry, status, spent)
    read_outs = torch.zeros_like(status)
    recorder = None
    if keep is not None:
        recorder = Recorder(keep, span.t0, setting.safe_y, with_events=setting.watch is not None)
    within = _CHUNK_BYTES if keep is None or keep.chunk is None else keep.chunk
    eager = _EagerTrials(setting, state, board, recorder, within)
    graphed = None
    if graphs is not None and eager.more:
        graphed = graphs.trials(setting, state, max(1, min(_TRIALS_A_WAIT, within // trial_bytes(y0, method))))
    trials = graphed or eager
    del state, graphed
    while trials.more:
        chunk = trials.next()
        read_outs = read_outs + board.read(setting.f, method, chunk)
        if recorder is not None:
            recorder.take(chunk)
        del chunk
    state = trials.state
    records = None if recorder is None else recorder.finish(state.accepted)
    evaluations = state.evaluations + read_outs
    met = None if setting.watch is None else Met.of(eager.marked, span.t0, y0)
    return Trace(
        board.values, state.status, state.t, state.accepted, state.rejected, evaluations, records, met, state.y, state.tried
    )


class _EagerTrials:
    """Trials that are sent to their device one by one."""

    def __init__(self, setting: Setting, state: State, board: OutputBoard, recorder: Recorder | None, within: int) -> None:
        """Chunks take about ``within`` bytes; trials in which no output of the ``board`` lies are trimmed where that counts."""
        self.setting, self.state = setting, state
        self.more = int(state.status.amin()) == Status.RUNNING
        """Whether some trajectory still runs."""
        self.marked: list[Trial] = []
        """Those that ended on events."""
        self._board, self._recorder, self._within = board, recorder, within
        self._size, self._value_bytes = trial_bytes(state.y, setting.method), state.y.numel() * state.y.element_size()
        self._trim = self._size * _CHUNK_TRIALS > within
        self._ahead = _trials_a_wait(setting, state.y.device)

    def next(self) -> list[Trial]:
        """The next chunk."""
        setting, size = self.setting, self._size
        chunk: list[Trial] = []
        held = 0
        while self.more and (not chunk or (len(chunk) < _CHUNK_TRIALS and held + size <= self._within)):
            count = max(1, min(self._ahead, _CHUNK_TRIALS - len(chunk), (self._within - held) // size))
            board = self._board if self._trim else None
            self.state, trials, waits, self.more = _try_several(setting, self.state, count, board)
            for trial, wait in zip(trials, waits, strict=True):
                chunk.append(trial if wait else _trimmed(trial, self._recorder))
                held += size if wait else (2 + len(chunk[-1].step.known)) * self._value_bytes
                if trial.event is not None and bool((trial.event >= 0).any()):
                    self.marked.append(trial._replace(carry=None, step=Step(trial.step.y, (), None, ())))
                if setting.observe is not None:
                    setting.observe(trial)
            del trials, trial
        return chunk


def _trials_a_wait(setting: Setting, device: torch.device) -> int:
    """Trials between two waits for the device; a search for events waits in each anyway."""
    return 1 if device.type == "cpu" or setting.watch is not None else _TRIALS_A_WAIT


def _try_several(
    setting: Setting, state: State, count: int, board: OutputBoard | None
) -> tuple[State, list[Trial], list[bool], bool]:
    """``count`` trials with one wait for the device, those left out in which nothing moved any more.

    With a ``board`` it also tells in which of them outputs may lie, and after all whether something still moves.
    """
    state, trials, told = send(setting, state, count)
    if board is not None:
        told += [board.lies_in(trial) for trial in trials]
    facts = torch.stack(told).tolist()
    tried, more = moved(facts[:count])
    return state, trials[:tried], [bool(wait) for wait in facts[count:] or [1] * count][:tried], more


def send(setting: Setting, state: State, count: int) -> tuple[State, list[Trial], list[Tensor]]:
    """``count`` trials, and the lowest status after each, 0-dim."""
    trials: list[Trial] = []
    lowest: list[Tensor] = []
    for _ in range(count):
        state, trial = advance(setting, state)
        trials.append(trial)
        lowest.append(state.status.amin())  # RUNNING is the lowest
    return state, trials, lowest


def moved(lowest: list[int]) -> tuple[int, bool]:
    """In how many of such trials something still moved, and whether something moves after them."""
    return 1 + sum(status == Status.RUNNING for status in lowest[:-1]), lowest[-1] == Status.RUNNING


def _broken(step: Step) -> Tensor:
    """Where the step's end, or an estimate of its error, is not finite, ``(B,)`` bool."""
    total = step.y
    for error in step.error:
        total = total + error
    row = total.sum(-1)
    return row - row != 0  # zero for every finite number, and for no other


def _status(status: Tensor, spent: Tensor, stuck: Tensor, broken: Tensor, unsolved: Tensor | None, after: _Resolved) -> Tensor:
    """How trajectories stand after a trial; an end outweighs the steps it took, and a failure of what was tried both."""
    status = status.masked_fill(spent, int(Status.TOO_MANY_STEPS))
    status = status.masked_fill(stuck, int(Status.STEP_UNDERFLOW)).masked_fill(stuck & broken, int(Status.NON_FINITE))
    if unsolved is not None:
        status = status.masked_fill(stuck & unsolved, int(Status.UNSOLVED))
    if after.failure is not None:
        status = torch.where(after.failure > 0, after.failure, status)
    return status.masked_fill(after.ends, int(Status.OK))


def _carry(
    setting: Setting, f: FieldFunction, state: State, y: Tensor, running: Tensor, failed: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The carry, evaluated again where state or field have jumped, and the evaluations made so far."""
    carry, evaluations = state.carry, state.evaluations
    if carry is None:
        return None, evaluations
    if (setting.jumps is not None or setting.watch is not None) and bool(state.fresh.any()):
        again = setting.method.start(f, state.t, y, f(state.t, y))
        assert again is not None
        carry = torch.where(state.fresh.unsqueeze(-1), again, carry)
        evaluations = evaluations + (state.fresh & running)
    return carry if setting.safe_carry is None else torch.where(failed, setting.safe_carry, carry), evaluations


def _needs_fresh_carry(setting: Setting, state: State, accept: Tensor, t_end: Tensor, event: Tensor | None) -> Tensor:
    fresh = state.fresh if setting.jumps is None else accept & setting.jumps.on(t_end)
    if event is not None and setting.watch is not None and setting.watch.jumps:
        on_event = event >= 0
        fresh = on_event if setting.jumps is None else fresh | on_event
    return fresh


class _Resolved(NamedTuple):
    """A trial after its events: where it ends, and with what the trajectories go on."""

    accept: Tensor
    t_end: Tensor
    step: Step
    event: Tensor | None
    ends: Tensor
    """Which trajectories have come to their end."""
    y: Tensor
    """The states that go on: those at the steps' ends, or behind a jump."""
    lost: Tensor
    signs: Tensor
    leaving: Tensor
    crowd: Tensor
    failure: Tensor | None
    """The status of trajectories whose events make no sense, 0 for the others; None where there are none to meet."""
    spent: Tensor | int


def _resolve_events(
    setting: Setting,
    f: FieldFunction,
    state: State,
    t_end: Tensor,
    y: Tensor,
    carry: Tensor | None,
    step: Step,
    lost: Tensor,
    accept: Tensor,
) -> _Resolved:
    """End accepted steps on their first event, and let it have its effect."""
    watch = setting.watch
    if watch is None:
        ends = accept & (t_end == setting.span.t1)
        return _Resolved(accept, t_end, step, None, ends, step.y, lost, state.signs, state.leaving, state.crowd, None, 0)
    found = search(watch, TrialStep(f, setting.method, state.t, t_end, y, carry, step), accept, state.signs, state.leaving)
    accept = accept & ~found.broken & ~found.crowded
    event = torch.where(accept, found.event, -1)
    met, t1 = (event >= 0).unsqueeze(-1), setting.span.t1
    following, signs, leaving = step.y, found.signs, state.leaving & ~accept.unsqueeze(-1)
    if bool(met.any()):
        t_end = found.t_end
        step, lost = compensated(found.step, y, state.lost)
        leaving = met & (found.signs == 0)
        following = watch.after(f, event, t_end, step.y)
        jumped = (following != step.y).any(-1, keepdim=True)
        fresh = watch.signs(setting.f, t_end, following, setting.span.direction, leaving)
        # a jump of the state is no crossing of its own; a condition that crosses at the same time has its turn next
        renewed = (found.signs == 0) | (jumped & ~found.waiting)
        signs, lost = torch.where(met & renewed, fresh, found.signs), torch.where(jumped, 0.0, lost)
    ends = accept & ((t_end == t1) | watch.ends(event))
    crowd = _crowd(event, state, t_end)
    failure = torch.where(found.broken, int(Status.NON_FINITE), torch.zeros_like(state.status))
    failure = torch.where(found.crowded | (crowd > _CROWD), int(Status.CROWDED), failure)
    return _Resolved(accept, t_end, step, event, ends, following, lost, signs, leaving, crowd, failure, found.spent)


def _crowd(event: Tensor, state: State, t_end: Tensor) -> Tensor:
    """Events in a row that left the time where it was."""
    still = (t_end - state.t).abs() <= 16 * torch.finfo(torch.float64).eps * t_end.abs()
    return torch.where((event >= 0) & still, state.crowd + 1, 0)


def compensated(step: Step, y: Tensor, lost: Tensor) -> tuple[Step, Tensor]:
    """The step's end with what earlier roundings have cut off (``lost``) added back, and what is cut off now.

    Source: Kahan, Further remarks on reducing truncation errors, CACM 8 (1965); Hairer, Lubich, Wanner, Geometric Numerical
    Integration, VIII.5.
    """
    if step.change is None:
        return step, lost
    owed = step.change + lost
    end = y + owed
    return replace(step, y=end), owed - (end - y)


def _trimmed(trial: Trial, recorder: Recorder | None) -> Trial:
    """A trial in which no output lies: all that is left to do is to record it."""
    known = trial.step.known if recorder is not None and recorder.keeps_values else ()
    return trial._replace(carry=None, step=Step(trial.step.y, (), None, (), known=known))


def trial_bytes(y: Tensor, method: Method) -> int:
    """About what one trial takes while it waits for its read-out."""
    return y.numel() * y.element_size() * (method.evaluations + method.extra_evaluations + 4)
