"""What is learned: networks that start at zero output, so that the known physics is where a fit starts.

Inputs and outputs are scaled inside the network by buffers that are set from training data, not by the caller: a state in
astronomical units and days, or in metres and seconds, meets the same well-conditioned layers, and a saved model keeps its
scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from physnode.calling import Args
from physnode.errors import InputError
from physnode.fields import SecondOrder, VectorField, split_state

__all__ = ["MLP", "Residual"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "softplus": functional.softplus,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "sin": torch.sin,
}
"""Smooth ones only: a kink in the field makes step-size control stumble, and second derivatives wrong."""


class MLP(nn.Module):
    """output_scale * network((x - input_mean) / input_scale), for ``x (*batch, in_features)``.

    ``depth`` hidden layers of ``width`` units; depth 0 is a linear map. Weights start uniform after Glorot and Bengio
    (AISTATS 2010), biases uniform within 1/sqrt(inputs of the layer), both drawn from ``generator`` or, without one, from
    PyTorch's global generator as any module's are. With ``zero_output`` the last layer starts at zero, and so does the output.
    The scales are buffers, 0, 1 and 1 until ``set_scales``.

    The layers compute in their own dtype, float64 unless ``dtype`` or ``.float()`` says otherwise; an input of another one
    is converted, and the output has the dtype of the input. Raises InputError for sizes below one, a negative depth or an
    unknown activation.
    """

    input_mean: Tensor
    input_scale: Tensor
    output_scale: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        depth: int,
        *,
        activation: str = "tanh",
        zero_output: bool = True,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if min(in_features, out_features, width) < 1 or depth < 0:
            raise InputError(
                "a network needs at least one input, output and unit a layer, and no negative depth; found "
                f"in_features={in_features}, out_features={out_features}, width={width}, depth={depth}."
            )
        if activation not in ACTIVATIONS:
            raise InputError(f"unknown activation {activation!r}; choose one of {', '.join(map(repr, ACTIVATIONS))}.")
        self.activation = activation
        sizes = [in_features, *[width] * depth, out_features]
        self.layers = nn.ModuleList(_linear(a, b, generator, dtype) for a, b in pairwise(sizes))
        if zero_output:
            for value in self.layers[-1].parameters():
                nn.init.zeros_(value)
        self.register_buffer("input_mean", torch.zeros(in_features, dtype=dtype))
        self.register_buffer("input_scale", torch.ones(in_features, dtype=dtype))
        self.register_buffer("output_scale", torch.ones(out_features, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The output ``(*batch, out_features)`` in the dtype of ``x``."""
        act = ACTIVATIONS[self.activation]
        hidden = (x.to(self.input_mean.dtype) - self.input_mean) / self.input_scale
        for i, layer in enumerate(self.layers):
            hidden = layer(act(hidden) if i else hidden)
        return (hidden * self.output_scale).to(x.dtype)

    def set_scales(self, *, input_mean: Any = None, input_scale: Any = None, output_scale: Any = None) -> None:
        """Set the buffers that are given: one value a feature, or one for all.

        Raises InputError for values that are not finite, of the wrong count, or, for the two scales, not positive.
        """
        for name, value in (("input_mean", input_mean), ("input_scale", input_scale), ("output_scale", output_scale)):
            if value is None:
                continue
            buffer = self.get_buffer(name)
            given = torch.as_tensor(value, dtype=buffer.dtype, device=buffer.device).detach()
            if given.shape not in (buffer.shape, torch.Size([])):
                raise InputError(f"{name} needs {len(buffer)} values, or one for all; found shape {tuple(given.shape)}.")
            if not bool(torch.isfinite(given).all()) or (name != "input_mean" and not bool((given > 0).all())):
                raise InputError(f"{name} must be finite, and a scale also positive; found {given.tolist()}.")
            buffer.copy_(given)

    def extra_repr(self) -> str:
        """The activation."""
        return f"activation={self.activation!r}"


