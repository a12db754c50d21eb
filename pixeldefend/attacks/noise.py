"""Perturbations that look at no classifier."""

import chex
import jax
import jax.numpy as jnp


def uniform_noise(
    images: chex.Array, keys: chex.PRNGKey, *, eps: chex.Array | float
) -> chex.Array:
    """RAND: adds an integer drawn uniformly from [-eps, eps] to every value.

    Norm: L-infinity. PixelDefend, section 2.1.

    Args:
      images: levels `[B, H, W, C]`, uint8.
      keys: `[B]`, one per image; an image's noise depends on its own key alone.
      eps: levels, a number or `[B]`; its fraction has no effect.

    Returns:
      Levels `[B, H, W, C]`, uint8, clipped to 0..255.
    """
    radius = jnp.broadcast_to(jnp.floor(eps).astype(jnp.int32), images.shape[:1])

    def noisy(image: chex.Array, key: chex.PRNGKey, radius: chex.Array) -> chex.Array:
        # Fixed type: the draws would differ under double precision.
        noise = jax.random.randint(key, image.shape, -radius, radius + 1, jnp.int32)
        return jnp.clip(image.astype(jnp.int32) + noise, 0, 255).astype(jnp.uint8)

    return jax.vmap(noisy)(images, keys, radius)
