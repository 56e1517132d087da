"""``solve``: where the engine and the gradients meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from physnode import gradients, transforms
from physnode.engine import methods
from physnode.engine.arguments import Arguments
from physnode.engine.controllers import Adaptive, Controller, Span
from physnode.engine.diagnosis import diagnose
from physnode.engine.events import Event, Watch
from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction, Traced, trace
from physnode.engine.jumps import Jumps, signal_jumps
from physnode.engine.loop import Setting, Trace, integrate
from physnode.engine.readout import OutputBoard, ReadOut, choose_read_out
from physnode.engine.records import Trial
from physnode.engine.status import Status
from physnode.errors import GradientError, InputError, SolveError
from physnode.fields import VectorField, as_field, needs_args
from physnode.gradients import Gradient, Outputs, Replay
from physnode.solution import Events, Piece, Solution, Statistics
from physnode.states import StateAdapter

__all__ = ["FieldLike", "solve"]

FieldLike: TypeAlias = VectorField | nn.Module | Callable[..., Any]
ArrayLike: TypeAlias = Tensor | np.ndarray[Any, Any] | Sequence[Any] | float


def solve(
    field: FieldLike,
    y0: Any,
    ts: ArrayLike,
    *,
    t0: ArrayLike | None = None,
    method: str | Method = "tsit5",
    controller: Controller | None = None,
    gradient: str | Gradient = "aca",
    args: Mapping[str, Any] | None = None,
    events: Event | Sequence[Event] | None = None,
    jump_times: ArrayLike | None = None,
    read_out: str = "auto",
    dense: bool = False,
    max_steps: int = 100_000,
    on_failure: str = "raise",
    observe: Callable[[Trial], None] | None = None,
) -> Solution:
    """Solve dy/dt = field(t, y) from ``y0``, each trajectory with its own steps.

    Args:
        field: a :class:`physnode.VectorField`, an ``nn.Module`` or a function of (t, y); y has shape ``(*batch, dim)`` and t
            that of ``y[..., :1]``. A function of (t, y, args) is also given ``args``.
        y0: state at ``t0``, ``(*batch, dim)``; lists and NumPy arrays become float64. A complex tensor, or a dictionary or
            tuple of tensors ``(*batch, dim_i)``, is a state too: the field, ``sol.ys`` and events then have its structure.
        ts: output times, ``(T,)`` or ``(*batch, T)``, strictly increasing or strictly decreasing. Ragged times are padded by
            repeating a trajectory's last one.
        t0: epoch of ``y0``, a number or ``(*batch,)``; by default the first output time. Inside ``ts``, the solve goes both
            ways from it.
        method: a value of :mod:`physnode.methods`, or its name.
        controller: :class:`physnode.Adaptive` (default) or :class:`physnode.Fixed`.
        gradient: :class:`physnode.ACA` (default), ``SymplecticAdjoint``, ``Direct``, or a name. All are exact for the steps
            taken; step sizes carry no gradient, times of events do. Inside ``torch.func`` transforms (``vmap``, ``grad``,
            ``jacfwd``, ...) and with dual tensors it must be ``Direct``.
        args: constants by name, of shape ``(*batch, ...)`` where trajectories differ, and :class:`physnode.Signal` inputs,
            which the field sees as their value at its time. Gradients flow to both. Steps end on the jumps of signals.
        events: :class:`physnode.Event` conditions; ``sol.events`` says when, where and which was met.
        jump_times: times at which the field jumps, ``(K,)`` or ``(*batch, K)``: steps end there, and the field is seen from the
            step's own side.
        read_out: outputs inside a step by the method's continuous extension (``"interpolate"``), by a step of their own with
            the method's full order (``"restep"``), or the first where the method has one (``"auto"``).
        dense: keep the steps, so that ``sol.at(times)`` works.
        max_steps: trial steps that one trajectory may take in one direction.
        on_failure: ``"raise"``, or ``"report"``: failed trajectories are NaN from their failure on, and ``sol.status`` and
            ``sol.failures`` say why; the others are untouched.
        observe: called after every trial step of the batch with what was tried (times, states, whether it was accepted).

    Returns:
        A :class:`physnode.Solution` with ``ys`` of shape ``(*batch, T, dim)``.

    Raises:
        InputError: arguments that cannot be used.
        SolveError: a trajectory failed and ``on_failure`` is ``"raise"``.
        GradientError: a gradient is asked for of a field that draws random numbers or changes its buffers when called.
            Inside a ``torch.func`` transform: one that cannot see through the gradient, the method or the field.
    """
    chosen, how = methods.get(method), gradients.get(gradient)
    read = choose_read_out(chosen, read_out)
    controller = Adaptive() if controller is None else controller
    if not isinstance(controller, Controller):
        raise InputError(f"controller must be pn.Adaptive(...) or pn.Fixed(dt); found {controller!r}")
    if on_failure not in ("raise", "report"):
        raise InputError(f'on_failure must be "raise" or "report"; found {on_failure!r}')
    if not (isinstance(max_steps, int) and max_steps > 0):
        raise InputError(f"max_steps must be a positive integer; found {max_steps!r}")
    adapter = StateAdapter.of(y0)
    start = _state(y0 if adapter is None else adapter.flatten(y0))
    own = as_field(field) if adapter is None else adapter.field(field)
    watch = _watch(events, adapter)
    if transforms.at_work(how, own, chosen):
        return transforms.solve_inside(
            solve,
            own,
            start,
            ts,
            adapter,
            watch,
            t0=t0,
            method=chosen,
            controller=controller,
            gradient=how,
            args=args,
            jump_times=jump_times,
            read_out=read,
            dense=dense,
            max_steps=max_steps,
            on_failure=on_failure,
            observe=observe,
        )
    batch = tuple(start.shape[:-1])
    times, shown = _times(ts, start, batch)
    epoch = _epoch(t0, times, start, batch)
    flat = start.clone().reshape(-1, start.shape[-1])  # the caller may edit y0 while the solution is alive
    controller.check(chosen, start.dtype)
    f = FieldFunction(own, batch, start.dtype, _arguments(args, own, batch, flat, epoch, times))
    chosen.check(f)
    traced = trace(f, epoch, flat, () if watch is None else watch.functions)
    if watch is not None and watch.jumps:
        _check_jumps(watch, f, epoch, flat)
    allowed = controller.allowed_error(flat.detach())
    scale = None if allowed is None else allowed.amax(-1, keepdim=True)  # a component at rest says nothing of its later size
    parts = [*_jump_times(jump_times, flat, batch), *signal_jumps(f, epoch, flat.detach(), scale)]
    jumps = Jumps.of(parts, len(flat))
    f.jumps = jumps is not None
    chosen = controller.tuned(chosen, flat.detach())
    differentiable = transforms.is_recorded(how) or (torch.is_grad_enabled() and (flat.requires_grad or bool(traced.theta)))
    if differentiable:
        _refuse_changing_fields(traced)
    keep = differentiable or dense
    plan = _Plan(f, chosen, controller, read, flat, epoch, traced, max_steps, keep, jumps, watch, observe)

    ahead = times >= epoch.unsqueeze(-1)
    behind = times < epoch.unsqueeze(-1)
    ways: list[tuple[Tensor, Tensor]] = []
    if bool(ahead.any()) or not bool(behind.any()):
        ways.append((ahead, torch.where(ahead, times, epoch.unsqueeze(-1))))
    if bool(behind.any()):
        ways.append((behind, torch.where(behind, times, epoch.unsqueeze(-1))))

    values: Tensor | None = None
    traces: list[Trace] = []
    pieces: list[Piece] = []
    met: list[Events] = []
    for number, (mine, wanted) in enumerate(ways):
        found, piece = plan.solve_one_way(wanted, first=number == 0)
        traces.append(found)
        outputs = Outputs.without_events(found.ys) if piece is None else piece.outputs(found.ys)
        if piece is not None:
            if keep:
                pieces.append(piece)
            if differentiable:
                outputs = how.attach(piece.replay, outputs, flat)
            met.append(Events.of(outputs, piece.replay.records, batch))
        values = outputs.ys if values is None else torch.where(mine.unsqueeze(-1), outputs.ys, values)
    assert values is not None
    ys = values.reshape(*batch, times.shape[-1], flat.shape[-1])

    solution = Solution(
        ts=shown,
        ys=ys if adapter is None else adapter.unflatten(ys),
        stats=Statistics(*(_total(traces, name, batch) for name in ("accepted", "rejected", "evaluations"))),
        status=torch.stack([found.status for found in traces]).amax(0).reshape(batch),
        reached=_of_the_worst(traces, "reached").reshape(batch),
        last_step=_of_the_worst(traces, "last_step").reshape(batch),
        events=Events.joined(met, ys, adapter),
        field=f.field,
        gradient=how,
        pieces=tuple(pieces),
        dense=dense,
        adapter=adapter,
    )
    if on_failure == "raise" and not bool(solution.ok.all()):
        raise SolveError(f'{solution.failures}\n(on_failure="report" returns the good trajectories)')
    return solution


@dataclass(frozen=True)
class _Plan:
    """Everything that both ways of a solve share."""

    f: FieldFunction
    method: Method
    controller: Controller
    read: ReadOut
    y0: Tensor
    epoch: Tensor
    traced: Traced
    max_steps: int
    keep: bool
    jumps: Jumps | None
    watch: Watch | None
    observe: Callable[[Trial], None] | None

    def solve_one_way(self, times: Tensor, *, first: bool) -> tuple[Trace, Piece | None]:
        """Solve from the epoch to the farthest of ``times`` ``(B, T)``, which all lie on one side of it."""
        f, method, epoch, traced = self.f, self.method, self.epoch, self.traced
        offset = times - epoch.unsqueeze(-1)
        farthest = offset.abs().argmax(-1, keepdim=True)
        t1 = times.gather(-1, farthest).squeeze(-1)
        # a trajectory that does not move goes the way of the others: both ways of a two-way solve then differ for it too
        span = Span(epoch, t1, torch.full_like(epoch, -1.0 if bool((t1 < epoch).any()) else 1.0))
        with torch.no_grad():
            start, derivative = self.y0.detach(), traced.derivative
            good = torch.isfinite(start.sum(-1)) & torch.isfinite(derivative.sum(-1))
            status = torch.where(t1 == epoch, int(Status.OK), int(Status.RUNNING))
            status = torch.where(good, status, int(Status.NON_FINITE))
            carry = method.start(f, epoch, start, derivative)
            safe_y, safe_carry = start, carry
            if not bool(good.all()) and bool(good.any()):
                stand_in = int(good.nonzero()[0])
                safe_y = torch.where(good.unsqueeze(-1), start, start[stand_in])
                if carry is not None:
                    safe_carry = torch.where(good.unsqueeze(-1), carry, carry[stand_in])
                    carry = safe_carry
                derivative = torch.where(good.unsqueeze(-1), derivative, derivative[stand_in])
            setting = Setting(
                f, method, self.controller, span, safe_y, safe_carry, self.max_steps, self.jumps, self.watch, self.observe
            )
            spent = int(first) * traced.calls + int(carry is not None and not _shares_derivative(method, f))
            board = OutputBoard(span, times, start, self.read)
            keep = self.keep or self.watch is not None
            found = integrate(setting, start, derivative, carry, status, board, keep_records=keep, spent=spent)
            explicit = not method.implicit
            last, tried = found.last, found.last_step
            told = diagnose(f, span, found.status, last.t, last.y, tried, start, traced.derivative, explicit=explicit)
            found = replace(found, status=told)
        if found.records is None:
            return found, None
        replay = Replay.of(
            f,
            method,
            self.read,
            span,
            found.records,
            times,
            found.reached,
            found.status == Status.OK,
            traced.theta,
            self.jumps,
            self.watch,
        )
        return found, Piece(replay, self.y0)


def _shares_derivative(method: Method, f: FieldFunction) -> bool:
    """Whether the first step starts from f(t0, y0) itself, which is already known."""
    return not isinstance(method, methods.Splitting) or f.drift_is_identity


def _arguments(
    args: Mapping[str, Any] | None, field: VectorField, batch: tuple[int, ...], y: Tensor, epoch: Tensor, times: Tensor
) -> Arguments | None:
    """``args`` bound to the batch, known over the whole solve."""
    if args is None:
        if needs_args(field):
            raise InputError('the field takes (t, y, args), but the solve has no args; give solve(..., args={"name": value})')
        return None
    if not field.reads_args:
        raise InputError(
            "the solve was given args, but the field takes (t, y) only; write it as a function of (t, y, args), "
            "or leave args out"
        )
    bound = Arguments(args, batch, y)
    bound.check_span(torch.minimum(epoch, times.amin(-1)), torch.maximum(epoch, times.amax(-1)))
    return bound


def _watch(events: Event | Sequence[Event] | None, adapter: StateAdapter | None) -> Watch | None:
    if events is None:
        return None
    listed = [events] if isinstance(events, Event) else list(events)
    for event in listed:
        if not isinstance(event, Event):
            raise InputError(f"events must be pn.Event values; found {event!r}. Write pn.Event(condition, ...)")
    if adapter is not None:
        listed = [
            replace(
                event,
                condition=adapter.function(event.condition),
                jump=None if event.jump is None else adapter.state_map(event.jump),
            )
            for event in listed
        ]
    return Watch(listed) if listed else None


def _check_jumps(watch: Watch, f: FieldFunction, t: Tensor, y: Tensor) -> None:
    """Call every jump once, so that one of a wrong shape is refused before the solve."""
    with torch.no_grad():
        for number in range(len(watch.events)):
            watch.after(f, torch.full_like(t, number, dtype=torch.int64), t, y.detach())


def _jump_times(jump_times: ArrayLike | None, y: Tensor, batch: tuple[int, ...]) -> list[Tensor]:
    if jump_times is None:
        return []
    found = _float64(jump_times, "jump_times", y)
    if found.ndim == 0:
        found = found.reshape(1)
    if found.ndim > 1 and tuple(found.shape[:-1]) != batch:
        raise InputError(f"jump_times must have shape (K,) or (*batch, K) with the batch {batch}; found {tuple(found.shape)}")
    if bool(torch.isnan(found).any()):
        raise InputError("jump_times holds NaN; pad the rows of ragged jump times with infinity")
    return [found.reshape(-1, found.shape[-1])]


def _state(y0: ArrayLike) -> Tensor:
    if isinstance(y0, Tensor):
        state = y0
        if not state.dtype.is_floating_point:
            raise InputError(f"y0 must be a floating-point tensor; found {state.dtype}. Convert it with y0.double()")
    else:
        array = np.asarray(y0)
        if array.dtype.kind not in "fiu":
            raise InputError(f"y0 must hold real numbers; found an array of {array.dtype}")
        state = torch.as_tensor(array.astype(np.float64))
    if state.ndim == 0 or state.numel() == 0:
        raise InputError(f"y0 must have shape (*batch, dim) with at least one entry; found {tuple(state.shape)}")
    return state


def _times(ts: ArrayLike, y0: Tensor, batch: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Output times as ``(B, T)``, and in the shape they were given."""
    shown = _float64(ts, "ts", y0)
    if shown.ndim == 0 or shown.shape[-1] == 0:
        raise InputError(f"ts must have shape (T,) or (*batch, T) with at least one time; found {tuple(shown.shape)}")
    if shown.ndim > 1 and tuple(shown.shape[:-1]) != batch:
        raise InputError(
            f"ts has leading axes {tuple(shown.shape[:-1])} but y0 has the batch {batch}; "
            "give times of shape (T,) for all, or (*batch, T)"
        )
    times = shown.expand(*batch, shown.shape[-1]).reshape(max(1, y0.numel() // y0.shape[-1]), -1)
    if not bool(torch.isfinite(times).all()):
        raise InputError("ts holds times that are not finite")
    steps = times.diff(dim=-1)
    if shown.ndim > 1:  # padding: the last time, repeated
        padding = steps.abs().flip(-1).cumsum(-1).flip(-1) == 0
        first = torch.where(steps[:, :1] == 0, 1.0, steps[:, :1])
        steps = torch.where(padding, first, steps)
    bad = ~((steps > 0).all(-1) | (steps < 0).all(-1))
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        where = f" (trajectory {row})" if shown.ndim > 1 else ""
        raise InputError(f"ts must be strictly increasing or strictly decreasing{where}; sort them and drop repeated times")
    return times, shown


def _epoch(t0: ArrayLike | None, times: Tensor, y0: Tensor, batch: tuple[int, ...]) -> Tensor:
    if t0 is None:
        return times[:, 0]
    epoch = _float64(t0, "t0", y0)
    if epoch.ndim and tuple(epoch.shape) != batch:
        raise InputError(f"t0 must be a number or have the batch shape {batch}; found {tuple(epoch.shape)}")
    if not bool(torch.isfinite(epoch).all()):
        raise InputError("t0 is not finite")
    return epoch.expand(batch).reshape(len(times)).clone()


def _float64(value: ArrayLike, name: str, y0: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise InputError(f"{name} requires a gradient, but times are constants of a solve here; pass {name}.detach()")
        if value.device != y0.device:
            raise InputError(f"{name} is on {value.device} but y0 on {y0.device}; move one of them")
        return value.to(torch.float64)
    return torch.as_tensor(np.asarray(value, dtype=np.float64), device=y0.device)


def _refuse_changing_fields(traced: Traced) -> None:
    if traced.random or traced.stateful:
        found = "draws random numbers (dropout?)" if traced.random else "changes its buffers (batch normalisation?)"
        raise GradientError(
            f"the field {found} when it is called, so the steps of a solve cannot be made again and a gradient would be "
            "silently wrong; put the field into evaluation mode with field.eval(), or take the noise out of it"
        )


def _total(traces: list[Trace], name: str, batch: tuple[int, ...]) -> Tensor:
    total: Tensor = torch.stack([getattr(found, name) for found in traces]).sum(0)
    return total.reshape(batch)


def _of_the_worst(traces: list[Trace], name: str) -> Tensor:
    """``reached`` and the like, from the worse direction of each trajectory."""
    value, status = getattr(traces[0], name), traces[0].status
    for found in traces[1:]:
        value = torch.where(found.status > status, getattr(found, name), value)
    return value  # type: ignore[no-any-return]
