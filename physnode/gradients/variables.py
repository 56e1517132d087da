"""The tensors a field reads, as variables of their own while a gradient is taken.

A gradient sweep wants the partial derivative with respect to each tensor that the field reads. ``torch.autograd.grad`` gives
something else where one of them was computed from another (a mass from its logarithm, both read by the field), and it runs
the gradient hooks a user has put on a parameter once a step instead of once. Both go away when fresh tensors of the same
values stand in for the originals during the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from physnode.errors import GradientError

__all__ = ["refuse_unknown", "stand_ins"]


@contextmanager
def stand_ins(theta: Sequence[Tensor], *, graph: bool) -> Iterator[tuple[Tensor, ...]]:
    """Within the context, fresh tensors are read wherever one of ``theta`` would be; they are what it gives.

    With ``graph`` they stay tied to the originals, so that a second derivative reaches them.
    """
    fresh = tuple(theta)
    mode: Any = nullcontext()
    if graph:
        fresh = tuple(tensor.view_as(tensor) for tensor in theta)
        mode = _Instead(theta, fresh)
    elif any(not tensor.is_leaf or tensor._backward_hooks or not tensor.requires_grad for tensor in theta):
        fresh = tuple(tensor.detach().requires_grad_() for tensor in theta)
        mode = _Instead(theta, fresh)
    with mode:
        yield fresh


class _Instead(TorchFunctionMode):
    """Puts one tensor in the place of another wherever a torch function reads it."""

    def __init__(self, originals: Sequence[Tensor], fresh: Sequence[Tensor]) -> None:
        super().__init__()
        self._table = {id(old): new for old, new in zip(originals, fresh, strict=True)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = pytree.tree_map(lambda value: self._table.get(id(value), value), (args, kwargs or {}))
        return func(*args, **kwargs)


def refuse_unknown(known: set[int], *outputs: Tensor, known_nodes: Sequence[Any] = ()) -> None:
    """Refuse ``outputs`` whose graph ends in a tensor whose id is not ``known``: its share of the gradient would be lost.

    What lies beyond ``known_nodes`` of the graph is not looked at.

    Raises:
        GradientError: the field read a tensor that its first call did not read.
    """
    waiting = [output.grad_fn for output in outputs]
    seen = {*waiting, *known_nodes}
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known:
            raise GradientError(
                f"the field depends on a tensor of shape {tuple(variable.shape)} that requires a gradient and that its first "
                "call did not read, so its share of the gradient would be lost. Make it a parameter of the field, read it at "
                'every call (with torch.where instead of an if), or use gradient="direct"'
            )
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                waiting.append(following)
