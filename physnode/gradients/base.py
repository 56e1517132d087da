"""What a gradient method is: it ties the values of a solve to what they were computed from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from physnode.gradients.replay import Replay, with_tensors

__all__ = ["Gradient", "Swept"]


class Gradient(ABC):
    """A way of differentiating a recorded solve."""

    name: str

    @abstractmethod
    def attach(self, replay: Replay, values: Tensor, y0: Tensor) -> Tensor:
        """The outputs ``values`` ``(B, T, dim)`` as a differentiable function of ``y0`` and of ``replay.theta``."""

    def __repr__(self) -> str:
        return f"<gradient {self.name}>"


class Swept(Gradient):
    """A gradient that sweeps backward over the records, one at a time, and keeps nothing else from the forward solve."""

    def attach(self, replay: Replay, values: Tensor, y0: Tensor) -> Tensor:
        """One autograd node for the whole solve; a second derivative goes through a replay with a graph, and is exact."""
        names = {id(parameter): name for name, parameter in replay.f.field.named_parameters()}
        named = [names.get(id(tensor)) for tensor in replay.theta]
        out: Tensor = _SweepFunction.apply(self, replay, named, values, y0, *replay.theta)
        return out

    @abstractmethod
    def sweep(self, replay: Replay, cotangents: Tensor, theta: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """Pull the cotangents of the outputs ``(B, T, dim)`` back to y0 ``(B, dim)`` and to each of ``theta``."""


class _SweepFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, method: Swept, replay: Replay, names: list[str | None], values: Tensor, y0: Tensor, *theta: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y0, *theta)  # their versions are checked: a parameter edited since then raises
        ctx.method, ctx.replay, ctx.names = method, replay, names
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        cotangents: Tensor = grads[0]
        y0, *theta = ctx.saved_tensors
        replay: Replay = ctx.replay
        named = {name: tensor for name, tensor in zip(ctx.names, theta, strict=True) if name is not None}
        wanted = [y0, *theta]
        if torch.is_grad_enabled():

            def again() -> tuple[Tensor | None, ...]:
                ys = replay.run(replay.f, y0)
                inputs = [tensor for tensor in wanted if tensor.requires_grad]
                found = torch.autograd.grad(ys, inputs, cotangents, create_graph=True, allow_unused=True)
                gradients = iter(found)
                return tuple(next(gradients) if tensor.requires_grad else None for tensor in wanted)

            return (None, None, None, None, *with_tensors(replay.f.field, named, again))
        safe = torch.where(replay.ok.view(-1, 1, 1), cotangents, 0.0)
        to_y0, to_theta = with_tensors(replay.f.field, named, lambda: ctx.method.sweep(replay, safe, tuple(theta)))
        return (None, None, None, None, to_y0 if y0.requires_grad else None, *to_theta)
