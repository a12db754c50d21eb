"""The saliency map attack (JSMA): few values, moved far. Norm: L0."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.lanes import until_done
from pixeldefend.attacks.outcome import Info, LogitsFn, Task
from pixeldefend.attacks.targets import aimed

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
    the slope of the target's cross-entropy alone, where the paper multiplies it by that
    of all other classes. A value is not moved again once it has reached 0 or 255, nor
    where it stands there already. Any class but the label is a success and ends the
    search for this image.

    Args:
      logits_fn: `logits_fn(variables, images) -> [B, K]`, of floating levels.
      variables: for `logits_fn`, any pytree.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      labels: integers `[B]` to get away from; None for the predicted ones.
      key: not used.
      eps: how many values may be moved, a number or `[B]`.
      targets: integers `[B]`, the classes to aim at; None for the runners-up. (foolbox
        aims where a single step along the gradient leads, or at random.)
      theta: how far a move goes, as a share of 255 levels.
      moves_per_value: how often a value may be moved.
      steps: how many moves at most.
      signs: "both", whichever of brighter and darker lowers the cross-entropy; or
        "darker" only, which is what foolbox's default comes to: it looks for the
        largest slope with its sign.
      lanes: images at once; see `lanes.until_done`.
      quantise: return whole levels, `uint8`, rounded after every move; False returns
        floating ones.
      keep_failed: return the attacked image also where the label is still found; False
        returns the clean one there.

    Returns:
      Levels `[B, H, W, C]` of which at most eps differ from `images`, and what was
      done. An image that is misclassified already is returned as it is.

    Raises:
      ValueError: wrong shapes, negative eps, labels or targets out of range, unknown
        signs, not at least one move, theta not above 0.
    """
    del key
    if signs not in SIGNS:
        raise ValueError(f"signs must be one of {', '.join(SIGNS)}: {signs!r}")
    outcome.check_at_least("moves_per_value", moves_per_value, 1)
    outcome.check_at_least("steps", steps, 1)
    if not theta > 0:
        raise ValueError(f"theta must be above 0, a share of the range: {theta}")
    given = outcome.task(logits_fn, variables, images, labels, eps, quantise)
    given, targets, _ = aimed(logits_fn, variables, given, targets)
    length = theta * (pixels.LEVELS - 1)

    def step(rows: tuple, state: _Moves) -> _Moves:
        given, targets = rows
        slope, logits = _slope(logits_fn, variables, state.image, targets)
        slope = slope if signs == "both" else jnp.maximum(slope, 0)
        salience = jnp.abs(slope) * _movable(given, state, slope, moves_per_value)
        fooled = outcome.surely_fooled(logits, given.labels)
        stop = fooled | (jnp.max(salience, (1, 2, 3)) == 0)
        chosen = _largest(salience) & ~norms.each(stop)
        moved = norms.among_levels(state.image - length * jnp.sign(slope))
        moved = jnp.round(moved) if quantise else moved
        count = state.count + jnp.where(stop, 0, 1)
        return _Moves(
            image=jnp.where(chosen, moved, state.image),
            moves=state.moves + chosen.astype(jnp.int32),
            count=count,
            queries=state.queries + 1,
            done=stop | (count >= steps),
        )

    last = until_done(step, (given, targets), _unmoved(given), lanes=lanes)
    return outcome.concluded(
        logits_fn,
        variables,
        given,
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


def _unmoved(given: Task) -> _Moves:
    none = jnp.zeros_like(given.queries)
    return _Moves(
        image=given.images,
        moves=jnp.zeros(given.images.shape, jnp.int32),
        count=none,
        queries=none,
        done=jnp.zeros(none.shape, bool),
    )


def _slope(
    logits_fn: LogitsFn, variables: Any, images: chex.Array, targets: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """How the targets' cross-entropy grows with every value, and the logits."""

    def loss(images: chex.Array) -> tuple[chex.Array, chex.Array]:
        logits = logits_fn(variables, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.sum(losses), logits

    return jax.grad(loss, has_aux=True)(images)


def _movable(
    given: Task, state: _Moves, slope: chex.Array, moves_per_value: int
) -> chex.Array:
    """Which values `[B, H, W, C]` may be moved down their slope, as 0 and 1."""
    image, moved = state.image, state.moves > 0
    dark, bright = image <= 0, image >= pixels.LEVELS - 1
    free = ~jnp.where(slope > 0, dark, bright)
    free &= ~(moved & (dark | bright)) & (state.moves < moves_per_value)
    # With as many values moved as eps allows, no other joins them.
    room = jnp.sum(moved, (1, 2, 3), given.radius.dtype) + 1 <= given.radius
    return (free & (moved | norms.each(room))).astype(image.dtype)


def _largest(salience: chex.Array) -> chex.Array:
    """Bool `[B, H, W, C]`, true at the largest value of each image, the first of it."""
    flat = salience.reshape(len(salience), -1)
    place = jax.nn.one_hot(jnp.argmax(flat, 1), flat.shape[1], dtype=bool)
    return place.reshape(salience.shape)
