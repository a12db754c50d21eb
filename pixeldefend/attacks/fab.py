"""FAB, the fast adaptive boundary attack: to the boundary, and back to the image."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import gradients, norms, outcome, rounding
from pixeldefend.attacks.ascent import to_levels
from pixeldefend.attacks.batched_while import batched_while
from pixeldefend.attacks.deepfool import nearest_boundary
from pixeldefend.attacks.draws import fold
from pixeldefend.attacks.outcome import Found, Info, LogitsFn, Network, Task

# Steps that are shorter count as long, in levels: what lies on the boundary stays.
_SHORT = 1e-8 * (pixels.LEVELS - 1)


@dataclasses.dataclass(frozen=True)
class FabOptions:
    """How FAB walks; see `fab`.

    Raises:
      ValueError: as `fab` has it.
    """

    targets: int = 0
    steps: int = 100
    restarts: int = 1
    bias: float = 0.1
    overshoot: float = 0.05
    backward: float = 0.9

    def __post_init__(self) -> None:
        outcome.check_at_least("targets", self.targets, 0)
        outcome.check_at_least("steps", self.steps, 1)
        outcome.check_at_least("restarts", self.restarts, 1)
        for name in ("bias", "overshoot", "backward"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a share, 0 to 1: {value}")


@struct.dataclass
class _Walk:
    """One image's way.

    Attributes:
      moved: `[B, H, W, C]` where it is, in levels.
      levels: `[B, H, W, C]`, the nearest that fooled of those in the ball; before the
        first, the last of those outside that did, cut to it.
      distance: `[B]` of `levels` where they fooled, else infinite.
      misses: `[B]` int32, how often rounding has undone it in a row.
      steps: `[B]` int32, of all attempts.
      queries: `[B]` int32.
      done: `[B]` bool.
    """

    moved: chex.Array
    levels: chex.Array
    distance: chex.Array
    misses: chex.Array
    steps: chex.Array
    queries: chex.Array
    done: chex.Array


def fab(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float = jnp.inf,
    norm: str = "linf",
    targets: int = 0,
    steps: int = 100,
    restarts: int = 1,
    bias: float = 0.1,
    overshoot: float = 0.05,
    backward: float = 0.9,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """The fast adaptive boundary attack: along the boundary, ever nearer to the image.

    Croce and Hein (2020), "Minimally distorted adversarial examples", algorithm 1,
    without its final search, as AutoAttack has it. A step projects where it is and the
    image itself onto the nearest boundary of the linearised network, within 0..255, and
    goes to a mean of the two; where that is misclassified, a part of the way back.

    What is misclassified inside the ball is also judged as it would be returned. In a
    finite ball an image is done with its first success, near or far; with an infinite
    eps it takes all steps of all attempts, and the nearest success is returned.

    Args:
      logits_fn: this and what is not listed as for `fgsm`.
      key: `[B]`, one an image; needed for several restarts.
      eps: levels, a number or `[B]`, in `norm`.
      norm: "linf" or "l2", which distances are smallest.
      targets: how many classes are aimed at in turn, those of the largest logits of the
        image first, K - 1 at most; 0 aims at the nearest of all in every step, which
        costs K - 1 backward passes.
      steps: how many from each start. Each is a gradient, a query and, where rounding
        is to be judged, one more.
      restarts: how many starts for each target, the first from the image, others drawn
        from half the ball (or, if that is smaller, half as near as the nearest found).
      bias: largest weight of the projection of the image (the paper's alpha_max).
      overshoot: share by which projections are exceeded (the paper's eta - 1).
      backward: where to go back to: the share of the perturbation that is kept (beta).
      lanes: images at once; see `batched_while`.
      quantise: return whole levels. A perturbation is scaled up to a whole size before
        it is rounded, to the next one after each that rounding undid
        (`rounding.scale`).
      keep_failed: return the last misclassified image, brought into the ball, where
        that is taken for its label again.

    Returns:
      As for `fgsm`. Images that were not taken for their label come back as they are.

    Raises:
      ValueError: as for `fgsm`; unknown norm, negative targets, not at least one step
        or start, shares that are not 0 to 1, no keys for restarts.
    """
    network = functools.partial(logits_fn, variables)
    ball = norms.named(norm)
    options = FabOptions(targets, steps, restarts, bias, overshoot, backward)
    task = outcome.prepare(network, images, labels, eps, quantise)
    if restarts > 1:
        outcome.check_key(key, len(images))
    logits = network(task.images)
    found = search_boundary(
        network,
        ball,
        task,
        key,
        outcome.is_fooled(logits, task.labels),
        logits=logits,
        options=options,
        lanes=lanes,
        quantise=quantise,
    )
    task = dataclasses.replace(task, queries=task.queries + 1)  # the images themselves
    rest = {"quantise": quantise, "keep_failed": keep_failed}
    return outcome.conclude_search(network, task, found, size=ball.size, **rest)


def search_boundary(
    network: Network,
    ball: norms.Norm,
    task: Task,
    key: chex.PRNGKey | None,
    done: chex.Array,
    *,
    logits: chex.Array,
    options: FabOptions,
    lanes: int | None = None,
    quantise: bool = True,
) -> Found:
    """`fab` for those of a batch that need it.

    Args:
      network: see `outcome.Network`.
      ball: the norm.
      task: what the attack was given.
      key: `[B]`; None will do without restarts.
      done: `[B]` bool, images that cost nothing and come back as they are.
      logits: `[B, K]`, of the images; they tell in which order classes are aimed at.
      options: see `FabOptions`.
      lanes: images at once; see `batched_while`.
      quantise: whole levels are to come back.
    """
    classes = logits.shape[-1] - 1
    rivals = outcome.rivals(logits, task.labels, options.targets or classes)
    none = jnp.zeros_like(task.queries)
    first = _Walk(
        moved=task.images,
        levels=task.images,
        distance=jnp.full_like(task.radius, jnp.inf),
        misses=none,
        steps=none,
        queries=none,
        done=done,
    )
    step = functools.partial(_step, network, ball, options, quantise)
    keys = none if key is None else key
    last = batched_while(step, (task, rivals, keys), first, lanes=lanes)
    levels = to_levels(ball, task, last.levels, quantise).astype(last.levels.dtype)
    return Found(levels, jnp.isfinite(last.distance), last.steps, last.queries)


def _step(
    network: Network,
    ball: norms.Norm,
    options: FabOptions,
    quantise: bool,
    constants: tuple,
    walk: _Walk,
) -> _Walk:
    """To the boundary and, from behind it, a part of the way back."""
    task, rivals, key = constants
    attempts = options.restarts
    if options.targets:
        attempts *= rivals.shape[1]
        turn = walk.steps // (options.steps * options.restarts)
        rivals = jnp.take_along_axis(rivals, turn[:, None], 1)
    moved = _toward(network, ball, options, task, walk.moved, rivals)
    fooled = outcome.is_surely_fooled(network(moved), task.labels)
    near = fooled & (ball.size(moved - task.images) <= task.radius)
    levels = ball.project(task.images, moved, task.radius)
    hit = near
    if quantise:
        levels, hit = _round(network, ball, task, levels, near, walk.misses)
    distance = jnp.where(hit, ball.size(levels - task.images), jnp.inf)
    kept = jnp.where(jnp.isinf(walk.distance), fooled, distance < walk.distance)
    nearest = jnp.minimum(distance, walk.distance)
    back = jnp.where(fooled, options.backward, 1).astype(moved.dtype)
    moved = task.images + norms.each(back) * (moved - task.images)
    steps = walk.steps + 1
    start = _start(ball, options, task, key, steps // options.steps, nearest)
    over = steps % options.steps == 0
    return _Walk(
        moved=jnp.where(norms.each(over), start, moved),
        levels=jnp.where(norms.each(kept), levels, walk.levels),
        distance=nearest,
        misses=jnp.where(hit, 0, walk.misses + near.astype(jnp.int32)),
        steps=steps,
        queries=walk.queries + 2 + (near.astype(jnp.int32) if quantise else 0),
        done=(hit & jnp.isfinite(task.radius)) | (steps >= options.steps * attempts),
    )


def _round(
    network: Network,
    ball: norms.Norm,
    task: Task,
    levels: chex.Array,
    near: chex.Array,
    misses: chex.Array,
) -> tuple[chex.Array, chex.Array]:
    """Whole levels for those that are `near`, and which of them fool, `[B]`."""

    def rounded() -> tuple[chex.Array, chex.Array]:
        change = levels - task.images
        larger = rounding.scale(ball, change, 1 + misses % rounding.TRIES)
        wide = task.images + norms.each(larger) * change
        whole = ball.whole(task.images, wide, task.radius).astype(levels.dtype)
        fooled = outcome.is_surely_fooled(network(whole), task.labels)
        return jnp.where(norms.each(near), whole, levels), near & fooled

    # Seldom, where few images are near: then nothing is shown to the network.
    return jax.lax.cond(jnp.any(near), rounded, lambda: (levels, near))


def _toward(
    network: Network,
    ball: norms.Norm,
    options: FabOptions,
    task: Task,
    moved: chex.Array,
    rivals: chex.Array,
) -> chex.Array:
    """Levels behind the nearest boundary with one of `rivals` `[B, R]`, if it is flat.

    A mean of how `moved` and how the image get there, each as shortly as possible.
    """
    leads, slopes = gradients.leads(network, moved, task.labels, rivals)
    _, nearest = nearest_boundary(ball, leads, slopes)
    lane = jnp.arange(len(moved))
    lead, slope = leads[nearest, lane], slopes[nearest, lane]
    # The lead at the image, were it linear: differences keep the digits.
    there = lead - jnp.sum(slope * (moved - task.images), (1, 2, 3))
    starts = jnp.stack([moved, task.images])
    shifts = jax.vmap(functools.partial(raise_by, ball), (0, None, 0))(
        starts, slope, -jnp.stack([lead, there])
    )
    near, far = jnp.maximum(jax.vmap(ball.size)(shifts), _SHORT)
    share = norms.each(jnp.minimum(near / (near + far), options.bias))
    one, other = starts + (1 + options.overshoot) * shifts
    mean = norms.clip_levels((1 - share) * one + share * other)
    return jnp.where(jnp.isnan(mean), task.images, mean)


def raise_by(
    ball: norms.Norm, levels: chex.Array, slope: chex.Array, rise: chex.Array
) -> chex.Array:
    """The smallest change by which a linear function rises, exactly, within 0..255.

    Croce and Hein (2020) sort for it. Here each value that is free moves in proportion
    to the norm's direction, and those that arrive at 0 or 255 stay there; what is left
    for the others to do is a linear equation in how far they go. It is solved for all,
    then without those that it sends outside, until it sends none: Newton's method on a
    concave function, which ends.

    Args:
      ball: the norm that is smallest, L-infinity or L2.
      levels: `[B, H, W, C]`, within 0..255.
      slope: `[B, H, W, C]`, of the function.
      rise: `[B]`, by how much; where no change is enough, it is the one that does most.

    Returns:
      Changes `[B, H, W, C]`.
    """
    toward = slope * norms.each(jnp.sign(rise))
    room = jnp.where(toward > 0, pixels.LEVELS - 1 - levels, levels)
    pace, gain = jnp.abs(ball.direction(slope)), jnp.abs(slope)

    def farther(reach: chex.Array) -> chex.Array:
        free = room > norms.each(reach) * pace
        got = jnp.sum(jnp.where(free, 0, gain * room), (1, 2, 3))
        rate = jnp.sum(jnp.where(free, gain * pace, 0), (1, 2, 3))
        enough = (jnp.abs(rise) - got) / jnp.where(rate > 0, rate, 1)
        # Never back, so that an image does not wait for others in vain; and finite, so
        # that a value of no slope is not moved.
        return jnp.where(rate > 0, jnp.clip(enough, reach, 1e30), reach)

    def solve(carry: tuple) -> tuple:
        reach, _ = carry
        new = farther(reach)
        return new, jnp.any(new > reach)

    zero = jnp.zeros_like(rise)
    reach, _ = jax.lax.while_loop(
        lambda carry: carry[1], solve, (zero, jnp.any(rise != 0))
    )
    return jnp.sign(toward) * jnp.minimum(norms.each(reach) * pace, room)


def _start(
    ball: norms.Norm,
    options: FabOptions,
    task: Task,
    key: chex.PRNGKey | None,
    attempt: chex.Array,
    nearest: chex.Array,
) -> chex.Array:
    """Where an attempt begins: at the image, or in half the ball that counts."""
    if options.restarts == 1:
        return task.images
    widest = jnp.asarray(ball.widest(task.images), nearest.dtype)
    radius = jnp.minimum(jnp.minimum(nearest, task.radius), widest)
    drawn = ball.draw(fold(key, attempt), task.images, radius / 2)
    again = attempt % options.restarts > 0
    return jnp.where(norms.each(again), drawn, task.images)
