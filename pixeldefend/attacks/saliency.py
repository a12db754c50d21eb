"""The saliency map attack (JSMA): few values, moved far. Norm: L0."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import gradients, norms, outcome
from pixeldefend.attacks.batched_while import batched_while
from pixeldefend.attacks.outcome import Info, LogitsFn, Network, Task

SIGNS = ("both", "darker")


def saliency_map(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float = jnp.inf,
    targets: chex.Array | None = None,
    theta: float = 0.1,
    moves_per_value: int = 7,
    steps: int = 2000,
    signs: str = "both",
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """Moves one value at a time, the one that matters most for a target class.

    Norm: L0, values (a pixel has C of them). Papernot et al. (2016), as foolbox 1 and 2
    have it: single values where the paper moves pairs; and the saliency of a value is
    the gradient of the target's cross-entropy alone, where the paper multiplies it by
    that of all other classes. A value is not moved again once it has reached 0 or 255,
    nor where it stands there already. Any class but the label is a success and ends the
    search for this image.

    Args:
      logits_fn: this and what is not listed as for `fgsm`.
      eps: how many values may be moved, a number or `[B]`.
      targets: integers `[B]`, the classes to aim at; None for the runners-up. (foolbox
        aims where a single step along the gradient leads, or at random.)
      theta: how far a move goes, as a share of 255 levels.
      moves_per_value: how often a value may be moved.
      steps: how many moves at most.
      signs: "both", whichever of brighter and darker lowers the cross-entropy; or
        "darker" only, which is what foolbox's default comes to: it looks for the
        largest gradient with its sign.
      lanes: images at once; see `batched_while`.
      quantise: return whole levels, rounded after every move.

    Returns:
      Levels `[B, H, W, C]` of which at most eps differ from `images`, and what was
      done. An image that is misclassified already is returned as it is.

    Raises:
      ValueError: as for `fgsm`; targets out of range, unknown signs, not at least one
        move, theta not above 0.
    """
    del key
    network = functools.partial(logits_fn, variables)
    if signs not in SIGNS:
        raise ValueError(f"signs must be one of {', '.join(SIGNS)}: {signs!r}")
    outcome.check_at_least("moves_per_value", moves_per_value, 1)
    outcome.check_at_least("steps", steps, 1)
    if not theta > 0:
        raise ValueError(f"theta must be above 0, a share of the range: {theta}")
    task = outcome.prepare(network, images, labels, eps, quantise)
    task, targets, _ = outcome.with_targets(network, task, targets)
    step = functools.partial(
        _move,
        network,
        length=theta * (pixels.LEVELS - 1),
        moves_per_value=moves_per_value,
        steps=steps,
        darker=signs == "darker",
        quantise=quantise,
    )
    last = batched_while(step, (task, targets), _init(task), lanes=lanes)
    return outcome.conclude(
        network,
        task,
        last.image.astype(jnp.uint8) if quantise else last.image,
        last.count,
        last.queries,
        size=norms.l0,
        keep_failed=keep_failed,
    )


@struct.dataclass
class _Moves:
    """What was done to an image.

    Attributes:
      image: levels `[B, H, W, C]`.
      moves: `[B, H, W, C]`, of every value.
      count: `[B]`, of all values.
      queries: `[B]`.
      done: `[B]`.
    """

    image: chex.Array
    moves: chex.Array
    count: chex.Array
    queries: chex.Array
    done: chex.Array


def _init(task: Task) -> _Moves:
    none = jnp.zeros_like(task.queries)
    return _Moves(
        image=task.images,
        moves=jnp.zeros(task.images.shape, jnp.int32),
        count=none,
        queries=none,
        done=jnp.zeros(none.shape, bool),
    )


def _move(
    network: Network,
    constants: tuple,
    state: _Moves,
    *,
    length: float,
    moves_per_value: int,
    steps: int,
    darker: bool,
    quantise: bool,
) -> _Moves:
    """Moves the most salient value, if one is left and the image does not fool yet."""
    task, targets = constants
    _, gradient, logits = gradients.cross_entropy(network, state.image, targets)
    gradient = jnp.maximum(gradient, 0) if darker else gradient
    salience = jnp.abs(gradient) * _movable(task, state, gradient, moves_per_value)
    fooled = outcome.is_surely_fooled(logits, task.labels)
    stop = fooled | (jnp.max(salience, (1, 2, 3)) == 0)
    chosen = _largest(salience) & ~norms.each(stop)
    moved = norms.clip_levels(state.image - length * jnp.sign(gradient))
    moved = jnp.round(moved) if quantise else moved
    count = state.count + jnp.where(stop, 0, 1)
    return _Moves(
        image=jnp.where(chosen, moved, state.image),
        moves=state.moves + chosen.astype(jnp.int32),
        count=count,
        queries=state.queries + 1,
        done=stop | (count >= steps),
    )


def _movable(
    task: Task, state: _Moves, gradient: chex.Array, moves_per_value: int
) -> chex.Array:
    """Which values `[B, H, W, C]` may be moved down their gradient, as 0 and 1."""
    image, moved = state.image, state.moves > 0
    dark, bright = image <= 0, image >= pixels.LEVELS - 1
    free = ~jnp.where(gradient > 0, dark, bright)
    free &= ~(moved & (dark | bright)) & (state.moves < moves_per_value)
    # With as many values moved as eps allows, no other joins them.
    room = jnp.sum(moved, (1, 2, 3), task.radius.dtype) + 1 <= task.radius
    return (free & (moved | norms.each(room))).astype(image.dtype)


def _largest(salience: chex.Array) -> chex.Array:
    """Bool `[B, H, W, C]`, true at the largest value of each image, the first of it."""
    flat = salience.reshape(len(salience), -1)
    place = jax.nn.one_hot(jnp.argmax(flat, 1), flat.shape[1], dtype=bool)
    return place.reshape(salience.shape)
