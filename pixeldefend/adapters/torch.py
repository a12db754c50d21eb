"""A torch network behind a purifier, and torch networks as functions of JAX."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
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


def logits_fn(network: torch.nn.Module) -> Callable[[jax.Array], jax.Array]:
    """A torch network as a function of JAX that can be jitted and differentiated once.

    So attacks, defences and tables of this package take it as they take a classifier of
    their own. JAX calls torch on the host, for logits and for gradients.

    Args:
      network: of images `[B, C, H, W]` in 0..1 to logits `[B, K]`, on any device; it is
        put into evaluation mode, and its parameters are taken as they are when it is
        called.

    Returns:
      A function of floating levels `[B, H, W, C]`, 0..255, to logits `[B, K]`.
    """
    network = network.eval()
    like = next(network.parameters(), torch.zeros(()))
    classes: dict[tuple, int] = {}  # by (H, W, C)

    def seen(levels: Any) -> torch.Tensor:
        images = np.moveaxis(np.asarray(levels), -1, 1) / 255
        return torch.as_tensor(images.copy(), dtype=like.dtype, device=like.device)

    def values(levels: Any) -> np.ndarray:
        with torch.no_grad():
            found = network(seen(levels)).float().cpu().numpy()
        return found.astype(levels.dtype)

    def pull_back(levels: Any, towards: Any) -> np.ndarray:
        images = seen(levels).requires_grad_()
        with torch.enable_grad():
            found = network(images)
            towards = torch.as_tensor(np.array(towards)).to(found)
            (gradient,) = torch.autograd.grad(found, images, towards)
        moved = np.moveaxis(gradient.float().cpu().numpy(), 1, -1) / 255
        return moved.astype(levels.dtype)

    @jax.custom_vjp
    def run(images: jax.Array) -> jax.Array:
        shape = images.shape[1:]
        if shape not in classes:
            classes[shape] = values(np.zeros((1, *shape), np.float32)).shape[-1]
        told = jax.ShapeDtypeStruct((len(images), classes[shape]), images.dtype)
        return jax.pure_callback(values, told, images, vmap_method="sequential")

    def forward(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return run(images), images

    def backward(images: jax.Array, towards: jax.Array) -> tuple[jax.Array]:
        told = jax.ShapeDtypeStruct(images.shape, images.dtype)
        return (
            jax.pure_callback(
                pull_back, told, images, towards, vmap_method="sequential"
            ),
        )

    run.defvjp(forward, backward)
    return run
