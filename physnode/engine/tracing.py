"""One traced call of a field before a solve: what it reads, and whether it is what it should be.

It finds every tensor that the field reads and that wants a gradient, closed-over ones too, and refuses what would make a result
silently wrong: a field that writes into its input, or returns a tensor it will write into again. It also sees whether the field
draws random numbers or changes tensors, which rules out a gradient.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from physnode.calling import with_args
from physnode.engine.field_function import FieldFunction
from physnode.errors import InputError
from physnode.torch_internals import is_wrapped

__all__ = ["Traced", "trace"]


@dataclass(frozen=True)
class Traced:
    """What the first call of a field showed."""

    derivative: Tensor
    theta: tuple[Tensor, ...]
    """Every tensor that the field reads and that requires a gradient: parameters first, then closed-over tensors."""
    random: bool
    stateful: bool
    calls: int
    """How often the field was called to find this out."""


def trace(f: FieldFunction, t: Tensor, y: Tensor, also: Sequence[Callable[..., Tensor]] = ()) -> Traced:
    """Call the field once at ``(t, y)``, without a graph, and look at what it reads and returns.

    ``also`` are further functions of (t, y[, args]), conditions of events and the like, whose tensors count among ``theta``.

    Raises:
        InputError: the field returns something that is no tensor of y's shape, dtype and device, or writes into ``y``, ``t``
            or a tensor that it returns every time.
    """
    shared = _shared_generators(y)
    buffers = [(buffer, _version(buffer)) for buffer in f.field.buffers()]
    calls = 1
    try:
        value, state, reads = _call_once(f, t, y, also, graph=False)
    except RuntimeError as problem:
        # a field that calls torch.autograd.grad itself needs a graph even where the solve keeps none
        try:
            value, state, reads = _call_once(f, t, y, also, graph=True)
        except RuntimeError:
            raise problem from None
        f.differentiates = True
        calls = 2
    _check_output(value, state)
    if reads.inputs_changed:
        raise InputError(
            "the field writes into the state or time it is given, which changes the solver's own copy; "
            "build the derivative out of place, for example with torch.cat or torch.stack"
        )
    written = reads.written()
    if written:  # a tensor of the call's own, made where the mode could not see it, is another one in the next call
        calls += 1
        later = {id(tensor) for tensor in _call_once(f, t, y, also, graph=f.differentiates)[2].written()}
        written = [tensor for tensor in written if id(tensor) in later]
    if any(_share_memory(value, tensor) for tensor in written):
        raise InputError(
            "the field writes its result into a tensor that it keeps and returns at every call, so that each stage of a step "
            "would overwrite the one before; return a new tensor"
        )
    drawn = shared != _shared_generators(y)
    if reads.draws and not drawn:  # generators that a call seeds anew give the same numbers again
        calls += 1
        drawn = reads.draws != _call_once(f, t, y, also, graph=f.differentiates)[2].draws
    parameters = [p for p in f.field.parameters() if p.requires_grad]
    known = {id(p) for p in parameters}
    extra = [tensor for tensor in reads.found if id(tensor) not in known]
    return Traced(
        derivative=value.detach().reshape(y.shape),
        theta=(*parameters, *extra),
        random=drawn,
        stateful=bool(written) or any(_version(buffer) != before for buffer, before in buffers),
        calls=calls,
    )


def _call_once(
    f: FieldFunction, t: Tensor, y: Tensor, also: Sequence[Callable[..., Tensor]], *, graph: bool
) -> tuple[Tensor, Tensor, _Reads]:
    point, time = y.detach().clone(), t.detach().to(f.dtype, copy=True)
    before = _version(point), _version(time)
    with torch.set_grad_enabled(graph), _Reads(point, time) as reads:
        state = point.view(*f.batch, point.shape[-1])
        given = None if f.args is None else f.args.at(t)
        functions: tuple[Callable[..., Tensor], ...] = (*also, f.field)
        for function in functions:
            value = with_args(function, given, time.view(*f.batch, 1), state)
    reads.inputs_changed = (_version(point), _version(time)) != before
    return value, state, reads


def _shared_generators(y: Tensor) -> tuple[Any, ...]:
    """The states of the generators that belong to nobody: PyTorch's, NumPy's and Python's."""
    own = torch.cuda.get_rng_state(y.device) if y.device.type == "cuda" else torch.get_rng_state()
    name, key, *rest = np.random.get_state()  # noqa: NPY002
    return own.numpy().tobytes(), name, np.asarray(key).tobytes(), *rest, random.getstate()


def _version(tensor: Tensor) -> int:
    """How often the tensor was written to; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _share_memory(value: Tensor, tensor: Tensor) -> bool:
    if value.device.type == "meta" or value.device != tensor.device:
        return False
    return value.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def _check_output(value: object, y: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"the field must return a tensor shaped like y, {tuple(y.shape)}; found {type(value).__name__}")
    if value.shape != y.shape:
        raise InputError(
            f"the field must return dy/dt with the shape of y, {tuple(y.shape)}; found {tuple(value.shape)}. "
            "The time t has the shape of y[..., :1], so that y * torch.cos(t) has the right shape."
        )
    if value.dtype != y.dtype:
        raise InputError(
            f"the field returns {value.dtype} for a state of {y.dtype}; convert the field (field.to({y.dtype})) or y0 "
            "so that both have one dtype"
        )
    if value.device != y.device:
        raise InputError(f"the field returns a tensor on {value.device} for a state on {y.device}; move one of them")


def _leaves(value: Any) -> Iterator[Any]:
    """What a torch function is given or gives, out of the lists, tuples and dictionaries it may lie in."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


class _Reads(TorchFunctionMode):
    """Collects the tensors that were made outside the call: those that require a gradient, and those that are written to.

    Generators that an operation is given are collected too, in the state in which they are met first.
    """

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self.draws: list[bytes] = []
        self.inputs_changed = False
        self._outside: list[tuple[Tensor, int]] = []
        self._seen = {id(tensor) for tensor in inputs}
        self._alive: list[Any] = list(inputs)  # keeps ids from being used again

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in _leaves((args, kwargs or {})):
            if isinstance(value, Tensor) and id(value) not in self._seen:
                self._note(value)
                if not is_wrapped(value):
                    self._outside.append((value, _version(value)))
                    if value.requires_grad:
                        self.found.append(value)
            elif isinstance(value, torch.Generator) and id(value) not in self._seen:
                self._seen.add(id(value))
                self._alive.append(value)
                self.draws.append(value.get_state().cpu().numpy().tobytes())
        out = func(*args, **(kwargs or {}))
        for value in _leaves(out):
            if isinstance(value, Tensor):
                self._note(value)
        return out

    def written(self) -> list[Tensor]:
        """Tensors from outside that the call wrote to."""
        return [tensor for tensor, before in self._outside if _version(tensor) != before]

    def _note(self, tensor: Tensor) -> None:
        self._seen.add(id(tensor))
        self._alive.append(tensor)
