"""Who is compared: every gradient of this version, and torchdiffeq where it is installed, behind one call.

All of them solve the same problem with the same method, tolerances or steps, so that they differ in the gradient alone.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import physnode as pn
from physnode.engine.controllers import Controller
from physnode.gradients import Gradient

__all__ = ["PEERS", "Contender", "Counted", "Setting", "contenders", "gradients", "ours", "peer_method", "peers"]

PEERS = ("torchdiffeq `odeint`", "torchdiffeq `odeint_adjoint`")

_ADAPTIVE = {"heun": "adaptive_heun", "bosh3": "bosh3", "dopri5": "dopri5", "dopri8": "dopri8"}
_FIXED = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "rk4": "rk4"}


@dataclass(frozen=True)
class Setting:
    """How a problem is solved: from the first to the last of ``ts``, by fixed steps of ``dt`` or to tolerances."""

    method: str
    ts: tuple[float, ...]
    dt: float | None = None
    rtol: float = 0.0
    atol: float = 0.0
    per_trajectory: bool = True

    @property
    def controller(self) -> Controller:
        """The same in the words of this package."""
        if self.dt is not None:
            return pn.Fixed(self.dt)
        return pn.Adaptive(self.rtol, self.atol, per_trajectory=self.per_trajectory)


Contender = Callable[[nn.Module, Tensor, Setting], Tensor]
"""``(field, y0, setting)`` to the states at the last time, differentiable."""


class Counted(nn.Module):
    """A field that counts how often it is evaluated."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.field = field
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt of the field, counted."""
        self.calls += 1
        return self.field(t, y)


def ours(gradient: Gradient | str) -> Contender:
    """``pn.solve`` with that gradient."""

    def end(field: nn.Module, y0: Tensor, setting: Setting) -> Tensor:
        sol = pn.solve(field, y0, setting.ts, method=setting.method, controller=setting.controller, gradient=gradient)
        ys: Tensor = sol.ys
        return ys[..., -1, :]

    return end


def gradients(*, continuous: bool = True) -> dict[str, Gradient]:
    """The gradients of this version by name; with those that are not exact, or without."""
    found: dict[str, Gradient] = {"direct": pn.Direct(), "aca": pn.ACA(), "symplectic": pn.SymplecticAdjoint()}
    found["symplectic, steps kept"] = pn.SymplecticAdjoint(storage=pn.Storage(keep="steps"))
    if continuous:
        found["continuous"] = pn.ContinuousAdjoint()
    return found


def peer_method(setting: Setting) -> str | None:
    """What torchdiffeq calls the method; None if it has none, or is not installed."""
    if importlib.util.find_spec("torchdiffeq") is None:
        return None
    if setting.dt is None:
        return _ADAPTIVE.get(setting.method)
    return _FIXED.get(setting.method, _ADAPTIVE.get(setting.method))


def peers(setting: Setting) -> dict[str, Contender]:
    """torchdiffeq by backpropagation and by the continuous adjoint; none where it cannot take this setting."""
    method = peer_method(setting)
    if method is None:
        return {}
    package = importlib.import_module("torchdiffeq")

    def by(odeint: Any, *, adjoint: bool) -> Contender:
        def end(field: nn.Module, y0: Tensor, setting: Setting) -> Tensor:
            ts = torch.tensor(setting.ts, dtype=torch.float64)
            ys: Tensor = odeint(field, y0, ts, method=method, **_peer_options(method, setting, adjoint=adjoint))
            return ys[-1]

        return end

    found = by(package.odeint, adjoint=False), by(package.odeint_adjoint, adjoint=True)
    return dict(zip(PEERS, found, strict=True))


def _peer_options(method: str, setting: Setting, *, adjoint: bool) -> dict[str, Any]:
    if setting.dt is None:  # as ours, the solves there and back end with a step on the last time, not by interpolation
        ends = ({"step_t": torch.tensor([end], dtype=torch.float64)} for end in (setting.ts[-1], setting.ts[0]))
        options = dict(zip(("options", "adjoint_options"), ends, strict=True))
        return {"rtol": setting.rtol, "atol": setting.atol, **(options if adjoint else {"options": options["options"]})}
    if method in _FIXED.values():
        return {"options": {"step_size": setting.dt}}
    # an adaptive pair on a grid: every step is accepted, none grows, and each ends on the grid
    steps = round(abs(setting.ts[-1] - setting.ts[0]) / setting.dt)
    grid = torch.linspace(setting.ts[0], setting.ts[-1], steps + 1, dtype=torch.float64)[1:]
    return {"rtol": 1e12, "atol": 1e12, "options": {"first_step": setting.dt, "step_t": grid, "ifactor": 1.0, "dfactor": 1.0}}


def contenders(setting: Setting, *, continuous: bool = True) -> dict[str, Contender]:
    """Everyone who can take this setting, by name."""
    found = {name: ours(gradient) for name, gradient in gradients(continuous=continuous).items()}
    return {**found, **peers(setting)}
