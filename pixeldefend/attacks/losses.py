"""What gradient attacks climb: the log-odds, and ratios of differences of logits."""

import chex
import jax
import jax.numpy as jnp

from pixeldefend.attacks import gradients, outcome
from pixeldefend.attacks.draws import Draws, mean

LOSSES = ("ce", "dlr", "targeted_dlr")


def losses(
    logits: chex.Array, labels: chex.Array, aims: chex.Array, kinds: chex.Array
) -> chex.Array:
    """What rises, `[B]`.

    Args:
      logits: `[B, K]`.
      labels: `[B]`, the classes to get away from.
      aims: `[B]`, the classes to get to, for the targeted loss.
      kinds: `[B]`, places in `LOSSES`.
    """
    log_odds = gradients.log_odds(logits, labels)
    classes = logits.shape[1]
    if classes < 3:
        return log_odds
    falling, _ = jax.lax.top_k(logits, min(classes, 4))
    aimed = jnp.take_along_axis(logits, aims[:, None], 1)[:, 0]
    own = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    below = falling[:, 2] if classes == 3 else (falling[:, 2] + falling[:, 3]) / 2
    ratio = -outcome.margin(logits, labels) / _positive(falling[:, 0] - falling[:, 2])
    targeted = (aimed - own) / _positive(falling[:, 0] - below)
    return jnp.choose(kinds, [log_odds, ratio, targeted], mode="clip")


def _positive(spans: chex.Array) -> chex.Array:
    """Spans of logits to divide by; of equal logits one, so that all is finite."""
    return jnp.where(spans > 0, spans, 1)


def gradient_of(
    network: Draws,
    images: chex.Array,
    keys: chex.PRNGKey,
    labels: chex.Array,
    aims: chex.Array,
    kinds: chex.Array,
) -> tuple[chex.Array, chex.Array, chex.Array]:
    """The gradient `[B, H, W, C]` of the losses `[B]`, these, and logits `[B, K]`."""

    def total(images: chex.Array) -> tuple[chex.Array, tuple]:
        logits = network(images, keys)
        each = jax.vmap(lambda logits: losses(logits, labels, aims, kinds))(logits)
        loss = jnp.mean(each, 0)
        return jnp.sum(loss), (loss, mean(logits))

    gradient, (loss, logits) = jax.grad(total, has_aux=True)(images)
    return gradient, jnp.where(jnp.isnan(loss), -jnp.inf, loss), logits
