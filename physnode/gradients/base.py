"""What a gradient method is: it ties the values of a solve to what they were computed from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.engine.recorder import Keep
from physnode.errors import InputError
from physnode.gradients.autocast import autocast_of
from physnode.gradients.events import Outputs
from physnode.gradients.owed import Owed
from physnode.gradients.replay import Replay
from physnode.gradients.same_field import refuse_another_field
from physnode.gradients.starts import starts_backward
from physnode.gradients.storage import Needs, Storage
from physnode.gradients.variables import refuse_unknown, stand_ins

__all__ = ["Gradient", "Swept", "second_derivative"]


class Gradient(ABC):
    """A way of differentiating a recorded solve."""

    name: str
    exact: bool = True
    """Whether it is the gradient of the solve that was made, to rounding."""
    kept_instead: str | None = None
    """What is kept in the place of states, for a gradient that reads none."""
    storage: Storage | None = None
    """What is kept of the states, for a gradient that reads them."""

    @abstractmethod
    def attach(self, replay: Replay, outputs: Outputs, y0: Tensor) -> Outputs:
        """The ``outputs`` of the solve as a differentiable function of ``y0``, of ``replay.theta``, and of times that move."""

    def keep(self, f: FieldFunction, method: Method, t: Tensor, y: Tensor, theta: Sequence[Tensor], outputs: int) -> Keep:
        """What a solve of ``outputs`` times from ``y`` ``(B, dim)`` at ``t`` ``(B,)`` keeps of its steps beside their times.

        Raises:
            GradientError: no gradient fits within the limit that the user has set.
        """
        return Keep(states=self.kept_instead is None)

    def __repr__(self) -> str:
        return f"<gradient {self.name}>"


class Swept(Gradient):
    """A gradient that sweeps backward over the records, one at a time; ``storage`` bounds what is kept of them."""

    storage: Storage
    whole_steps: bool
    """Whether a step's whole graph is alive at once."""

    def __init__(self, storage: Storage | None = None) -> None:
        if storage is not None and not isinstance(storage, Storage):
            raise InputError(f"storage must be pn.Storage(limit=BYTES) or the like; found {storage!r}")
        self.storage = Storage() if storage is None else storage

    def attach(self, replay: Replay, outputs: Outputs, y0: Tensor) -> Outputs:
        """One autograd node for the whole solve; a second derivative goes through a replay with a graph, and is exact."""
        times = (None,) * 3 if replay.moving is None else replay.moving.tensors
        sound = replay.without_failures()
        return Outputs(*_SweepFunction.apply(self, sound, outputs, y0, *times, *replay.theta))  # type: ignore[no-untyped-call]

    def keep(self, f: FieldFunction, method: Method, t: Tensor, y: Tensor, theta: Sequence[Tensor], outputs: int) -> Keep:
        """As the storage says; with a limit, one evaluation is made to see how large its graph is."""
        needs = None
        if self.storage.limit is not None:
            needs = Needs.of(f, method, t, y, theta, outputs, whole_steps=self.whole_steps)
        return self.storage.keep_for(needs, reads_values=not self.whole_steps)

    @abstractmethod
    def pull_back(self, owed: Owed, slot: int, y: Tensor, known: Sequence[Tensor]) -> None:
        """Pull one slot, which started from ``y`` ``(B, dim)``, back; ``known`` is what was kept of it beside that."""

    def sweep(self, replay: Replay, cotangents: Outputs, theta: tuple[Tensor, ...]) -> Owed:
        """Pull the cotangents of the outputs back to all that the solve depends on."""
        owed, before = Owed.at_the_end(replay, cotangents, theta), replay.f.calls.number
        for slot, y, known in starts_backward(replay):
            self.pull_back(owed, slot, y, known)
        replay.cost.add(replay.f.calls.number - before)
        return owed


class _SweepFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        method: Swept,
        replay: Replay,
        outputs: Outputs,
        y0: Tensor,
        t0: Tensor | None,
        t1: Tensor | None,
        times: Tensor | None,
        *theta: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(y0, t0, t1, times, *theta)  # their versions are checked: a parameter edited since then raises
        ctx.method, ctx.replay, ctx.autocast = method, replay, autocast_of(y0.device)
        return tuple(value.detach() for value in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        y0, t0, t1, times, *theta = ctx.saved_tensors
        method: Swept = ctx.method
        replay: Replay = ctx.replay
        clock = () if t0 is None else (t0, t1, times)
        if not bool(replay.ok.all()):
            grads = tuple(torch.where(replay.ok.view(-1, *[1] * (grad.ndim - 1)), grad, 0.0) for grad in grads)
        cotangents = Outputs(*grads)

        def sweep() -> tuple[Tensor | None, ...]:
            with stand_ins(theta, graph=False) as fresh:
                refuse_another_field(replay, y0)
                replay.cost.add(1)
                to_y0, to_clock, to_theta = method.sweep(replay, cotangents, fresh).at_the_start()
            return to_y0 if y0.requires_grad else None, *(to_clock if clock else (None,) * 3), *to_theta

        def again() -> tuple[Tensor | None, ...]:
            return second_derivative(replay, cotangents, y0, theta, clock)

        with ctx.autocast():
            back = replay.bound_to(theta, again if torch.is_grad_enabled() else sweep)
        return None, None, None, *back


def second_derivative(
    replay: Replay, cotangents: Outputs, y0: Tensor, theta: Sequence[Tensor], clock: Sequence[Tensor] = ()
) -> tuple[Tensor | None, ...]:
    """What y0, t0, t1, the output times and each of ``theta`` are owed, with a graph: the steps are made again with one."""
    with stand_ins((y0, *clock, *theta), graph=True) as fresh:
        refuse_another_field(replay, y0)
        moving = None if replay.moving is None else replay.moving.moved(fresh[1:4])
        made = replace(replay, moving=moving).run(replay.f, fresh[0])
        pairs = [(out, owed) for out, owed in zip(made, cotangents, strict=True) if out.requires_grad]
        wanted = [tensor for tensor in fresh if tensor.requires_grad]
        parts: Sequence[Tensor | None] = [None] * len(wanted)
        refuse_unknown(set(), *(out for out, _ in pairs), known_nodes=[tensor.grad_fn for tensor in wanted])
        if pairs:
            outs, owed = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            parts = torch.autograd.grad(outs, wanted, owed, create_graph=True, allow_unused=True)
    found = iter(parts)
    back = [next(found) if tensor.requires_grad else None for tensor in fresh]
    return tuple(back) if clock else (back[0], None, None, None, *back[1:])
