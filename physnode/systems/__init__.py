"""Known physics: one file a family, each system with its constants, invariants, start states and, where known, exact motion."""

from __future__ import annotations

from physnode.systems.base import System
from physnode.systems.n_body import NBody
from physnode.systems.orbital import Kepler
from physnode.systems.oscillators import Duffing, HarmonicOscillator, HenonHeiles, VanDerPol
from physnode.systems.pendulum import Pendulum
from physnode.systems.populations import LotkaVolterra
from physnode.systems.three_body import ThreeBody

__all__ = [
    "Duffing",
    "HarmonicOscillator",
    "HenonHeiles",
    "Kepler",
    "LotkaVolterra",
    "NBody",
    "Pendulum",
    "System",
    "ThreeBody",
    "VanDerPol",
    "registry",
]


def registry() -> dict[str, type[System]]:
    """Every system by the name under which commands and files know it."""
    return {
        "pendulum": Pendulum,
        "harmonic-oscillator": HarmonicOscillator,
        "van-der-pol": VanDerPol,
        "duffing": Duffing,
        "henon-heiles": HenonHeiles,
        "lotka-volterra": LotkaVolterra,
        "kepler": Kepler,
        "n-body": NBody,
        "three-body": ThreeBody,
    }
