"""Images moved at random for training, as levels and on the device."""

import chex
import jax
import jax.numpy as jnp


def mirrored(images: chex.Array, key: chex.PRNGKey) -> chex.Array:
    """Images `[B, H, W, C]`, each flipped left to right with probability 1/2."""
    flips = jax.random.bernoulli(key, shape=images.shape[:1])
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def noisy(images: chex.Array, key: chex.PRNGKey, most: float) -> chex.Array:
    """Images `[B, H, W, C]` uint8 with noise, each of a kind and a size of its own.

    A quarter stays as it is; the others get noise that is uniform, of random signs, or
    Gaussian (of half the size), of a size that is uniform from 0 to `most` levels.

    Args:
      images: levels, uint8.
      key: consumed.
      most: levels.
    """
    kind_key, size_key, *keys = jax.random.split(key, 5)
    shape = (len(images), 1, 1, 1)
    kind = jax.random.randint(kind_key, shape, 0, 4)
    size = jax.random.uniform(size_key, shape, maxval=most)
    noise = jnp.select(
        [kind == 1, kind == 2, kind == 3],
        [
            jax.random.uniform(keys[0], images.shape, minval=-1.0, maxval=1.0),
            jax.random.rademacher(keys[1], images.shape, jnp.float32),
            jax.random.normal(keys[2], images.shape) / 2,
        ],
        0.0,
    )
    moved = jnp.round(images.astype(jnp.float32) + size * noise)
    return jnp.clip(moved, 0, 255).astype(images.dtype)


def cropped(images: chex.Array, key: chex.PRNGKey, most: int) -> chex.Array:
    """Images `[B, H, W, C]`, each moved by up to `most` pixels along both axes.

    The usual random crop of a padded image (He et al., Deep Residual Learning, 2016),
    but what enters at an edge is the image reflected there: black edges would change
    the mean and the deviation by which the classifiers standardise an image.

    Args:
      images: levels, of any type.
      key: consumed.
      most: pixels, static, less than H and W.
    """
    count, height, width, channels = images.shape
    edges = ((0, 0), (most, most), (most, most), (0, 0))
    padded = jnp.pad(images, edges, mode="reflect")
    corners = jax.random.randint(key, (count, 2), 0, 2 * most + 1)

    def crop(image: chex.Array, corner: chex.Array) -> chex.Array:
        start = (corner[0], corner[1], jnp.zeros_like(corner[0]))
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    return jax.vmap(crop)(padded, corners)
