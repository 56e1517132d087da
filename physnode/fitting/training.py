"""First-order fitting of learned terms: Adam, then L-BFGS, on the loss of a problem, in units of each unknown's own size.

Everything that moves is in ``Training``, which can be saved at any step and taken up again with the same result bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from physnode.errors import FitError
from physnode.fitting.problem import Problem
from physnode.fitting.progress import Reporter

__all__ = ["Training", "adam", "lbfgs"]

Checkpoint = Callable[["Training"], None]


@dataclass(frozen=True)
class Training:
    """The state of a first-order stage."""

    x: Tensor
    """Unknowns in natural units."""
    step: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    """Whatever the optimiser remembers."""
    history: tuple[dict[str, Any], ...] = ()
    done: bool = False
    reason: str = ""


def adam(
    problem: Problem,
    training: Training,
    reporter: Reporter,
    *,
    stage: str,
    steps: int,
    learning_rate: float,
    checkpoint: Checkpoint,
    every: int = 50,
) -> Training:
    """Adam (Kingma, Ba 2015) with a learning rate that falls along a half cosine to one hundredth of its start."""
    scale = _scale(problem)
    low, high = _limits(problem)
    z, memory = _resume(training, scale)
    optimiser = torch.optim.Adam([z], lr=learning_rate)
    if memory:
        optimiser.state[z] = memory
    history = list(training.history)
    reporter.stage(stage, steps)
    for step in range(training.step, steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * (0.01 + 0.99 * 0.5 * (1 + float(torch.cos(torch.tensor(step / steps * torch.pi)))))
        optimiser.zero_grad()
        loss = problem.loss(z * scale)
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        _check(value, stage, step)
        optimiser.step()
        with torch.no_grad():
            z.copy_(torch.minimum(torch.maximum(z, low / scale), high / scale))
        if step % max(1, steps // 200) == 0 or step == steps - 1:
            history.append({"stage": stage, "step": step, "loss": value})
        reporter.step(value, step + 1)
        memory = {name: value.clone() for name, value in optimiser.state[z].items()}
        training = Training((z * scale).detach(), step + 1, memory | {"z": z.detach().clone()}, tuple(history))
        if (step + 1) % every == 0 and step + 1 < steps:
            checkpoint(training)
    return replace(training, state={}, done=True, reason="all steps were made")


def lbfgs(
    problem: Problem,
    training: Training,
    reporter: Reporter,
    *,
    stage: str,
    steps: int,
    checkpoint: Checkpoint,
    every: int = 5,
) -> Training:
    """L-BFGS with a strong Wolfe line search (Nocedal, Wright, Numerical Optimization, algorithms 7.5 and 3.5).

    It ends when ten iterations lower chi-square by less than 0.01, which no measurement could tell.
    """
    scale = _scale(problem)
    low, high = _limits(problem)
    z, memory = _resume(training, scale)
    optimiser = torch.optim.LBFGS(
        [z], lr=1.0, max_iter=10, history_size=50, line_search_fn="strong_wolfe", tolerance_change=1e-14
    )
    if memory:
        optimiser.state[z] = _unflatten(memory)
    history = list(training.history)
    reporter.stage(stage, steps)
    previous = history[-1]["loss"] if training.step and history else float("inf")

    def closure() -> Tensor:
        optimiser.zero_grad()
        inside = torch.minimum(torch.maximum(z * scale, low), high)
        loss = problem.loss(inside)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    reason = "the limit of iterations was reached"
    done = False
    entries = max(1, int(problem.windows.mask.sum()))
    for step in range(training.step, steps):
        optimiser.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            z.copy_(torch.minimum(torch.maximum(z, low / scale), high / scale))
            value = float(problem.loss(z * scale))
        _check(value, stage, step)
        history.append({"stage": stage, "step": step, "loss": value})
        reporter.step(value, step + 1)
        state = _flatten(optimiser.state[z]) | {"z": z.detach().clone()}
        training = Training((z * scale).detach(), step + 1, state, tuple(history))
        if abs(previous - value) <= 0.005 / entries:
            reason, done = "chi-square no longer falls", True
            break
        previous = value
        if (step + 1) % every == 0 and step + 1 < steps:
            checkpoint(training)
    return replace(training, state={}, done=done, reason=reason)


def _scale(problem: Problem) -> Tensor:
    states = problem.state_scale.repeat(problem.count) if problem.states_free else problem.state_scale.new_zeros(0)
    return torch.cat((problem.shared.scale, states))


def _limits(problem: Problem) -> tuple[Tensor, Tensor]:
    low, high = problem.shared.bounds
    states = torch.full((problem.size - problem.shared.size,), torch.inf, dtype=torch.float64)
    return torch.cat((low, -states)), torch.cat((high, states))


def _check(loss: float, stage: str, step: int) -> None:
    if not loss < float("inf"):
        raise FitError(f"the loss is {loss} at step {step} of {stage}; lower the learning rate or start nearer to the data")


def _resume(training: Training, scale: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The scaled unknowns, and the optimiser's memory; exactly as they were where the stage was interrupted."""
    memory = {name: value.clone() for name, value in training.state.items()}
    z = memory.pop("z", training.x / scale)
    return z.detach().clone().requires_grad_(), memory


_LISTS = ("old_dirs", "old_stps", "ro")


def _flatten(state: dict[str, Any]) -> dict[str, Tensor]:
    """The memory of L-BFGS as named tensors; its work space ("al") is not part of it."""
    flat: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in _LISTS:
            flat |= {f"{name}.{i}": torch.as_tensor(item, dtype=torch.float64) for i, item in enumerate(value)}
        elif name != "al" and value is not None:
            flat[name] = torch.as_tensor(value, dtype=torch.float64)
    return {name: value.detach().clone() for name, value in flat.items()}


def _unflatten(flat: dict[str, Tensor]) -> dict[str, Any]:
    state: dict[str, Any] = {name: [] for name in _LISTS}
    lists: dict[str, dict[int, Tensor]] = {name: {} for name in _LISTS}
    for name, value in flat.items():
        head, _, index = name.partition(".")
        if head in lists:
            lists[head][int(index)] = value
        elif head in ("func_evals", "n_iter"):
            state[head] = int(value)
        else:
            state[head] = float(value) if head in ("t", "prev_loss") else value
    for name in _LISTS:
        state[name] = [lists[name][i] for i in sorted(lists[name])]
    return state
