"""How well a fit determines its unknowns: covariance, an error robust to autocorrelated residuals, and what is not determined.

With J the Jacobian of the residual rows (in units of one standard deviation) and H = JᵀJ, the formal covariance is H⁻¹. The
robust one is the sandwich H⁻¹ M H⁻¹, where M sums the products of scores g_t = Σ_c J_tcᵀ r_tc at nearby times of one
trajectory with Bartlett weights, and priors add their own JᵀJ. Sources: Newey, West, Econometrica 55 (1987); the bandwidth by
Andrews, Econometrica 59 (1991), eq. 6.2-6.4 for an AR(1) approximation of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Determination", "combination", "determine", "propagate", "score_covariance"]

_NULL = 1e-13
"""Eigenvalues of the scaled H below this share of the largest are zero to rounding."""
_WEAK = 1e-8
"""Eigenvalues below this share mean a combination that the data hardly determine."""


@dataclass(frozen=True)
class Determination:
    """What the rows of a fit say about its unknowns."""

    covariance: Tensor
    """``(n, n)``; infinite on the diagonal for an unknown that takes part in an undetermined combination."""
    robust: Tensor
    """The sandwich, same shape."""
    effective: float
    """Effective number of unknowns that the data determine: the trace of the influence matrix of the data rows."""
    weak: list[tuple[Tensor, float]]
    """Combinations (unit vectors over scaled unknowns) that are hardly or not determined, with the ratio of eigenvalues."""
    finite: Tensor
    """``(2, n)``: the diagonals of both covariances within what is determined."""
    null: Tensor
    """``(k, n)``: directions, in units of the unknowns, along which nothing is determined."""


def determine(data: Tensor, other: Tensor, scores: Sequence[Tensor], ridge: Tensor | None = None) -> Determination:
    """From the Jacobian of the data rows, that of all other rows (priors, size of the learned term), and the scores.

    ``scores`` holds one tensor ``(n_i, n)`` a trajectory: the score of each time, in order. ``ridge`` ``(n,)`` adds to the
    diagonal of H, the inverse variance of what is believed of an unknown beforehand.
    """
    h = data.T @ data + other.T @ other
    if ridge is not None:
        h = h + ridge.diag()
    norms = h.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, 1.0)
    values, vectors = torch.linalg.eigh(h / norms / norms.unsqueeze(-1))
    top = values[-1].clamp(min=torch.finfo(values.dtype).tiny)
    kept = values > _NULL * top
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    covariance = (vectors * inverse) @ vectors.T / norms / norms.unsqueeze(-1)
    meat = other.T @ other
    if ridge is not None:
        meat = meat + ridge.diag()
    for part in scores:
        meat = meat + score_covariance(part)
    robust = covariance @ meat @ covariance
    lost = (vectors[:, ~kept].square().sum(-1) > 1e-6) if bool((~kept).any()) else torch.zeros_like(norms, dtype=torch.bool)
    effective = float((covariance @ (data.T @ data)).trace())
    finite = torch.stack((covariance.diagonal(), robust.diagonal())).clone()
    for matrix in (covariance, robust):
        matrix[lost, lost] = torch.inf
    weak = [(vectors[:, i], float(values[i] / top)) for i in range(len(values)) if values[i] < _WEAK * top]
    return Determination(covariance, robust, effective, weak, finite, (vectors[:, ~kept] / norms.unsqueeze(-1)).T)


def propagate(jacobian: Tensor, covariance: Tensor, finite: Tensor, null: Tensor) -> Tensor:
    """J C Jᵀ ``(m, m)`` for functions with Jacobian J ``(m, n)`` of unknowns that may not all be determined.

    ``finite`` ``(n,)`` stands in for infinite variances, and ``null`` ``(k, n)`` holds the directions that nothing determines:
    a function that changes along one of them has an infinite variance, one that does not is as certain as its rest.
    """
    within = covariance.clone()
    within.diagonal().copy_(torch.where(torch.isinf(within.diagonal()), finite, within.diagonal()))
    total: Tensor = jacobian @ within @ jacobian.T
    moved = (jacobian @ null.T).abs()
    size = (jacobian.square() @ finite.clamp(min=0)).sqrt()  # null vectors are unit vectors in about these units
    lost = (moved > 1e-6 * size.unsqueeze(-1)).any(-1)
    total[lost, lost] = torch.inf
    return total


def score_covariance(scores: Tensor) -> Tensor:
    """Σ_l w_l Σ_t (g_t g_{t+l}ᵀ + transpose) with Bartlett weights w, for scores ``(n, p)`` of one trajectory in time order."""
    n = len(scores)
    bandwidth = min(_bandwidth(scores), n - 1)
    if n * scores.shape[1] and bandwidth > 32:
        return _by_fourier(scores, bandwidth)
    total = scores.T @ scores
    for lag in range(1, math.ceil(bandwidth) + 1):
        weight = 1 - lag / (bandwidth + 1)
        product = scores[:-lag].T @ scores[lag:]
        total = total + weight * (product + product.T)
    return total


def _by_fourier(scores: Tensor, bandwidth: float) -> Tensor:
    """The same sum for long bandwidths: a convolution with the Bartlett window, then one product."""
    n = len(scores)
    lags = torch.arange(n, dtype=scores.dtype)
    window = (1 - lags / (bandwidth + 1)).clamp(min=0)
    size = 2 * n
    kernel = torch.zeros(size, dtype=scores.dtype)
    kernel[:n] = window
    kernel[n + 1 :] = window[1:].flip(0)
    spectrum = torch.fft.rfft(kernel).unsqueeze(-1)
    smoothed = torch.fft.irfft(torch.fft.rfft(scores, n=size, dim=0) * spectrum, n=size, dim=0)[:n]
    total: Tensor = scores.T @ smoothed
    return 0.5 * (total + total.T)


def _bandwidth(scores: Tensor) -> float:
    """1.1447 (α n)^(1/3), with α from a first-order autoregression of each column (Andrews 1991)."""
    n = len(scores)
    if n < 4:
        return 0.0
    before, after = scores[:-1], scores[1:]
    power = before.square().sum(0)
    used = power > 0
    if not bool(used.any()):
        return 0.0
    rho = ((before * after).sum(0)[used] / power[used]).clamp(-0.99, 0.99)
    noise = (after[:, used] - rho * before[:, used]).square().mean(0).square()
    numerator = (4 * rho.square() * noise / ((1 - rho) ** 6 * (1 + rho) ** 2) / _square(scores[:, used])).sum()
    denominator = (noise / (1 - rho) ** 4 / _square(scores[:, used])).sum()
    return float(1.1447 * (numerator / denominator * n) ** (1 / 3))


def _square(scores: Tensor) -> Tensor:
    """Weights that make the columns count alike."""
    return scores.square().mean(0).square().clamp(min=torch.finfo(scores.dtype).tiny)


def combination(vector: Tensor, names: Sequence[str], limit: float = 0.15, shown: int = 5) -> str:
    """A unit vector over scaled unknowns in words: ``0.71 frequency - 0.70 damping``."""
    order = vector.abs().argsort(descending=True)[:shown].tolist()
    parts = [(float(vector[i]), names[i]) for i in order if abs(float(vector[i])) > limit]
    if parts and parts[0][0] < 0:
        parts = [(-value, name) for value, name in parts]
    text = " ".join(f"{'+' if value > 0 else '-'} {abs(value):.2f} {name}" for value, name in parts)
    return text.removeprefix("+ ")
