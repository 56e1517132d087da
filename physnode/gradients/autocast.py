"""A backward pass calls the field under the automatic mixed precision of the solve, wherever ``backward`` is called."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

__all__ = ["autocast_of"]


def autocast_of(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context of ``torch.autocast`` that is at work now for ``device``."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        kind = "cpu"
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return partial(torch.autocast, kind, dtype=dtype, enabled=enabled, cache_enabled=torch.is_autocast_cache_enabled())
