"""Whole levels for perturbations so small that plain rounding undoes them."""

from typing import Any

import chex
import jax.numpy as jnp
from flax import struct

from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.lanes import until_done
from pixeldefend.attacks.outcome import Info, LogitsFn, Task

_TRIES = 8


@struct.dataclass
class _Search:
    """One image's search: the levels to return, how many scales were tried."""

    found: chex.Array
    tries: chex.Array
    done: chex.Array


def rounded(
    logits_fn: LogitsFn,
    variables: Any,
    given: Task,
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
      logits_fn: see `LogitsFn`.
      variables: for `logits_fn`.
      given: what the attack was given; its images must be whole levels.
      norm: whose ball bounds the result.
      moved: floating levels `[B, H, W, C]`, inside the ball and within 0..255.
      lanes: images at once; see `lanes.until_done`.

    Returns:
      Levels `[B, H, W, C]`, uint8, inside the ball; and queries `[B]`.
    """
    change = moved - given.images

    def step(rows: tuple, state: _Search) -> _Search:
        given, change = rows
        larger = norms.each(_scale(norm, change, state.tries)) * change
        levels = norm.whole(given.images, given.images + larger, given.radius)
        logits = logits_fn(variables, levels.astype(given.images.dtype))
        success = outcome.surely_fooled(logits, given.labels)
        tries = state.tries + 1
        found = jnp.where(norms.each(success), levels, state.found)
        return _Search(found, tries, success | (tries >= _TRIES))

    first = _Search(
        found=norm.whole(given.images, moved, given.radius),
        tries=jnp.zeros_like(given.queries),
        done=~outcome.fooled(logits_fn(variables, moved), given.labels),
    )
    last = until_done(step, (given, change), first, lanes=lanes)
    return last.found, last.tries + 1


def ended(
    logits_fn: LogitsFn,
    variables: Any,
    given: Task,
    found: chex.Array,
    steps: chex.Array,
    queries: chex.Array,
    *,
    norm: norms.Norm,
    lanes: int | None,
    quantise: bool,
    keep_failed: bool,
) -> tuple[chex.Array, Info]:
    """The end of attacks for the smallest perturbation: cut, rounded and judged.

    Args:
      logits_fn: see `LogitsFn`.
      variables: for `logits_fn`.
      given: what the attack was given.
      found: floating levels `[B, H, W, C]`, to be cut to the ball.
      steps: `[B]`, for `Info`.
      queries: `[B]`, spent so far beyond those of `given`.
      norm: of the ball.
      lanes: images at once; see `lanes.until_done`.
      quantise: whether to round.
      keep_failed: see `outcome.concluded`.
    """
    found = norm.project(given.images, found, given.radius)
    if quantise:
        found, more = rounded(logits_fn, variables, given, norm, found, lanes=lanes)
        queries += more
    return outcome.concluded(
        logits_fn,
        variables,
        given,
        found,
        steps,
        queries,
        size=norm.size,
        keep_failed=keep_failed,
    )


def _scale(norm: norms.Norm, change: chex.Array, tries: chex.Array) -> chex.Array:
    """`[B]`: by how much to scale `change`, 1 at first, in steps that double."""
    growth = 2.0 ** tries.astype(change.dtype)
    largest = norms.linf(change)
    safe = jnp.where(largest > 0, largest, 1)
    if norm.name == "linf":
        # Sizes that are whole: the next one, then 1, 3, 7.. more.
        size = jnp.ceil(largest - 1e-3) + growth / 2 - 1
        scale = size / safe
    else:
        # By 1, 3, 7.. %, from where the first value is not rounded to zero.
        scale = jnp.maximum(1, 0.50001 / safe) * (1 + 0.01 * (growth - 1))
    return jnp.where(tries > 0, scale, 1)


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
      lanes: images at once; see `lanes.until_done`.
      keep_failed: as for the attack.

    Returns:
      Whole levels, uint8, and what was done; `steps` and `queries` tell of the cut
      alone.

    Raises:
      ValueError: as for the attack, and an unknown norm.
    """
    ball = norms.named(norm)
    given = outcome.task(logits_fn, variables, images, labels, eps, True)
    none = jnp.zeros_like(given.queries)
    return ended(
        logits_fn,
        variables,
        given,
        found.astype(given.images.dtype),
        none,
        none,
        norm=ball,
        lanes=lanes,
        quantise=True,
        keep_failed=keep_failed,
    )
