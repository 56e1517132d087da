"""What a method of integration is to the engine: a pure step, how outputs inside a step are read, and the step's transpose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from physnode.engine.field_function import FieldFunction

__all__ = ["JacobianVector", "Method", "Step", "VectorJacobian"]

VectorJacobian = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]
"""``vjp(function, x, w)``: J(x)ᵀ w for ``function`` at ``x``; what it owes to parameters is kept by whoever made it."""

JacobianVector = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], tuple[Tensor, Tensor]]
"""``jvp(function, x, dx)``: ``function(x)``, and its change ``(P, B, ·)`` for P directions ``dx`` ``(P, B, ·)`` at once; what
parameters add to the change is put in by whoever made it."""


@dataclass(frozen=True)
class Step:
    """One trial step for every trajectory."""

    y: Tensor
    """The state at the step's end, ``(B, dim)``."""
    error: tuple[Tensor, ...]
    """Estimates of the local error, each ``(B, dim)``; empty where the method has none."""
    carry: Tensor | None
    """What the next step starts from (the derivative or the force at the step's end), or None."""
    stages: tuple[Tensor, ...]
    """The derivatives that the continuous extension reads, each ``(B, dim)``."""
    change: Tensor | None = None
    """``y`` minus the state at the start, before it was rounded into ``y``: what a compensated sum adds up."""
    spent: Tensor | None = None
    """Field evaluations of each trajectory, ``(B,)``, where they differ; None: ``Method.evaluations`` for all."""
    known: tuple[Tensor, ...] = ()
    """What the field gave inside the step, each ``(B, ·)``: with it the step's transpose need not evaluate the field again."""
    unsolved: Tensor | None = None
    """Trajectories whose implicit equations were not solved, ``(B,)`` bool: their step is refused and halved."""


class Method(ABC):
    """One integration method. Methods are values: they hold coefficients and no state."""

    name: str
    order: int
    error_order: int | None
    """Order of the embedded estimate, or None: then step-size control is impossible and steps are fixed."""
    extension_order: int | None
    """Uniform order of the continuous extension, or None: outputs inside a step are then read by a step of their own."""
    evaluations: int
    """Field (or force) evaluations of one step that starts from a carry."""
    extra_evaluations: int = 0
    """Further evaluations that reading outputs inside one step costs."""
    implicit: bool = False
    """Whether steps solve equations, so that stiffness does not limit them."""
    prefers_restep: bool = False
    """Whether outputs are read by a step of their own unless asked otherwise: the extension's order is far below the step's."""

    def __repr__(self) -> str:
        return f"<method {self.name}, order {self.order}>"

    def check(self, f: FieldFunction) -> None:  # noqa: B027  # most methods take any field
        """Refuse a field whose structure the method cannot use.

        Raises:
            InputError: with the reason and the methods that can.
        """

    def tuned(self, rtol: float, atol: Tensor) -> Method:
        """The method as it is used at these tolerances; iterations of implicit methods stop by them."""
        return self

    @abstractmethod
    def start(self, f: FieldFunction, t: Tensor, y: Tensor, derivative: Tensor) -> Tensor | None:
        """The carry of the first step; ``derivative`` is f(t, y), already known."""

    def shares_derivative(self, f: FieldFunction) -> bool:
        """Whether the first step starts from f(t0, y0) itself, which is known before it."""
        return True

    @abstractmethod
    def step(self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, carry: Tensor | None = None) -> Step:
        """From ``y`` at ``t`` to ``t_end`` (both ``(B,)``); without a ``carry`` it is evaluated again."""

    def extend(self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """All stages the continuous extension reads: those of the step, and further ones evaluated here."""
        return tuple(stages)

    def output_weights(self, fraction: Tensor) -> tuple[Tensor, ...]:
        """b_i(θ) for fractions θ ``(M,)`` of a step, so that x(t + θh) = x + h Σ b_i(θ) k_i; one ``(M,)`` a stage."""
        raise TypeError(f"{self.name} has no continuous extension")

    @abstractmethod
    def pull_back(
        self,
        f: FieldFunction,
        vjp: VectorJacobian,
        t: Tensor,
        t_end: Tensor,
        y: Tensor,
        cotangent: Tensor,
        stage_cotangents: Sequence[Tensor | None] = (),
        known: Sequence[Tensor] = (),
    ) -> Tensor:
        """The step's transpose: cotangents of its end state λ, and of its stages, to what the start state is owed beyond λ.

        Exact for the step as it was made, its size a constant, and done one evaluation of the field at a time, so that no
        more than one evaluation's graph is ever alive. λ itself is left out so that a sweep over many steps can add up the
        changes without rounding them into it first. ``known`` is :attr:`Step.known`, if it was kept.
        """

    @abstractmethod
    def push_forward(
        self,
        f: FieldFunction,
        jvp: JacobianVector,
        t: Tensor,
        t_end: Tensor,
        y: Tensor,
        tangents: Tensor,
        *,
        outputs: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The step's linearisation: end state, its change, stages, and their changes, for directions ``tangents (P, B, dim)``.

        Exact for the step as it was made, its size a constant. Stages are all those of the continuous extension if ``outputs``
        are to be read inside the step, else none.
        """
