"""The names of PyTorch that are not public still mean what the package takes them to mean."""

from __future__ import annotations

import torch
from torch import Tensor

from physnode import torch_internals as internals


def test_outside_of_everything() -> None:
    x = torch.ones(2)
    assert not internals.in_transform()
    assert not internals.in_forward_mode()
    assert not internals.is_wrapped(x)
    assert internals.current_level() == 0


def test_mapped_axes_are_found_and_shown_again() -> None:
    def inner(x: Tensor) -> Tensor:
        assert internals.in_transform()
        assert internals.is_wrapped(x)
        assert internals.is_mapped(x)
        assert not internals.transforms_differentiate()
        plain, axis, level = internals.mapped_axis(x)
        assert (tuple(plain.shape), axis, level) == ((3, 2), 0, internals.current_level())
        with internals.outside_transforms() as stack:
            assert not internals.in_transform()
            doubled = 2 * plain
            with internals.inside_transforms(stack):
                assert internals.in_transform()
        return internals.map_axis(doubled, level)

    x = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(torch.func.vmap(inner)(x), 2 * x)


def test_followed_values_are_unwrapped() -> None:
    def inner(x: Tensor) -> Tensor:
        assert internals.transforms_differentiate()
        assert not internals.is_mapped(x)
        assert not internals.is_wrapped(internals.unwrapped(x))
        return x.square().sum()

    assert torch.equal(torch.func.grad(inner)(torch.ones(2)), 2 * torch.ones(2))


def test_forward_mode_is_seen_and_can_be_left() -> None:
    def inner(x: Tensor) -> Tensor:
        assert internals.in_forward_mode()
        with internals.without_forward_mode():
            assert not internals.in_forward_mode()
            still = x.square()
        return x + still

    _, change = torch.func.jvp(inner, (torch.ones(2),), (torch.ones(2),))
    assert torch.equal(change, torch.ones(2))
