"""A torch network behind a purifier, for whoever trains, attacks or serves in torch."""

from collections.abc import Callable
from typing import Any

import torch

from pixeldefend.adapters import check
from pixeldefend.experiment.serving import Purifier


class Defended(torch.nn.Module):
    """A torch network that sees purified images.

    The forward pass purifies; the backward pass is what an attacker who knows the
    purifier puts in its place, see `Defence.view`. Its `state_dict` is that of
    `network`, under that name.
    """

    def __init__(
        self,
        purifier: Purifier,
        network: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        gradient: str = "bpda",
    ):
        """Puts the purifier in front; a network's parameters become the module's.

        Args:
          purifier: of the layout and range that the network takes, so usually
            `layout="NCHW", range=(0, 1)`.
          network: a module or function of images; None for purified images themselves.
          gradient: "bpda" (as if purifying changed nothing) or "straight_through" (of
            the expected levels; several times the cost, and a minute of compiling).

        Raises:
          TypeError: no `Purifier`.
          ValueError: another gradient.
        """
        super().__init__()
        check(purifier, gradient)
        self.purifier = purifier
        self.network = torch.nn.Identity() if network is None else network
        self.gradient = gradient

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """What the network makes of purified `images`, on their device."""
        return self.network(self._purified(images))

    def extra_repr(self) -> str:
        return f"{self.purifier!r}, gradient={self.gradient!r}"

    @torch.compiler.disable
    def _purified(self, images: torch.Tensor) -> torch.Tensor:
        kind = _Bpda if self.gradient == "bpda" else _StraightThrough
        return kind.apply(images, self.purifier)


class _Bpda(torch.autograd.Function):
    """Purified images, differentiated as if they were the images."""

    @staticmethod
    def forward(images: torch.Tensor, purifier: Purifier) -> torch.Tensor:
        return purifier(images)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, towards: torch.Tensor) -> tuple:
        return towards, None


class _StraightThrough(_Bpda):
    """Purified images, with the gradient of the expected levels."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        images, ctx.purifier = inputs
        ctx.save_for_backward(images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, towards: torch.Tensor) -> tuple:
        (images,) = ctx.saved_tensors
        return ctx.purifier.pull_back(images, towards), None
