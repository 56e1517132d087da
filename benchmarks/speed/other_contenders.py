"""Contenders without gradients: SciPy's solve_ivp and REBOUND, one trajectory after the other."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from benchmarks.speed.contenders import Contender, Run, Setting, installed
from benchmarks.speed.plain_fields import derivative
from benchmarks.speed.problems import Array, Problem

__all__ = ["other_contenders"]

JUPITER = 4332.59
"""Days of its revolution."""


def _scipy(problem: Problem, setting: Setting) -> Run:
    integrate = importlib.import_module("scipy.integrate")
    theta, starts, ts = problem.theta, problem.array, problem.ts.numpy()

    def one(start: Array) -> Array:
        found = integrate.solve_ivp(
            lambda t, y: derivative(np, problem.case, theta, y),
            (ts[0], ts[-1]),
            start,
            method=setting.method,
            t_eval=ts,
            rtol=setting.rtol,
            atol=setting.atol,
        )
        states: Array = found.y.T
        return states

    return lambda: (np.stack([one(start) for start in starts]), ())


def _rebound(problem: Problem, setting: Setting) -> Run:
    rebound = importlib.import_module("rebound")
    masses, starts, ts = problem.theta[0], problem.array, problem.ts.numpy()

    def one(start: Array) -> Array:
        simulation: Any = rebound.Simulation()
        q, v = start.reshape(2, -1, 3)
        for m, (x, y, z), (vx, vy, vz) in zip(masses, q, v, strict=True):
            simulation.add(m=float(m), x=x, y=y, z=z, vx=vx, vy=vy, vz=vz)
        simulation.integrator = setting.method
        if setting.method == "ias15":
            simulation.integrator.epsilon = setting.rtol
        else:  # of second order in fixed steps: the square of a step, in revolutions of Jupiter, stands for a tolerance
            simulation.dt = JUPITER * setting.rtol**0.25
        states = np.empty((len(ts), 2, *q.shape))
        for k, t in enumerate(ts):
            simulation.integrate(t)
            simulation.serialize_particle_data(xyz=states[k, 0], vxvyvz=states[k, 1])
        return states.reshape(len(ts), -1)

    return lambda: (np.stack([one(start) for start in starts]), ())


def other_contenders() -> list[Contender]:
    """Those that are installed."""
    found = []
    if installed("scipy"):
        found.append(Contender("SciPy", "scipy", "RK45", _scipy, ("DOP853",), ("forward",), one_by_one=True))
    if installed("rebound"):
        physics = ("bodies", "planets")
        found.append(Contender("REBOUND", "rebound", "ias15", _rebound, ("ias15", "whfast"), ("forward",), True, physics))
    return found
