"""The interface of torchdiffeq on physnode's engine: change the import, keep the code.

    from physnode.compat.torchdiffeq import odeint, odeint_adjoint, odeint_event, odeint_dense

Names, arguments, shapes and exceptions are those of torchdiffeq 0.2.5 and of its development version; ``docs/torchdiffeq.md``
says what differs. The whole state, a tensor of any shape or a tuple of them, is one trajectory with one step size, as there;
``physnode.solve`` gives each trajectory of a batch its own.
"""

from physnode.compat.torchdiffeq.adjoint import find_parameters, odeint_adjoint
from physnode.compat.torchdiffeq.dense import odeint_dense
from physnode.compat.torchdiffeq.events import odeint_event
from physnode.compat.torchdiffeq.interface import odeint

__version__ = "0.2.5"
"""The release of torchdiffeq whose interface this is."""

__all__ = ["__version__", "find_parameters", "odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
