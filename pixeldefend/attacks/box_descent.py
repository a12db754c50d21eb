"""Adam on images, each by itself, that are the tanh of what is optimised.

So no value leaves its range: Carlini and Wagner (2017), section V.B.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.outcome import LogitsFn, Task

# Levels 0 and 255 would lie at infinity.
_INSIDE = 0.999999
# Memories of Adam, for slopes and for their squares.
_FIRST, _SECOND = 0.9, 0.999


@struct.dataclass
class Descent:
    """One image's Adam.

    Attributes:
      point: `[B, H, W, C]`, whose tanh is the image in units -1..1.
      mean: `[B, H, W, C]`, running sum of the slopes.
      square: `[B, H, W, C]`, that of their squares.
      updates: `[B]` int32, since Adam was started.
      steps: `[B]` int32, taken with this constant.
    """

    point: chex.Array
    mean: chex.Array
    square: chex.Array
    updates: chex.Array
    steps: chex.Array


@struct.dataclass
class Here:
    """What is seen at a point: the image, and the terms of the loss.

    Attributes:
      moved: levels `[B, H, W, C]`.
      fooled: `[B]` bool, whether it is an adversarial image, as confident as wanted.
      loss: `[B]`.
      slope: `[B, H, W, C]`, of the loss by the point.
    """

    moved: chex.Array
    fooled: chex.Array
    loss: chex.Array
    slope: chex.Array


def started(levels: chex.Array) -> Descent:
    """At an image, levels `[B, H, W, C]`, with nothing remembered."""
    point = jnp.arctanh(_INSIDE * pixels.to_units(levels, levels.dtype))
    none = jnp.zeros(len(levels), jnp.int32)
    return Descent(point, jnp.zeros_like(point), jnp.zeros_like(point), none, none)


def descended(descent: Descent, slope: chex.Array, step_size: float) -> Descent:
    """One step of Adam; each image counts its own (Kingma & Ba, 2015)."""
    updates = descent.updates + 1
    mean = _FIRST * descent.mean + (1 - _FIRST) * slope
    square = _SECOND * descent.square + (1 - _SECOND) * slope**2
    count = norms.each(updates.astype(slope.dtype))
    unbiased = jnp.sqrt(square / (1 - _SECOND**count)) + 1e-8
    point = descent.point - step_size * mean / (1 - _FIRST**count) / unbiased
    return Descent(point, mean, square, updates, descent.steps + 1)


def look(
    logits_fn: LogitsFn,
    variables: Any,
    given: Task,
    point: chex.Array,
    cost: Callable[[chex.Array], chex.Array],
    const: chex.Array,
    confidence: float,
) -> Here:
    """One forward and one backward pass at `point`.

    Args:
      logits_fn: see `outcome.LogitsFn`.
      variables: for `logits_fn`.
      given: what the attack was given.
      point: `[B, H, W, C]`, see `Descent`.
      cost: `cost(levels) -> [B]`, added to the weighted margin.
      const: `[B]`, weight of the margin.
      confidence: by how much another logit must exceed the label's.
    """

    def total(point: chex.Array) -> tuple[chex.Array, tuple]:
        moved = pixels.to_floating_levels(jnp.tanh(point))
        logits = logits_fn(variables, moved)
        margin = outcome.margin(logits, given.labels).astype(point.dtype)
        fooled = outcome.surely_fooled(logits, given.labels)
        fooled &= margin <= -confidence
        loss = cost(moved) + const * jnp.maximum(margin + confidence, 0)
        return jnp.sum(loss), (moved, fooled, loss)

    slope, (moved, fooled, loss) = jax.grad(total, has_aux=True)(point)
    return Here(moved, fooled, loss, slope)
