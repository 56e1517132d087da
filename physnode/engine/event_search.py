"""Where in a trial step an event lies, and the step that ends on it.

The signs of all conditions are compared at points along the step. The first crossing is bracketed and located on the method's
continuous extension; the step is then made again to end there, and corrected until the condition vanishes at its end: so time
and state of the event have the method's full order, whatever that of the extension. Each trajectory is settled by itself: what
its neighbours need changes neither its values nor its counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from physnode.engine.events import Watch
from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.engine.readout import interpolate

__all__ = ["Found", "TrialStep", "bracketed_root", "search"]

_EARLY = 1e-5
"""Where in a step a condition that starts at zero shows its sign."""
_BRACKET_ROUNDS = 60
_CLOSE = 1e-14
_HALVINGS = 50
_POLISH_ROUNDS = 4
_COARSE = 1e-6
"""A miss, in fractions of the step, that a correction must not leave."""
_SAME = 1e-9
"""Crossings this near, in fractions of the step, are at the same time."""


class Found(NamedTuple):
    """What was found in one trial."""

    t_end: Tensor
    """Where the steps end, ``(B,)``: on their first event if they have one."""
    step: Step
    """The steps made again to end there."""
    event: Tensor
    """Which event, ``(B,)``; -1 for none."""
    signs: Tensor
    """The signs of all conditions at the steps' ends, ``(B, E)``; zero for that of the event itself."""
    waiting: Tensor
    """Conditions that cross at the same time, and whose turn comes next, ``(B, E)`` bool."""
    broken: Tensor
    """Trajectories with a condition that is not finite, ``(B,)`` bool."""
    crowded: Tensor
    """Trajectories that come back to an event they have just left sooner than time can tell, ``(B,)`` bool."""
    spent: Tensor
    """Field evaluations that this took, ``(B,)``."""


