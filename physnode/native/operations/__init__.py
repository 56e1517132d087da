"""What each operation of PyTorch is in scalar expressions.

A tensor of one trajectory is an object array of nodes, so that whatever only moves numbers about (views, joins, gathers by
known places) is NumPy's own operation.
"""

from __future__ import annotations

from physnode.native.operations import elementwise, places, sums
from physnode.native.operations.made import OPERATIONS, Made

__all__ = ["OPERATIONS", "Made", "elementwise", "places", "sums"]
