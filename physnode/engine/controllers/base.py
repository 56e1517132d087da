"""What a controller is to the loop: where a trial ends, and whether it stands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction

__all__ = ["Controller", "Span", "Verdict"]


class Span(NamedTuple):
    """Where each trajectory starts and ends, in float64, ``(B,)`` each; ``direction`` is +1 or -1."""

    t0: Tensor
    t1: Tensor
    direction: Tensor


class Verdict(NamedTuple):
    """What a controller says of one trial, per trajectory."""

    accept: Tensor
    dt: Tensor
    """Length (positive) of the next trial."""
    memory: Tensor
    stuck: Tensor
    """The trial was refused and no shorter one can be made."""


class Controller(ABC):
    """How long steps are, and which are accepted."""

    @abstractmethod
    def check(self, method: Method, dtype: torch.dtype) -> None:
        """Refuse a method or a precision that cannot be controlled this way.

        Raises:
            InputError: with the remedy.
        """

    def relative_tolerance(self, dtype: torch.dtype) -> float | None:
        """The relative error that is accepted in states of ``dtype``; None where errors are not judged."""
        return None

    def tuned(self, method: Method, y: Tensor) -> Method:
        """The method as it is used under this control of states like ``y`` ``(B, dim)``."""
        return method

    def numbers(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The numbers by which two controllers of one ``structure`` may differ, for states of ``dtype``; native code takes them
        as they are at each solve."""
        return {}

    def with_numbers(self, numbers: Mapping[str, Tensor]) -> Controller:
        """The same controller with such numbers in their place."""
        return self

    def on(self, device: torch.device) -> Controller:
        """The same controller with its tensors on a device, so that no trial needs to bring them there."""
        return self

    @property
    def structure(self) -> Hashable:
        """All else: controllers of one structure share native code. None: there is none for them."""
        return None

    @abstractmethod
    def start(self, method: Method, f: FieldFunction, span: Span, y: Tensor, derivative: Tensor) -> tuple[Tensor, Tensor, int]:
        """Length of the first trial ``(B,)``, the controller's memory ``(B, m)``, and field evaluations spent on it."""

    @abstractmethod
    def propose(self, span: Span, t: Tensor, dt: Tensor) -> Tensor:
        """Where the trial ends, ``(B,)``: never beyond ``span.t1``."""

    @abstractmethod
    def judge(
        self,
        method: Method,
        running: Tensor,
        t: Tensor,
        t_end: Tensor,
        dt: Tensor,
        y: Tensor,
        step: Step,
        memory: Tensor,
    ) -> Verdict:
        """Accept or refuse the trial, and choose the next length. Memory of resting trajectories does not move."""
