"""The search for an event: solve until a condition changes its sign."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from physnode.compat.torchdiffeq.errors import ArgumentError, IntegrationError
from physnode.compat.torchdiffeq.integrate import solution
from physnode.compat.torchdiffeq.methods import Kind, checked_options, find
from physnode.compat.torchdiffeq.problem import Problem, check_times
from physnode.compat.torchdiffeq.times import moved_start
from physnode.engine.controllers import Fixed
from physnode.engine.events import Event
from physnode.errors import InputError

__all__ = ["HORIZON", "MAX_STEPS", "until_event"]

HORIZON = 1e12
"""How far from t0 an event is searched for, where steps are adaptive."""
MAX_STEPS = {Kind.ADAPTIVE: 10_000, Kind.FIXED: 20_000}
"""How many steps a search takes before it gives up; ``max_num_steps`` sets another limit for adaptive steps."""


def until_event(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    event_fn: Callable[..., Tensor],
    *,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: Mapping[str, Any] | None,
    gradient: str,
) -> tuple[Tensor, Any]:
    """The event's time and the states at the start and then; ``t`` is the start and any time on the side to go to.

    Raises:
        InputError: ``t`` has not two entries, a method without events, fixed steps without ``step_size``.
        IntegrationError: no event was found.
    """
    check_times("t", t)
    if len(t) != 2:
        raise InputError(f"an event is searched for from t[0] in the direction of t[1], so t has two entries; found {len(t)}")
    name, kind, _ = find(method)
    if kind not in MAX_STEPS:
        raise InputError(f"{name} has no events; use dopri5, or another method of physnode's engine")
    given = checked_options(name, kind, options)
    direction = -1.0 if bool(t[1] < t[0]) else 1.0
    far = torch.stack((t[0], t[0].detach() + direction * HORIZON))
    problem = Problem.of(func, y0, far)
    more: dict[str, Any] = {"events": _events(problem, event_fn)}
    if kind is Kind.FIXED:
        step = given.get("step_size")
        if step is None:
            raise ArgumentError(f"{name} needs options={{'step_size': ...}} to search for an event")
        more["controller"] = Fixed(float(step))
    limit = int(given.get("max_num_steps", MAX_STEPS[kind]))
    more["max_steps"] = max(1, limit)
    problem = replace(problem, y0=moved_start(problem))
    try:
        found = solution(problem, rtol, atol, method, given, gradient, outputs=slice(1, None), **more)
    except IntegrationError as error:
        raise IntegrationError(f"no event was found from t0 = {float(t[0]):.6g} on before the solve ended: {error}") from None
    if not int(found.events.count):
        raise IntegrationError(f"no event was found between t0 = {float(t[0]):.6g} and {float(far[1]):.6g}")
    time, state = found.events.t[..., 0], found.events.y[..., 0, :]
    both = torch.stack((problem.adapter.flatten(problem.state), state))
    return time.to(t.dtype), problem.adapter.unflatten(both)


def _events(problem: Problem, event_fn: Callable[..., Tensor]) -> list[Event]:
    """One event for each entry of what ``event_fn`` returns.

    A search that goes on from an event found before starts on its surface, but for rounding: an entry is taken as zero at the
    start where it would be met within a few units in the last place of the time, so that this event is not found again.
    """
    t0 = problem.t[0].detach().to(torch.float64)
    time, y0 = t0.to(problem.y0.dtype).reshape(1), problem.y0.detach()
    condition = problem.adapter.function(event_fn)
    with torch.no_grad():
        first = condition(time, y0)
        if not isinstance(first, Tensor) or not first.numel():
            raise InputError(f"event_fn must return a tensor; found {first!r}")
        step = 1e-6 * max(1.0, float(t0.abs()))
        later = y0 + problem.direction * step * problem.field(time, y0)
        change = (condition(time + problem.direction * step, later) - first).abs() / step
        near = 64 * torch.finfo(y0.dtype).eps * max(float(t0.abs()), step)
        scale = 8 * torch.finfo(y0.dtype).eps * y0.abs().amax()
        touching = ((first.abs() <= near * change) | (first.abs() <= scale)).reshape(-1).tolist()

    def entry(number: int, t: Tensor, y: Any) -> Tensor:
        value = event_fn(t, y).reshape(-1)[number]
        return torch.where(t == time[0], 0.0 * value, value) if touching[number] else value

    return [Event(problem.adapter.function(partial(entry, number))) for number in range(first.numel())]
