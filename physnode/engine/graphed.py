"""Trials that a device makes several at a time, at one call: captured once for a solve, and replayed until nothing moves.

The state lies in tensors that stay where they are. Work that is captured reads them, makes some trials, and writes the state
behind them back. A replay makes the next trials in the same way and in the same memory, so that whoever wants to keep
something of a chunk copies it before the next. One flag is read a chunk.

The first chunk is a rehearsal. Its trials count as any others, and it shows whether the work can be captured at all: not where
the field waits for its device, as ``.item()`` does. A solve of few trials ends with it and captures nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from physnode.engine.loop import Setting, State, moved, send
from physnode.engine.records import Trial

__all__ = ["Capture", "CudaCapture", "Graphs", "Refused", "capture_on"]

T = TypeVar("T")


class Refused(Exception):
    """Work cannot be captured; the message says why."""


class Capture(ABC):
    """How a device captures work, which is a function that sends tensor operations and returns tensors."""

    @abstractmethod
    def rehearse(self, work: Callable[[], T]) -> T:
        """Do the work as it is.

        Raises:
            Refused: it cannot be captured.
        """

    @abstractmethod
    def capture(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """What the work will return, not yet computed, and a function that does the work into it."""


class CudaCapture(Capture):
    """As a CUDA graph.

    A capture that fails may leave PyTorch's generators and its allocator in a state that nothing mends (CUDAGraph.cpp, reset).
    So it is the rehearsal, on a side stream as the CUDA notes of PyTorch ask of a warm-up, that finds what cannot be captured:
    while it runs, every operation that waits for the device is an error.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def rehearse(self, work: Callable[[], T]) -> T:
        """Do the work on the side stream."""
        main, before = torch.cuda.current_stream(self.device), torch.cuda.get_sync_debug_mode()
        self._stream.wait_stream(main)
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(self._stream):
                return work()
        except RuntimeError as problem:  # one of the field's own comes up again in the eager driver
            raise Refused(f"a trial of it cannot be captured as a CUDA graph ({str(problem).splitlines()[0]})") from problem
        finally:
            torch.cuda.set_sync_debug_mode(before)
            main.wait_stream(self._stream)

    def capture(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """What the graph will write, and its replay on the stream that is current then."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                made = work()
        except RuntimeError as problem:
            problem.add_note("This came up while trial steps were captured as a CUDA graph; compile=False does without one.")
            raise
        return made, graph.replay


class Graphs:
    """How the trials of a solve are captured, and why they were not."""

    def __init__(self, capture: Capture, refused: str | None = None) -> None:
        self.refused = refused
        """Why the eager driver makes them."""
        self._capture = capture

    def trials(self, setting: Setting, state: State, count: int) -> GraphedTrials | None:
        """Trials from ``state`` on, ``count`` to a chunk; None where they cannot be captured."""
        if self.refused is not None:
            return None
        try:
            return GraphedTrials(setting, state, count, self._capture)
        except Refused as reason:
            self.refused = str(reason)
            return None


class GraphedTrials:
    """The trials of one way of a solve."""

    def __init__(self, setting: Setting, state: State, count: int, capture: Capture) -> None:
        """Make the first chunk.

        Raises:
            Refused: trials cannot be captured.
        """
        self.state = _copied(state)
        """Where the last chunk ends; its tensors are the same all the time."""
        self.more = True
        """Whether there is a further chunk."""
        self._setting, self._count, self._capture = setting, count, capture
        self._captured: tuple[tuple[list[Trial], Tensor], Callable[[], None]] | None = None
        self._rehearsed: tuple[list[Trial], Tensor] | None = capture.rehearse(self._work)

    def next(self) -> list[Trial]:
        """The next chunk; its tensors are those of the one before, but for the first two."""
        if self._rehearsed is not None:
            (trials, lowest), self._rehearsed = self._rehearsed, None
        else:
            if self._captured is None:
                self._captured = self._capture.capture(self._work)
            (trials, lowest), replay = self._captured
            replay()
        tried, self.more = moved(lowest.tolist())
        return trials[:tried]

    def _work(self) -> tuple[list[Trial], Tensor]:
        """A chunk of trials, and the lowest status after each; the state moves on to where they end."""
        state, trials, lowest = send(self._setting, _copied(self.state), self._count)  # a copy: the first trial begins in it
        for place, value in zip(self.state, state, strict=True):
            if place is not None and value is not None:
                place.copy_(value)
        return trials, torch.stack(lowest)


def capture_on(device: torch.device) -> Capture | None:
    """How work is captured on a device; None where it cannot be."""
    return CudaCapture(device) if device.type == "cuda" else None


def _copied(state: State) -> State:
    return State._make(None if value is None else value.clone() for value in state)
