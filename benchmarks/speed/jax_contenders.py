"""Contenders in JAX: diffrax, one step size a trajectory, and gradsolve, which records a mesh and replays it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from benchmarks.speed.contenders import Contender, Run, Setting, installed
from benchmarks.speed.plain_fields import derivative
from benchmarks.speed.problems import Problem

__all__ = ["jax_contenders"]

MAX_STEPS = 65_536
PAIRS_FROM = 16
"""From how many trajectories on the sum over pairs is faster than the full matrix."""


class _Traced:
    """A problem as arrays of JAX, and the loss of states."""

    def __init__(self, problem: Problem) -> None:
        self.jax: Any = importlib.import_module("jax")
        self.jnp: Any = importlib.import_module("jax.numpy")
        self.case = problem.case
        self.pairs = problem.batch >= PAIRS_FROM
        self.theta = [self.jnp.asarray(value) for value in problem.theta]
        self.y0 = self.jnp.asarray(problem.array)
        self.ts = self.jnp.asarray(problem.ts.numpy().astype(problem.array.dtype))
        self.end = float(problem.ts[-1])

    def field(self, theta: Any, y: Any) -> Any:
        """dy/dt of one state."""
        return derivative(self.jnp, self.case, theta, y, pairs=self.pairs)

    def compiled(self, states: Any, gradient: bool) -> Callable[..., tuple[Any, Any]]:
        """``states(theta, y0, *more)`` alone, or with the gradient of its mean square by theta; a function of ``more``."""
        block = self.jax.block_until_ready

        def loss(theta: Any, y0: Any, *more: Any) -> Any:
            ys = states(theta, y0, *more)
            return (ys**2).mean(), ys

        if not gradient:
            forward = self.jax.jit(states)
            return lambda *more: (block(forward(self.theta, self.y0, *more)), ())
        both = self.jax.jit(self.jax.grad(loss, has_aux=True))

        def run(*more: Any) -> tuple[Any, Any]:
            gradients, ys = block(both(self.theta, self.y0, *more))
            return ys, gradients

        return run


def _diffrax(problem: Problem, setting: Setting) -> Run:
    return partial(_diffrax_at(problem, setting.method, setting.gradient), setting.rtol, setting.atol)


@lru_cache(maxsize=4)
def _diffrax_at(problem: Problem, method: str, gradient: bool) -> Callable[..., tuple[Any, Any]]:
    """A function of the tolerances, so that other ones are not compiled again."""
    diffrax = importlib.import_module("diffrax")
    traced = _Traced(problem)
    term = diffrax.ODETerm(lambda t, y, theta: traced.field(theta, y))
    solver = getattr(diffrax, method)()

    def one(theta: Any, y0: Any, rtol: Any, atol: Any) -> Any:
        return diffrax.diffeqsolve(
            term,
            solver,
            traced.ts[0],
            traced.ts[-1],
            None,
            y0,
            theta,
            saveat=diffrax.SaveAt(ts=traced.ts),
            stepsize_controller=diffrax.PIDController(rtol, atol),
            max_steps=MAX_STEPS,
        ).ys

    many = traced.jax.vmap(one, in_axes=(None, 0, None, None))
    if problem.batch == 1:  # a loop that is not mapped has real branches

        def many(theta: Any, y0: Any, rtol: Any, atol: Any) -> Any:
            return one(theta, y0[0], rtol, atol)[None]

    return traced.compiled(many, gradient)


class _Mesh:
    """What gradsolve asks of a problem, with weights that all trajectories share closed over."""

    is_stiff, name, t0 = False, "speed", 0.0

    def __init__(self, traced: _Traced, theta: Any) -> None:
        self.traced, self.theta = traced, theta
        self.dim, self.t1 = int(traced.y0.shape[1]), traced.end

    def f_jax(self, t: Any, y: Any, p: Any) -> Any:
        """dy/dt; ``p`` would be a trajectory's own parameters, of which there are none."""
        return self.traced.field(self.theta, y)


def _gradsolve(problem: Problem, setting: Setting, *, recording: bool) -> Run:
    """The adaptive solve that records a mesh and knows the last state alone, or the replay of a mesh that is recorded."""
    traced = _Traced(problem)
    dense = importlib.import_module("gradsolve.solvers.dense")
    if setting.method == "vern7":
        record = importlib.import_module("gradsolve.solvers.vern7_replay").record_vern7
        step = importlib.import_module("gradsolve.solvers.vern7_step").vern7_advance
    else:
        record = importlib.import_module("gradsolve.solvers.tsit5_replay").record_tsit5_jax
        step = importlib.import_module("gradsolve.solvers.tsit5_step").tsit5_step
    mesh = _Mesh(traced, traced.theta)
    nothing = np.zeros((problem.batch, 1))
    tolerance = {"rtol": setting.rtol, "atol": setting.atol, "max_steps": MAX_STEPS}

    def recorded() -> Any:
        return record(mesh.f_jax, problem.array, nothing, mesh.t0, mesh.t1, **tolerance)

    if recording:
        return lambda: (recorded()[0][:, None], ())

    def states(theta: Any, y0: Any, steps_taken: Any) -> Any:
        unused = traced.jnp.zeros((problem.batch, 1), dtype=y0.dtype)
        return dense.vmap_saveat(_Mesh(traced, theta).f_jax, mesh.t0, y0, unused, steps_taken, traced.ts, step)[1]

    kept = traced.jnp.asarray(recorded()[1].astype(problem.array.dtype))
    return partial(traced.compiled(states, setting.gradient), kept)


def jax_contenders() -> list[Contender]:
    """Those that are installed."""
    found = []
    if installed("jax") and installed("diffrax"):
        found.append(Contender("diffrax", "diffrax", "Dopri5", _diffrax, ("Dopri8", "Tsit5")))
    if installed("jax") and installed("gradsolve"):
        known = ("vern7", "tsit5")
        recording, replay = (partial(_gradsolve, recording=flag) for flag in (True, False))
        found.append(Contender("gradsolve, recording", "gradsolve", "tsit5", recording, modes=("forward",)))
        found.append(Contender("gradsolve, warm replay", "gradsolve", "tsit5", replay, known))
    return found
