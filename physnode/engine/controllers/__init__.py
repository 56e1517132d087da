"""Step-size control: which trial steps are accepted, and how long the next one is.

Everything is arithmetic on tensors with one entry a trajectory; nothing here branches on data.
"""

from __future__ import annotations

from physnode.engine.controllers.adaptive import Adaptive
from physnode.engine.controllers.base import Controller, Span, Verdict
from physnode.engine.controllers.fixed import Fixed

__all__ = ["Adaptive", "Controller", "Fixed", "Span", "Verdict"]
