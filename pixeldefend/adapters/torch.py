"""A torch network behind a purifier, for whoever trains, attacks or serves in torch."""

from collections.abc import Callable
from typing import Any

import torch

from pixeldefend.adapters import check_gradient
from pixeldefend.experiment.serving import Purifier


class Defended(torch.nn.Module):
    """A torch network that sees purified images.

    Forwards the purifier, whatever attacker or trainer calls it; backwards what an
    attacker who knows the purifier puts in its place, see `Defence.view`.
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
            the expected levels; many times the cost).

        Raises:
          ValueError: another gradient.
        """
        super().__init__()
        self.gradient = check_gradient(gradient)
        self.purifier = purifier
        self.network = torch.nn.Identity() if network is None else network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """What the network makes of purified `images`, on their device."""
        return self.network(_Purified.apply(images, self.purifier, self.gradient))


class _Purified(torch.autograd.Function):
    """Purified images, differentiated as an attacker does."""

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, purifier: Purifier, gradient: str
    ) -> torch.Tensor:
        ctx.purifier, ctx.gradient = purifier, gradient
        ctx.save_for_backward(images)
        return purifier(images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, towards: torch.Tensor) -> tuple:
        if ctx.gradient == "bpda":
            return towards, None, None
        (images,) = ctx.saved_tensors
        back = ctx.purifier.pull_back(images, towards, gradient=ctx.gradient)
        return back, None, None
