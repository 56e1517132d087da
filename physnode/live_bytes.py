"""Bytes of tensors that are alive, and their peak, counted as they are made and freed."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes in the tensors made under this mode and still alive, and their peak.

    Every result of an operation is looked at. Its storage counts once, from the operation that made it until it is freed;
    memory inside an operation is not seen, and Python objects are not counted. Exact on any device and free of the noise of
    an allocator's pools, at the price of some microseconds an operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """The most that were alive at once."""
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; count the storages of its results that were not known."""
        given = {id(x.untyped_storage()) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = id(storage)
                if key not in self._alive and key not in given:
                    size = storage.nbytes()
                    self._alive[key] = weakref.ref(storage, partial(self._freed, key, size))
                    self.now += size
                    self.peak = max(self.peak, self.now)
        return out

    def _freed(self, key: int, size: int, _: Any) -> None:
        del self._alive[key]
        self.now -= size
