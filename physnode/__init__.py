"""physnode: fit dynamical systems to observed trajectories.

Known physics plus a learned term, integrated by an adaptive ODE solver with exact gradients, fitted to trajectories stored in
HDF5, and audited for what it should conserve.
"""

from physnode import data, diagnostics, errors, methods, nn, systems
from physnode.diagnostics import check_gradient
from physnode.engine.controllers import Adaptive, Fixed
from physnode.engine.events import Event
from physnode.engine.status import Status
from physnode.fields import Domain, Hamiltonian, SecondOrder, SeparableHamiltonian, Sum, VectorField
from physnode.fitting import FitResult, fit, load
from physnode.gradients import ACA, ContinuousAdjoint, Direct, Storage, SymplecticAdjoint
from physnode.signals import Signal
from physnode.solution import Solution
from physnode.solve import solve

__version__ = "0.1.0"

__all__ = [
    "ACA",
    "Adaptive",
    "ContinuousAdjoint",
    "Direct",
    "Domain",
    "Event",
    "FitResult",
    "Fixed",
    "Hamiltonian",
    "SecondOrder",
    "SeparableHamiltonian",
    "Signal",
    "Solution",
    "Status",
    "Storage",
    "Sum",
    "SymplecticAdjoint",
    "VectorField",
    "__version__",
    "check_gradient",
    "data",
    "diagnostics",
    "errors",
    "fit",
    "load",
    "methods",
    "nn",
    "solve",
    "systems",
]
