"""``solve``: where the engine and the gradients meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from physnode import gradients, transforms
from physnode.checks import (
    ArrayLike,
    bind_arguments,
    check_jumps,
    epoch_of,
    jump_times_of,
    refuse_changing_fields,
    state_of,
    times_of,
    watch_of,
)
from physnode.drivers import driver_of, eager_only
from physnode.engine import methods
from physnode.engine.controllers import Adaptive, Controller
from physnode.engine.events import Event
from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.engine.jumps import Jumps, signal_jumps
from physnode.engine.loop import Trace
from physnode.engine.readout import choose_read_out
from physnode.engine.recorder import Keep
from physnode.engine.records import Trial
from physnode.errors import InputError, SolveError
from physnode.fields import VectorField, as_field
from physnode.gradients import Gradient, GradientCost, moved_start
from physnode.native.choice import Choice, checked_choice
from physnode.solution import Events, Piece, Solution, Statistics, outputs_of
from physnode.states import StateAdapter
from physnode.ways import Plan, of_the_worst, total, ways_of

__all__ = ["FieldLike", "solve"]

FieldLike: TypeAlias = VectorField | nn.Module | Callable[..., Any]


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
    compile: Choice = False,
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
        gradient: :class:`physnode.ACA` (default), ``SymplecticAdjoint``, ``Direct``, or a name; all are exact for the steps
            taken. Step sizes carry no gradient; times of events do, and so do ``ts`` and ``t0``, with which the steps are
            scaled. ``ContinuousAdjoint``, the baseline that others offer, is accurate to its tolerances. Inside
            ``torch.func`` transforms (``vmap``, ``grad``, ``jacfwd``, ...) and with dual tensors it must be ``Direct``.
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
        compile: True: solve, and pull back, by native code that is made for the field at its first solve (some seconds) and
            kept on disk; where that cannot be, a :class:`physnode.errors.CompileWarning` says why, and the eager driver solves.
            ``"auto"``: once the eager driver has spent on such solves what making the code costs. False: eager. On a CUDA
            device both words mean trial steps captured as a CUDA graph, several at a time, for this solve; backward sweeps are
            eager there. Where that cannot be, the same warning says why. It has not been run or measured on a GPU yet.

    Returns:
        A :class:`physnode.Solution` with ``ys`` of shape ``(*batch, T, dim)``.

    Raises:
        InputError: arguments that cannot be used.
        SolveError: a trajectory failed and ``on_failure`` is ``"raise"``.
        GradientError: a gradient is asked for of a field that draws random numbers or changes its buffers when called.
            Inside a ``torch.func`` transform: one that cannot see through the gradient, the method or the field.
    """
    compile = checked_choice(compile)
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
    start = state_of(y0 if adapter is None else adapter.flatten(y0))
    own = as_field(field) if adapter is None else adapter.field(field)
    watch = watch_of(events, adapter)
    if transforms.at_work(how, own):
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
    moving_times, shown = times_of(ts, start, batch)  # copies: the caller may edit theirs while the solution is alive
    moving_epoch = epoch_of(t0, moving_times, start, batch)
    times, epoch = moving_times.detach(), moving_epoch.detach()
    flat = start.clone().reshape(-1, start.shape[-1])  # the caller may edit y0 while the solution is alive
    controller.check(chosen, start.dtype)
    controller = controller.on(flat.device)
    f = FieldFunction(own, batch, start.dtype, bind_arguments(args, own, batch, flat, epoch, times))
    chosen.check(f)
    rtol = controller.relative_tolerance(start.dtype)
    parts = [*jump_times_of(jump_times, flat, batch), *signal_jumps(f, rtol)]
    jumps = Jumps.of(parts, len(flat))
    f.jumps = jumps is not None
    moves = flat.requires_grad or moving_times.requires_grad or moving_epoch.requires_grad

    def is_differentiable(theta: Sequence[Tensor]) -> bool:
        return transforms.is_recorded(how) or (torch.is_grad_enabled() and (moves or bool(theta)))

    reason = eager_only(flat, how, jumps, watch, observe) if compile else None
    driver = driver_of(
        compile, f, chosen, controller, read, flat, epoch, times[:, -1], watch, reason, is_differentiable, max_steps
    )
    traced, differentiable = driver.traced, driver.differentiable
    if watch is not None and watch.jumps:
        check_jumps(watch, f, epoch, flat)
    if differentiable:
        refuse_changing_fields(traced)
    else:  # a gradient is that of the steps made, whose equations must then be solved to rounding
        chosen = controller.tuned(chosen, flat.detach())
    cost = GradientCost(how.name, limit=None if how.storage is None else how.storage.limit)
    if dense and how.storage is not None and how.storage.bounds:
        raise InputError(
            "dense=True keeps the state of every step, which Storage(limit=..., checkpoints=...) forbids; ask for all times in "
            "ts, or leave the storage as it is by default"
        )
    keep = Keep() if dense else how.keep(f, chosen, epoch, flat, traced.theta, times.shape[-1]) if differentiable else None
    ways = ways_of(moving_times, moving_epoch)
    keep = None if keep is None else keep.shared(len(ways))
    plan = Plan(f, chosen, controller, read, flat, moving_epoch, max_steps, keep, cost, jumps, watch, observe, driver)

    values: Tensor | None = None
    traces: list[Trace] = []
    pieces: list[Piece] = []
    met: list[Events] = []
    for number, (mine, wanted) in enumerate(ways):
        found, piece = plan.solve_one_way(wanted, first=number == 0)
        traces.append(found)
        outputs = outputs_of(found.ys, found.met)
        if piece is not None:
            pieces.append(piece)
            if differentiable:
                outputs = piece.attach(how, outputs, cost)
        if found.met is not None:
            met.append(Events.of(outputs, found.met, batch))
        values = outputs.ys if values is None else torch.where(mine.unsqueeze(-1), outputs.ys, values)
    assert values is not None
    driver.ended(compile, traces, chosen.evaluations)
    values = moved_start(f, moving_epoch, moving_times, flat, values)
    ys = values.reshape(*batch, times.shape[-1], flat.shape[-1])

    solution = Solution(
        ts=shown,
        ys=ys if adapter is None else adapter.unflatten(ys),
        stats=Statistics(
            accepted=total(traces, "accepted", batch),
            rejected=total(traces, "rejected", batch),
            evaluations=total(traces, "evaluations", batch),
            gradient=cost if differentiable else None,
        ),
        status=reduce(torch.maximum, (found.status for found in traces)).reshape(batch),
        reached=of_the_worst(traces, "reached").reshape(batch),
        last_step=of_the_worst(traces, "last_step").reshape(batch),
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
