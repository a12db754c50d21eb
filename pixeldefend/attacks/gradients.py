"""Gradients with respect to images, and what the same forward pass tells besides."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from pixeldefend.attacks.outcome import Network


def cross_entropy(
    network: Network, images: chex.Array, labels: chex.Array
) -> tuple[chex.Array, chex.Array, chex.Array]:
    """The cross-entropy `[B]` in nats, its gradient `[B, H, W, C]`, logits `[B, K]`."""

    def total(images: chex.Array) -> tuple[chex.Array, tuple]:
        logits = network(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.sum(losses), (losses, logits)

    gradient, (losses, logits) = jax.grad(total, has_aux=True)(images)
    return losses, gradient, logits


def score(
    score_fn: Callable[[chex.Array], chex.Array], images: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """The scores `[B]` that `score_fn` gives images, and their gradient."""

    def total(images: chex.Array) -> tuple[chex.Array, chex.Array]:
        scores = score_fn(images)
        return jnp.sum(scores), scores

    gradient, scores = jax.grad(total, has_aux=True)(images)
    return scores, gradient
