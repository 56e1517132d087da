"""The C interface of a compiled solve: what is handed in and out, as ctypes and tensors."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.native.build import library

__all__ = ["Compiled", "Found", "Start", "Tape"]

_Pointer = ctypes.c_void_p
_NO_MEMORY = (
    "native code has run out of memory for the steps of a solve; solve fewer trajectories at once, loosen the tolerances, or "
    "bound what is kept by gradient=pn.ACA(pn.Storage(limit=BYTES)), which the eager driver does"
)


def _structure(name: str, fields: str) -> type[ctypes.Structure]:
    kinds = {"*": _Pointer, "#": ctypes.c_int64}
    return type(name, (ctypes.Structure,), {"_fields_": [(field[1:], kinds[field[0]]) for field in fields.split()]})


_Solve = _structure(
    "_Solve",
    "#rows #times *t0 *t1 *direction *ts #ts_stride *y0 *args *ys *last *derivative *status *accepted *rejected *evaluations "
    "*reached *tried *uniform #keep #threads",
)
_Pull = _structure("_Pull", "#rows *t0 *direction *ts #ts_stride #times *args *cotangents *status *to_y0 *to_args *to_uniform")


@dataclass(frozen=True)
class Start:
    """Where a solve of B trajectories starts, and what for."""

    y0: Tensor
    """``(B, dim)``."""
    t0: Tensor
    """``(B,)`` float64, as all times."""
    t1: Tensor
    direction: Tensor
    times: Tensor
    """``(B, T)``."""
    args: Tensor
    """What each trajectory has of its own, ``(B, A)``."""
    uniform: tuple[Tensor, ...]
    """What all trajectories share."""

    def __post_init__(self) -> None:
        for tensor in (self.y0, self.t0, self.t1, self.direction, self.args, *self.uniform):
            assert tensor.is_contiguous()
        assert self.times.stride(-1) == 1


@dataclass(frozen=True)
class Found:
    """What a solve found."""

    ys: Tensor
    last: Tensor
    """The last state of each trajectory, ``(B, dim)``."""
    derivative: Tensor
    """The field at the start, ``(B, dim)``."""
    status: Tensor
    accepted: Tensor
    rejected: Tensor
    evaluations: Tensor
    reached: Tensor
    tried: Tensor
    """Length of the last trial."""
    tape: Tape | None


class Compiled:
    """The functions of one compiled source, for states of ``dim`` numbers."""

    def __init__(self, source: str, dim: int) -> None:
        self.dim = dim
        code = library(source)
        self._solve, self._pull, self._records = code.pn_solve, code.pn_pull, code.pn_records
        self._free, self._bytes, self._field = code.pn_free, code.pn_bytes, code.pn_field
        self._transpose, self._agrees = code.pn_transpose, code.pn_agrees
        self._agrees.argtypes = [_Pointer, _Pointer, ctypes.c_double]
        self._agrees.restype = ctypes.c_int64
        self._field.restype = self._transpose.restype = None
        self._solve.restype = _Pointer
        self._pull.restype = ctypes.c_int64
        self._bytes.restype = ctypes.c_int64
        self._free.argtypes = self._bytes.argtypes = [_Pointer]
        self._pull.argtypes = [_Pointer, _Pointer]
        self._records.argtypes = [_Pointer, ctypes.c_int64, _Pointer, _Pointer, _Pointer]

    def solve(self, start: Start, *, keep: bool, threads: int) -> Found:
        """Solve; ``keep`` leaves a tape of the accepted steps."""
        rows, count = start.times.shape
        y0, like = start.y0, start.t0
        counts = torch.empty(4, rows, dtype=torch.int64)
        times = torch.empty(2, rows, dtype=torch.float64)
        states = y0.new_empty(2, rows, self.dim)
        ys = y0.new_empty(rows, count, self.dim)
        at_states, at_counts, at_times = states.data_ptr(), counts.data_ptr(), times.data_ptr()
        size = rows * self.dim * y0.element_size()
        uniform = _pointers(start.uniform)
        job = _Solve(
            rows, count, like.data_ptr(), start.t1.data_ptr(), start.direction.data_ptr(), start.times.data_ptr(),
            start.times.stride(0), y0.data_ptr(), start.args.data_ptr(), ys.data_ptr(), at_states, at_states + size,
            at_counts, at_counts + 8 * rows, at_counts + 16 * rows, at_counts + 24 * rows, at_times, at_times + 8 * rows,
            ctypes.addressof(uniform), int(keep), threads,
        )  # fmt: skip
        failed = ctypes.c_int64()
        handle = self._solve(ctypes.byref(job), ctypes.byref(failed))
        if failed.value:
            raise MemoryError(_NO_MEMORY)
        status, accepted, rejected, evaluations = counts.unbind(0)
        tape = Tape(self, handle, start, status, accepted) if keep else None
        last, derivative = states.unbind(0)
        return Found(ys, last, derivative, status, accepted, rejected, evaluations, times[0], times[1], tape)

    def field(self, start: Start) -> Tensor:
        """The field alone, at the start, ``(B, dim)``."""
        out = torch.empty_like(start.y0)
        uniform = _pointers(start.uniform)
        job = _Solve(
            rows=len(out), t0=start.t0.data_ptr(), y0=start.y0.data_ptr(), args=start.args.data_ptr(),
            derivative=out.data_ptr(), uniform=ctypes.addressof(uniform),
        )  # fmt: skip
        self._field(ctypes.byref(job))
        return out

    def agrees(self, start: Start, says: Tensor, tolerance: float) -> bool:
        """Whether the field alone, at the start, gives what is said, ``(B, dim)``."""
        uniform, says = _pointers(start.uniform), says.contiguous()
        job = _Solve(
            rows=len(says), t0=start.t0.data_ptr(), t1=start.t1.data_ptr(), y0=start.y0.data_ptr(),
            args=start.args.data_ptr(), uniform=ctypes.addressof(uniform),
        )  # fmt: skip
        return bool(self._agrees(ctypes.byref(job), says.data_ptr(), tolerance))

    def transpose(self, start: Start, cotangents: Tensor, free: Sequence[bool]) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """What the field alone owes at the start for ``cotangents`` ``(B, dim)``, as :meth:`Tape.pull` gives it."""
        to_y0, to_args, to_uniform = _nothing_owed(start, free)
        uniform, owed = _pointers(start.uniform), _pointers(to_uniform)
        job = _Solve(
            rows=len(to_y0), t0=start.t0.data_ptr(), y0=start.y0.data_ptr(), args=start.args.data_ptr(),
            uniform=ctypes.addressof(uniform),
        )  # fmt: skip
        cotangents = cotangents.contiguous()
        pull = _Pull(
            cotangents=cotangents.data_ptr(), to_y0=to_y0.data_ptr(), to_args=to_args.data_ptr(),
            to_uniform=ctypes.addressof(owed),
        )  # fmt: skip
        self._transpose(ctypes.byref(job), ctypes.byref(pull))
        return to_y0, to_args, to_uniform


class Tape:
    """The accepted steps of a solve, in native memory, which goes with this object."""

    def __init__(self, code: Compiled, handle: int, start: Start, status: Tensor, accepted: Tensor) -> None:
        self.code, self.start, self.status, self.accepted = code, start, status, accepted
        self._handle = handle
        weakref.finalize(self, code._free, handle)

    @property
    def bytes(self) -> int:
        """What it takes."""
        return int(self.code._bytes(self._handle))

    def pull(self, cotangents: Tensor, free: Sequence[bool]) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Pull ``cotangents`` ``(B, T, dim)`` of the outputs back to y0 ``(B, dim)``, to what each trajectory has of its own,
        ``(B, A)``, and to those shared tensors that are ``free``, in float64."""
        start = self.start
        to_y0, to_args, to_uniform = _nothing_owed(start, free)
        owed = _pointers(to_uniform)
        cotangents = cotangents.contiguous()
        job = _Pull(
            len(start.y0), start.t0.data_ptr(), start.direction.data_ptr(), start.times.data_ptr(), start.times.stride(0),
            start.times.shape[1], start.args.data_ptr(), cotangents.data_ptr(), self.status.data_ptr(), to_y0.data_ptr(),
            to_args.data_ptr(), ctypes.addressof(owed),
        )  # fmt: skip
        if self.code._pull(self._handle, ctypes.byref(job)):
            raise MemoryError(_NO_MEMORY)
        return to_y0, to_args, to_uniform

    def records(self) -> tuple[Tensor, Tensor, Tensor]:
        """Times ``(N, B)`` at which steps start and end, and states ``(N, B, dim)`` from which they start.

        A trajectory rests at its start in slots beyond its own count.
        """
        start, slots = self.start, int(self.accepted.max()) if len(self.accepted) else 0
        t = start.t0.repeat(slots, 1)
        t_end, y = t.clone(), start.y0.repeat(slots, 1, 1)
        self.code._records(self._handle, len(start.t0), t.data_ptr(), t_end.data_ptr(), y.data_ptr())
        return t, t_end, y


def _nothing_owed(start: Start, free: Sequence[bool]) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    to_uniform = [
        torch.zeros(tensor.shape, dtype=torch.float64) if wanted else None
        for tensor, wanted in zip(start.uniform, free, strict=True)
    ]
    return torch.zeros_like(start.y0), torch.zeros_like(start.args), to_uniform


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (_Pointer * (len(tensors) + 1))(*(0 if tensor is None else tensor.data_ptr() for tensor in tensors))