class Residual(VectorField):
    """A learned term of a ``dim``-dimensional state, zero until it is trained: ``Pendulum() + Residual(2, 32, 2)``.

    ``acts_on="acceleration"`` makes a SecondOrder field whose acceleration ``(dim/2,)`` is the
    network, so that adding it to second-order physics leaves velocities the derivatives of positions (the form that explains
    most of the gain of Hamiltonian networks; Gruver et al., ICLR 2022). ``acts_on="state"`` makes a
    derivative for every component.

    The network has ``depth`` hidden layers of ``width`` units and sees those of "q", "v" (the halves of the state) and "t"
    that ``inputs`` names. Without "v" an acceleration is free of velocity, and splitting methods may be used on it. "q" and "v"
    together are the whole state, whatever its parity. Call ``calibrate`` with training states before the fit.

    Raises InputError for an odd ``dim`` that would have to be halved, unknown or no inputs, or an unknown ``acts_on``.
    """

    def __new__(cls, *args: Any, acts_on: str = "acceleration", **kwargs: Any) -> Residual:
        """An instance of the class that ``acts_on`` names."""
        if cls is Residual:
            if acts_on not in KINDS:
                raise InputError(f"acts_on must be one of {', '.join(map(repr, KINDS))}; found {acts_on!r}.")
            cls = KINDS[acts_on]
        return super().__new__(cls)

    def __init__(
        self,
        dim: int,
        width: int,
        depth: int,
        *,
        acts_on: Literal["acceleration", "state"] = "acceleration",
        inputs: Sequence[str] = ("q", "v"),
        activation: str = "tanh",
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        if not names or not set(names) <= {"q", "v", "t"}:
            raise InputError(f"inputs must name some of 'q', 'v' and 't'; found {inputs!r}.")
        self.inputs = tuple(name for name in ("q", "v", "t") if name in names)
        self.dim = dim
        whole = {"q", "v"} <= set(self.inputs)
        accelerates = isinstance(self, SecondOrder)
        if accelerates != (acts_on == "acceleration"):
            raise InputError(f"a {type(self).__name__} cannot act on {acts_on!r}; build it as Residual(..., acts_on=...).")
        if dim < 1 or (dim % 2 and (accelerates or not whole)):
            raise InputError(
                f"a state of dim={dim} has no halves q and v; give an even dim, or acts_on='state' with both 'q' and 'v'."
            )
        features = (dim if whole else dim // 2 * len({"q", "v"} & set(self.inputs))) + ("t" in self.inputs)
        outputs = dim // 2 if accelerates else dim
        self.network = MLP(features, outputs, width, depth, activation=activation, generator=generator, dtype=dtype)

    def features(self, t: Tensor, y: Tensor) -> Tensor:
        """What the network sees of time ``t (*batch, 1)`` and state ``y (*batch, dim)``."""
        if self.inputs == ("q", "v"):
            return y
        if self.inputs == ("q", "v", "t"):
            return torch.cat((y, t.to(y.dtype).expand(*y.shape[:-1], 1)), dim=-1)
        return self.select(t, *split_state(y))

    def select(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """The same from the halves of the state, without joining what is not wanted."""
        seen = {"q": q, "v": v, "t": t.to(q.dtype).expand(*q.shape[:-1], 1)}
        parts = [seen[name] for name in self.inputs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def calibrate(self, y: Any, rate_scale: Any = None, *, t: Any = None) -> None:
        """Set the scales of the network from training states ``y (N, dim)`` and, where time is an input, ``t (N, 1)``.

        Every input gets the mean and the standard deviation of its training values; one that hardly varies is centred
        only. ``rate_scale`` is the expected size of the output: of an acceleration (or derivative), one value or one a
        component. More leading axes than one are taken as well. Raises InputError for states of another size, values that
        are not finite, a scale that is not positive, or a missing ``t``.
        """
        states = torch.as_tensor(y, dtype=torch.float64).detach()
        if states.dim() < 2 or states.shape[-1] != self.dim or states.numel() == 0:
            raise InputError(f"calibrate needs a set of states (N, {self.dim}); found shape {tuple(states.shape)}.")
        if "t" in self.inputs and t is None:
            raise InputError("time is an input of this learned term; give calibrate the times t (N, 1) of its states.")
        times = torch.as_tensor(0.0 if t is None else t, dtype=torch.float64, device=states.device).detach()
        seen = self.features(times, states).flatten(0, -2)
        if not bool(torch.isfinite(seen).all()):
            raise InputError("calibrate found values that are not finite; remove or mask those states.")
        mean, spread = seen.mean(0), seen.std(0, correction=0)
        steady = spread <= 1e-12 * mean.abs()
        self.network.set_scales(
            input_mean=mean, input_scale=torch.where(steady, torch.ones_like(spread), spread), output_scale=rate_scale
        )

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The learned derivative: the network's output, shape of ``y``."""
        out: Tensor = self.network(self.features(t, y))
        return out


class AccelerationResidual(Residual, SecondOrder):
    """A learned acceleration: q' = v, v' = network(inputs)."""

    @property
    def velocity_dependent(self) -> bool:  # type: ignore[override]  # follows the inputs, so it cannot be assigned
        """Whether the network sees the velocity."""
        return "v" in self.inputs

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """The network's output, shape of ``q``."""
        out: Tensor = self.network(self.select(t, q, v))
        return out

    def forward(self, t: Tensor, y: Tensor, args: Args | None = None) -> Tensor:
        """(v, the network's output)."""
        return SecondOrder.forward(self, t, y, args)


class StateResidual(Residual):
    """A learned derivative for every component of the state."""


KINDS: dict[str, type[Residual]] = {"acceleration": AccelerationResidual, "state": StateResidual}


def _linear(inputs: int, outputs: int, generator: torch.Generator | None, dtype: torch.dtype) -> nn.Linear:
    # skip_init: nn.Linear would draw from the global generator even where one is given
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=dtype)  # type: ignore[no-untyped-call]
    assert isinstance(layer, nn.Linear)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.uniform_(layer.bias, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer
