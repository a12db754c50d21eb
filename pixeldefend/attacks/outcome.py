"""What attacks begin with and what they hand back, the same for all of them."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pixeldefend import pixels

# `logits_fn(variables, images) -> [B, K]`, of floating levels `[B, H, W, C]`.
LogitsFn = Callable[[Any, chex.Array], chex.Array]

# The same with its variables bound, as attacks have it inside.
Network = Callable[[chex.Array], chex.Array]


@struct.dataclass
class Info:
    """What an attack did to each image.

    Attributes:
      success: `[B]` bool, whether the returned image is not taken for its label.
      distance: `[B]` from the given to the returned image in the attack's norm: levels
        for L-infinity and L2; the number of values that differ for L0.
      steps: `[B]` int32, how often the image was moved.
      queries: `[B]` int32, how often the network was shown the image or a variant of
        it; gradients taken there count with it as one.
    """

    success: chex.Array
    distance: chex.Array
    steps: chex.Array
    queries: chex.Array


@struct.dataclass
class Task:
    """What an attack is given, made ready for arithmetic.

    Attributes:
      images: floating levels `[B, H, W, C]`, at least float32.
      labels: int32 `[B]`, the ones to get away from.
      radius: eps as `[B]`, of the type of `images`.
      queries: `[B]` int32, spent so far.
    """

    images: chex.Array
    labels: chex.Array
    radius: chex.Array
    queries: chex.Array


@struct.dataclass
class Found:
    """What a search of several that share their images has found.

    Attributes:
      levels: `[B, H, W, C]` floating; whole levels where whole ones come back.
      success: `[B]` bool: the network, shown `levels`, is surely fooled.
      steps: `[B]` int32, how often the image was moved.
      queries: `[B]` int32, how often the network was shown a variant of it.
    """

    levels: chex.Array
    success: chex.Array
    steps: chex.Array
    queries: chex.Array


def prepare(
    network: Network,
    images: chex.Array,
    labels: chex.Array | None,
    eps: chex.Array | float,
    quantise: bool,
) -> Task:
    """Checks and prepares what an attack is given.

    Args:
      network: see `Network`.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      labels: integers `[B]`, or None for the predicted ones, which tell nothing about
        the true ones.
      eps: levels, a number or `[B]`; may be infinite.
      quantise: whether whole levels are to come back.

    Raises:
      ValueError: no image, wrong shapes, fewer than two classes; also, where these are
        no tracers, negative eps, labels that the network does not know, and images that
        are not levels (whole ones, if whole ones are to come back).
      TypeError: images that are no array of numbers, or an eps that is no number.
    """
    pixels.check_images(images)
    pixels.check_some(images)
    if quantise:
        check_whole(images)
    images = floating(jnp.asarray(images))
    count = len(images)
    shape = jax.eval_shape(network, images).shape
    if len(shape) != 2 or shape[0] != count:
        raise ValueError(
            f"logits_fn must return [B, K] for {count} images: {list(shape)}"
        )
    if shape[1] < 2:
        raise ValueError(
            "logits_fn must return at least two classes (for one logit z: [0, z]): "
            f"{list(shape)}"
        )
    check_eps(eps)
    try:
        check_eps(eps, whole=quantise)
    except ValueError as error:  # who makes eps ever smaller comes by here
        warnings.warn(str(error), stacklevel=3)
    eps = pixels.native(eps)
    if jnp.shape(eps) not in ((), (count,)):
        raise ValueError(
            f"eps must be a number or one for each of {count} images: "
            f"{list(jnp.shape(eps))}"
        )
    queries = jnp.zeros(count, jnp.int32)
    if labels is None:
        labels = jnp.argmax(network(images), -1)
        queries += 1
    elif np.shape(labels) != (count,):
        raise ValueError(
            f"labels must be [{count}], one for each image: {list(np.shape(labels))}"
        )
    else:
        check_labels(labels, shape[1])
    labels = jnp.asarray(pixels.native(labels))
    radius = jnp.broadcast_to(jnp.asarray(eps, images.dtype), (count,))
    return Task(images, labels.astype(jnp.int32), radius, queries)


def with_targets(
    network: Network, task: Task, targets: chex.Array | None
) -> tuple[Task, chex.Array, chex.Array]:
    """The class to aim each image at, and what the network says of the image.

    Args:
      network: see `Network`.
      task: what the attack was given.
      targets: integers `[B]`, or None for the runners-up: the classes that the network
        finds likeliest but for the labels.

    Returns:
      `task` with the query that was made, targets int32 `[B]`, logits `[B, K]`.

    Raises:
      ValueError: targets of a wrong shape, or, where they are no tracers, that the
        network does not know.
    """
    logits = network(task.images)
    task = dataclasses.replace(task, queries=task.queries + 1)
    if targets is None:
        return task, rivals(logits, task.labels, 1)[:, 0], logits
    if np.shape(targets) != task.labels.shape:
        raise ValueError(
            f"targets must be [{len(task.labels)}], one for each image: "
            f"{list(np.shape(targets))}"
        )
    check_labels(targets, logits.shape[1])
    return task, jnp.asarray(pixels.native(targets)).astype(jnp.int32), logits


def rivals(logits: chex.Array, labels: chex.Array, count: int) -> chex.Array:
    """The classes but the labels, int32 `[B, R]`, those of the largest logits first.

    R is `count`, or K - 1 where there are no more.
    """
    classes = logits.shape[-1]
    own = jax.nn.one_hot(labels, classes, dtype=bool)
    others = jnp.where(own, -jnp.inf, logits)
    return jax.lax.top_k(others, min(count, classes - 1))[1].astype(jnp.int32)


def floating(images: chex.Array) -> chex.Array:
    """Levels as networks take them: floating ones, at least float32."""
    kept = jnp.issubdtype(images.dtype, jnp.floating)
    return images.astype(pixels.at_least_float32(images.dtype if kept else jnp.float32))


def predicted(logits_fn: LogitsFn, variables: Any, images: chex.Array) -> chex.Array:
    """The classes `[B]` that a network finds in levels `[B, H, W, C]` of any type."""
    return jnp.argmax(logits_fn(variables, floating(images)), -1)


def check_whole(images: chex.Array) -> None:
    """Raises ValueError for levels that are not whole; tracers pass."""
    traced = isinstance(images, jax.core.Tracer)
    if traced or not jnp.issubdtype(images.dtype, jnp.floating):
        return
    levels = np.asarray(images)
    if np.any(levels != np.round(levels)):
        raise ValueError("images must be whole levels 0 to 255, or quantise False")


def check_eps(eps: chex.Array | float, name: str = "eps", whole: bool = False) -> None:
    """Checks an eps; tracers pass.

    Args:
      eps: levels.
      name: for messages.
      whole: whether whole levels are to come back, as less than one changes none.

    Raises:
      TypeError: not made of numbers.
      ValueError: negative, or NaN; above 0 and below 1 where `whole`.
    """
    if isinstance(eps, jax.core.Tracer):
        return
    values = np.asarray(eps)
    if not jnp.issubdtype(values.dtype, jnp.number):
        raise TypeError(f"{name} must be a number of levels: {eps!r}")
    if not np.all(values >= 0):
        raise ValueError(f"{name} must be a number and not negative: {eps}")
    if whole and np.any((values > 0) & (values < 1)):
        raise ValueError(
            f"{name} {eps} is less than one level of 0..255, which changes nothing in "
            "whole levels; for 8/255 give 8"
        )


def check_at_least(name: str, value: int, least: int) -> None:
    """Raises ValueError where `value` is no whole number of at least `least`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} must be at least {least}: {value}")


