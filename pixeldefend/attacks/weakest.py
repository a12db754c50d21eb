"""The smallest strength of a corruption, from 0 to 1, that fools a classifier.

Bisection would need ten images, but presumes that whatever is stronger fools as well,
which does not hold for blur. Trying a thousand strengths in turn presumes nothing, as
foolbox 1 and 2 did, and is dear. Here a coarse grid is tried from its weak end, a few
strengths in one call of the network, and the interval below the first that fools is
tried again on a grid as fine: an early success is missed only where it is narrower than
a coarse interval. `grid=1000, refinements=0` is the exhaustive search.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.batched_while import batched_while
from pixeldefend.attacks.outcome import Info, Network, Task

# `corrupt(images [B, H, W, C], keys [B] or None, attempt [B], strength [B])`, levels.
Corrupt = Callable[[chex.Array, Any, chex.Array, chex.Array], chex.Array]


@dataclasses.dataclass(frozen=True)
class Strengths:
    """Which strengths are tried.

    Attributes:
      grid: how many strengths divide an interval.
      refinements: how often the interval below the weakest that fools is divided again.
      at_once: strengths of an image in one call of the network.
      quantise: judge, and return, whole levels.
      repetitions: draws of a random corruption, each searched by itself.
    """

    grid: int
    refinements: int
    at_once: int
    quantise: bool
    repetitions: int = 1

    def __post_init__(self) -> None:
        """Checks the numbers; raises ValueError naming the one that is wrong."""
        least = {"grid": 1, "refinements": 0, "at_once": 1, "repetitions": 1}
        for name, smallest in least.items():
            outcome.check_at_least(name, getattr(self, name), smallest)


@struct.dataclass
class _Search:
    """One image's search.

    Attributes:
      image: levels `[B, H, W, C]`: the nearest that fools, or else the last within eps.
      distance: `[B]`, of the nearest that fools; infinite where none does yet.
      low: `[B]`, the lower end of the interval that is divided, and
      width: `[B]`, its width.
      place: `[B]`, how much of its grid is behind.
      refined: `[B]`, how often the interval was narrowed.
      attempt: `[B]`, how many draws are behind.
      tried: `[B]`, how many corrupted images were shown to the network.
      done: `[B]`, whether the search is over.
    """

    image: chex.Array
    distance: chex.Array
    low: chex.Array
    width: chex.Array
    place: chex.Array
    refined: chex.Array
    attempt: chex.Array
    tried: chex.Array
    done: chex.Array


def weakest(
    corrupt: Corrupt,
    network: Network,
    task: Task,
    key: chex.PRNGKey | None,
    search: Strengths,
    lanes: int | None,
    keep_failed: bool,
) -> tuple[chex.Array, Info]:
    """Corrupts each image by the smallest strength that fools.

    Args:
      corrupt: see `Corrupt`; distances must grow with the strength.
      network: see `outcome.Network`.
      task: what the attack was given; its radius is L2, levels.
      key: `[B]` for random corruptions, or None.
      search: which strengths.
      lanes: images at once; see `batched_while`.
      keep_failed: see `outcome.conclude`.
    """

    def step(constants: tuple, state: _Search) -> _Search:
        task, keys = constants
        place = state.place[:, None] + jnp.arange(search.at_once, dtype=jnp.int32)[None]
        shown = _corruptions(corrupt, task, keys, state, search, place)
        logits = network(shown.reshape(-1, *shown.shape[2:]))
        logits = logits.reshape(*place.shape, -1)
        fools = outcome.is_surely_fooled(logits, task.labels[:, None])
        moved = shown - task.images[:, None]
        distance = jax.vmap(norms.l2, 1, 1)(moved)
        counts = place < search.grid
        near = counts & (distance <= task.radius[:, None])
        near &= distance < state.distance[:, None]
        state = dataclasses.replace(
            state, tried=state.tried + jnp.sum(counts, 1, jnp.int32)
        )
        return _judge(state, search, shown, distance, near, counts & fools)

    clean = network(task.images)
    first = _init(task, outcome.is_fooled(clean, task.labels))
    last = batched_while(step, (task, key), first, lanes=lanes)
    return outcome.conclude(
        network,
        task,
        last.image.astype(jnp.uint8) if search.quantise else last.image,
        last.tried,
        last.tried + 1,
        size=norms.l2,
        keep_failed=keep_failed,
    )


def _init(task: Task, done: chex.Array) -> _Search:
    none = jnp.zeros_like(task.queries)
    low = jnp.zeros_like(task.radius)
    return _Search(
        image=task.images,
        distance=jnp.full_like(low, jnp.inf),
        low=low,
        width=jnp.ones_like(low),
        place=none,
        refined=none,
        attempt=none,
        tried=none,
        done=done,
    )


def _corruptions(
    corrupt: Corrupt,
    task: Task,
    keys: chex.PRNGKey | None,
    state: _Search,
    search: Strengths,
    place: chex.Array,
) -> chex.Array:
    """Levels `[L, S, H, W, C]`: each image with the strengths at `place [L, S]`."""
    share = (place + 1).astype(state.low.dtype) / search.grid
    strength = state.low[:, None] + state.width[:, None] * share

    def one(strength: chex.Array) -> chex.Array:
        images = corrupt(task.images, keys, state.attempt, strength)
        images = norms.clip_levels(images)
        return jnp.round(images) if search.quantise else images

    return jax.vmap(one, 1, 1)(jnp.minimum(strength, 1))


def _judge(
    state: _Search,
    search: Strengths,
    shown: chex.Array,
    distance: chex.Array,
    near: chex.Array,
    fools: chex.Array,
) -> _Search:
    """The search after some strengths; all but `shown` are `[L, S]`.

    `near`: which are within eps and nearer than what fooled before.
    """
    first = jnp.argmax(fools, 1).astype(jnp.int32)
    close = jnp.take_along_axis(fools & near, first[:, None], 1)[:, 0]
    hope = jnp.any(near, 1)
    last = search.at_once - 1 - jnp.argmax(near[:, ::-1], 1).astype(jnp.int32)
    chosen = jnp.where(close, first, last)[:, None]
    take = close | (hope & jnp.isinf(state.distance))
    image = jnp.take_along_axis(shown, chosen[..., None, None, None], 1)[:, 0]
    nearest = jnp.take_along_axis(distance, chosen, 1)[:, 0]
    state = dataclasses.replace(
        state,
        image=jnp.where(norms.each(take), image, state.image),
        distance=jnp.where(close, nearest, state.distance),
    )
    return _move_on(state, search, jnp.any(fools, 1), hope, state.place + first)


def _move_on(
    state: _Search,
    search: Strengths,
    hit: chex.Array,
    hope: chex.Array,
    hit_at: chex.Array,
) -> _Search:
    """To a finer grid after a hit, along this one, or to the next draw.

    `hit_at [L]` is where on the grid the hit lies; though it may be too far itself,
    what lies below it may not. Distances grow with the strength, so that where none of
    several strengths was near enough, no stronger one is.
    """
    finer = hit & (state.refined < search.refinements)
    behind = state.place + search.at_once
    over = jnp.where(hit, ~finer, (behind >= search.grid) | ~hope)
    share = hit_at.astype(state.low.dtype) / search.grid
    low = jnp.where(finer, state.low + state.width * share, state.low)
    width = jnp.where(finer, state.width / search.grid, state.width)
    attempt = state.attempt + over.astype(jnp.int32)
    return dataclasses.replace(
        state,
        low=jnp.where(over, 0, low),
        width=jnp.where(over, 1, width),
        place=jnp.where(over | finer, 0, behind),
        refined=jnp.where(over, 0, state.refined + finer.astype(jnp.int32)),
        attempt=attempt,
        done=attempt >= search.repetitions,
    )
