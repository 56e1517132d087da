"""What a solve is given, checked and brought into the shapes of the engine: ``(B, ...)``, times in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from physnode.engine.arguments import Arguments
from physnode.engine.events import Event, Watch
from physnode.engine.field_function import FieldFunction
from physnode.engine.tracing import Traced
from physnode.errors import GradientError, InputError
from physnode.fields import VectorField, needs_args
from physnode.states import StateAdapter

__all__ = [
    "ArrayLike",
    "bind_arguments",
    "check_jumps",
    "epoch_of",
    "float64_of",
    "jump_times_of",
    "refuse_changing_fields",
    "state_of",
    "times_of",
    "watch_of",
]

ArrayLike: TypeAlias = Tensor | np.ndarray[Any, Any] | Sequence[Any] | float


def bind_arguments(
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


def watch_of(events: Event | Sequence[Event] | None, adapter: StateAdapter | None) -> Watch | None:
    """The events of a solve, on flat states; None without any."""
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


def check_jumps(watch: Watch, f: FieldFunction, t: Tensor, y: Tensor) -> None:
    """Call every jump once, so that one of a wrong shape is refused before the solve."""
    with torch.no_grad():
        for number in range(len(watch.events)):
            watch.after(f, torch.full_like(t, number, dtype=torch.int64), t, y.detach())


def jump_times_of(jump_times: ArrayLike | None, y: Tensor, batch: tuple[int, ...]) -> list[Tensor]:
    """The jump times that a user names, ``(1, K)`` or ``(B, K)``."""
    if jump_times is None:
        return []
    found = float64_of(jump_times, "jump_times", y)
    if found.requires_grad:
        raise InputError(
            "jump_times requires a gradient, but they are constants of a solve; pass jump_times.detach(), or make the jump an "
            "event, pn.Event(lambda t, y: t[..., 0] - t_jump, terminal=False), whose time is differentiated"
        )
    if found.ndim == 0:
        found = found.reshape(1)
    if found.shape[-1] == 0:
        return []
    if found.ndim > 1 and tuple(found.shape[:-1]) != batch:
        raise InputError(f"jump_times must have shape (K,) or (*batch, K) with the batch {batch}; found {tuple(found.shape)}")
    if bool(torch.isnan(found).any()):
        raise InputError("jump_times holds NaN; pad the rows of ragged jump times with infinity")
    return [found.reshape(-1, found.shape[-1])]


def state_of(y0: ArrayLike) -> Tensor:
    """The start as a tensor ``(*batch, dim)``."""
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


def times_of(ts: ArrayLike, y0: Tensor, batch: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Output times as ``(B, T)``, with their graph, and in the shape they were given, without."""
    shown = float64_of(ts, "ts", y0)
    if shown.ndim == 0 or shown.shape[-1] == 0:
        raise InputError(f"ts must have shape (T,) or (*batch, T) with at least one time; found {tuple(shown.shape)}")
    if shown.ndim > 1 and tuple(shown.shape[:-1]) != batch:
        raise InputError(
            f"ts has leading axes {tuple(shown.shape[:-1])} but y0 has the batch {batch}; "
            "give times of shape (T,) for all, or (*batch, T)"
        )
    times = shown.expand(*batch, shown.shape[-1]).reshape(max(1, y0.numel() // y0.shape[-1]), -1)
    given = times.detach() if shown.ndim > 1 else shown.detach().unsqueeze(0)  # one row where all share it
    if not bool(torch.isfinite(given).all()):
        raise InputError("ts holds times that are not finite")
    steps = given.diff(dim=-1)
    if shown.ndim > 1:  # padding: the last time, repeated
        padding = steps.abs().flip(-1).cumsum(-1).flip(-1) == 0
        first = torch.where(steps[:, :1] == 0, 1.0, steps[:, :1])
        steps = torch.where(padding, first, steps)
    bad = ~((steps > 0).all(-1) | (steps < 0).all(-1))
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        where = f" (trajectory {row})" if shown.ndim > 1 else ""
        raise InputError(f"ts must be strictly increasing or strictly decreasing{where}; sort them and drop repeated times")
    return times, shown.detach()


def epoch_of(t0: ArrayLike | None, times: Tensor, y0: Tensor, batch: tuple[int, ...]) -> Tensor:
    """The time of the start of each trajectory, ``(B,)``, with its graph."""
    if t0 is None:
        return times[:, 0]
    epoch = float64_of(t0, "t0", y0)
    if epoch.ndim and tuple(epoch.shape) != batch:
        raise InputError(f"t0 must be a number or have the batch shape {batch}; found {tuple(epoch.shape)}")
    if not bool(torch.isfinite(epoch).all()):
        raise InputError("t0 is not finite")
    return epoch.expand(batch).reshape(len(times)).clone()


def float64_of(value: ArrayLike, name: str, y0: Tensor) -> Tensor:
    """A time, or times, as a float64 tensor beside ``y0``, with its graph."""
    if isinstance(value, Tensor):
        if value.device != y0.device:
            raise InputError(f"{name} is on {value.device} but y0 on {y0.device}; move one of them")
        return value.to(torch.float64, copy=True)
    try:
        return torch.tensor(np.asarray(value, dtype=np.float64), device=y0.device)
    except (TypeError, ValueError):
        raise InputError(f"{name} must hold real numbers; found {value!r}") from None


def refuse_changing_fields(traced: Traced) -> None:
    """Refuse a gradient of a field whose calls cannot be made again."""
    if traced.random or traced.stateful:
        found = "draws random numbers (dropout?)" if traced.random else "changes its buffers (batch normalisation?)"
        raise GradientError(
            f"the field {found} when it is called, so the steps of a solve cannot be made again and a gradient would be "
            "silently wrong; put the field into evaluation mode with field.eval(), or take the noise out of it"
        )
