"""Random keys of images: an image's own, whatever batch it comes in."""

import chex
import jax


def for_images(key: chex.PRNGKey, indices: chex.Array) -> chex.PRNGKey:
    """A key for each image.

    Args:
      key: of all images together.
      indices: `[B]` integers, the images' places in their set.

    Returns:
      `[B]` keys; each depends on `key` and its own index alone.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
