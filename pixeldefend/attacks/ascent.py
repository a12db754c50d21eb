"""The loop of gradient attacks: projected steps that end, image by image."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax.numpy as jnp
from flax import struct

from pixeldefend.attacks import gradients, norms
from pixeldefend.attacks.batched_while import batched_while
from pixeldefend.attacks.outcome import Network, Task

# `look(task, extra, moved) -> (gradient, arrived)`: where to go from levels `moved`,
# and whether an image need not go on, `[B]` bool.
Look = Callable[[Task, Any, chex.Array], tuple[chex.Array, chex.Array]]


@struct.dataclass
class Ascent:
    """Where the ascent of each image is.

    Attributes:
      moved: levels `[B, H, W, C]`, floating.
      steps: `[B]` int32, taken so far.
      queries: `[B]` int32, looks so far.
      done: `[B]` bool, whether it has arrived or has no steps left.
    """

    moved: chex.Array
    steps: chex.Array
    queries: chex.Array
    done: chex.Array


def ascend(
    norm: norms.Norm,
    look: Look,
    task: Task,
    start: chex.Array,
    extra: Any = (),
    *,
    steps: chex.Array | int,
    length: chex.Array,
    lanes: int | None,
) -> Ascent:
    """Projected steps up a gradient, until an image arrives or has no steps left.

    Args:
      norm: of the ball and of the steps.
      look: see `Look`; for `[lanes]` images at once.
      task: what the attack was given.
      start: floating levels `[B, H, W, C]` in the ball.
      extra: for `look`, a pytree `[B, ...]`.
      steps: at most, a number or `[B]` int32.
      length: of a step, levels `[B]`.
      lanes: see `batched_while`.
    """

    def step(constants: tuple, state: Ascent) -> Ascent:
        task, extra, most, length = constants
        gradient, arrived = look(task, extra, state.moved)
        moved = state.moved + norms.each(length) * norm.direction(gradient)
        moved = norm.project(task.images, moved, task.radius)
        count = state.steps + (~arrived).astype(jnp.int32)
        return Ascent(
            moved=jnp.where(norms.each(arrived), state.moved, moved),
            steps=count,
            queries=state.queries + 1,
            done=arrived | (count >= most),
        )

    none = jnp.zeros_like(task.queries)
    most = none + steps
    first = Ascent(start, none, none, most <= 0)
    constants = task, extra, most, length
    if isinstance(steps, int) and steps == 1:
        return step(constants, first)
    return batched_while(step, constants, first, lanes=lanes)


def to_levels(
    norm: norms.Norm, task: Task, moved: chex.Array, quantise: bool
) -> chex.Array:
    """The levels that are returned: whole ones inside the ball, or as they are."""
    return norm.whole(task.images, moved, task.radius) if quantise else moved


def limit_radius(norm: norms.Norm, task: Task) -> Task:
    """Balls that hold all images need be no larger; nor could steps be infinite."""
    widest = jnp.asarray(norm.widest(task.images), task.radius.dtype)
    return dataclasses.replace(task, radius=jnp.minimum(task.radius, widest))


def climb(network: Network, task: Task, _: Any, moved: chex.Array) -> tuple:
    """A `Look` that goes up the loss for as long as there are steps."""
    gradient, _ = gradients.log_odds_against(network, moved, task.labels)
    return gradient, jnp.zeros(len(moved), bool)
