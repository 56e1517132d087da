"""``ContinuousAdjoint``: the gradient as the solution of a differential equation of its own, solved backward in time.

Not exact: it is the gradient of the exact solution, found to the tolerances of the backward solve. Kept from the forward
solve: its outputs; graph alive at any time: one evaluation's. It is the baseline that the exact gradients are measured by.
Source: Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, NeurIPS 2018 (arXiv 1806.07366),
appendix B.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from physnode.engine import methods
from physnode.engine.controllers import Controller
from physnode.engine.families.base import Method
from physnode.engine.families.explicit_rk import ExplicitRungeKutta
from physnode.errors import GradientError, InputError
from physnode.gradients.autocast import autocast_of
from physnode.gradients.backward_solve import BackwardSolve, Found
from physnode.gradients.base import Gradient
from physnode.gradients.events import Outputs
from physnode.gradients.replay import Replay
from physnode.gradients.same_field import refuse_another_field
from physnode.gradients.variables import stand_ins

__all__ = ["ContinuousAdjoint"]


class ContinuousAdjoint(Gradient):
    """The continuous adjoint (Chen et al., NeurIPS 2018): solve for the gradient backward in time.

        λ' = -(∂f/∂y)ᵀ λ,    (dL/dθ)' = -(∂f/∂θ)ᵀ λ,    λ jumps by ∂L/∂y_i at each output time t_i

    **Accuracy.** This is the gradient of the exact solution, up to the tolerances of the backward solve; it is not the
    derivative of the solve that was made, to which ``ACA`` and ``SymplecticAdjoint`` are exact. y is solved backward too, from
    the saved output at each t_i: where that is unstable (strong damping, chaos) over the gap between two outputs, the gradient
    is wrong by more than the tolerance, or the backward solve fails. The equations are solved for the loss divided by its
    largest derivative by an output, so that the scale of a loss does not matter to the tolerances.

    **Storage.** The outputs. In backward: twenty to thirty rows of the size of y, λ and all parameters, and the graph of one
    evaluation of the field, however many steps are taken.

    **Evaluations.** Each evaluation of the backward solve calls the field and takes one vector-Jacobian product. One step size
    serves the whole batch, and each output time starts the solve anew.

    Steps end on the jumps of the field. Events are refused, and so is a second derivative.

    Args:
        method: an explicit Runge-Kutta method, or its name. By default that of the forward solve, or ``"tsit5"`` where that is
            of another family (splitting, Nyström, Gauss-Radau, implicit), whose equations the augmented system is not.
        controller: by default that of the forward solve. ``Adaptive``: ``rtol`` holds for all parts, ``atol`` for y; λ and the
            parameters' gradients, relative to the largest ∂L/∂y_i, have the smallest entry of ``atol``.
        seminorm: leave the parameters' gradients out of the error control (Kidger, Chen, Lyons, "Hey, that's not an ODE":
            Faster ODE adjoints via seminorms, ICML 2021). They do not act back on y and λ, so fewer steps will often do; but
            then nothing bounds their own error, which is why it is not the default.
        max_steps: trial steps from one output time to the one before.

    Raises:
        InputError: a method that is no explicit Runge-Kutta method, or that the controller cannot control.
        GradientError: in ``backward``, if the backward solve fails or if ``create_graph`` is asked for; in ``solve``, if there
            are events.
    """

    name = "continuous"
    exact = False
    kept_instead = "outputs"

    def __init__(
        self,
        method: str | Method | None = None,
        controller: Controller | None = None,
        *,
        seminorm: bool = False,
        max_steps: int = 100_000,
    ) -> None:
        self.method = None if method is None else methods.get(method)
        if not (self.method is None or isinstance(self.method, ExplicitRungeKutta)):
            raise InputError(
                f"the backward solve of the continuous adjoint needs an explicit Runge-Kutta method; found {self.method.name}. "
                'Use one such as "tsit5" or "dop853", or gradient="aca", which differentiates the steps of any method'
            )
        if not (controller is None or isinstance(controller, Controller)):
            raise InputError(f"controller must be pn.Adaptive(...) or pn.Fixed(dt); found {controller!r}")
        if not (isinstance(max_steps, int) and max_steps > 0):
            raise InputError(f"max_steps must be a positive integer; found {max_steps!r}")
        self.controller, self.seminorm, self.max_steps = controller, seminorm, max_steps

    def attach(self, replay: Replay, outputs: Outputs, y0: Tensor) -> Outputs:
        """One autograd node for the whole solve, which keeps the outputs.

        Raises:
            GradientError: the solve has events.
            InputError: the controller cannot control the method.
        """
        if replay.events is not None:
            raise GradientError(
                'gradient="continuous" does not follow events, whose times and jumps depend on the parameters; use '
                'gradient="aca", "symplectic" or "direct"'
            )
        solver = self.solver_for(replay)
        solver.controller.check(solver.method, replay.f.dtype)
        moving = replay.moving
        t0, times = (None, None) if moving is None else (moving.t0, moving.times)
        ys = _ContinuousFunction.apply(solver, replay, outputs.ys, y0, t0, times, *replay.theta)  # type: ignore[no-untyped-call]
        return outputs._replace(ys=ys)

    def solver_for(self, replay: Replay) -> BackwardSolve:
        """How the backward solve of this forward solve is done."""
        method = replay.method if self.method is None else self.method
        if not isinstance(method, ExplicitRungeKutta):
            method = methods.tsit5
        controller = replay.controller if self.controller is None else self.controller
        return BackwardSolve(method, controller, self.seminorm, self.max_steps)


class _ContinuousFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        solver: BackwardSolve,
        replay: Replay,
        ys: Tensor,
        y0: Tensor,
        t0: Tensor | None,
        times: Tensor | None,
        *theta: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(ys, y0, *theta)  # their versions are checked: a parameter edited since then raises
        ctx.solver, ctx.replay, ctx.with_times, ctx.autocast = solver, replay, t0 is not None, autocast_of(y0.device)
        return ys.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise GradientError(
                'gradient="continuous" has no second derivative (create_graph=True); use gradient="aca", "symplectic" or '
                '"direct", whose second derivatives are exact'
            )
        ys, y0, *theta = ctx.saved_tensors
        replay: Replay = ctx.replay
        solver: BackwardSolve = ctx.solver

        def sweep() -> Found:
            with stand_ins(theta, graph=False) as fresh:
                refuse_another_field(replay, y0)
                return solver.pull_back(replay, ys, y0, grads[0], fresh, with_times=ctx.with_times)

        with ctx.autocast():
            found = replay.bound_to(theta, sweep)
        replay.cost.add(found.evaluations + 1)
        to_y0 = found.to_y0 if y0.requires_grad else None
        to_t0, to_times = (found.to_t0, found.to_times) if ctx.with_times else (None, None)
        return None, None, None, to_y0, to_t0, to_times, *found.to_theta
