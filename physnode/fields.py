"""What moves a state: vector fields, and the structure (Hamiltonian, second order) an integrator may rely on.

A field is dy/dt = f(t, y). ``y`` has shape ``(*batch, dim)``; ``t`` has the shape of ``y[..., :1]`` and y's real dtype, so
``y * torch.cos(t)`` broadcasts as written. A function that takes one argument more is also given the ``args`` of the solve:
per-trajectory constants and input signals at the time ``t``. Known physics and learned terms are added with ``+``; the sum
keeps the strongest structure that all its terms share, which is what lets a splitting method be used on it, or refuses it.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from physnode.calling import Args, takes, with_args
from physnode.errors import InputError

__all__ = [
    "Domain",
    "FunctionField",
    "Hamiltonian",
    "SecondOrder",
    "SeparableHamiltonian",
    "Sum",
    "VectorField",
    "as_field",
    "needs_args",
]


@dataclass(frozen=True)
class Domain:
    """The values a physical constant may take: ``lower <= value <= upper`` (a closed interval; infinite ends are open)."""

    lower: float = -float("inf")
    upper: float = float("inf")

    def contains(self, value: Tensor) -> bool:
        """Whether every entry of ``value`` is finite and lies inside."""
        return bool((torch.isfinite(value) & (value >= self.lower) & (value <= self.upper)).all())

    def __str__(self) -> str:
        return f"[{self.lower:g}, {self.upper:g}]"


class VectorField(nn.Module):
    """dy/dt = f(t, y): subclass it and write ``forward``.

    ``domains`` and ``units`` say, per parameter name, which values are physical and in which unit they are counted; a fit
    reads both. A parameter that is not named in them is any real number without a unit.
    """

    domains: ClassVar[dict[str, Domain]] = {}
    units: ClassVar[dict[str, str]] = {}

    @abstractmethod
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt at time ``t`` (shape of ``y[..., :1]``) and state ``y (*batch, dim)``; same shape as ``y``.

        Write ``forward(self, t, y)``, or ``forward(self, t, y, args)`` to read what ``solve(..., args=...)`` was given.
        """

    @property
    def reads_args(self) -> bool:
        """Whether the field takes ``args``."""
        return takes(self.forward, 3)

    def invariants(self, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """What the exact motion conserves, by name; each value has the leading axes of ``y``. Empty if nothing is known."""
        return {}

    def __call__(self, t: Tensor, y: Tensor, *args: Args | None) -> Tensor:
        """``forward``, with the hooks that every module has."""
        out: Tensor = super().__call__(t, y, *args)
        return out

    def __add__(self, other: object) -> VectorField:
        return add(self, other)

    def __radd__(self, other: object) -> VectorField:
        return add(other, self)


class Hamiltonian(VectorField):
    """Hamilton's equations for ``energy(t, y)``, with y = (q, p) on the last axis: q' = dH/dp, p' = -dH/dq."""

    @abstractmethod
    def energy(self, t: Tensor, y: Tensor) -> Tensor:
        """H(t, q, p), shape ``(*batch,)``; one argument more where it reads ``args``."""

    @property
    def reads_args(self) -> bool:
        """Whether the energy, or a ``forward`` of its own, takes ``args``."""
        return takes(self.energy, 3) if _is(self.forward, Hamiltonian.forward) else takes(self.forward, 3)

    def gradient(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """dH/dy, shape of ``y``."""
        gradient: Tensor = torch.func.grad(lambda state: with_args(self.energy, args, t, state).sum())(y)
        return gradient

    def forward(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """(dH/dp, -dH/dq)."""
        dq, dp = split_state(self.gradient(t, y, args))
        return torch.cat((dp, -dq), dim=-1)

    def velocity(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """dq/dt = dH/dp, so that data holding velocities can be compared with a state that holds momenta."""
        return split_state(self.gradient(t, y, args))[1]

    def invariants(self, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The energy."""
        return {"energy": self.energy(t, y)}


class SeparableHamiltonian(Hamiltonian):
    """H = T(p) + V(q): both halves of the motion can be solved exactly in turn, which is what splitting methods do."""

    @abstractmethod
    def kinetic(self, p: Tensor) -> Tensor:
        """T(p), shape ``(*batch,)``."""

    @abstractmethod
    def potential(self, q: Tensor) -> Tensor:
        """V(q), shape ``(*batch,)``."""

    @property
    def reads_args(self) -> bool:
        """Whether the kinetic or the potential energy takes ``args``."""
        return takes(self.kinetic, 2) or takes(self.potential, 2)

    def energy(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """T(p) + V(q)."""
        q, p = split_state(y)
        return with_args(self.kinetic, args, p) + with_args(self.potential, args, q)

    def drift(self, t: Tensor, p: Tensor, args: Args | None = None) -> Tensor:
        """dq/dt = dT/dp."""
        rate: Tensor = torch.func.grad(lambda value: with_args(self.kinetic, args, value).sum())(p)
        return rate

    def kick(self, t: Tensor, q: Tensor, args: Args | None = None) -> Tensor:
        """dp/dt = -dV/dq."""
        slope: Tensor = torch.func.grad(lambda value: with_args(self.potential, args, value).sum())(q)
        return -slope


class SecondOrder(VectorField):
    """q'' = a(t, q, q'), with y = (q, v) on the last axis.

    ``velocity_dependent = False`` declares that ``acceleration`` ignores ``v``; only then may a splitting method be used.
    """

    velocity_dependent: bool = True

    @abstractmethod
    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """dv/dt, shape of ``q``; one argument more, ``args``, where it reads them."""

    @property
    def reads_args(self) -> bool:
        """Whether the acceleration, or a ``forward`` of its own, takes ``args``."""
        return takes(self.acceleration, 4) if _is(self.forward, SecondOrder.forward) else takes(self.forward, 3)

    def forward(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """(v, a(t, q, v))."""
        q, v = split_state(y)
        return torch.cat((v, with_args(self.acceleration, args, t, q, v)), dim=-1)

    def drift(self, t: Tensor, p: Tensor) -> Tensor:
        """dq/dt = v."""
        return p

    def kick(self, t: Tensor, q: Tensor, args: Args | None = None) -> Tensor:
        """dv/dt = a(t, q), for an acceleration declared free of velocity."""
        return with_args(self.acceleration, args, t, q, torch.zeros_like(q))


class FunctionField(VectorField):
    """A plain function, or any ``nn.Module``, ``(t, y) -> dy/dt`` or ``(t, y, args) -> dy/dt`` as a field."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    @property
    def reads_args(self) -> bool:
        """Whether the function takes a third argument."""
        return takes(self.function, 3)

    def forward(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """What the function returns."""
        return with_args(self.function, args, t, y)


class Sum(VectorField):
    """The sum of several fields: known physics plus what is learned. Nothing is assumed to be conserved by it."""

    def __init__(self, *terms: VectorField) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    @property
    def reads_args(self) -> bool:
        """Whether any term does."""
        return any(bool(term.reads_args) for term in self.terms)

    def forward(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """The sum of the terms' derivatives; ``args`` go to the terms that read them."""
        return _total([term(t, y, args) if term.reads_args else term(t, y) for term in self.terms])


class SecondOrderSum(Sum, SecondOrder):
    """A sum of second-order fields is one: accelerations add, velocities do not."""

    @property
    def velocity_dependent(self) -> bool:  # type: ignore[override]  # asked of the terms each time: freeing a damping changes it
        """Whether any term's acceleration depends on the velocity."""
        return any(bool(term.velocity_dependent) for term in self.terms)

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor, args: Args | None = None) -> Tensor:
        """The sum of the terms' accelerations."""
        return _total([with_args(term.acceleration, args, t, q, v) for term in self.terms])  # type: ignore[arg-type]

    def forward(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """(v, sum of accelerations)."""
        return SecondOrder.forward(self, t, y, args)


class HamiltonianSum(Sum, Hamiltonian):
    """Energies add."""

    def energy(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """The sum of the terms' energies."""
        return _total([with_args(term.energy, args, t, y) for term in self.terms])  # type: ignore[arg-type]

    def forward(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """Hamilton's equations for the summed energy."""
        return Hamiltonian.forward(self, t, y, args)


class SeparableSum(Sum, SeparableHamiltonian):
    """Kinetic energies add, and so do potentials."""

    def kinetic(self, p: Tensor, args: Args | None = None) -> Tensor:
        """The sum of the terms' kinetic energies."""
        return _total([with_args(term.kinetic, args, p) for term in self.terms])  # type: ignore[arg-type]

    def potential(self, q: Tensor, args: Args | None = None) -> Tensor:
        """The sum of the terms' potentials."""
        return _total([with_args(term.potential, args, q) for term in self.terms])  # type: ignore[arg-type]

    def forward(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """Hamilton's equations for the summed energy."""
        return Hamiltonian.forward(self, t, y, args)


def add(left: object, right: object) -> VectorField:
    """The sum of two fields, as the strongest structure that every term has."""
    terms = [term for field in (left, right) for term in _terms(as_field(field))]
    for structure, kind in (
        (SecondOrder, SecondOrderSum),
        (SeparableHamiltonian, SeparableSum),
        (Hamiltonian, HamiltonianSum),
    ):
        if all(isinstance(term, structure) for term in terms):
            return kind(*terms)
    second_order = [term for term in terms if isinstance(term, SecondOrder)]
    if len(second_order) > 1:  # kept together, since q' = v must be counted once however the sum was written
        return Sum(SecondOrderSum(*second_order), *(term for term in terms if not isinstance(term, SecondOrder)))
    return Sum(*terms)


def as_field(field: object) -> VectorField:
    """``field`` itself if it is a VectorField, else a wrapper of the function or module."""
    if isinstance(field, VectorField):
        return field
    if callable(field):
        return FunctionField(field)
    raise InputError(
        f"a field must be a function, an nn.Module or a VectorField of (t, y); found {type(field).__name__}: {field!r}"
    )


def split_state(y: Tensor) -> tuple[Tensor, Tensor]:
    """(q, v) or (q, p): the two halves of the last axis."""
    if y.shape[-1] % 2:
        raise InputError(
            f"a state of positions and velocities has an even number of entries; found {y.shape[-1]}. "
            "Give all positions first, then all velocities."
        )
    half = y.shape[-1] // 2
    return y[..., :half], y[..., half:]


def needs_args(field: VectorField) -> bool:
    """Whether a field cannot be called without ``args``."""
    function = field.function if isinstance(field, FunctionField) else field
    plain = function.forward if isinstance(function, nn.Module) else function
    try:
        return _needs_third(getattr(plain, "__func__", plain), isinstance(plain, MethodType))
    except TypeError:  # not hashable
        return _needs_third.__wrapped__(plain, False)


@lru_cache(maxsize=1024)
def _needs_third(function: Callable[..., Any], bound: bool) -> bool:
    """Whether a function, called as a method if ``bound``, has a third argument without a default."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[1 if bound else 0 :]
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) == 3 and positional[2].default is inspect.Parameter.empty


def _is(method: Callable[..., Any], function: Callable[..., Any]) -> bool:
    return getattr(method, "__func__", None) is function


def _terms(field: VectorField) -> list[VectorField]:
    if not isinstance(field, Sum):
        return [field]
    return [part for term in field.terms for part in _terms(as_field(term))]


def _total(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
