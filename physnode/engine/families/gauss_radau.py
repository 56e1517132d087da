"""The 15th-order Gauss-Radau integrator for q'' = a(t, q, v): the class of RADAU (Everhart) and IAS15 (Rein, Spiegel).

The acceleration on a step is a polynomial of degree 7 through its values on eight Radau nodes, found by sweeps from a
prediction until rounding is all that is left. At tolerances where this is so, the error of a solve is the rounding of its
steps, and the energy error of a conservative system grows with the square root of time (Brouwer's law).

Sources: Everhart, An efficient integrator that uses Gauss-Radau spacings, in Dynamics of Comets (1985) 185; Rein & Spiegel,
IAS15: a fast, adaptive, high-order integrator for gravitational dynamics, accurate to machine precision over a billion
orbits, MNRAS 446 (2015) 1424; Brouwer, Astron. J. 46 (1937) 149.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from physnode.engine.families.base import JacobianVector, Method, Step, VectorJacobian
from physnode.engine.families.gauss_radau_sweeps import RadauPath, weigh
from physnode.engine.field_function import FieldFunction
from physnode.errors import InputError
from physnode.fields import split_state

__all__ = ["GaussRadau"]

_FARTHEST = 8.0
"""A step longer than the last by more than this starts without a prediction."""


class GaussRadau(Method):
    """15th order at the end of a step, 8th inside it, for any ``SecondOrder`` field, velocity-dependent or not.

    The error estimate of ``Adaptive`` is the last term of the series, h² b_6/72 for positions and h b_6/8 for velocities. It
    is of order 7 and far above the error of the step, which falls with the 15th power of its length: ``Adaptive(1e-6, 1e-9)``,
    the default, keeps the figure-eight orbit to 1e-12 over 100 periods, and ``Adaptive(1e-9, 1e-12)`` is rounding alone. Lower
    tolerances only make shorter steps. Outputs between steps are read at 8th order, which at such lengths is short of
    rounding: ask for ``read_out="restep"`` where it matters.

    A step costs 1 + 7 n evaluations with n sweeps: two or three where steps are alike, up to ten for the first. ``stages``
    are the coefficients K_m of x(t + θh) = x + h Σ_m θ^m K_m, m = 1..9.
    """

    name = "gauss_radau15"
    order = 15
    error_order = 7
    extension_order = 8
    evaluations = 22

    def check(self, f: FieldFunction) -> None:
        """Refuse a field that is not of second order."""
        if f.drift_is_identity:
            return
        raise InputError(
            f"{self.name} integrates q'' = a(t, q, v), which needs a SecondOrder field; found {type(f.field).__name__}. "
            'Write the motion as a SecondOrder field, or use an explicit Runge-Kutta method such as "dop853".'
        )

    def start(self, f: FieldFunction, t: Tensor, y: Tensor, derivative: Tensor) -> Tensor | None:
        """No prediction yet."""
        return y.new_zeros(len(y), 1 + 7 * y.shape[-1])

    def step(self, f: FieldFunction, t: Tensor, t_end: Tensor, y: Tensor, carry: Tensor | None = None) -> Step:
        """One step, predicted from the last; with a graph it starts anew, and is swept until its derivatives are there too.

        The sweeps contract, so their derivatives converge as they do: from the solution, found without a graph, as many
        sweeps with one give first and second derivatives to rounding.
        """
        path = RadauPath(f, t, t_end, y)
        nothing = torch.zeros_like(path.force).expand(7, *path.force.shape)
        if torch.is_grad_enabled():
            with torch.no_grad():
                found = RadauPath(f, t, t_end, y).solve(nothing)
            d = found.d
            for _ in range(int(found.sweeps.max()) + 1):
                d = path.sweep(d)[0]
            change, series, powers = self._end(path, path.v, path.force, d)
            following = None
        else:
            forecast = None if carry is None else _forecast(path, carry)
            found = path.solve(nothing if forecast is None else _values(path, forecast[0] + forecast[1]))
            change, series, powers = self._end(path, path.v, path.force, found.d)
            surprise = series if forecast is None else series - forecast[0]
            following = _pack(path, series, surprise)
        error = path.h * torch.cat((path.h * series[6] / 72, series[6] / 8), dim=-1)
        return Step(
            y + change,
            (error,),
            following,
            powers,
            change,
            spent=1 + 7 * found.sweeps,
            known=(path.force, *found.d.unbind(0)),
            unsolved=~found.solved,
        )

    def output_weights(self, fraction: Tensor) -> tuple[Tensor, ...]:
        """θ, θ², ..., θ⁹, one ``(M,)`` for each coefficient of the polynomial."""
        weights = [fraction]
        for _ in range(8):
            weights.append(weights[-1] * fraction)
        return tuple(weights)

    def pull_back(
        self,
        f: FieldFunction,
        vjp: VectorJacobian,
        t: Tensor,
        t_end: Tensor,
        y: Tensor,
        cotangent: Tensor,
        stage_cotangents: Sequence[Tensor | None] = (),
        known: Sequence[Tensor] = (),
    ) -> Tensor:
        """By the implicit function theorem: the sweeps are transposed first, and then every node is pulled back once."""
        with torch.no_grad():
            path = RadauPath(f, t, t_end, y, known[0] if known else None)
            nothing = torch.zeros_like(path.force).expand(7, *path.force.shape)
            d = torch.stack(list(known[1:])) if known else path.solve(nothing).d
        table, h, h2 = path.table, path.h, path.h2
        end_q, end_v = split_state(cotangent)
        to_q, to_v = torch.zeros_like(end_q), h * end_q
        to_first = 0.5 * h2 * end_q + h * end_v
        to_d = table.position_end.view(7, 1, 1) * (h2 * end_q) + table.velocity_end.view(7, 1, 1) * (h * end_v)
        if any(value is not None for value in stage_cotangents):
            halves = [split_state(torch.zeros_like(y) if value is None else value) for value in stage_cotangents]
            to_v = to_v + halves[0][0]
            to_first = to_first + halves[0][1] + 0.5 * h * halves[1][0]
            to_series = [h * halves[k + 2][0] / ((k + 2) * (k + 3)) + halves[k + 1][1] / (k + 2) for k in range(7)]
            to_d = to_d + torch.tensordot(table.series.mT, torch.stack(to_series), 1)
        psi = path.adjoint(d, to_d)
        for i in range(1, 8):
            back = vjp(lambda x, i=i: path.acceleration(i, x), path.point(i, d), psi[i - 1])  # type: ignore[misc]
            back_q, back_v = (back, None) if path.positions_only else split_state(back)
            c, half = table.c[i - 1], table.half[i - 1]
            to_q, to_v = to_q + back_q, to_v + c * h * back_q
            to_first = to_first + half * h2 * back_q - psi[i - 1]
            if back_v is not None:
                to_v, to_first = to_v + back_v, to_first + c * h * back_v
        back = vjp(lambda x: path.acceleration(0, x), path.first, to_first)
        if path.positions_only:
            return torch.cat((to_q + back, to_v), dim=-1)
        return torch.cat((to_q, to_v), dim=-1) + back

    def push_forward(
        self,
        f: FieldFunction,
        jvp: JacobianVector,
        t: Tensor,
        t_end: Tensor,
        y: Tensor,
        tangents: Tensor,
        *,
        outputs: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The step, then its linearised equations by the same sweeps."""
        path = RadauPath(f, t, t_end, y)
        d = path.solve(torch.zeros_like(path.force).expand(7, *path.force.shape)).d
        change, _, powers = self._end(path, path.v, path.force, d)
        moved, _, moved_powers = self._end(path, *path.tangent(jvp, d, tangents))
        return y + change, tangents + moved, powers if outputs else (), moved_powers if outputs else ()

    def _end(self, path: RadauPath, v: Tensor, force: Tensor, d: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The change over the step, the series b ``(7, ..., n)``, and the coefficients K_m, all linear in (v, F_0, d)."""
        table, h = path.table, path.h
        dq = h * v + path.h2 * (0.5 * force + weigh(table.position_end, d))
        dv = h * (force + weigh(table.velocity_end, d))
        series = _spread(table.series, d)
        shape = (7, *[1] * force.ndim)
        in_q = torch.cat((v.unsqueeze(0), (0.5 * h * force).unsqueeze(0), h * (series * table.twice.view(shape))))
        in_v = torch.cat((force.unsqueeze(0), series * table.once.view(shape), torch.zeros_like(force).unsqueeze(0)))
        return torch.cat((dq, dv), dim=-1), series, torch.cat((in_q, in_v), dim=-1).unbind(0)


def _spread(matrix: Tensor, d: Tensor) -> Tensor:
    """``matrix @ d`` over the first axis, in an order of additions that is the same for any batch."""
    columns = matrix.unbind(1)
    shape = (7, *[1] * (d.ndim - 1))
    total = columns[0].view(shape) * d[0]
    for column, part in zip(columns[1:], d.unbind(0)[1:], strict=True):
        total = torch.addcmul(total, column.view(shape), part)
    return total


def _pack(path: RadauPath, series: Tensor, surprise: Tensor) -> Tensor:
    """The carry ``(B, 1 + 14 n)``: the step's length, its series moved to its end, and how far off the forecast of it was."""
    both = torch.stack((_spread(path.table.binomial, series), surprise))
    return torch.cat((path.h, both.permute(2, 0, 1, 3).reshape(len(path.h), -1)), dim=-1)


def _forecast(path: RadauPath, carry: Tensor) -> tuple[Tensor, Tensor]:
    """The series b of this step as the last one continues, and how far off such a forecast was the last time, both scaled.

    With r the ratio of the steps, b_k = r^(k+1) Σ_j C(j+1, k+1) b_j (Everhart 1985; Rein & Spiegel 2015, eq. 9).
    """
    length, both = carry[:, :1], carry[:, 1:].view(len(carry), 2, 7, -1).permute(1, 2, 0, 3)
    ratio = torch.where(length != 0, path.h / length, 0.0)
    ratio = torch.where(ratio.abs() <= _FARTHEST, ratio, 0.0)
    powers = ratio ** path.table.power.view(7, 1, 1)
    return powers * both[0], powers * both[1]


def _values(path: RadauPath, series: Tensor) -> Tensor:
    """d at the nodes, from the series b."""
    return _spread(path.table.powers, series)
