"""What every known system shares: physical constants that are declared once, checked, and freed for a fit by name.

A constant is a float64 parameter of the module. Freeing it only switches ``requires_grad``, so a system with nothing free
has no trainable entry, ``state_dict`` always holds every constant, and a fit finds what it may move in the usual place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from physnode.errors import InputError
from physnode.fields import Domain, VectorField

__all__ = ["NON_NEGATIVE", "POSITIVE", "REAL", "System", "matched", "time_grid", "uniform"]

REAL = Domain()
NON_NEGATIVE = Domain(lower=0.0)
POSITIVE = Domain(lower=sys.float_info.min)


class System(VectorField):
    """A system of known physics: named constants, named state components, start states, and what its motion conserves.

    A subclass names its constants in ``domains`` and ``units``, takes each as a keyword, and hands them to
    ``declare``. Read a constant inside the field through ``matched(self.name, y)``, which gives it the dtype of the state.
    Constants broadcast against the last axis of the state, so ``torch.func.functional_call`` may put ``(*batch, 1)`` in the
    place of a scalar constant, and ``(*batch, n)`` in the place of one value a body, to give every trajectory its own.
    """

    description: ClassVar[str] = ""
    state_units: ClassVar[dict[str, str]] = {}
    """Unit of each variable of the state, as files write it (``rad s-1``); those not named are dimensionless."""

    def declare(self, free: Sequence[str], **constants: object) -> None:
        """Store ``constants`` as float64 parameters, of which those named in ``free`` are to be fitted.

        Raises InputError for a value that is no number, not finite or outside its domain, and for an unknown name in
        ``free``.
        """
        for name, value in constants.items():
            try:
                tensor = torch.as_tensor(value, dtype=torch.float64).detach().clone()
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"{type(self).__name__}: {name} must be numbers; found {value!r}.") from error
            domain = self.domains[name]
            if not domain.contains(tensor):
                raise InputError(f"{type(self).__name__}: {name} must be finite and lie in {domain}; found {tensor.tolist()}.")
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.set_free(free)

    def constants(self) -> dict[str, Tensor]:
        """Every physical constant by name: the live parameters, not copies."""
        return {name: self.get_parameter(name) for name in self.domains}

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the constants that are to be fitted."""
        return tuple(name for name, value in self.constants().items() if value.requires_grad)

    def set_free(self, names: Sequence[str]) -> None:
        """Make exactly the constants ``names`` free, and hold all others fixed.

        Raises InputError, naming the known constants, if one of them does not exist.
        """
        wanted = (names,) if isinstance(names, str) else tuple(names)
        unknown = [name for name in wanted if name not in self.domains]
        if unknown:
            raise InputError(
                f"{type(self).__name__} has no constant {', '.join(map(repr, unknown))}; "
                f"free may name {', '.join(map(repr, self.domains))}."
            )
        for name, value in self.constants().items():
            value.requires_grad_(name in wanted)

    @property
    def labels(self) -> tuple[str, ...]:
        """One name for each component of the state, in order."""
        raise InputError(f"{type(self).__name__} does not name the components of its state; define labels.")

    @property
    def dim(self) -> int:
        """Number of components of the state."""
        return len(self.labels)

    def initial_states(self, n: int, seed: int = 0) -> Tensor:
        """``n`` varied start states ``(n, dim)``, float64, the same for the same seed."""
        raise InputError(f"{type(self).__name__} does not offer start states; give y0 yourself.")

    def number(self, name: str) -> float:
        """The present value of a scalar constant, outside of any graph."""
        return float(self.get_parameter(name).detach())

    def acts(self, name: str) -> bool:
        """Whether a constant has, or may get in a fit, any value other than zero."""
        value = self.get_parameter(name)
        return value.requires_grad or bool((value.detach() != 0).any())

    def check_state(self, y: Tensor) -> None:
        """Raise InputError unless the last axis of ``y`` has one entry for each component of the state."""
        if y.dim() == 0 or y.shape[-1] != self.dim:
            raise InputError(
                f"{type(self).__name__} has a state of {self.dim} entries ({', '.join(self.labels[:4])}, ...); "
                f"found shape {tuple(y.shape)}."
            )

    def extra_repr(self) -> str:
        """The constants, and which of them are free."""
        return ", ".join(
            f"{name}={value.tolist()}{' (free)' if value.requires_grad else ''}" for name, value in self.constants().items()
        )


def matched(value: Tensor, like: Tensor) -> Tensor:
    """``value`` in the dtype of ``like``; itself where they agree, which costs one comparison."""
    return value if value.dtype == like.dtype else value.to(like.dtype)


def time_grid(ts: Any, y0: Any, t0: Any) -> tuple[Tensor, Tensor]:
    """Elapsed times ``(*batch or nothing, T)`` since the epoch of ``y0``, and ``y0 (*batch, dim)``: detached float64.

    The epoch ``t0`` is the first of ``ts`` unless it is given, as it is in a solve. Raises InputError for ``ts`` without
    a time axis.
    """
    times = torch.as_tensor(ts, dtype=torch.float64).detach()
    state = torch.as_tensor(y0, dtype=torch.float64).detach()
    if times.dim() == 0 or times.shape[-1] == 0:
        raise InputError(f"ts needs at least one time on its last axis; found shape {tuple(times.shape)}.")
    if t0 is None:
        return times - times[..., :1], state
    epoch = torch.as_tensor(t0, dtype=torch.float64).detach()
    return times - (epoch.unsqueeze(-1) if epoch.dim() else epoch), state


def uniform(n: int, low: Sequence[float], high: Sequence[float], seed: int) -> Tensor:
    """``(n, len(low))`` numbers, uniform between ``low`` and ``high``, from a generator of their own."""
    if n < 0:
        raise InputError(f"the number of start states must not be negative; found {n}.")
    bottom, top = (torch.tensor(bound, dtype=torch.float64) for bound in (low, high))
    draws = torch.rand(n, len(bottom), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return bottom + (top - bottom) * draws
