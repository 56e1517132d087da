"""What a gradient method is: it ties the values of a solve to what they were computed from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from physnode.gradients.events import Outputs
from physnode.gradients.replay import Replay
from physnode.gradients.variables import stand_ins

__all__ = ["Gradient", "Swept"]


class Gradient(ABC):
    """A way of differentiating a recorded solve."""

    name: str

    @abstractmethod
    def attach(self, replay: Replay, outputs: Outputs, y0: Tensor) -> Outputs:
        """The ``outputs`` of the solve as a differentiable function of ``y0`` and of ``replay.theta``."""

    def __repr__(self) -> str:
        return f"<gradient {self.name}>"


class Swept(Gradient):
    """A gradient that sweeps backward over the records, one at a time, and keeps nothing else from the forward solve."""

    def attach(self, replay: Replay, outputs: Outputs, y0: Tensor) -> Outputs:
        """One autograd node for the whole solve; a second derivative goes through a replay with a graph, and is exact."""
        return Outputs(*_SweepFunction.apply(self, replay.without_failures(), *outputs, y0, *replay.theta))  # type: ignore[no-untyped-call]

    @abstractmethod
    def sweep(self, replay: Replay, cotangents: Outputs, theta: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """Pull the cotangents of the outputs back to y0 ``(B, dim)`` and to each of ``theta``."""


class _SweepFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, method: Swept, replay: Replay, ys: Tensor, times: Tensor, states: Tensor, y0: Tensor, *theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(y0, *theta)  # their versions are checked: a parameter edited since then raises
        ctx.method, ctx.replay = method, replay
        return ys.clone(), times.clone(), states.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        y0, *theta = ctx.saved_tensors
        method: Swept = ctx.method
        replay: Replay = ctx.replay
        ok = replay.ok
        cotangents = Outputs(*(torch.where(ok.view(-1, *[1] * (grad.ndim - 1)), grad, 0.0) for grad in grads))

        def sweep() -> tuple[Tensor | None, ...]:
            with stand_ins(theta, graph=False) as fresh:
                to_y0, to_theta = method.sweep(replay, cotangents, fresh)
            return to_y0 if y0.requires_grad else None, *to_theta

        def again() -> tuple[Tensor | None, ...]:
            with stand_ins((y0, *theta), graph=True) as fresh:
                made = replay.run(replay.f, fresh[0])
                pairs = [(out, owed) for out, owed in zip(made, cotangents, strict=True) if out.requires_grad]
                if not pairs:
                    return (None,) * len(fresh)
                wanted = [tensor for tensor in fresh if tensor.requires_grad]
                outs, owed = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
                found = iter(torch.autograd.grad(outs, wanted, owed, create_graph=True, allow_unused=True))
            return tuple(next(found) if tensor.requires_grad else None for tensor in fresh)

        back = replay.bound_to(theta, again if torch.is_grad_enabled() else sweep)
        return None, None, None, None, None, *back
