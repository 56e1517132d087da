"""``torchdiffeq._impl.adjoint``, from which some projects import ``find_parameters``."""

from physnode.compat.torchdiffeq.adjoint import find_parameters

__all__ = ["find_parameters"]
