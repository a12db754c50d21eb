"""How far greedy decoding leads a density model from where it was trained.

A density model is trained with clean pixels in front of each one. While it purifies, it
has its own decodings there instead, and on CIFAR-10 that is what limits it: one step
from clean context mends most attacked images, one from its own few.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from pixeldefend.defences import purification
from pixeldefend.density import conditionals, likelihood, pixelcnn

CONTEXTS = ("clean", "attacked", "own")


class Step(NamedTuple):
    """One step of decoding at every position at once, from one context.

    Attributes:
      bits: what the clean levels cost in that context, `[B]` bits per dimension.
      levels: the likeliest within the ball, `[B, H, W, C]` uint8.
    """

    bits: chex.Array
    levels: chex.Array


def drift(
    model: pixelcnn.PixelCNN,
    params: dict,
    images: chex.Array,
    attacked: chex.Array,
    *,
    eps: chex.Array | int,
    labels: chex.Array | None = None,
    window: int | None = None,
) -> dict[str, Step]:
    """What the density model says of clean levels in three contexts.

    In the clean image's own context `bits` are its bits per dimension; in the context
    of what was decoded `levels` are what was decoded. A uniform guess within the ball
    costs log2(2 eps + 1) bits.

    Args:
      model: the description.
      params: of the network.
      images: clean levels `[B, H, W, C]`, uint8.
      attacked: the same after an attack; the ball is around these.
      eps: of purification, whole levels, a number or `[B]`.
      labels: integers `[B]` for a class-conditional model.
      window: as for `purification.purify`.

    Returns:
      By context ("clean", "attacked", "own": what `purify` makes of `attacked`) a step.

    Raises:
      TypeError, ValueError: as for `purification.purify`.
    """
    lower, upper = purification.bounds(attacked, eps)
    own = purification.purify(
        model, params, attacked, eps=eps, labels=labels, window=window
    )
    found = {}
    for name, context in zip(CONTEXTS, (images, attacked, own), strict=True):
        outputs = pixelcnn.apply(model, params, context, labels=labels)
        log_probs = conditionals.level_log_probs(
            model.family, params["head"], outputs, context
        )
        levels = jnp.arange(log_probs.shape[-1]).reshape(1, 1, 1, 1, -1)
        allowed = (levels >= lower[..., None]) & (levels <= upper[..., None])
        likeliest = jnp.argmax(jnp.where(allowed, log_probs, -jnp.inf), -1)
        true = jnp.take_along_axis(log_probs, images[..., None].astype(jnp.int32), -1)
        nats = jnp.sum(true, (1, 2, 3, 4))
        found[name] = Step(
            likelihood.to_bits_per_dim(nats, images.shape[1:]),
            likeliest.astype(jnp.uint8),
        )
    return found