def check_share(name: str, value: float) -> None:
    """Raises ValueError where a share of eps is not above 0 and finite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0, a share of eps: {value}")


def check_key(key: chex.PRNGKey | None, count: int) -> None:
    """Raises ValueError where a random attack has no key for each of its images."""
    if key is None or jnp.shape(key)[:1] != (count,):
        given = "none" if key is None else list(jnp.shape(key))
        raise ValueError(
            f"a random attack needs keys [{count}], one for each image "
            f"(jax.random.split(key, {count})): {given}"
        )


def check_labels(labels: chex.Array, classes: int) -> None:
    """Raises ValueError for labels other than 0..classes-1; tracers pass."""
    if isinstance(labels, jax.core.Tracer):
        return
    values = np.asarray(labels)
    if values.dtype.kind not in "iu":  # spans of time are integers to numpy
        raise ValueError(f"labels must be integers: {values.dtype}")
    if values.size and not 0 <= values.min() <= values.max() < classes:
        wrong = values[(values < 0) | (values >= classes)][0]
        raise ValueError(f"labels must be 0 to {classes - 1}: {wrong}")


def check_logits(logits_fn: LogitsFn, variables: Any, images: chex.Array) -> None:
    """Shows the network some images, on the host, for what tracing cannot see.

    Warns of outputs that look like probabilities: their gradients are those of logits
    times nearly nothing, and attacks find less than there is.

    Raises:
      ValueError: logits that are not `[B, K]` or not finite.
    """
    logits = np.asarray(logits_fn(variables, floating(jnp.asarray(images))))
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(
            f"logits_fn must return [B, K] for {len(images)} images: "
            f"{list(logits.shape)}"
        )
    if not np.all(np.isfinite(logits)):
        bad = int(np.sum(~np.all(np.isfinite(logits), -1)))
        raise ValueError(f"logits of {bad} of {len(images)} images are not finite")
    sums = np.sum(logits, -1, dtype=np.float64)
    if np.all(logits >= 0) and np.all(np.abs(sums - 1) < 1e-3):
        warnings.warn(
            "what logits_fn returns lies in 0..1 and sums to one: attacks need logits, "
            "not probabilities (log-probabilities will do)",
            stacklevel=2,
        )


def is_fooled(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """`[B]` bool: finite logits `[B, K]` whose largest is not that of the label."""
    other = jnp.argmax(logits, -1).astype(labels.dtype) != labels
    return other & jnp.all(jnp.isfinite(logits), -1)


def margin(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """`[B]`: the label's logit less the largest other; negative where fooled."""
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    label = jnp.sum(jnp.where(own, logits, 0), -1)
    return label - jnp.max(jnp.where(own, -jnp.inf, logits), -1)


