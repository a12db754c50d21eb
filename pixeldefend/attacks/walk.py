"""Steps along a slope that end, image by image, where something is reached."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from pixeldefend.attacks import norms
from pixeldefend.attacks.lanes import until_done
from pixeldefend.attacks.outcome import LogitsFn, Task

# `look(given, more, shown) -> (slope, there)`: where to go from images `shown`, of the
# form in which they would be returned, and whether they have arrived, `[B]` bool.
Look = Callable[[Task, Any, chex.Array], tuple[chex.Array, chex.Array]]


# `score_fn(variables, images) -> [B]`, of floating levels.
ScoreFn = Callable[[Any, chex.Array], chex.Array]


@struct.dataclass
class Walk:
    """One image's way.

    Attributes:
      moved: where it is, floating levels.
      steps: so far, int32.
      queries: looks so far, int32.
      done: whether it has arrived or has no steps left.
    """

    moved: chex.Array
    steps: chex.Array
    queries: chex.Array
    done: chex.Array


def walk(
    norm: norms.Norm,
    look: Look,
    given: Task,
    first: chex.Array,
    more: Any = (),
    *,
    steps: int,
    relative_step: float,
    quantise: bool,
    lanes: int | None,
) -> Walk:
    """Goes from `first` until it arrives, at most `steps` steps.

    Args:
      norm: of the ball and of the steps.
      look: see `Look`; for `[lanes]` images at once.
      given: what the attack was given.
      first: floating levels `[B, H, W, C]` in the ball.
      more: for `look`, a pytree `[B, ...]`.
      steps: at most.
      relative_step: size of a step as a share of eps.
      quantise: whether whole levels are to be returned.
      lanes: see `lanes.until_done`.
    """

    def step(rows: tuple, state: Walk) -> Walk:
        given, more = rows
        shown = whole(norm, given, state.moved, quantise).astype(state.moved.dtype)
        slope, there = look(given, more, shown)
        length = norms.each(relative_step * given.radius)
        next_ = state.moved + length * norm.direction(slope)
        next_ = norm.project(given.images, next_, given.radius)
        count = state.steps + (~there).astype(jnp.int32)
        moved = jnp.where(norms.each(there), state.moved, next_)
        return Walk(moved, count, state.queries + 1, there | (count >= steps))

    none = jnp.zeros_like(given.queries)
    begin = Walk(first, none, none, jnp.zeros(none.shape, bool))
    return until_done(step, (given, more), begin, lanes=lanes)


def whole(
    norm: norms.Norm, given: Task, moved: chex.Array, quantise: bool
) -> chex.Array:
    """The levels that are returned: whole ones inside the ball, or as they are."""
    return norm.whole(given.images, moved, given.radius) if quantise else moved


def in_reach(norm: norms.Norm, given: Task) -> Task:
    """Balls that hold all images need be no larger; nor could steps be infinite."""
    widest = jnp.asarray(norm.widest(given.images), given.radius.dtype)
    return given.replace(radius=jnp.minimum(given.radius, widest))


def slope_of_loss(
    logits_fn: LogitsFn, variables: Any, images: chex.Array, labels: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """The gradient of the cross-entropy with respect to the images, and the logits."""

    def loss(images: chex.Array) -> tuple[chex.Array, chex.Array]:
        logits = logits_fn(variables, images)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.sum(each), logits

    return jax.grad(loss, has_aux=True)(images)


def slope_of_score(
    score_fn: ScoreFn, variables: Any, images: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """The gradient of a score with respect to the images, and the scores `[B]`."""

    def total(images: chex.Array) -> tuple[chex.Array, chex.Array]:
        scores = score_fn(variables, images)
        return jnp.sum(scores), scores

    return jax.grad(total, has_aux=True)(images)