@dataclass(frozen=True)
class TrialStep:
    """A trial of the whole batch: from ``t``, ``y`` to ``t_end``."""

    f: FieldFunction
    method: Method
    t: Tensor
    t_end: Tensor
    y: Tensor
    carry: Tensor | None
    step: Step

    @property
    def smooth(self) -> bool:
        """Whether states inside are read from a continuous extension, else from steps of their own."""
        return self.method.extension_order is not None and not self.method.implicit

    def points(self, resolution: int) -> list[float]:
        """Fractions of the step at which signs are looked at.

        Fixed steps without an extension to trust are looked at where they end; stiff methods choose steps far longer than
        the motion, and are looked at by steps of their own.
        """
        if not (self.smooth or (self.method.implicit and self.method.error_order is not None)):
            return [1.0]
        return [_EARLY, *(k / resolution for k in range(1, resolution)), 1.0]

    def along(self, stages: Sequence[Tensor], points: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """Times and states at fractions of the step that all trajectories share; the last is the end itself."""
        end = (self.t_end, self.step.y)
        if len(points) == 1:
            return [end]
        if not self.smooth:
            ends = [self.t + point * (self.t_end - self.t) for point in points[:-1]]
            return [*((time, self.ending_at(time).y) for time in ends), end]
        table = _weights(self.method, tuple(points[:-1]))
        weights = torch.as_tensor(table, dtype=self.y.dtype, device=self.y.device)
        states = self.y + self._h * torch.tensordot(weights, torch.stack(list(stages)), 1)
        span = self.t_end - self.t
        return [*((self.t + point * span, state) for point, state in zip(points, states, strict=False)), end]

    def at(self, stages: Sequence[Tensor], fraction: Tensor) -> tuple[Tensor, Tensor]:
        """Time ``(B,)`` and state ``(B, dim)`` at each trajectory's own fraction of the step."""
        time = torch.where(fraction == 1.0, self.t_end, self.t + fraction * (self.t_end - self.t))
        if not self.smooth:
            return time, self.method.step(self.f, self.t, time, self.y, self.carry).y
        weights = [weight.to(self.y.dtype) for weight in self.method.output_weights(fraction)]
        return time, interpolate(weights, self._h, self.y, stages)

    def ending_at(self, t_end: Tensor) -> Step:
        """The same start, another end."""
        return self.method.step(self.f, self.t, t_end, self.y, self.carry)

    @property
    def _h(self) -> Tensor:
        return (self.t_end - self.t).to(self.y.dtype).unsqueeze(-1)


def search(watch: Watch, trial: TrialStep, accept: Tensor, signs: Tensor, leaving: Tensor) -> Found:
    """Look for the first event of each accepted step, from the ``signs`` ``(B, E)`` at its start.

    ``leaving`` ``(B, E)`` says which conditions are zero there since their event has just been.
    """
    f, method = trial.f, trial.method
    points = trial.points(watch.resolution)
    stages = method.extend(f, trial.t, trial.t_end, trial.y, trial.step.stages) if trial.smooth else ()
    before, crossing = signs, torch.zeros_like(signs, dtype=torch.bool)
    low, high = torch.zeros_like(signs, dtype=trial.t.dtype), torch.ones_like(signs, dtype=trial.t.dtype)
    previous, broken = 0.0, torch.zeros_like(accept)
    for point, (time, state) in zip(points, trial.along(stages, points), strict=True):
        value = watch.values(f, time, state)
        broken = broken | (accept & ~torch.isfinite(value).all(-1))
        now = torch.sign(torch.nan_to_num(value)).to(torch.int8)
        here = watch.crosses(before, now) & ~crossing & accept.unsqueeze(-1)
        low, high = torch.where(here, previous, low), torch.where(here, point, high)
        crossing = crossing | here
        before = torch.where((now != 0) & ~crossing, now, before)
        previous = point
    looked = method.extra_evaluations if trial.smooth else (len(points) - 1) * method.evaluations
    spent = torch.zeros_like(accept, dtype=torch.int64) + looked * accept
    if not bool(crossing.any()):
        none, after = torch.full_like(spent, -1), torch.where(accept.unsqueeze(-1), before, signs)
        return Found(trial.t_end, trial.step, none, after, crossing, broken, torch.zeros_like(broken), spent)
    roots, unresolved, reads = _locate(watch, trial, stages, crossing, low, high)
    first, which = roots.min(dim=-1)
    met = torch.isfinite(first)
    event = torch.where(met, which, -1)
    t_event, found, rounds = _polish(watch, trial, stages, event, first, low, high)
    spent = spent + rounds * method.evaluations + (0 if trial.smooth else reads * method.evaluations)
    at_event = torch.sign(torch.nan_to_num(watch.values(f, t_event, found.y))).to(torch.int8)
    own = torch.nn.functional.one_hot(event.clamp(min=0), signs.shape[-1]).bool() & met.unsqueeze(-1)
    still = (t_event - trial.t).abs() <= 4 * torch.finfo(torch.float64).eps * t_event.abs()
    crowded = ((unresolved | still.unsqueeze(-1)) & leaving & own).any(-1)
    waiting = crossing & ~own & (roots <= first.unsqueeze(-1) + _SAME)
    # what crosses later in the step keeps its sign; an event at once leaves the others where they were
    others = torch.where((first < _EARLY).unsqueeze(-1), signs, torch.where(at_event == 0, before, at_event))
    signs_event = torch.where(own, 0, torch.where(crossing, before, others))
    after = torch.where(met.unsqueeze(-1), signs_event, before).to(torch.int8)
    return Found(t_event, found, event, torch.where(accept.unsqueeze(-1), after, signs), waiting, broken, crowded, spent)


def _locate(
    watch: Watch, trial: TrialStep, stages: Sequence[Tensor], crossing: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The fraction of the step at which each crossing lies, ``(B, E)``, infinite without one.

    Also which of them are at the step's start as far as can be told, and how many states each trajectory read for it.
    """
    roots, unresolved = torch.full_like(low, torch.inf), torch.zeros_like(crossing)
    reads = torch.zeros_like(crossing[:, 0], dtype=torch.int64)
    for number in range(crossing.shape[-1]):
        rows = crossing[:, number]
        if not bool(rows.any()):
            continue

        def value(fraction: Tensor, number: int = number) -> Tensor:
            return watch.values(trial.f, *trial.at(stages, fraction))[:, number].to(torch.float64)

        a, b = low[:, number], high[:, number]
        ga, gb = value(a), value(b)
        sign = -torch.sign(gb)  # the sign on a's side
        lost = rows & (torch.sign(ga) != sign)
        a, b, ga, gb, settled, rounds = _regained(value, a, b, ga, gb, sign, lost)
        root, more = bracketed_root(value, a, b, ga, gb, rows & ~settled)
        roots[:, number] = torch.where(rows, torch.where(settled, a, root), torch.inf)
        unresolved[:, number] = rows & settled
        reads = reads + rows * (2 + rounds + more)
    return roots, unresolved, reads


def _regained(
    value: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, ga: Tensor, gb: Tensor, sign: Tensor, lost: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Brackets whose lower end has the ``sign`` it should have, found by halving towards it where that is ``lost``.

    A step that starts on the condition has no sign at its very start. Returns the brackets, which of them have none (the root
    is at ``a``), and the rounds that this took.
    """
    rounds, settled = torch.zeros_like(lost, dtype=torch.int64), lost
    for _ in range(_HALVINGS):
        if not bool(settled.any()):
            break
        rounds = rounds + settled
        x = 0.5 * (a + b)
        g = value(torch.where(settled, x, a))
        good = settled & (torch.sign(g) == sign)
        bad = settled & (torch.sign(g) == -sign)
        a, ga = torch.where(good, x, a), torch.where(good, g, ga)
        b, gb = torch.where(bad, x, b), torch.where(bad, g, gb)
        settled = bad
    return a, b, ga, gb, settled, rounds


def _polish(
    watch: Watch,
    trial: TrialStep,
    stages: Sequence[Tensor],
    event: Tensor,
    fraction: Tensor,
    low: Tensor,
    high: Tensor,
) -> tuple[Tensor, Step, Tensor]:
    """Steps that end on the event: the extension's root, corrected by the condition's own value at the step's end.

    A correction stands only if it brings the condition nearer to zero. Where the extension was too coarse for that, the root is
    bracketed again on steps of their own. Returns the ends, the steps, and how many steps each trajectory took for it.
    """
    meets, t, span = event >= 0, trial.t, trial.t_end - trial.t
    at = torch.where(meets, fraction, 1.0)

    def miss(part: Tensor) -> tuple[Step, Tensor]:
        end = torch.where(part == 1.0, trial.t_end, t + part * span)
        step = trial.ending_at(end)
        return step, watch.chosen(trial.f, event, end, step.y).to(torch.float64)

    step, value = miss(at)
    rounds = meets.to(torch.int64)
    if trial.smooth:
        width = torch.where(at + 1e-4 <= 1, 1e-4, -1e-4)
        ahead, here = (watch.chosen(trial.f, event, *trial.at(stages, x)).to(torch.float64) for x in (at + width, at))
        slope = (ahead - here) / width
        resolution = 2 * torch.finfo(torch.float64).eps * t.abs() / torch.where(span != 0, span.abs(), 1.0)
        moves, exact = meets, True
        for _ in range(_POLISH_ROUNDS):
            shift = torch.nan_to_num(-value / torch.where(slope != 0, slope, torch.inf))
            moves = moves & (shift.abs() > resolution)
            if not bool(moves.any()):
                break
            tried = torch.where(moves, (at + shift).clamp(0, 1), at)
            step, found = miss(tried)
            rounds, better = rounds + moves, moves & (found.abs() < value.abs())
            exact = bool((better == moves).all())
            at, value, moves = torch.where(better, tried, at), torch.where(better, found, value), better
        poor = meets & (value.abs() > _COARSE * slope.abs())
        if bool(poor.any()):
            a, b = (edge.gather(-1, event.clamp(min=0).unsqueeze(-1)).squeeze(-1) for edge in (low, high))
            ga, gb = miss(torch.where(poor, a, at))[1], miss(torch.where(poor, b, at))[1]
            crossed = poor & (torch.sign(ga) == -torch.sign(gb)) & (ga != 0)
            root, more = bracketed_root(lambda x: miss(torch.where(crossed, x, at))[1], a, b, ga, gb, crossed)
            at, rounds, exact = torch.where(crossed, root, at), rounds + poor * (2 + more), False
        if not exact:
            step, _ = miss(at)
            rounds = rounds + meets
    return torch.where(at == 1.0, trial.t_end, t + at * span), step, rounds


def bracketed_root(
    value: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, ga: Tensor, gb: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """A root of ``value`` between ``a`` and ``b`` for each entry ``wanted``, where ``ga`` and ``gb`` differ in sign.

    Inverse quadratic interpolation where it is safe, else bisection: Chandrupatla, Advances in Engineering Software 28 (1997).
    Returns the roots, and how many rounds each took.
    """
    c, gc, part = a, ga, torch.full_like(a, 0.5)
    best, rounds = torch.where(ga.abs() < gb.abs(), a, b), torch.zeros_like(wanted, dtype=torch.int64)
    for _ in range(_BRACKET_ROUNDS):
        wanted = wanted & ((b - a).abs() > _CLOSE) & (ga != 0) & (gb != 0)
        if not bool(wanted.any()):
            break
        rounds = rounds + wanted
        x = torch.where(wanted, a + part * (b - a), a)
        g = value(x)
        same = torch.sign(g) == torch.sign(ga)
        c, gc = torch.where(same, a, b), torch.where(same, ga, gb)
        b, gb = torch.where(same | ~wanted, b, a), torch.where(same | ~wanted, gb, ga)
        a, ga = torch.where(wanted, x, a), torch.where(wanted, g, ga)
        best = torch.where(ga.abs() < gb.abs(), a, b)
        xi, phi = (a - b) / (c - b), (ga - gb) / (gc - gb)
        quadratic = ga / (gb - ga) * gc / (gb - gc) + (c - a) / (b - a) * ga / (gc - ga) * gb / (gc - gb)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi) & torch.isfinite(quadratic)
        least = (0.5 * _CLOSE / (b - a).abs()).clamp(max=0.5)
        part = torch.where(safe, torch.minimum(torch.maximum(quadratic, least), 1 - least), 0.5)
    return best, rounds


@lru_cache(maxsize=256)
def _weights(method: Method, points: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """b_i(θ) at fixed points θ: one row a point, one entry a stage."""
    columns = method.output_weights(torch.tensor(points, dtype=torch.float64))
    return tuple(zip(*(column.tolist() for column in columns), strict=True))