def is_surely_fooled(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """`[B]` bool: `is_fooled`, and not by a rounding error.

    Attacks that go no further than they must end next to a tie, which falls differently
    when the image is judged in a batch of another shape.
    """
    noise = 64 * jnp.finfo(logits.dtype).eps * jnp.max(jnp.abs(logits), -1)
    return margin(logits, labels) < -noise


def conclude(
    network: Network,
    task: Task,
    adversarial: chex.Array,
    steps: chex.Array | int,
    queries: chex.Array | int,
    *,
    size: Callable[[chex.Array], chex.Array],
    keep_failed: bool,
    passes: chex.Array | bool = True,
) -> tuple[chex.Array, Info]:
    """The end of every attack: judges the image that is returned.

    Args:
      network: see `Network`.
      task: what the attack was given.
      adversarial: levels `[B, H, W, C]`, whole ones as `uint8`, or floating.
      steps: for `Info`, a number or `[B]`.
      queries: likewise, beyond those of `task` and without the one made here.
      size: of a perturbation, `norms.linf`, `l2` or `l0`.
      keep_failed: return the attack's image also where it is taken for its label; False
        gives the clean one there.
      passes: `[B]`, what success takes besides a wrong label.

    Returns:
      Images like `adversarial`, and what was done to them.
    """
    count = (len(adversarial),)
    queries = task.queries + jnp.broadcast_to(jnp.int32(queries), count) + 1
    logits = network(adversarial.astype(task.images.dtype))
    success = is_fooled(logits, task.labels) & passes
    if not keep_failed:
        kept = success[:, None, None, None]
        adversarial = jnp.where(
            kept, adversarial, task.images.astype(adversarial.dtype)
        )
    moved = adversarial.astype(task.images.dtype) - task.images
    info = Info(
        success=success,
        distance=size(moved),
        steps=jnp.broadcast_to(jnp.int32(steps), count),
        queries=queries,
    )
    return adversarial, info


def conclude_search(
    network: Network,
    task: Task,
    found: Found,
    *,
    size: Callable[[chex.Array], chex.Array],
    quantise: bool,
    keep_failed: bool,
) -> tuple[chex.Array, Info]:
    """`conclude` of what a search has found, whole levels as `uint8`."""
    levels = found.levels.astype(jnp.uint8) if quantise else found.levels
    return conclude(
        network,
        task,
        levels,
        found.steps,
        found.queries,
        size=size,
        keep_failed=keep_failed,
    )
