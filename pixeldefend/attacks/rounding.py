"""Whole levels for perturbations so small that plain rounding undoes them."""

import functools
from typing import Any

import chex
import jax.numpy as jnp
from flax import struct

from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.batched_while import batched_while
from pixeldefend.attacks.outcome import Info, LogitsFn, Network, Task

TRIES = 8


@struct.dataclass
class _Search:
    """One image's search: the levels to return, how many scales were tried."""

    levels: chex.Array
    tries: chex.Array
    done: chex.Array


def quantise_fooling(
    network: Network,
    task: Task,
    norm: norms.Norm,
    moved: chex.Array,
    *,
    lanes: int | None = None,
) -> tuple[chex.Array, chex.Array]:
    """Rounds to whole levels, without losing what was won by fractions of a level.

    An attack that looks for the smallest perturbation ends just behind the decision
    boundary, from where rounding leads back as often as not. So the perturbation is
    scaled up, little by little, until its rounded form is not taken for the label. To
    first order this is the best that whole levels can do: of all whole perturbations
    that raise a linear function by so much, those of least L2 length are the rounded
    multiples of its gradient, and those of least L-infinity size are whole multiples of
    its sign.

    Images whose label is still found before rounding are rounded to the nearest, so
    that rounding adds no success either.

    Args:
      network: see `outcome.Network`.
      task: what the attack was given; its images must be whole levels.
      norm: whose ball bounds the result.
      moved: floating levels `[B, H, W, C]`, inside the ball and within 0..255.
      lanes: images at once; see `batched_while`.

    Returns:
      Levels `[B, H, W, C]`, uint8, inside the ball; and queries `[B]`.
    """
    change = moved - task.images

    def step(constants: tuple, state: _Search) -> _Search:
        task, change = constants
        larger = norms.each(scale(norm, change, state.tries)) * change
        levels = norm.whole(task.images, task.images + larger, task.radius)
        logits = network(levels.astype(task.images.dtype))
        success = outcome.is_surely_fooled(logits, task.labels)
        tries = state.tries + 1
        levels = jnp.where(norms.each(success), levels, state.levels)
        return _Search(levels, tries, success | (tries >= TRIES))

    first = _Search(
        levels=norm.whole(task.images, moved, task.radius),
        tries=jnp.zeros_like(task.queries),
        done=~outcome.is_fooled(network(moved), task.labels),
    )
    last = batched_while(step, (task, change), first, lanes=lanes)
    return last.levels, last.tries + 1


def finish(
    network: Network,
    task: Task,
    moved: chex.Array,
    steps: chex.Array,
    queries: chex.Array,
    *,
    norm: norms.Norm,
    lanes: int | None,
    quantise: bool,
    keep_failed: bool,
) -> tuple[chex.Array, Info]:
    """The end of attacks for the smallest perturbation: cut, rounded and judged.

    `moved` are floating levels `[B, H, W, C]` that may lie outside the ball; the rest
    as for `outcome.conclude` and `quantise_fooling`.
    """
    levels = norm.project(task.images, moved, task.radius)
    if quantise:
        levels, more = quantise_fooling(network, task, norm, levels, lanes=lanes)
        queries += more
    return outcome.conclude(
        network, task, levels, steps, queries, size=norm.size, keep_failed=keep_failed
    )


def scale(norm: norms.Norm, change: chex.Array, tries: chex.Array) -> chex.Array:
    """`[B]`: by how much to scale `change`, 1 at try 0, in steps that double."""
    growth = 2.0 ** tries.astype(change.dtype)
    largest = norms.linf(change)
    safe = jnp.where(largest > 0, largest, 1)
    if norm.name == "linf":
        # Sizes that are whole: the next one, then 1, 3, 7.. more.
        size = jnp.ceil(largest - 1e-3) + growth / 2 - 1
        larger = size / safe
    else:
        # By 1, 3, 7.. %, from where the first value is not rounded to zero.
        larger = jnp.maximum(1, 0.50001 / safe) * (1 + 0.01 * (growth - 1))
    return jnp.where(tries > 0, larger, 1)


def cut(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array,
    found: chex.Array,
    *,
    eps: chex.Array | float,
    norm: str,
    lanes: int | None = None,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """Ends an attack for the smallest perturbation that was made without a ball.

    DeepFool and Carlini and Wagner's attacks look at eps only when they have finished.
    So one run with `eps=inf, quantise=False, keep_failed=True` serves every eps: cut
    from it, an image is the one that the attack would have returned.

    Args:
      logits_fn: as for the attack.
      variables: likewise.
      images: whole levels `[B, H, W, C]`, the clean ones.
      labels: integers `[B]`, those of the attack.
      found: floating levels `[B, H, W, C]`, what it returned.
      eps: levels, a number or `[B]`.
      norm: of the attack, "linf" or "l2".
      lanes: images at once; see `batched_while`.
      keep_failed: as for the attack.

    Returns:
      Whole levels, uint8, and what was done; `steps` and `queries` tell of the cut
      alone.

    Raises:
      ValueError: as for the attack, and an unknown norm.
    """
    network = functools.partial(logits_fn, variables)
    ball = norms.named(norm)
    task = outcome.prepare(network, images, labels, eps, True)
    none = jnp.zeros_like(task.queries)
    return finish(
        network,
        task,
        found.astype(task.images.dtype),
        none,
        none,
        norm=ball,
        lanes=lanes,
        quantise=True,
        keep_failed=keep_failed,
    )
