"""Which numbers a fit may move: physical constants element by element, the weights of learned terms, and initial states.

A fit works on one flat vector in natural units. This file names its entries, bounds them, and turns the vector back into
the tensors that the model reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from physnode.errors import InputError, name_hint
from physnode.fields import Domain, FunctionField, VectorField

__all__ = ["Prior", "Scalar", "Shared", "fields_in", "shared_parameters"]

Bounds = Mapping[str, tuple[float | None, float | None]]
Fixed = Mapping[str, float] | Sequence[str] | None


@dataclass(frozen=True)
class Prior:
    """What is known of a parameter beforehand: a normal distribution."""

    mean: float
    sigma: float


@dataclass(frozen=True)
class Scalar:
    """One physical number: a constant, or one element of it."""

    name: str
    """As in a report: ``frequency``, ``masses[0]``."""
    tensor: str
    """Name of the module parameter that holds it."""
    index: int
    """Position in that parameter, flattened."""
    start: float
    lower: float
    upper: float
    unit: str
    free: bool

    def at_bound(self, value: float) -> bool:
        """Whether ``value`` lies on a bound."""
        margin = 1e-8 * max(abs(value), abs(self.start), 1e-300)
        return value - self.lower <= margin or self.upper - value <= margin


@dataclass(frozen=True)
class Shared:
    """The numbers that all trajectories share: physical scalars, then the weights of learned terms."""

    scalars: tuple[Scalar, ...]
    """Every physical scalar of the model, free or not."""
    weights: tuple[str, ...]
    """Module parameters whose entries are free network weights."""
    tensors: dict[str, Tensor]
    """Start value of each module parameter that is physical, or holds free weights."""

    @property
    def free(self) -> tuple[Scalar, ...]:
        """The physical scalars that are fitted, in the order of the vector."""
        return tuple(scalar for scalar in self.scalars if scalar.free)

    @property
    def names(self) -> list[str]:
        """One name for each entry of the vector."""
        found = [scalar.name for scalar in self.free]
        return found + [f"{name}[{i}]" for name in self.weights for i in range(self.tensors[name].numel())]

    @property
    def size(self) -> int:
        """Length of the vector."""
        return len(self.free) + sum(self.tensors[name].numel() for name in self.weights)

    @property
    def start(self) -> Tensor:
        """The vector of start values, float64."""
        scalars = torch.tensor([scalar.start for scalar in self.free], dtype=torch.float64)
        return torch.cat([scalars, *[self.tensors[name].reshape(-1) for name in self.weights]])

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of each entry; infinite where there is none."""
        low = torch.full((self.size,), -math.inf, dtype=torch.float64)
        high = torch.full((self.size,), math.inf, dtype=torch.float64)
        for i, scalar in enumerate(self.free):
            low[i], high[i] = scalar.lower, scalar.upper
        return low, high

    @property
    def scale(self) -> Tensor:
        """A typical size of each entry, by which first-order methods measure their steps."""
        scale = torch.ones(self.size, dtype=torch.float64)
        for i, scalar in enumerate(self.free):
            if scalar.start:
                scale[i] = abs(scalar.start)
        return scale

    def place(self, model: VectorField) -> None:
        """Write the start values, those that are held among them, into ``model``."""
        with torch.no_grad():
            for name, value in self.tensors.items():
                model.get_parameter(name).copy_(value)

    def unpack(self, vector: Tensor) -> dict[str, Tensor]:
        """The module parameters for one vector, differentiable in it."""
        found: dict[str, Tensor] = {}
        free = self.free
        for name in dict.fromkeys(scalar.tensor for scalar in free):
            places = [(i, scalar.index) for i, scalar in enumerate(free) if scalar.tensor == name]
            base = self.tensors[name]
            values = vector[torch.tensor([i for i, _ in places])]
            index = torch.tensor([place for _, place in places])
            found[name] = base.reshape(-1).index_put((index,), values).reshape(base.shape)
        position = len(free)
        for name in self.weights:
            base = self.tensors[name]
            found[name] = vector[position : position + base.numel()].reshape(base.shape)
            position += base.numel()
        return found


