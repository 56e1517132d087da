"""What a person sees while a fit runs: the stage, the loss, and the time left where it can be known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Reporter", "reporting"]


class Reporter:
    """Shows stages and losses; silent if it was made without a display."""

    def __init__(self, display: Progress | None) -> None:
        self._display = display
        self._task: int | None = None

    def stage(self, name: str, total: int | None) -> None:
        """Begin a stage of ``total`` iterations, or of an unknown number."""
        if self._display is not None:
            if self._task is not None:
                self._display.remove_task(self._task)  # type: ignore[arg-type]
            self._task = int(self._display.add_task(name, total=total, loss=""))

    def step(self, loss: float, done: int) -> None:
        """Iteration ``done`` ended with this loss."""
        if self._display is not None and self._task is not None:
            self._display.update(self._task, completed=done, loss=f"loss {loss:.6g}")  # type: ignore[arg-type]


@contextmanager
def reporting(show: bool) -> Iterator[Reporter]:
    """A reporter on standard error, or a silent one."""
    if not show:
        yield Reporter(None)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}"),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        yield Reporter(display)
