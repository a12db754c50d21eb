"""Detecting adversarial images by the rank of their likelihood."""

import chex
import jax.numpy as jnp


def p_values(log_probs: chex.Array, reference: chex.Array) -> chex.Array:
    """How unusual images are among those the model was trained on.

    p = (1 + #{i: p(X_i) <= p(X')}) / (N + 1) over the training images X_i; small means
    less likely than almost all of them (PixelDefend, section 3.2).

    Args:
      log_probs: `[...]` nats.
      reference: of the training images, `[N]` nats, sorted.

    Returns:
      `[...]` in (0, 1]; NaN where the log-probability is.
    """
    log_probs = jnp.asarray(log_probs)
    no_likelier = jnp.searchsorted(reference, log_probs, side="right")
    ranks = (1 + no_likelier) / (reference.shape[0] + 1)
    return jnp.where(jnp.isnan(log_probs), jnp.nan, ranks)
