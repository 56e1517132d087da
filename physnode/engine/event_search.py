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
_POLISH_ROUNDS = 4


class Found(NamedTuple):
    """What was found in one trial."""

    t_end: Tensor
    """Where the steps end, ``(B,)``: on their first event if they have one."""
    step: Step
    """The steps made again to end there."""
    event: Tensor
    """Which event, ``(B,)``; -1 for none."""
    signs: Tensor
    """The signs of all conditions at the steps' ends, ``(B, E)``."""
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
        return self.method.extension_order is not None

    def along(self, stages: Sequence[Tensor], points: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """Times and states at fractions of the step that all trajectories share; the last is the end itself."""
        end = (self.t_end, self.step.y)
        if len(points) == 1:
            return [end]
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


def search(watch: Watch, trial: TrialStep, accept: Tensor, signs: Tensor) -> Found:
    """Look for the first event of each accepted step, from the ``signs`` ``(B, E)`` at its start."""
    f, method = trial.f, trial.method
    points = [_EARLY, *(k / watch.resolution for k in range(1, watch.resolution)), 1.0] if trial.smooth else [1.0]
    stages = method.extend(f, trial.t, trial.t_end, trial.y, trial.step.stages) if trial.smooth else ()
    before, crossing = signs, torch.zeros_like(signs, dtype=torch.bool)
    low, high = torch.zeros_like(signs, dtype=trial.t.dtype), torch.ones_like(signs, dtype=trial.t.dtype)
    previous = 0.0
    for point, (time, state) in zip(points, trial.along(stages, points), strict=True):
        now = torch.sign(watch.values(f, time, state)).to(torch.int8)
        here = watch.crosses(before, now) & ~crossing & accept.unsqueeze(-1)
        low, high = torch.where(here, previous, low), torch.where(here, point, high)
        crossing = crossing | here
        before = torch.where((now != 0) & ~crossing, now, before)
        previous = point
    spent = torch.zeros_like(accept, dtype=torch.int64) + method.extra_evaluations * accept * trial.smooth
    if not bool(crossing.any()):
        none = torch.full_like(spent, -1)
        return Found(trial.t_end, trial.step, none, torch.where(accept.unsqueeze(-1), before, signs), spent)
    roots, reads = _locate(watch, trial, stages, signs, crossing, low, high)
    first, which = roots.min(dim=-1)
    met = torch.isfinite(first)
    event = torch.where(met, which, -1)
    t_event, found, rounds = _polish(watch, trial, stages, event, first)
    spent = spent + rounds * method.evaluations + (0 if trial.smooth else reads * method.evaluations)
    at_event = torch.sign(watch.values(f, t_event, found.y)).to(torch.int8)
    # what had no sign at the start has none yet, if the event came at once: two events at one time
    at_event = torch.where((signs == 0) & (first < _EARLY).unsqueeze(-1), 0, at_event)
    own = torch.nn.functional.one_hot(event.clamp(min=0), signs.shape[-1]).bool()
    # the event's own condition starts afresh; others that cross later in this step keep the sign they had
    signs_event = torch.where(own, 0, torch.where(crossing | (at_event == 0), before, at_event))
    after = torch.where(met.unsqueeze(-1), signs_event, before).to(torch.int8)
    return Found(t_event, found, event, torch.where(accept.unsqueeze(-1), after, signs), spent)


def _locate(
    watch: Watch, trial: TrialStep, stages: Sequence[Tensor], signs: Tensor, crossing: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The fraction of the step at which each crossing lies, ``(B, E)``, infinite without one; and states read for it."""
    roots = torch.full(signs.shape, torch.inf, dtype=torch.float64, device=signs.device)
    reads = torch.zeros_like(signs[:, 0], dtype=torch.int64)
    for number in range(signs.shape[-1]):
        rows = crossing[:, number]
        if not bool(rows.any()):
            continue

        def value(fraction: Tensor, number: int = number) -> Tensor:
            return watch.values(trial.f, *trial.at(stages, fraction))[:, number].to(torch.float64)

        a, b = low[:, number], high[:, number]
        ga, gb = value(a), value(b)
        sign = torch.where(gb != 0, -torch.sign(gb), signs[:, number].to(ga.dtype))  # the sign on a's side
        settled = torch.sign(ga) != sign  # no sign at a yet: that is the root
        root, rounds = bracketed_root(value, a, b, ga, gb, rows & ~settled)
        roots[:, number] = torch.where(rows, torch.where(settled, a, root), torch.inf)
        reads = reads + rows * (2 + rounds)
    return roots, reads


def _polish(
    watch: Watch, trial: TrialStep, stages: Sequence[Tensor], event: Tensor, fraction: Tensor
) -> tuple[Tensor, Step, Tensor]:
    """Steps that end on the event: the extension's root, corrected by the condition's own value at the step's end.

    Returns the ends, the steps, and how many steps each trajectory with an event took for it.
    """
    meets, t, t_end = event >= 0, trial.t, trial.t_end
    at = torch.where(meets, fraction, 1.0)
    width = torch.where(at + 1e-4 <= 1, 1e-4, -1e-4)
    length = torch.where(t_end != t, t_end - t, 1.0)
    ahead, here = (watch.chosen(trial.f, event, *trial.at(stages, x)).to(torch.float64) for x in (at + width, at))
    slope = (ahead - here) / (width * length)
    low, high = torch.minimum(t, t_end), torch.maximum(t, t_end)
    end = torch.where(meets, torch.minimum(torch.maximum(t + at * (t_end - t), low), high), t_end)
    step, rounds = trial.ending_at(end), meets.to(torch.int64)
    for _ in range(_POLISH_ROUNDS - 1):
        miss = watch.chosen(trial.f, event, end, step.y).to(torch.float64)
        shift = torch.nan_to_num(-miss / torch.where(slope != 0, slope, torch.inf))
        moves = meets & (shift.abs() > 2 * torch.finfo(torch.float64).eps * end.abs())
        if not bool(moves.any()):
            break
        end = torch.where(moves, torch.minimum(torch.maximum(end + shift, low), high), end)
        step, rounds = trial.ending_at(end), rounds + moves
        meets = moves
    return end, step, rounds


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
