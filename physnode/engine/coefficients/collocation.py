"""Collocation methods, from their nodes alone: Gauss-Legendre (symplectic) and Radau IIA (for stiff problems).

The polynomial u of degree s with u(t) = x and u'(t + c_i h) = f(t + c_i h, u(t + c_i h)) is the step and its dense output:
with the Lagrange polynomials l_i of the nodes,

    a_ij = int_0^{c_i} l_j,    b_i(theta) = int_0^theta l_i,    b_i = b_i(1).

Nodes are closed forms, taken to fifty digits before they are rounded.
Source: Hairer, Norsett & Wanner, *Solving Ordinary Differential Equations I*, 2nd ed., section II.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, localcontext

from physnode.engine.coefficients.butcher_tableau import ContinuousExtension
from physnode.engine.coefficients.implicit_tableau import ImplicitTableau

__all__ = ["GAUSS2", "GAUSS4", "GAUSS6", "RADAU5", "collocation"]

_DIGITS = 50


def collocation(
    name: str, order: int, nodes: Sequence[Decimal], reference: str, estimate: tuple[Decimal, Sequence[Decimal]] | None = None
) -> ImplicitTableau:
    """The table of the collocation method with these nodes, which are distinct.

    ``estimate`` is (g, e): the error estimate (I - h g J)^-1 (g h f(t, x) + sum_i e_i z_i), with z_i = h sum_j a_ij k_j.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        weights = [_integral(_lagrange(nodes, i)) for i in range(len(nodes))]
        a = [[_value(row, node) for row in weights] for node in nodes]
        gamma, displacements = estimate if estimate else (Decimal(0), ())
        columns = zip(*a, strict=True) if estimate else ()
        error = [sum((e * x for e, x in zip(displacements, column, strict=True)), Decimal(0)) for column in columns]
        return ImplicitTableau(
            name=name,
            order=order,
            c=tuple(map(float, nodes)),
            a=tuple(tuple(map(float, row)) for row in a),
            b=tuple(float(sum(row)) for row in weights),
            error=tuple(map(float, error)),
            error_start=float(gamma),
            error_filter=float(gamma),
            error_order=len(nodes) if estimate else 0,
            extension=ContinuousExtension(order=len(nodes), weights=tuple(tuple(map(float, row)) for row in weights)),
            reference=reference,
        )


def _lagrange(nodes: Sequence[Decimal], i: int) -> list[Decimal]:
    """Coefficients, lowest first, of the polynomial that is 1 on node i and 0 on the others."""
    row = [Decimal(1)]
    for j, node in enumerate(nodes):
        if j != i:
            shifted = zip([Decimal(0), *row], [*row, Decimal(0)], strict=True)  # times x, beside times 1
            row = [(up - node * same) / (nodes[i] - node) for up, same in shifted]
    return row


def _integral(row: Sequence[Decimal]) -> list[Decimal]:
    """Coefficients of theta, theta^2, ... of the integral from 0."""
    return [value / (k + 1) for k, value in enumerate(row)]


def _value(row: Sequence[Decimal], theta: Decimal) -> Decimal:
    return sum((value * theta ** (k + 1) for k, value in enumerate(row)), Decimal(0))


_GAUSS = "Hairer, Lubich & Wanner, Geometric Numerical Integration, 2nd ed., section II.1.3"
_RADAU = "Hairer & Wanner, Solving Ordinary Differential Equations II, 2nd ed., sections IV.5 (table 5.6) and IV.8"

with localcontext() as _context:
    _context.prec = _DIGITS
    _3, _6, _15 = Decimal(3).sqrt(), Decimal(6).sqrt(), Decimal(15).sqrt()
    _HALF = Decimal(1) / 2
    GAUSS2 = collocation("gauss2", 2, [_HALF], _GAUSS)
    GAUSS4 = collocation("gauss4", 4, [_HALF - _3 / 6, _HALF + _3 / 6], _GAUSS)
    GAUSS6 = collocation("gauss6", 6, [_HALF - _15 / 10, _HALF, _HALF + _15 / 10], _GAUSS)
    # the one real eigenvalue of the matrix a is the filter's
    _CUBE_ROOT = Decimal(3) ** (1 / Decimal(3))
    _GAMMA = 1 / (3 + _CUBE_ROOT**2 - _CUBE_ROOT)
    RADAU5 = collocation(
        "radau5",
        5,
        [(4 - _6) / 10, (4 + _6) / 10, Decimal(1)],
        _RADAU,
        (_GAMMA, [_GAMMA / 3 * (-13 - 7 * _6), _GAMMA / 3 * (-13 + 7 * _6), -_GAMMA / 3]),
    )
