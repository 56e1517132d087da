"""A continuous normalizing flow: a tuple state with the trace of the Jacobian, solved backward in time for the density."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from physnode.compat.torchdiffeq import odeint, odeint_adjoint


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.3, 0.5], [-0.4, -0.1]], dtype=torch.float64))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z = state[0]
        with torch.set_grad_enabled(True):
            z.requires_grad_(True)
            dz = z @ self.matrix.T * (1 + t)
            trace = torch.zeros(len(z), dtype=z.dtype)
            for i in range(2):
                trace = trace + torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i]
        return dz, -trace.reshape(-1, 1)


def test_the_density_of_a_linear_flow() -> None:
    """z0 = exp(-3/2 A) z1, and log p(z1) = log N(z0) - 3/2 tr A; the gradient by A follows by hand."""
    x = torch.tensor([[0.4, -0.7], [1.2, 0.3], [-0.5, 0.9]], dtype=torch.float64)
    for solver in (odeint, odeint_adjoint):
        flow = Flow()
        start = (x, torch.zeros(3, 1, dtype=torch.float64))
        z, change = solver(flow, start, torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=1e-9, atol=1e-9, method="dopri5")
        assert z.shape == (2, 3, 2)
        log_p = -0.5 * z[-1].square().sum(-1) - math.log(2 * math.pi) - change[-1, :, 0]
        log_p.mean().backward()

        a = flow.matrix.detach().clone().requires_grad_()
        z0 = x @ torch.linalg.matrix_exp(-1.5 * a).T
        exact = -0.5 * z0.square().sum(-1) - math.log(2 * math.pi) - 1.5 * torch.trace(a)
        exact.mean().backward()
        torch.testing.assert_close(log_p.detach(), exact.detach(), rtol=0, atol=1e-7)
        torch.testing.assert_close(flow.matrix.grad, a.grad, rtol=0, atol=1e-6)
