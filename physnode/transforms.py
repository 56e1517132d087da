"""``solve`` inside ``torch.func`` transforms: what they may do with it, and how a mapped solve is made.

``grad``, ``vjp``, ``jacrev`` and the forward-mode transforms see the ordinary operations of a replay, so they need nothing but
``gradient="direct"``. ``vmap`` cannot follow a loop that ends when the data say so: there the mapped axes join the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from physnode.calling import with_args
from physnode.engine import methods
from physnode.engine.arguments import Arguments
from physnode.engine.events import Watch
from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.errors import GradientError, InputError
from physnode.fields import VectorField, needs_args
from physnode.gradients import Direct, Gradient, Outputs, Replay
from physnode.gradients.direct import with_graph
from physnode.gradients.mapped import MappedCall, MappedField, mapped_event, mapped_field, spread_signal, spread_times
from physnode.gradients.transforms import Axes, bottom, make_again, wants_gradient
from physnode.signals import Signal
from physnode.solution import Events, Piece, Solution, Statistics, outputs_of
from physnode.states import StateAdapter
from physnode.torch_internals import (
    current_level,
    in_forward_mode,
    in_transform,
    is_wrapped,
    outside_transforms,
    transforms_differentiate,
    without_forward_mode,
)

__all__ = ["at_work", "is_recorded", "solve_inside"]

_INSTEAD = "give the mapped axis to solve itself, whose states are (*batch, dim) and whose trajectories have their own steps"
_GRAPH = (torch.autograd.grad, torch.autograd.backward, Tensor.backward, Tensor.requires_grad_)


def at_work(gradient: Gradient, field: VectorField) -> bool:
    """Whether a solve runs inside a transform.

    Raises:
        GradientError: the gradient is one that the transform cannot see through.
    """
    if isinstance(field, MappedField) or not (in_forward_mode() or in_transform()):
        return False
    if not isinstance(gradient, Direct):
        raise GradientError(
            f"torch.func transforms (grad, vjp, jacrev, jvp, jacfwd, hessian, vmap) and dual tensors cannot see through "
            f'gradient="{gradient.name}"; use gradient="direct" inside them, or torch.autograd.grad outside'
        )
    return True


def solve_inside(
    solve: Callable[..., Solution],
    field: VectorField,
    y: Tensor,
    ts: Any,
    adapter: StateAdapter | None,
    watch: Watch | None,
    *,
    t0: Any,
    method: Method,
    gradient: Gradient,
    args: Mapping[str, Any] | None,
    jump_times: Any,
    dense: bool,
    **options: Any,
) -> Solution:
    """The solve of ``field`` from ``y`` ``(*batch, dim)`` as the transforms around it see it.

    The steps are found on plain tensors, so that neither decisions nor step sizes depend on what a transform follows, and are
    made again inside the transforms.

    Args:
        solve: the solver of plain tensors.
        field: the field of the flat state.
        y: the flat start.
        ts: as in ``solve``.
        adapter: how a structured state is laid out.
        watch: events of the flat state.
        t0: as in ``solve``, like all others.
        method: see ``t0``.
        gradient: see ``t0``.
        args: see ``t0``.
        jump_times: see ``t0``.
        dense: see ``t0``.
        options: see ``t0``.

    Raises:
        InputError: ``dense=True`` inside ``vmap``, or times that are differentiated.
        GradientError: the field takes a gradient with ``torch.autograd``; a mapped derivative of an implicit method or of a
            solve with events; a derivative by the values of a cubic signal.
    """
    for name, value in (("ts", ts), ("t0", t0), ("jump_times", jump_times)):
        _refuse_followed(name, value)
    axes, differentiable = _around(field, () if watch is None else watch.functions, y, (ts, t0, jump_times), args)
    if axes.levels:
        _refuse_mapped(method, watch, dense, differentiable)
    batch, signals = tuple(y.shape[:-1]), _signals(args)
    call = MappedCall(axes, frozenset(signals))
    with outside_transforms(), torch.no_grad(), without_forward_mode():
        found = solve(
            mapped_field(call, field),
            axes.plain(y).detach(),
            spread_times(axes, ts, batch, 1),
            t0=spread_times(axes, t0, batch, 0),
            method=method,
            gradient=_Recorded(differentiable),
            args=args if not signals else {**(args or {}), **{k: spread_signal(axes, v, batch, y) for k, v in signals.items()}},
            events=None if watch is None else [mapped_event(call, event) for event in watch.events],
            jump_times=spread_times(axes, jump_times, batch, 1),
            dense=differentiable or dense,
            **options,
        )
        seen = {name: axes.inside(getattr(found, name)) for name in ("ys", "status", "reached", "last_step")}
        counts = found.stats.accepted, found.stats.rejected, found.stats.evaluations
        accepted, rejected, evaluations = (axes.inside(count) for count in counts)
        met = Events(axes.inside(found.events.t), axes.inside(found.events.y), axes.inside(found.events.index))
    ys, pieces = seen.pop("ys"), []
    if differentiable or dense:
        start = y.clone().reshape(-1, y.shape[-1])
        f = FieldFunction(field, batch, y.dtype, _bound(args, signals, batch, y))
        replays = [piece.replay for piece in found.pieces]
        f.jumps = any(replay.f.jumps for replay in replays)
        if axes.levels:
            with torch.enable_grad():
                made, good = make_again(replays, f, start, axes)
            ys = with_graph(ys, made.reshape(ys.shape), good.reshape(ys.shape[:-1]).unsqueeze(-1))
        else:
            pieces = [Piece(partial(_inside, piece.replay, f, watch, start), start, piece.met) for piece in found.pieces]
            ys, met = _attached(gradient, pieces, ys, batch)
    if adapter is not None:
        ys, met = adapter.unflatten(ys), replace(met, y=adapter.unflatten(met.y))
    kind = MappedSolution if axes.levels else Solution
    return kind(
        ts=_tensor(ts, y),
        ys=ys,
        stats=Statistics(accepted, rejected, evaluations),
        events=met,
        field=field,
        gradient=gradient,
        pieces=tuple(pieces),
        dense=dense,
        adapter=adapter,
        **seen,
    )


def _around(
    field: VectorField, functions: Sequence[Callable[..., Tensor]], y: Tensor, times: Sequence[Any], args: Any
) -> tuple[Axes, bool]:
    """The axes along which ``vmap`` maps a solve, and whether a derivative of it may be wanted.

    The field, and the ``functions`` of its events, are called once to find out.
    """
    ts, t0, jump_times = (None if value is None else _tensor(value, y) for value in times)
    seen: list[Any] = [y, ts, t0, jump_times]
    if (args is None and not needs_args(field)) or (isinstance(args, Mapping) and field.reads_args):  # else solve refuses
        given = None
        if args is not None:
            given = {name: _sample(value, tuple(y.shape[:-1]), y) for name, value in args.items()}
        assert ts is not None
        epoch = ts[..., :1] if t0 is None else t0.unsqueeze(-1)
        t = torch.zeros_like(y[..., :1]) + epoch.to(y.dtype)
        called: tuple[Callable[..., Tensor], ...] = (*functions, field)
        with _Graphless(), _in_words():
            seen += [with_args(function, given, t.detach(), y.detach().clone()) for function in called]
    seen = [value for value in seen if isinstance(value, Tensor)]
    followed = transforms_differentiate() or in_forward_mode()
    with outside_transforms() as stack:
        axes = Axes.of(seen, stack)
        differentiable = followed or (torch.is_grad_enabled() and any(bottom(value).requires_grad for value in seen))
    return axes, differentiable


@contextmanager
def _in_words() -> Iterator[None]:
    """Says in our words why ``vmap`` cannot map a field."""
    try:
        yield
    except RuntimeError as problem:
        if "random operation" in str(problem):
            raise InputError(
                "the field draws random numbers (dropout?), which torch.func.vmap refuses; put it into evaluation mode with "
                "field.eval()"
            ) from problem
        if "data-dependent control flow" in str(problem) or ".item()" in str(problem):
            raise InputError(
                "the field asks for the value of a tensor (if, float(t), bool(...)), which torch.func.vmap cannot map; write "
                f"it with torch.where, or {_INSTEAD}"
            ) from problem
        raise


def _refuse_followed(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        return
    tangent = None
    if in_forward_mode():
        tangent = torch.autograd.forward_ad.unpack_dual(value).tangent  # type: ignore[no-untyped-call]
    if tangent is not None or wants_gradient(value):
        raise InputError(f"{name} is differentiated, but times are constants of a solve here; pass {name}.detach()")


def _refuse_mapped(method: Method, watch: Watch | None, dense: bool, differentiable: bool) -> None:
    if dense:
        raise InputError(f"sol.at does not work inside torch.func.vmap; ask for all times in ts, or {_INSTEAD}")
    if differentiable and (method.implicit or method is methods.gauss_radau15):
        raise GradientError(
            f"the derivative of {method.name}, which iterates, cannot be mapped by torch.func.vmap; {_INSTEAD}"
            " (values alone can be: call it under torch.no_grad)"
        )
    if differentiable and watch is not None:
        raise GradientError(
            f"the derivative of a solve with events cannot be mapped by torch.func.vmap; {_INSTEAD}"
            " (values alone can be: call it under torch.no_grad)"
        )


def _signals(args: Any) -> dict[str, Signal]:
    items = args.items() if isinstance(args, Mapping) else ()
    return {name: value for name, value in items if isinstance(value, Signal)}


def _bound(args: Any, signals: Mapping[str, Signal], batch: tuple[int, ...], y: Tensor) -> Arguments | None:
    """``args`` as the transforms see them."""
    if args is None:
        return None
    if not any(signal.hold == "cubic" for signal in signals.values()):
        return Arguments(args, batch, y)
    if any(is_wrapped(signal.values) for signal in signals.values()):
        raise GradientError(
            'a solve with a signal of hold="cubic" cannot be transformed with respect to the values of signals; use '
            'hold="linear", or torch.autograd.grad with the signals in the batch of the solve'
        )
    with outside_transforms():
        return Arguments(args, batch, y)


def _inside(replay: Replay, f: FieldFunction, watch: Watch | None, y: Tensor) -> Replay:
    """The recorded steps with the field and events that the transforms see."""
    events = None if replay.events is None or watch is None else replace(replay.events, watch=watch)
    return replace(replay, f=f, events=events, theta=(y,), names=(None,), versions=(y._version,))


def _attached(gradient: Gradient, pieces: Sequence[Piece], ys: Tensor, batch: tuple[int, ...]) -> tuple[Tensor, Events]:
    values: Tensor | None = None
    met = []
    for piece in pieces:
        replay = piece.replay
        outputs = gradient.attach(replay, outputs_of(ys.reshape(*replay.times.shape, ys.shape[-1]), piece.met), piece.y0)
        if piece.met is not None:
            met.append(Events.of(outputs, piece.met, batch))
        mine = (replay.times != replay.span.t0.unsqueeze(-1)).unsqueeze(-1)
        values = outputs.ys if values is None else torch.where(mine, outputs.ys, values)
    assert values is not None
    return values.reshape(ys.shape), Events.joined(met, ys, None)


class MappedSolution(Solution):
    """One mapped slice of a solve; its tensors cannot be looked at inside ``vmap``, only computed with."""

    def __repr__(self) -> str:
        return f"Solution(ys={tuple(self.flat.shape)}, inside torch.func.vmap)"


class _Recorded(Gradient):
    """Leaves the outputs as they are: the steps are made again inside the transforms."""

    name = "recorded"

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted

    def attach(self, replay: Replay, outputs: Outputs, y0: Tensor) -> Outputs:
        """The outputs."""
        return outputs


def is_recorded(gradient: Gradient) -> bool:
    """Whether the steps of a solve are kept to be made again inside transforms."""
    return isinstance(gradient, _Recorded) and gradient.wanted


class _Graphless(TorchFunctionMode):
    """Refuses a function that takes a gradient with ``torch.autograd``: transforms cannot see through its graph."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = current_level()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _GRAPH and current_level() == self._depth:  # deeper, it is torch.func itself that calls them
            raise GradientError(
                "the field takes a gradient with torch.autograd (torch.autograd.grad, requires_grad_), which torch.func "
                "transforms and dual tensors cannot see through; use torch.func.grad inside the field, as "
                "physnode.Hamiltonian does"
            )
        return func(*args, **(kwargs or {}))


def _tensor(value: Any, y: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(torch.float64)
    return torch.as_tensor(np.asarray(value, dtype=np.float64), device=y.device)


def _sample(value: Any, batch: tuple[int, ...], y: Tensor) -> Any:
    """An argument of a solve as the field may see it."""
    if not isinstance(value, Signal):
        return torch.as_tensor(value, device=y.device) if isinstance(value, np.ndarray) else value
    first = value.arranged(batch)[1][:, 0].to(y.dtype)
    return first.expand(y[..., 0].numel(), first.shape[-1]).reshape(*batch, first.shape[-1])
