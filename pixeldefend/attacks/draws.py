"""Networks that are drawn anew at every look: defences that are random."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from pixeldefend.attacks.outcome import LogitsFn, Network

# `network(images [B, H, W, C], keys [B]) -> [D, B, K]`, logits of D draws.
Draws = Callable[[chex.Array, chex.PRNGKey], chex.Array]


def drawing(logits_fn: LogitsFn, variables: Any, draws: int) -> Draws:
    """A network that is drawn anew at every look, or one that is not random.

    Args:
      logits_fn: as for `apgd`.
      variables: for `logits_fn`; a dict with `key` where it is random.
      draws: how many at a look; 0 for a network that is not random.

    Raises:
      ValueError: draws of a network that is not random.
    """
    if not draws:
        return lambda images, keys: logits_fn(variables, images)[None]
    if not isinstance(variables, dict) or "key" not in variables:
        raise ValueError(
            "draws need a random logits_fn, with a `key` among its variables; this one "
            "has none"
        )

    @jax.checkpoint
    def once(images: chex.Array, keys: chex.PRNGKey) -> chex.Array:
        def one(image: chex.Array, key: chex.PRNGKey) -> chex.Array:
            return logits_fn(variables | {"key": key}, image[None])[0]

        # Each image by itself: its draws are its own, whoever shares the batch.
        return jax.vmap(one)(images, keys)

    def network(images: chex.Array, keys: chex.PRNGKey) -> chex.Array:
        drawn = jax.vmap(lambda key: jax.random.split(key, draws))(keys)
        # One after the other: memory for one.
        return jax.lax.map(lambda keys: once(images, keys), drawn.T)

    return network


def judging(network: Draws, key: chex.PRNGKey) -> Network:
    """The network with draws of its own, for what is said of images in the end."""

    def judge(images: chex.Array) -> chex.Array:
        # Attempts fold in 0, 1, ...
        return mean(network(images, fold(key, jnp.full(len(images), -1))))

    return judge


def mean(logits: chex.Array) -> chex.Array:
    """Logits `[B, K]` of one draw, or the mean log-probabilities of `[D, B, K]`."""
    return logits[0] if len(logits) == 1 else jnp.mean(jax.nn.log_softmax(logits), 0)


def fold(key: chex.PRNGKey, numbers: chex.Array) -> chex.PRNGKey:
    """Keys `[B]` with a number, `[B]` integers, folded into each."""
    return jax.vmap(jax.random.fold_in)(key, numbers)
