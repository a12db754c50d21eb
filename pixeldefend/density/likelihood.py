"""Scores of images under a PixelCNN++, and samples from it."""

import math

import chex
import jax
import jax.numpy as jnp

from pixeldefend import pixels
from pixeldefend.density import conditionals, decode, pixelcnn


def log_prob(
    model: pixelcnn.PixelCNN,
    params: dict,
    images: chex.Array,
    *,
    labels: chex.Array | None = None,
) -> chex.Array:
    """Log-probability of whole images.

    Args:
      model: the description.
      params: from `pixelcnn.init` or a released model.
      images: levels `[B, H, W, C]`; floating levels make it differentiable.
      labels: integers `[B]` for a class-conditional model.

    Returns:
      `[B]` nats.

    Raises:
      ValueError: no image, or shapes or labels that the model cannot take.
    """
    outputs = pixelcnn.apply(model, params, images, labels=labels)
    pixels.check_some(images)
    per_pixel = conditionals.log_prob(model.family, params["head"], outputs, images)
    return jnp.sum(per_pixel, axis=(1, 2))


def bits_per_dim(
    model: pixelcnn.PixelCNN,
    params: dict,
    images: chex.Array,
    *,
    labels: chex.Array | None = None,
) -> chex.Array:
    """Negative log-probability `[B]` in bits per dimension (H W C dimensions).

    Arguments and errors as for `log_prob`. PixelDefend, section 2.2.
    """
    nats = log_prob(model, params, images, labels=labels)
    return to_bits_per_dim(nats, images.shape[1:])


def to_bits_per_dim(log_probs: chex.Array, shape: tuple[int, ...]) -> chex.Array:
    """Nats to bits per dimension for images of `shape` (H, W, C)."""
    return -log_probs / (math.prod(shape) * math.log(2.0))


def loss(
    model: pixelcnn.PixelCNN, params: dict, batch: dict, key: chex.PRNGKey | None
) -> chex.Array:
    """Training loss: mean bits per dimension of `batch["images"]`, dropout on.

    With images in `batch["context"]` the model is given their pixels, and scored by how
    likely it then finds those of `batch["images"]`.
    """
    images, labels = batch["images"], batch["labels"] if model.classes else None
    context = batch.get("context", images)
    outputs = pixelcnn.apply(model, params, context, labels=labels, key=key)
    nats = conditionals.log_prob(model.family, params["head"], outputs, images, context)
    return jnp.mean(to_bits_per_dim(jnp.sum(nats, axis=(1, 2)), images.shape[1:]))


def sample(
    model: pixelcnn.PixelCNN,
    params: dict,
    keys: chex.PRNGKey,
    *,
    height: int,
    width: int,
    labels: chex.Array | None = None,
) -> chex.Array:
    """Draws images from the model, exactly, level by level.

    Args:
      model: the description.
      params: of the network.
      keys: `[B]`, consumed; an image depends on its own key alone.
      height: H, in pixels.
      width: W, in pixels.
      labels: integers `[B]` for a class-conditional model.

    Returns:
      Levels `[B, H, W, C]`, uint8.

    Raises:
      ValueError: shapes or labels that the model cannot take.
    """
    lowest = jnp.zeros((keys.shape[0], height, width, model.channels), jnp.uint8)
    return decode.decode(
        model,
        params,
        lowest,
        draw,
        keys,
        lower=lowest,
        upper=lowest + jnp.uint8(pixels.LEVELS - 1),
        labels=labels,
        window=pixels.LEVELS,
    )


def draw(
    candidates: chex.Array,
    log_mass: chex.Array,
    level: chex.Array,
    keys: chex.PRNGKey,
) -> chex.Array:
    """The policy of `sample`: a draw in proportion to mass, by inverting its sums."""
    del level
    sums = jnp.cumsum(jax.nn.softmax(log_mass, axis=0), axis=0)
    # In (0, 1]: a zero would pick a first candidate without mass.
    points = jax.vmap(lambda key: 1 - jax.random.uniform(key, dtype=sums.dtype))(keys)
    # Scaled by the last sum, which rounding keeps from being exactly one.
    index = jnp.sum(sums < points[None] * sums[-1:], axis=0)
    return jnp.take_along_axis(candidates, index[None], axis=0)[0]
