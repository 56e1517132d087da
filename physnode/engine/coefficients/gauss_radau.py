"""The tables of the 15th-order Gauss-Radau integrator, computed from its eight nodes and rounded once.

On a step of length h the acceleration is the polynomial F_0 + Σ_k b_k θ^(k+1), k = 0..6, through its values F_j at the nodes
c_0 = 0 < c_1 < ... < c_7 < 1; position and velocity are its integrals. In d_j = F_j - F_0, j = 1..7:

    v(c_i) = v + h (c_i F_0 + Σ_j A_ij d_j),      q(c_i) = q + c_i h v + h² (c_i²/2 F_0 + Σ_j Ā_ij d_j),      b = T d

and at the end of the step with weights w, w̄ in the place of A, Ā. The sums leave the exact fractions 1 and 1/2 to F_0, so
that a rounded coefficient is relative to a difference of accelerations: rounded weights of F_0 would make a step conserve
a little less, or more, every time.

Sources: Everhart, An efficient integrator that uses Gauss-Radau spacings, in Dynamics of Comets (1985) 185; Rein & Spiegel,
IAS15, MNRAS 446 (2015) 1424, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from itertools import product
from math import comb, fsum, ulp
from typing import NamedTuple

import torch

from physnode.errors import InputError

__all__ = ["NODES", "RadauTable", "check_nodes", "tables"]

NODES = (
    0.0,
    0.0562625605369221464656521910318,
    0.1802406917368923649875799428091,
    0.3526247171131696373739077701981,
    0.5471536263305553830014485577651,
    0.7342101772154105315232106054800,
    0.8853209468390957680903597629312,
    0.9775206135612875018911745004278,
)
"""The left Radau nodes on [0, 1]: zero, and the seven nodes at which quadrature is exact to degree 14."""

_Polynomial = list[Fraction]


def check_nodes(nodes: Sequence[float]) -> None:
    """Refuse nodes that are not the roots of d^7/dx^7 [x^8 (1 - x)^7], to the last place of float64.

    Raises:
        InputError: naming the node and how far it is from a root.
    """
    roots = [Fraction(0)] * 8 + [Fraction((-1) ** k * comb(7, k)) for k in range(8)]
    for _ in range(7):
        roots = [power * value for power, value in enumerate(roots)][1:]
    slope = [power * value for power, value in enumerate(roots)][1:]
    for node in map(Fraction, nodes):
        off = float(_value(roots, node) / _value(slope, node))
        if abs(off) > 2**-53 * max(float(node), 0.1):
            raise InputError(f"Radau nodes: found {float(node)!r}, which is {off:.1e} from a root; needed the nodes of NODES")
    if len(nodes) != 8 or list(nodes) != sorted(set(nodes)):
        raise InputError(f"Radau nodes: found {len(nodes)} of them, or not in order; needed eight that increase")


def _value(polynomial: Sequence[Fraction], x: Fraction) -> Fraction:
    total = Fraction(0)
    for coefficient in reversed(polynomial):
        total = total * x + coefficient
    return total


def _through(roots: Sequence[Fraction]) -> _Polynomial:
    """∏ (θ - root), lowest power first."""
    polynomial = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *polynomial]
        polynomial = [high - root * low for high, low in zip(shifted, [*polynomial, Fraction(0)], strict=True)]
    return polynomial


def _integrated(polynomial: Sequence[Fraction]) -> _Polynomial:
    return [Fraction(0), *(value / (power + 1) for power, value in enumerate(polynomial))]


class RadauTable(NamedTuple):
    """The coefficients as tensors; i, j = 1..7 are the nodes beyond the first, k = 0..6 the powers."""

    c: torch.Tensor
    """``(7,)``: the nodes."""
    half: torch.Tensor
    """``(7,)``: c²/2."""
    velocity: torch.Tensor
    """A, ``(7, 7)``."""
    position: torch.Tensor
    """Ā, ``(7, 7)``."""
    velocity_end: torch.Tensor
    """w, ``(7,)``."""
    position_end: torch.Tensor
    """w̄, ``(7,)``."""
    series: torch.Tensor
    """T, ``(7, 7)``."""
    powers: torch.Tensor
    """Its inverse, ``(7, 7)``: c_i^(k+1)."""
    extrapolate: torch.Tensor
    """``(7, 7, 1, 1)``; entry i: how far a move of 1 at node i moves each node, divided differences but the i-th kept."""
    once: torch.Tensor
    """``(7,)``: 1/(k+2)."""
    twice: torch.Tensor
    """``(7,)``: 1/((k+2)(k+3))."""
    binomial: torch.Tensor
    """``(7, 7)``: comb(j + 1, k + 1), by which a series is moved to the start of the next step."""
    power: torch.Tensor
    """``(7,)``: 1, 2, ..., 7."""
    nodes: tuple[float, ...]
    """c as numbers, for times, which are float64 whatever the state is."""


@cache
def _exact() -> dict[str, list[list[Fraction]]]:
    nodes = [Fraction(node) for node in NODES]  # the doubles themselves: the polynomial passes where the field is evaluated
    inner = range(1, 8)
    basis = []
    for j in inner:
        others = _through([node for i, node in enumerate(nodes) if i != j])
        scale = _value(others, nodes[j])
        basis.append([value / scale for value in others])
    once = [_integrated(polynomial) for polynomial in basis]
    twice = [_integrated(polynomial) for polynomial in once]
    extrapolate = []
    for i in inner:
        newton = _through(nodes[:i])
        extrapolate.append([_value(newton, nodes[j]) / _value(newton, nodes[i]) for j in inner])
    one = Fraction(1)
    return {
        "c": [[nodes[i]] for i in inner],
        "half": [[nodes[i] ** 2 / 2] for i in inner],
        "velocity": [[_value(polynomial, nodes[i]) for polynomial in once] for i in inner],
        "position": [[_value(polynomial, nodes[i]) for polynomial in twice] for i in inner],
        "velocity_end": [[_value(polynomial, one) for polynomial in once]],
        "position_end": [[_value(polynomial, one) for polynomial in twice]],
        "series": [[polynomial[k + 1] for polynomial in basis] for k in range(7)],
        "powers": [[nodes[i] ** (k + 1) for k in range(7)] for i in inner],
        "extrapolate": extrapolate,
        "once": [[Fraction(1, k + 2) for k in range(7)]],
        "twice": [[Fraction(1, (k + 2) * (k + 3)) for k in range(7)]],
        "binomial": [[Fraction(comb(j + 1, k + 1)) for j in range(7)] for k in range(7)],
        "power": [[Fraction(k + 1) for k in range(7)]],
    }


def _balanced(weights: Sequence[Fraction], nodes: Sequence[Fraction]) -> list[float]:
    """Doubles beside the weights, each within 1.5 units in the last place, whose errors ε cancel in Σ ε_j c_j.

    Along an orbit the acceleration turns from where it points towards minus the velocity, so that d_j grows with c_j against
    the velocity: an error in this moment takes the same energy at every step, 10⁻¹⁹ of it, which is what is left to see of
    the rounding of a solve over 10⁵ steps. Higher moments are less by powers of the step over the period.
    """
    choices = []
    for weight in weights:
        near = float(weight)
        choices.append([(near + step * ulp(near), float(Fraction(near + step * ulp(near)) - weight)) for step in (-1, 0, 1)])
    powers = [[float(node**power) for node in nodes] for power in (1, 2, 3)]

    def left(choice: Sequence[tuple[float, float]]) -> float:
        moments = [abs(fsum(error * x for (_, error), x in zip(choice, power, strict=True))) for power in powers]
        return moments[0] + 0.02 * moments[1] + 0.01 * moments[2]

    return [weight for weight, _ in min(product(*choices), key=left)]


@cache
def tables(dtype: torch.dtype, device: torch.device) -> RadauTable:
    """The tables in one precision on one device, each number rounded once from its exact value."""
    with torch.inference_mode(False):
        found = {
            name: torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64).to(device, dtype)
            for name, rows in _exact().items()
        }
    weights = _balanced(_exact()["velocity_end"][0], [Fraction(node) for node in NODES[1:]])
    found["velocity_end"] = torch.tensor([weights], dtype=torch.float64).to(device, dtype)
    for name in ("c", "half"):
        found[name] = found[name][:, 0]
    for name in ("velocity_end", "position_end", "once", "twice", "power"):
        found[name] = found[name][0]
    found["extrapolate"] = found["extrapolate"].unsqueeze(-1).unsqueeze(-1)
    return RadauTable(**found, nodes=NODES[1:])


check_nodes(NODES)