def shared_parameters(
    model: VectorField,
    *,
    free: Sequence[str] | None = None,
    fixed: Fixed = None,
    bounds: Bounds | None = None,
) -> Shared:
    """Sort the parameters of ``model`` into physical scalars and weights, and decide which are free.

    Physical are the parameters that a field owns itself, be it a :class:`physnode.VectorField` or a plain ``nn.Module`` that is
    used as one; those of modules inside it are weights of learned terms. A physical one is free if it requires a gradient, or,
    where ``free`` is given, if it is named there. ``fixed`` then holds back single entries
    (``"masses[0]"``) or whole names, at a given value or where they stand.

    Raises:
        InputError: an unknown name, a start outside its domain or bounds, or nothing free at all.
    """
    free = (free,) if isinstance(free, str) else free
    physical, weights = _sort(model)
    short = _short_names(list(physical))
    entries: dict[str, tuple[str, int]] = {}
    whole: dict[str, list[str]] = {}
    for tensor, (_, value) in physical.items():
        for index in range(value.numel()):
            name = short[tensor] + (_subscript(index, value.shape) if value.ndim else "")
            entries[name] = (tensor, index)
            whole.setdefault(short[tensor], []).append(name)
    learned = [name for name, value in weights.items() if value.requires_grad]

    def expand(wanted: str) -> list[str]:
        if wanted in whole:
            return whole[wanted]
        if wanted in entries:
            return [wanted]
        inside = [name for name in weights if name == wanted or name.startswith(f"{wanted}.")]
        if inside:
            return inside
        known = [*whole, *entries, *weights]
        hint = name_hint(wanted, known)
        listed = ", ".join(dict.fromkeys(whole)) or "none"
        raise InputError(f'the model has no parameter "{wanted}".{hint} Its physical constants: {listed}')

    chosen = {name for wanted in free for name in expand(wanted)} if free is not None else None
    held: dict[str, float | None] = {}
    for wanted, target in fixed.items() if isinstance(fixed, Mapping) else ((name, None) for name in _listed(fixed)):
        for name in expand(wanted):
            held[name] = None if target is None else float(target)
    limits = {name: _pair(wanted, pair) for wanted, pair in (bounds or {}).items() for name in expand(wanted)}
    for name in limits:
        if name not in entries:
            raise InputError(f'bounds names "{name}", which is a weight of a learned term; only physical constants have bounds')

    scalars = []
    tensors: dict[str, Tensor] = {}
    for name, (tensor, index) in entries.items():
        owner, value = physical[tensor]
        is_free = (name in chosen if chosen is not None else value.requires_grad) and name not in held
        start = float(value.detach().reshape(-1)[index])
        pinned = held.get(name)
        start = start if pinned is None else pinned
        leaf = tensor.rsplit(".", 1)[-1]
        domain = getattr(owner, "domains", {}).get(leaf, Domain())
        low, high = limits.get(name, (None, None))
        lower = domain.lower if low is None else max(domain.lower, float(low))
        upper = domain.upper if high is None else min(domain.upper, float(high))
        if not lower <= start <= upper:
            raise InputError(f"{name} starts at {start:g}, outside [{lower:g}, {upper:g}]; change its start or its bounds")
        scalars.append(Scalar(name, tensor, index, start, lower, upper, getattr(owner, "units", {}).get(leaf, "1"), is_free))
        if tensor not in tensors:
            tensors[tensor] = value.detach().to(torch.float64).clone()
        tensors[tensor].view(-1)[index] = start
    kept = tuple(name for name in learned if name not in held)
    for name in kept:
        tensors[name] = weights[name].detach().to(torch.float64).clone()
    return Shared(tuple(scalars), kept, tensors)


def fields_in(model: VectorField) -> set[nn.Module]:
    """The modules that are fields: every VectorField, and a plain module where it stands for one."""
    found: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, VectorField):
            found.add(module)
        if isinstance(module, FunctionField) and isinstance(module.function, nn.Module):
            found.add(module.function)
    return found


def _pair(name: str, bounds: object) -> tuple[float | None, float | None]:
    """Both bounds of one parameter. Raises InputError for anything but a pair (lowest, highest) in that order."""
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise InputError(f"bounds of {name} must be a pair (lowest, highest), with None for no limit; found {bounds!r}")
    low, high = bounds
    if low is not None and high is not None and not float(low) < float(high):
        raise InputError(f"bounds of {name} must be (lowest, highest); found ({low:g}, {high:g})")
    return low, high


def _sort(model: VectorField) -> tuple[dict[str, tuple[nn.Module, nn.Parameter]], dict[str, nn.Parameter]]:
    physical: dict[str, tuple[nn.Module, nn.Parameter]] = {}
    weights: dict[str, nn.Parameter] = {}
    fields = fields_in(model)
    for path, module in model.named_modules():
        for leaf, value in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            if module in fields:
                physical[name] = (module, value)
            else:
                weights[name] = value
    return physical, weights


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted name, as long as that tells them apart."""
    leaves = [name.rsplit(".", 1)[-1] for name in names]
    return {name: leaf if leaves.count(leaf) == 1 else name for name, leaf in zip(names, leaves, strict=True)}


def _subscript(index: int, shape: torch.Size) -> str:
    parts = []
    for size in reversed(shape):
        index, part = divmod(index, size)
        parts.append(str(part))
    return f"[{','.join(reversed(parts))}]"


def _listed(names: Mapping[str, float] | Sequence[str] | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)
