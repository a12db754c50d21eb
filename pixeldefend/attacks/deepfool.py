"""DeepFool: to the nearest decision boundary, as if the network were linear."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import gradients, norms, outcome, rounding
from pixeldefend.attacks.batched_while import batched_while
from pixeldefend.attacks.outcome import Info, LogitsFn, Network

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
    it is not taken for its label. A step costs one forward pass, one backward pass for
    each candidate but the label, and a forward pass to see where it led.

    Args:
      logits_fn: this and what is not listed as for `fgsm`.
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
      lanes: images at once; None for an eighth, but at least 4; see `batched_while`.
      quantise: return whole levels that still succeed (`rounding.quantise_fooling`).

    Returns:
      As for `fgsm`. Images that were not taken for their label come back as they are.

    Raises:
      ValueError: as for `fgsm`; unknown norm, not at least one step or two candidates.
    """
    del key
    network = functools.partial(logits_fn, variables)
    ball = norms.named(norm)
    outcome.check_at_least("steps", steps, 1)
    outcome.check_at_least("candidates", candidates, 2)
    task = outcome.prepare(network, images, labels, eps, quantise)
    logits = network(task.images)
    first = _Walk(
        moved=task.images,
        total=jnp.zeros_like(task.images),
        steps=jnp.zeros_like(task.queries),
        done=outcome.is_fooled(logits, task.labels),
    )
    # Each lane is a batch of its own: one backward pass for each candidate.
    lanes = max(len(images) // 8, 4) if lanes is None else lanes
    constants = task, outcome.rivals(logits, task.labels, candidates - 1)
    step = functools.partial(_step, network, ball, steps, overshoot, rescale, bounded)
    last = batched_while(step, constants, first, lanes=lanes)
    return rounding.finish(
        network,
        task,
        _stretch(last.moved) if rescale else last.moved,
        last.steps,
        2 * last.steps + 1,
        norm=ball,
        lanes=lanes,
        quantise=quantise,
        keep_failed=keep_failed,
    )


def _step(
    network: Network,
    norm: norms.Norm,
    steps: int,
    overshoot: float,
    rescale: bool,
    bounded: bool,
    constants: tuple,
    walk: _Walk,
) -> _Walk:
    """To the nearest boundary and a little farther; `constants` are task and rivals."""
    task, rivals = constants
    total = walk.total + _to_boundary(
        network, walk.moved, task.labels, rivals, norm, bounded
    )
    moved = task.images + (1 + overshoot) * total
    if not rescale:
        moved = norms.clip_levels(moved)
    fooled = outcome.is_surely_fooled(network(moved), task.labels)
    count = walk.steps + 1
    return _Walk(moved, total, count, fooled | (count >= steps))


def _to_boundary(
    network: Network,
    moved: chex.Array,
    labels: chex.Array,
    rivals: chex.Array,
    norm: norms.Norm,
    bounded: bool,
) -> chex.Array:
    """`[B, H, W, C]`, to the nearest boundary between the label and a rival."""
    leads, slopes = gradients.leads(network, moved, labels, rivals)
    if bounded:
        top = pixels.LEVELS - 1
        stuck = (moved <= 0)[None] & (slopes < 0)
        stuck |= (moved >= top)[None] & (slopes > 0)
        slopes = jnp.where(stuck, 0, slopes)
    reach, nearest = nearest_boundary(norm, leads, slopes)
    length = jnp.where(jnp.isfinite(reach), reach + _LEAST, 0)
    slope = slopes[nearest, jnp.arange(len(moved))]
    return norms.each(length) * norm.direction(slope)


def nearest_boundary(
    norm: norms.Norm, leads: chex.Array, slopes: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """How far the nearest boundary is, `[B]`, and whose it is, `[B]` of R.

    Of leads `[R, B]` as if they were linear, with slopes `[R, B, H, W, C]`; infinitely
    far where all slopes are zero.
    """
    steepness = jax.vmap(norm.dual)(slopes)
    steep = steepness > 0
    reach = jnp.where(steep, jnp.abs(leads) / jnp.where(steep, steepness, 1), jnp.inf)
    return jnp.min(reach, 0), jnp.argmin(reach, 0)


def _stretch(moved: chex.Array) -> chex.Array:
    """Least and largest value of each image to 0 and 255, where it leaves them."""
    least = jnp.min(moved, (1, 2, 3), keepdims=True)
    largest = jnp.max(moved, (1, 2, 3), keepdims=True)
    top = pixels.LEVELS - 1
    span = jnp.where(largest > least, largest - least, 1)
    outside = (least < 0) | (largest > top)
    return jnp.where(outside, (moved - least) / span * top, moved)
