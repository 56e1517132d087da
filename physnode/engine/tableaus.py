"""Methods as tables of coefficients, by name: what the families of methods step with.

A table is checked when it is built: one that breaks an order condition of its step, error estimate or dense output is
refused. To add a method, write its table beside the others in ``coefficients`` and list it here.
"""

from __future__ import annotations

from physnode.engine.coefficients.butcher_tableau import ButcherTableau, ContinuousExtension
from physnode.engine.coefficients.dop853 import DOP853
from physnode.engine.coefficients.dormand_prince import DOPRI5
from physnode.engine.coefficients.low_order import BOSH3, EULER, HEUN, MIDPOINT, RK4
from physnode.engine.coefficients.prince_dormand import DOPRI8
from physnode.engine.coefficients.splitting import KAHAN_LI8, LEAPFROG, YOSHIDA4, YOSHIDA6
from physnode.engine.coefficients.splitting_tableau import SplittingTableau
from physnode.engine.coefficients.tsitouras import TSIT5

__all__ = ["BUTCHER", "SPLITTING", "ButcherTableau", "ContinuousExtension", "SplittingTableau"]

BUTCHER: dict[str, ButcherTableau] = {
    table.name: table for table in (EULER, MIDPOINT, HEUN, RK4, BOSH3, DOPRI5, TSIT5, DOP853, DOPRI8)
}
"""The explicit Runge-Kutta methods."""

SPLITTING: dict[str, SplittingTableau] = {table.name: table for table in (LEAPFROG, YOSHIDA4, YOSHIDA6, KAHAN_LI8)}
"""The symplectic splittings."""
