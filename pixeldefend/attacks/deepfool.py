"""DeepFool: to the nearest decision boundary, as if the network were linear."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import norms, outcome, rounding
from pixeldefend.attacks.lanes import until_done
from pixeldefend.attacks.outcome import Info, LogitsFn

# Added to the length of every step, in levels, so that steps do not die out in front
# of the boundary.
_LEAST = 1e-4


@struct.dataclass
class _Walk:
    """One image's way.

    Attributes:
      moved: `[B, H, W, C]` where it is, in levels.
      total: `[B, H, W, C]` sum of the steps, without overshoot.
      steps: `[B]` int32, how many.
      done: `[B]` bool.
    """

    moved: chex.Array
    total: chex.Array
    steps: chex.Array
    done: chex.Array


def deepfool(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float = jnp.inf,
    norm: str = "linf",
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
    rescale: bool = False,
    bounded: bool = False,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """DeepFool: steps to the nearest boundary of the linearised network.

    Moosavi-Dezfooli et al. (2016), algorithm 2, and its section on other norms; cut to
    the ball at the end as PixelDefend, section 2.1, has it. An image stops as soon as
    it is not taken for its label, and its place is taken by another image
    (`lanes.until_done`). A step costs one forward pass, one backward pass for each
    candidate but the label, and a forward pass to see where it led.

    Args:
      logits_fn: `logits_fn(variables, images) -> [B, K]`, of floating levels.
      variables: for `logits_fn`, any pytree.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      labels: integers `[B]` to get away from; None for the predicted ones.
      key: not used.
      eps: levels, a number or `[B]`, in `norm`; the result is cut to this ball.
      norm: "linf" or "l2", which distances are smallest.
      steps: how many at most.
      overshoot: share by which the sum of the steps is exceeded.
      candidates: how many classes are considered, the label among them; the others
        have the largest logits of the given image. All where K is smaller.
      rescale: do as the authors of PixelDefend: let the image leave 0..255 on its way,
        and when it ends outside stretch its least and largest value to 0 and 255. That
        moves every value, and often undoes the attack. False cuts to 0..255 after each
        step.
      bounded: beyond the paper: a value at an end of 0..255 does not count where the
        step would move it outside, which promises what the cut takes back. Images with
        much black or white need fewer steps, each of them longer; the distance may
        be somewhat larger.
      lanes: images at once (`lanes.until_done`); None for an eighth of them, but at
        least 4.
      quantise: return whole levels, `uint8`, that still succeed (`rounding.rounded`);
        False returns floating ones. It presumes that `images` are whole levels.
      keep_failed: return the moved image also where the label is still found; False
        returns the clean one there.

    Returns:
      Levels `[B, H, W, C]`, within eps of `images` and within 0..255, and what was
      done. Images that were not taken for their label come back as they are.

    Raises:
      ValueError: wrong shapes, negative eps, labels out of range, unknown norm, not at
        least one step or two candidates.
    """
    del key
    ball = norms.named(norm)
    outcome.check_at_least("steps", steps, 1)
    outcome.check_at_least("candidates", candidates, 2)
    given = outcome.task(logits_fn, variables, images, labels, eps, quantise)

    def step(rows: tuple, walk: _Walk) -> _Walk:
        given, rivals = rows
        total = walk.total + _step(
            logits_fn, variables, walk.moved, given.labels, rivals, ball, bounded
        )
        moved = given.images + (1 + overshoot) * total
        if not rescale:
            moved = norms.among_levels(moved)
        fooled = outcome.surely_fooled(logits_fn(variables, moved), given.labels)
        taken = walk.steps + 1
        return _Walk(moved, total, taken, fooled | (taken >= steps))

    logits = logits_fn(variables, given.images)
    first = _Walk(
        moved=given.images,
        total=jnp.zeros_like(given.images),
        steps=jnp.zeros_like(given.queries),
        done=outcome.fooled(logits, given.labels),
    )
    if lanes is None:
        # Each lane is a batch of its own: one backward pass for each candidate.
        lanes = max(len(images) // 8, 4)
    rows = given, _rivals(logits, given.labels, candidates)
    last = until_done(step, rows, first, lanes=lanes)
    found = _stretched(last.moved) if rescale else last.moved
    return rounding.ended(
        logits_fn,
        variables,
        given,
        found,
        last.steps,
        2 * last.steps + 1,
        norm=ball,
        lanes=lanes,
        quantise=quantise,
        keep_failed=keep_failed,
    )


def _rivals(logits: chex.Array, labels: chex.Array, candidates: int) -> chex.Array:
    """`[B, candidates - 1]`: the classes of the largest logits but the label."""
    classes = logits.shape[-1]
    own = jax.nn.one_hot(labels, classes, dtype=bool)
    others = jnp.where(own, -jnp.inf, logits)
    return jax.lax.top_k(others, min(candidates, classes) - 1)[1]


def _step(
    logits_fn: LogitsFn,
    variables: Any,
    moved: chex.Array,
    labels: chex.Array,
    rivals: chex.Array,
    norm: norms.Norm,
    bounded: bool,
) -> chex.Array:
    """`[B, H, W, C]`, to the nearest boundary between the label and a rival."""
    logits, back = jax.vjp(lambda images: logits_fn(variables, images), moved)
    classes, kind = logits.shape[-1], logits.dtype
    own = jax.nn.one_hot(labels, classes, dtype=kind)
    leads = jax.nn.one_hot(rivals.T, classes, dtype=kind) - own[None]
    slopes = jax.vmap(back)(leads)[0]
    if bounded:
        top = pixels.LEVELS - 1
        stuck = (moved <= 0)[None] & (slopes < 0) | (moved >= top)[None] & (slopes > 0)
        slopes = jnp.where(stuck, 0, slopes)
    gaps = jnp.sum(leads * logits[None], -1).astype(moved.dtype)
    steepness = jax.vmap(norm.dual)(slopes)
    steep = steepness > 0
    reach = jnp.where(steep, jnp.abs(gaps) / jnp.where(steep, steepness, 1), jnp.inf)
    nearest = jnp.argmin(reach, 0)
    each = jnp.arange(len(moved))
    reach = reach[nearest, each]
    length = jnp.where(jnp.isfinite(reach), reach + _LEAST, 0)
    return norms.each(length) * norm.direction(slopes[nearest, each])


def _stretched(moved: chex.Array) -> chex.Array:
    """Least and largest value of each image to 0 and 255, where it leaves them."""
    least = jnp.min(moved, (1, 2, 3), keepdims=True)
    largest = jnp.max(moved, (1, 2, 3), keepdims=True)
    top = pixels.LEVELS - 1
    span = jnp.where(largest > least, largest - least, 1)
    outside = (least < 0) | (largest > top)
    return jnp.where(outside, (moved - least) / span * top, moved)
