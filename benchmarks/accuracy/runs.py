"""What the tables share: one run and its error, SciPy on the same field, energies in extended precision, what is registered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

import physnode as pn
from physnode.engine.controllers import Controller
from physnode.fields import VectorField

__all__ = ["NumpyField", "Run", "Values", "numpy_bodies", "pairwise_energy", "registered", "run", "scipy_run", "tensor"]

Values = NDArray[np.float64]
NumpyField = Callable[[float, Values], Values]


class Run(NamedTuple):
    """One solve: states at the output times ``(*batch, T, dim)``, evaluations ``(*batch,)``, seconds."""

    ys: Tensor
    evaluations: Tensor
    seconds: float


def tensor(values: Sequence[float]) -> Tensor:
    """Float64, in the order given."""
    return torch.tensor(values, dtype=torch.float64)


def registered(*names: str) -> list[str]:
    """Those of ``names`` that are methods of this version, in their order."""
    return [name for name in names if name in pn.methods.available()]


def run(field: VectorField, y0: Tensor, ts: Any, method: str, controller: Controller, **more: Any) -> Run:
    """Solve without a graph."""
    with torch.no_grad():
        begun = time.perf_counter()
        sol = pn.solve(field, y0, ts, method=method, controller=controller, max_steps=10_000_000, **more)
        return Run(sol.ys, sol.stats.evaluations, time.perf_counter() - begun)


def scipy_run(
    field: VectorField | NumpyField,
    y0: Tensor,
    t1: float,
    method: str,
    rtol: float,
    atol: float,
    jacobian: NumpyField | None = None,
) -> tuple[Tensor, int, float]:
    """SciPy's end state, evaluations and seconds; a torch field is called as it is, a NumPy one too."""

    def derivative(t: float, y: Values) -> Values:
        if not isinstance(field, VectorField):
            return field(t, y)
        out: Values = field(torch.tensor([t], dtype=torch.float64), torch.from_numpy(y)).numpy()
        return out

    options = {} if jacobian is None else {"jac": jacobian}
    begun = time.perf_counter()
    with torch.no_grad():
        found: Any = solve_ivp(derivative, (0.0, t1), y0.numpy(), method, rtol=rtol, atol=atol, **options)  # type: ignore[call-overload]
    seconds = time.perf_counter() - begun
    if not found.success:
        raise RuntimeError(f"SciPy {method} stopped: {found.message}")
    return torch.from_numpy(found.y[:, -1].copy()), int(found.nfev), seconds


def numpy_bodies(gm: Sequence[float], dimensions: int) -> NumpyField:
    """Newton's law in NumPy, for a fair time of SciPy's."""
    weights = np.asarray(gm)

    def derivative(t: float, y: Values) -> Values:
        q, v = y.reshape(2, len(weights), dimensions)
        apart = q[None] - q[:, None]
        square = (apart * apart).sum(-1)
        np.fill_diagonal(square, 1.0)
        pull = ((weights / (square * np.sqrt(square)))[..., None] * apart).sum(1)
        return np.concatenate((v.ravel(), pull.ravel()))

    return derivative


def pairwise_energy(y: Tensor, masses: Sequence[float], g: float, dimensions: int) -> NDArray[Any]:
    """Kinetic and gravitational energy in extended precision, for states ``(..., 2 bodies dimensions)``."""
    m = np.asarray(masses, dtype=np.longdouble)
    state = y.numpy().astype(np.longdouble).reshape(*y.shape[:-1], 2, len(masses), dimensions)
    q, v = state[..., 0, :, :], state[..., 1, :, :]
    energy = 0.5 * (m * (v * v).sum(-1)).sum(-1)
    for i in range(len(masses)):
        for j in range(i):
            energy = energy - np.longdouble(g) * m[i] * m[j] / np.sqrt(((q[..., i, :] - q[..., j, :]) ** 2).sum(-1))
    return np.asarray(energy)
