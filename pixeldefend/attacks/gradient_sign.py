"""Steps along the sign of the loss gradient: FGSM and BIM. Norm: L-infinity."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from pixeldefend import pixels

LogitsFn = Callable[[Any, chex.Array], chex.Array]


def fgsm(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    *,
    eps: chex.Array | float,
    quantise: bool = True,
) -> chex.Array:
    """The fast gradient sign method: one step of eps levels up the loss.

    PixelDefend, section 2.1.

    Args:
      logits_fn: `logits_fn(variables, images) -> [B, K]`, of floating levels.
      variables: for `logits_fn`.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      labels: integers `[B]` whose cross-entropy is raised; None for the predicted ones,
        which tell nothing about the true ones (as adversarial training wants it).
      eps: levels, a number or `[B]`; may be fractional.
      quantise: return whole levels, `uint8`, rounded inside the ball; False returns
        floating ones. It presumes that `images` are whole levels.

    Returns:
      Levels `[B, H, W, C]` within eps of `images` and within 0..255.
    """
    start = _floating(images)
    radius = _per_image(eps, start)
    step = radius * jnp.sign(_slope(logits_fn, variables, start, labels))
    return _finished(start, start + step, radius, quantise)


def bim(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    *,
    eps: chex.Array | float,
    ball: bool = True,
    quantise: bool = True,
) -> chex.Array:
    """The basic iterative method: steps of one level, kept within the eps ball.

    floor(min(eps + 4, 1.25 eps)) steps, from the image itself. PixelDefend, section
    2.1, after Kurakin et al. (2016). Images of small eps wait for those of a large one.

    Args:
      logits_fn: as for `fgsm`.
      variables: for `logits_fn`.
      images: as for `fgsm`.
      labels: as for `fgsm`; the predicted ones are those of `images`.
      eps: levels, a number or `[B]`; may be fractional.
      ball: False forgets the ball, as the authors' adversarial training does; an image
        may then move by as many levels as there are steps.
      quantise: as for `fgsm`.

    Returns:
      Levels `[B, H, W, C]`, within 0..255 and, with `ball`, within eps of `images`.
    """
    start = _floating(images)
    radius = _per_image(eps, start)
    steps = jnp.floor(jnp.minimum(radius + 4, 1.25 * radius)).astype(jnp.int32)
    reach = radius if ball else steps.astype(radius.dtype)
    if labels is None:
        labels = jnp.argmax(logits_fn(variables, start), -1)

    def step(i: chex.Array, moved: chex.Array) -> chex.Array:
        sign = jnp.sign(_slope(logits_fn, variables, moved, labels))
        return jnp.where(i < steps, _clipped(start, moved + sign, reach), moved)

    moved = jax.lax.fori_loop(0, jnp.max(steps, initial=0), step, start)
    return _finished(start, moved, reach, quantise)


def _floating(images: chex.Array) -> chex.Array:
    kept = jnp.issubdtype(images.dtype, jnp.floating)
    return images.astype(pixels.at_least_float32(images.dtype if kept else jnp.float32))


def _per_image(eps: chex.Array | float, images: chex.Array) -> chex.Array:
    """eps as `[B, 1, 1, 1]`."""
    eps = jnp.asarray(eps, images.dtype)
    return jnp.broadcast_to(eps, images.shape[:1])[:, None, None, None]


def _slope(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
) -> chex.Array:
    """The gradient of the cross-entropy with respect to the images."""

    def loss(images: chex.Array) -> chex.Array:
        logits = logits_fn(variables, images)
        wanted = jnp.argmax(logits, -1) if labels is None else labels
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, wanted))

    return jax.grad(loss)(images)


def _clipped(start: chex.Array, moved: chex.Array, radius: chex.Array) -> chex.Array:
    lower = jnp.maximum(start - radius, 0)
    return jnp.clip(moved, lower, jnp.minimum(start + radius, pixels.LEVELS - 1))


def _finished(
    start: chex.Array, moved: chex.Array, radius: chex.Array, quantise: bool
) -> chex.Array:
    if not quantise:
        return _clipped(start, moved, radius)
    # Rounding must not leave the ball, so whole levels within its whole radius.
    rounded = _clipped(start, jnp.round(moved), jnp.floor(radius))
    return rounded.astype(jnp.uint8)
