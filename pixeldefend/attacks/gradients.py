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


def log_odds_against(
    network: Network, images: chex.Array, labels: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """The gradient `[B, H, W, C]` of the log-odds against the labels; logits `[B, K]`.

    The log-odds are `logsumexp(other logits) - own logit`. Cross-entropy is their
    softplus: its gradient has the same direction, times the probability of the other
    classes, which float32 rounds away once the label leads by about 16 nats. Where only
    the direction counts, this is the one to take.
    """

    def total(images: chex.Array) -> tuple[chex.Array, chex.Array]:
        logits = network(images)
        return jnp.sum(log_odds(logits, labels)), logits

    return jax.grad(total, has_aux=True)(images)


def log_odds(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """`[B]`: the logarithm of the odds against the labels, see `log_odds_against`."""
    own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), -1)
    return others - jnp.sum(jnp.where(own, logits, 0), -1)


def leads(
    network: Network, images: chex.Array, labels: chex.Array, rivals: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """Rivals' logits less the label's, `[R, B]`, and their gradients `[R, B, H, W, C]`.

    `rivals` are classes, `[B, R]`. One forward pass, and one backward pass for each.
    """
    logits, back = jax.vjp(network, images)
    classes, kind = logits.shape[-1], logits.dtype
    own = jax.nn.one_hot(labels, classes, dtype=kind)
    signs = jax.nn.one_hot(rivals.T, classes, dtype=kind) - own[None]
    gaps = jnp.sum(signs * logits[None], -1).astype(images.dtype)
    return gaps, jax.vmap(back)(signs)[0]


def score(
    score_fn: Callable[[chex.Array], chex.Array], images: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """The scores `[B]` that `score_fn` gives images, and their gradient."""

    def total(images: chex.Array) -> tuple[chex.Array, chex.Array]:
        scores = score_fn(images)
        return jnp.sum(scores), scores

    gradient, scores = jax.grad(total, has_aux=True)(images)
    return scores, gradient
