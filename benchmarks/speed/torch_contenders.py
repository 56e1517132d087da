"""Contenders in PyTorch: this package, torchdiffeq and torchode."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import physnode as pn
from benchmarks.speed.contenders import Contender, Run, Setting, installed
from benchmarks.speed.plain_fields import PlainField
from benchmarks.speed.problems import Problem

__all__ = ["COMPILES", "OURS", "solve", "torch_contenders"]

OURS = "physnode"
COMPILES = "compile" in inspect.signature(pn.solve).parameters
"""Whether this version has the compiled driver; without it, all of its rows are eager."""


def solve(problem: Problem, setting: Setting, *, compiled: bool = True) -> Any:
    """``pn.solve`` of the problem, by the compiled driver where there is one."""
    how: dict[str, Any] = {"compile": compiled} if COMPILES else {}
    return pn.solve(
        problem.field,
        problem.y0,
        problem.ts,
        method=setting.method,
        controller=pn.Adaptive(setting.rtol, setting.atol),
        **how,
    )


def with_loss(problem: Problem, setting: Setting, states: Callable[[], Tensor]) -> Run:
    """Run ``states``, without a graph if no gradient is wanted, and differentiate their mean square if one is."""

    def run() -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.set_grad_enabled(setting.gradient):
            ys = states()
            found = torch.autograd.grad(ys.square().mean(), problem.parameters) if setting.gradient else ()
        if ys.is_cuda:
            torch.cuda.synchronize()
        return ys.detach(), found

    return run


def _ours(problem: Problem, setting: Setting, *, compiled: bool) -> Run:
    return with_loss(problem, setting, lambda: solve(problem, setting, compiled=compiled).ys)


def _torchdiffeq(problem: Problem, setting: Setting, *, adjoint: bool) -> Run:
    package = importlib.import_module("torchdiffeq")
    odeint = package.odeint_adjoint if adjoint else package.odeint
    field, ts = PlainField(problem), problem.ts.to(problem.y0)

    def states() -> Tensor:
        found: Tensor = odeint(field, problem.y0, ts, method=setting.method, rtol=setting.rtol, atol=setting.atol)
        return found.transpose(0, 1)

    return with_loss(problem, setting, states)


def _torchode(problem: Problem, setting: Setting) -> Run:
    package = importlib.import_module("torchode")
    term = package.ODETerm(PlainField(problem))
    controller = package.IntegralController(atol=setting.atol, rtol=setting.rtol, term=term)
    method = getattr(package, setting.method)(term=term)
    # as everywhere else here, step sizes carry no gradient
    adjoint = package.AutoDiffAdjoint(method, controller, backprop_through_step_size_control=False)
    adjoint = adjoint.to(problem.y0)
    ts = problem.ts.to(problem.y0).expand(problem.batch, -1)

    def states() -> Tensor:
        found: Tensor = adjoint.solve(package.InitialValueProblem(y0=problem.y0, t_eval=ts)).ys
        return found

    return with_loss(problem, setting, states)


def torch_contenders() -> list[Contender]:
    """Those that are installed, this package first."""
    best = ("dop853", "tsit5")
    found = [Contender(OURS, "physnode", "dopri5", partial(_ours, compiled=True), best)]
    found.append(Contender(f"{OURS}, tsit5", "physnode", "tsit5", partial(_ours, compiled=True)))
    if COMPILES:
        found.append(Contender(f"{OURS}, eager", "physnode", "dopri5", partial(_ours, compiled=False), best))
    if installed("torchdiffeq"):
        known = ("dopri8", "dopri5")
        found.append(Contender("torchdiffeq", "torchdiffeq", "dopri5", partial(_torchdiffeq, adjoint=False), known))
        adjoint = partial(_torchdiffeq, adjoint=True)
        found.append(Contender("torchdiffeq, adjoint", "torchdiffeq", "dopri5", adjoint, known, ("gradient",)))
    if installed("torchode"):
        found.append(Contender("torchode", "torchode", "Dopri5", _torchode, ("Tsit5", "Dopri5")))
    return found
