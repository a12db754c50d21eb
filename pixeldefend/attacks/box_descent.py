"""Adam on images, each by itself, that are the tanh of what is optimised.

So no value leaves its range: Carlini and Wagner (2017), section V.B.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import outcome
from pixeldefend.attacks.outcome import Network, Task

# Levels 0 and 255 would lie at infinity, and a little inside the tanh has no slope to
# speak of: at 0.999999, which is usual, a hundred steps do not move them.
_INSIDE = 1 - 0.4 / 127.5


@struct.dataclass
class Descent:
    """One image's Adam.

    Attributes:
      point: `[B, H, W, C]`, whose tanh is the image in units -1..1.
      adam: Adam's state, every leaf `[B, ...]`: each image counts its own updates.
      steps: `[B]` int32, taken with this constant.
    """

    point: chex.Array
    adam: optax.OptState
    steps: chex.Array


def init(adam: optax.GradientTransformation, levels: chex.Array) -> Descent:
    """At an image, levels `[B, H, W, C]`, with nothing remembered.

    Its 0 and 255 begin 0.4 levels inside.
    """
    units = pixels.to_units(levels, levels.dtype)
    point = jnp.arctanh(jnp.clip(units, -_INSIDE, _INSIDE))
    return Descent(point, jax.vmap(adam.init)(point), jnp.zeros(len(levels), jnp.int32))


def advance(
    adam: optax.GradientTransformation, descent: Descent, gradient: chex.Array
) -> Descent:
    """One step of Adam."""
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        updates, state = jax.vmap(adam.update)(gradient, descent.adam)
    return Descent(descent.point + updates, state, descent.steps + 1)


def look(
    network: Network,
    task: Task,
    point: chex.Array,
    cost: Callable[[chex.Array], chex.Array],
    const: chex.Array,
    confidence: float,
) -> tuple[chex.Array, chex.Array, chex.Array, chex.Array]:
    """One forward and one backward pass at `point`.

    Args:
      network: see `outcome.Network`.
      task: what the attack was given.
      point: `[B, H, W, C]`, see `Descent`.
      cost: `cost(levels) -> [B]`, added to the weighted margin.
      const: `[B]`, weight of the margin.
      confidence: by how much another logit must exceed the label's.

    Returns:
      Levels `[B, H, W, C]`, whether they are an adversarial image as confident as
      wanted, the loss `[B]`, and its gradient by the point.
    """

    def total(point: chex.Array) -> tuple[chex.Array, tuple]:
        moved = pixels.to_floating_levels(jnp.tanh(point))
        logits = network(moved)
        margin = outcome.margin(logits, task.labels).astype(point.dtype)
        fooled = outcome.is_surely_fooled(logits, task.labels)
        fooled &= margin <= -confidence
        loss = cost(moved) + const * jnp.maximum(margin + confidence, 0)
        return jnp.sum(loss), (moved, fooled, loss)

    gradient, (moved, fooled, loss) = jax.grad(total, has_aux=True)(point)
    return moved, fooled, loss, gradient
