"""A while-loop over a batch whose images need different numbers of iterations."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp


def batched_while(
    step: Callable[[Any, Any], Any], constants: Any, states: Any, *, lanes: int | None
) -> Any:
    """Iterates `step` on every image until that image is done.

    A loop over a whole batch runs until its slowest image is done and works on the
    others in vain. Here a few lanes run, and a lane whose image is done takes the next
    one that waits; so the work is the sum of the iterations, not their maximum times B.

    Args:
      step: `step(constants, state) -> state` for `[lanes]` images at once, independent
        of each other; it may be called for images that are done, whose result is
        dropped.
      constants: pytree `[B, ...]`, what does not change.
      states: pytree `[B, ...]` with a field `done [B]` bool; images that are done at
        the beginning stay as they are.
      lanes: how many images at once; None for a fourth of them, but at least 16.

    Returns:
      The states of all images, done.
    """
    count = len(states.done)
    lanes = min(count, max(count // 4, 16) if lanes is None else lanes)
    order = jnp.argsort(states.done, stable=True)  # those that are not done in front
    waiting = jnp.sum(~states.done)
    turns = jnp.arange(lanes)
    nobody = jnp.full_like(order, count, shape=lanes)

    def image_of(turns: chex.Array) -> chex.Array:
        """The images whose turn it is; `count`, which none has, when all had theirs."""
        image = order[jnp.minimum(turns, count - 1)]
        return jnp.where(turns < waiting, image, nobody)

    def step_lanes(carry: tuple) -> tuple:
        states, image, last = carry
        # Lanes without an image read the last one, and write nowhere.
        place = jnp.minimum(image, count - 1)
        at_lanes = jax.tree.map(lambda leaf: leaf[place], (constants, states))
        new = step(*at_lanes)
        states = jax.tree.map(
            lambda old, now: old.at[image].set(now, mode="drop"), states, new
        )
        free = new.done & (image < count)
        turn = last + jnp.cumsum(free)
        image = jnp.where(free, image_of(turn), image)
        return states, image, last + jnp.sum(free)

    def is_running(carry: tuple) -> chex.Array:
        return jnp.any(carry[1] < count)

    first = states, image_of(turns), jnp.asarray(lanes - 1, turns.dtype)
    return jax.lax.while_loop(is_running, step_lanes, first)[0]


def select(which: chex.Array, one: Any, other: Any) -> Any:
    """`jnp.where` of pytrees `[B, ...]`: `one` where `which [B]` is true."""

    def pick(one: chex.Array, other: chex.Array) -> chex.Array:
        return jnp.where(which.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    return jax.tree.map(pick, one, other)
