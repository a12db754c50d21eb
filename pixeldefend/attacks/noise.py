"""RAND: noise that looks at no classifier. Norm: L-infinity."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.outcome import Info, LogitsFn


def rand(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """`uniform_noise` as an attack: judged by a classifier that it does not look at.

    Args:
      logits_fn: this and what is not listed as for `fgsm`.
      images: levels `[B, H, W, C]`, uint8.
      key: `[B]`, one an image.
      eps: levels, a number or `[B]`; its fraction has no effect.

    Returns:
      Levels `[B, H, W, C]`, uint8, within eps of `images`, and what was done.

    Raises:
      ValueError: as for `fgsm`; no keys.
    """
    network = functools.partial(logits_fn, variables)
    task = outcome.prepare(network, images, labels, eps, True)
    outcome.check_key(key, len(images))
    return outcome.conclude(
        network,
        task,
        uniform_noise(images, key, eps=eps),
        1,
        0,
        size=norms.linf,
        keep_failed=keep_failed,
    )


def uniform_noise(
    images: chex.Array, key: chex.PRNGKey, *, eps: chex.Array | float
) -> chex.Array:
    """Adds an integer drawn uniformly from [-eps, eps] to every value.

    Norm: L-infinity. PixelDefend, section 2.1.

    Args:
      images: levels `[B, H, W, C]`, uint8.
      key: `[B]`, one per image; an image's noise depends on its own key alone.
      eps: levels, a number or `[B]`; its fraction has no effect.

    Returns:
      Levels `[B, H, W, C]`, uint8, clipped to 0..255.
    """
    # No noise of more levels than there are differs from that of 255.
    whole = jnp.floor(jnp.minimum(eps, 255)).astype(jnp.int32)
    radius = jnp.broadcast_to(whole, images.shape[:1])

    def perturb(image: chex.Array, key: chex.PRNGKey, radius: chex.Array) -> chex.Array:
        # Fixed type: the draws would differ under double precision.
        noise = jax.random.randint(key, image.shape, -radius, radius + 1, jnp.int32)
        return jnp.clip(image.astype(jnp.int32) + noise, 0, 255).astype(jnp.uint8)

    return jax.vmap(perturb)(images, key, radius)
