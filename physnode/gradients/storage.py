"""What is kept of a solve for its exact gradient, within a number of bytes that the user states.

The fastest choice that fits is made while the solve runs, since an adaptive solve does not know its number of steps. First all
that the field gave inside each step is kept, so that the way back evaluates it once more and no more. When that comes to the
limit, only the states from which steps started stay, and each step is made again. When these come to the limit too, a bounded
number of them stays, as checkpoints (:mod:`physnode.engine.checkpoints`), and the steps between are made again a few times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.engine.loop import trial_bytes
from physnode.engine.recorder import Keep
from physnode.engine.records import Records
from physnode.errors import GradientError, InputError
from physnode.gradients.variables import stand_ins
from physnode.live_bytes import LiveBytes
from physnode.native.code import Taped

__all__ = ["GradientCost", "Needs", "Storage"]

_VALUES = 64 * 2**20
"""Bytes that the field's values inside steps may take where no limit is stated."""
_CHUNK_PART = 16
"""A chunk of trials takes one part in so many of a limit."""


@dataclass(frozen=True)
class Storage:
    """What an exact gradient keeps of the solve.

    Args:
        limit: bytes of tensors that the solve and its gradient may have alive at once, beside what the caller holds (the
            field's parameters, y0, the loss). None: as many as it takes.
        keep: ``"auto"``, the most that fits; or at most ``"stages"`` (states and the field's values inside steps, of which
            ``ACA`` has no use), ``"steps"`` (states), ``"checkpoints"`` (a bounded number of states; needs ``checkpoints`` or
            ``limit``).
        checkpoints: how many states are kept at most, two or more.

    With c checkpoints a step is made again at most r times, where C(c - 1 + r, r) is not below the number of steps.
    """

    limit: float | None = None
    keep: Literal["auto", "stages", "steps", "checkpoints"] = "auto"
    checkpoints: int | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.limit, int | float) and not isinstance(self.limit, bool)
        if self.limit is not None and not (number and 1 <= self.limit < float("inf")):
            raise InputError(f"Storage(limit=...) is a number of bytes above zero; found {self.limit!r}")
        if self.keep not in ("auto", "stages", "steps", "checkpoints"):
            raise InputError(f'Storage(keep=...) is "auto", "stages", "steps" or "checkpoints"; found {self.keep!r}')
        if self.checkpoints is not None and not (isinstance(self.checkpoints, int) and self.checkpoints >= 2):
            raise InputError(f"Storage(checkpoints=...) is a whole number, two or more; found {self.checkpoints!r}")
        if self.checkpoints is not None and self.keep in ("stages", "steps"):
            raise InputError(f'Storage(checkpoints=...) goes with keep="checkpoints"; found keep={self.keep!r}')
        if self.keep == "checkpoints" and self.checkpoints is None and self.limit is None:
            raise InputError('Storage(keep="checkpoints") needs checkpoints=NUMBER or limit=BYTES')

    @property
    def bounds(self) -> bool:
        """Whether some states may have to go."""
        return self.limit is not None or self.checkpoints is not None

    def keep_for(self, needs: Needs | None, *, reads_values: bool) -> Keep:
        """What the solve is to keep; ``reads_values`` says whether the field's values inside steps are of use.

        Raises:
            GradientError: what does not depend on the number of steps is above the limit already.
        """
        values = reads_values and self.checkpoints is None and self.keep in ("stages", "auto")
        if self.limit is None or needs is None:
            unlimited = 2**62 if self.keep == "stages" else _VALUES
            return Keep(values_limit=unlimited if values else 0, places=self.checkpoints)
        limit = int(self.limit)
        chunk = max(needs.trial, limit // _CHUNK_PART)
        needed = max(needs.outputs + 3 * chunk, 2 * needs.outputs + needs.sweep)
        if needed + 2 * needs.state > limit:
            raise GradientError(
                f"the storage limit is {limit} bytes, but this gradient needs {needed + 2 * needs.state} whatever is kept of "
                f"the steps: {2 * needs.outputs} for outputs and their cotangents, {needs.sweep} for one {needs.piece} made "
                f"again and the parameters' gradients, {chunk} for a trial step; raise the limit, ask for fewer outputs, or "
                "solve fewer trajectories at once" + ("" if reads_values else ', or use gradient="symplectic"')
            )
        left = limit - needed
        return Keep(values_limit=left if values else 0, limit=left, places=self.checkpoints, chunk=chunk)


@dataclass(frozen=True)
class Needs:
    """Bytes that a gradient takes whatever is kept of the steps."""

    state: int
    outputs: int
    """The outputs, and where they lie among the steps."""
    trial: int
    """One trial step with its stages."""
    sweep: int
    """What is alive while one ``piece`` is pulled back: its graph, stage states and adjoints, the parameters' gradients."""
    piece: str

    @classmethod
    def of(
        cls, f: FieldFunction, method: Method, t: Tensor, y: Tensor, theta: Sequence[Tensor], outputs: int, *, whole_steps: bool
    ) -> Needs:
        """Those of a solve of ``outputs`` times from ``y`` ``(B, dim)``; one evaluation, or step, is made to measure it."""
        state = y.numel() * y.element_size()
        parameters = sum(tensor.numel() * tensor.element_size() for tensor in theta)
        with LiveBytes() as live, torch.enable_grad(), stand_ins(theta, graph=False) as fresh:
            point = y.detach().requires_grad_()
            value = method.step(f, t, t + 1e-6, point).y if whole_steps else f(t, point)
            if value.requires_grad:
                torch.autograd.grad(value, (point, *fresh), torch.ones_like(value), allow_unused=True)
            del value
        stages = method.evaluations + method.extra_evaluations
        return cls(
            state=state,
            outputs=outputs * (state + 40 * len(y)),
            trial=trial_bytes(y, method),
            sweep=live.peak + (2 * stages + 8) * state + 2 * parameters,
            piece="step" if whole_steps else "evaluation of the field",
        )


@dataclass
class GradientCost:
    """What was kept for the gradient of a solve, and what the way back has cost."""

    gradient: str
    kept: str = "nothing"
    """``"stages"``, ``"steps"``, ``"checkpoints"``; ``"graph"`` with ``Direct``, ``"outputs"`` with ``ContinuousAdjoint``."""
    steps: int = 0
    """Slots of the records: the largest number of steps of a trajectory."""
    states: int = 0
    """How many of their states were kept."""
    bytes: int = 0
    """What states, values and times of the steps take."""
    limit: float | None = None
    evaluations: int = 0
    """Calls of the field, each for the whole batch, that all backward passes so far have made."""
    again: int = 0
    """Steps that they made again to come to a state that was not kept."""

    def note(self, records: Records, kept: str | None) -> None:
        """Add one way of the solve."""
        self.steps += records.slots
        self.states += records.y.kept
        self.bytes += records.y.bytes + records.time_bytes
        if kept is None:
            words = ("stages" if records.y.widths else "steps", "checkpoints")
            kept = words[records.y.checkpoints is not None and records.y.kept < records.slots]
            kept = self.kept if self.kept == "checkpoints" else kept
        self.kept = kept

    def note_tape(self, taped: Taped) -> None:
        """The same where native code keeps the steps."""
        self.kept = "steps"
        self.steps += taped.slots
        self.states += taped.slots
        self.bytes += taped.bytes

    def add(self, evaluations: int, again: int = 0) -> None:
        """Count what a backward pass has done."""
        self.evaluations += evaluations
        self.again += again

    def __str__(self) -> str:
        size = f"{self.bytes / 2**20:.3g} MiB" if self.bytes >= 2**20 else f"{self.bytes / 2**10:.3g} KiB"
        what = f"{self.states} states of {self.steps} steps" if self.kept == "checkpoints" else f"of {self.steps} steps"
        told = f"{self.gradient} keeps {self.kept} ({what}, {size}"
        told += ")" if self.limit is None else f", limit {self.limit:.0f} bytes)"
        return f"{told}, {self.evaluations} evaluations going back" if self.evaluations else told
