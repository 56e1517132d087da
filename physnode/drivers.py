"""Which driver runs a solve: native code on the CPU, a graph that a CUDA device replays, or the eager loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from physnode.engine import methods
from physnode.engine.controllers import Controller
from physnode.engine.events import Watch
from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.engine.graphed import Graphs, capture_on
from physnode.engine.jumps import Jumps
from physnode.engine.loop import Trace
from physnode.engine.readout import ReadOut
from physnode.engine.records import Trial
from physnode.engine.tracing import Traced, trace
from physnode.gradients import Gradient
from physnode.native.choice import Choice, Native, choose, recall, warn_of_eager
from physnode.native.codes import work_done
from physnode.native.problem import Problem, tensors_of

__all__ = ["Driver", "driver_of", "eager_only"]


@dataclass(frozen=True)
class Driver:
    """How a solve is run, and what a call of its field showed."""

    traced: Traced
    differentiable: bool
    """Whether a gradient may be asked for."""
    native: Native | None = None
    graphs: Graphs | None = None
    waiting: Problem | None = None
    """What code may be worth being made for later (``compile="auto"``)."""

    def ended(self, compile: Choice, traces: Sequence[Trace], evaluations: int) -> None:
        """Note what a solve has taken, at so many ``evaluations`` a trial; say why it was not compiled, if that shows late."""
        if self.graphs is not None and self.graphs.refused is not None and compile is True:
            warn_of_eager(self.graphs.refused, 4)
        if self.waiting is not None:
            work_done(self.waiting, sum(int((found.accepted + found.rejected).max()) for found in traces) * evaluations)


def driver_of(
    compile: Choice,
    f: FieldFunction,
    method: Method,
    controller: Controller,
    read: ReadOut,
    y0: Tensor,
    epoch: Tensor,
    last: Tensor,
    watch: Watch | None,
    reason: str | None,
    is_differentiable: Callable[[Sequence[Tensor]], bool],
    max_steps: int,
) -> Driver:
    """The driver of a solve of ``y0`` ``(B, dim)`` from ``epoch`` to the ``last`` output ``(B,)``.

    ``reason`` says why it must be the eager one, if it must; ``is_differentiable`` whether a gradient may be wanted, for the
    tensors that the field reads. Where native code was made for the field before, it is called once, and not traced again.
    """

    def traced_now() -> Traced:
        return trace(f, epoch, y0, () if watch is None else watch.functions)

    if not compile:
        traced = traced_now()
        return Driver(traced, is_differentiable(traced.theta))
    capture = capture_on(y0.device)
    if capture is not None:
        traced = traced_now()
        graphs = Graphs(capture, reason or _never_captured(method, traced))
        return Driver(traced, is_differentiable(traced.theta), graphs=graphs)
    theta = tensors_of(f)
    problem = Problem(f, method, controller, read, y0, theta, is_differentiable(theta), max_steps)
    recalled = None if reason is not None else recall(compile, problem, epoch, last)
    if recalled is not None:
        return Driver(recalled[1], problem.differentiable, recalled[0])
    traced = traced_now()
    problem = replace(problem, theta=traced.theta, differentiable=is_differentiable(traced.theta))
    if traced.random or traced.stateful:
        if problem.differentiable:  # which is refused
            return Driver(traced, True)
        reason = reason or "the field draws random numbers, or changes its tensors when it is called"
    native = choose(compile, problem, traced.derivative, (epoch, last), reason)
    return Driver(traced, problem.differentiable, native, waiting=problem if native is None and compile == "auto" else None)


def eager_only(
    y0: Tensor, how: Gradient, jumps: Jumps | None, watch: Watch | None, observe: Callable[[Trial], None] | None
) -> str | None:
    """Why a solve runs by the eager driver only, whatever its field is; None: it need not."""
    if y0.device.type not in ("cpu", "cuda"):
        return f"its states are on {y0.device}"
    if watch is not None:
        return "it has events"
    if jumps is not None:
        return "the field jumps (jump_times, or a sampled signal)"
    if observe is not None:
        return "its trials are observed"
    if how.storage is not None and how.storage.bounds:
        return "a limit of storage is kept by the eager driver"
    if torch.is_autocast_enabled(y0.device.type):
        return "torch.autocast is at work"
    return None


def _never_captured(method: Method, traced: Traced) -> str | None:
    """Why trials of a method and a field are not captured, even where the device captures work; None: they may be."""
    if method.implicit or method is methods.gauss_radau15:
        return f"{method.name} iterates until its equations are solved"
    if traced.random or traced.stateful:
        return "the field draws random numbers, or changes tensors when it is called"
    return None
