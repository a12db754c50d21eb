"""Square Attack: random squares, kept where they help. No gradients."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.ascent import limit_radius, to_levels
from pixeldefend.attacks.batched_while import batched_while
from pixeldefend.attacks.draws import fold
from pixeldefend.attacks.outcome import Found, Info, LogitsFn, Network, Task

# Behind which square, counted from 0, the share of the image that one covers is halved:
# AutoAttack's schedule.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@struct.dataclass
class _Search:
    """One image's search.

    Attributes:
      moved: `[B, H, W, C]`, the best levels so far, in the ball.
      margin: `[B]`, that they have; infinite before the first.
      shown: `[B]` int32, how many were shown to the network.
      success: `[B]` bool.
      done: `[B]` bool.
    """

    moved: chex.Array
    margin: chex.Array
    shown: chex.Array
    success: chex.Array
    done: chex.Array


def square(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float,
    norm: str = "linf",
    queries: int = 5000,
    initial_share: float = 0.8,
    restarts: int = 1,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """Square Attack: squares at random places of a random sign, kept where they help.

    Andriushchenko et al. (2020), algorithms 1 to 3; as in AutoAttack the margin is what
    sinks, and the schedule is that of 10 000 squares however many there are. Nothing is
    asked of the network but its logits, and an image stops at its first success, which
    is judged on the levels that are returned.

    Args:
      logits_fn: this and what is not listed as for `fgsm`.
      key: `[B]`, one an image.
      eps: levels, a number or `[B]`, in `norm`.
      norm: "linf" or "l2".
      queries: how many squares are tried from each start.
      initial_share: of the image, what the first squares cover.
      restarts: how many starts at most, each from other stripes or tiles.
      lanes: images at once; see `batched_while`.
      quantise: return whole levels, which are also those that the network is shown.
      keep_failed: return the best of the last start where none fooled.

    Returns:
      As for `fgsm`; a step is a perturbation that was tried. Images that were not taken
      for their label come back as they are.

    Raises:
      ValueError: as for `fgsm`; unknown norm, no keys, not at least one query or start,
        a share that is not above 0 and at most 1.
    """
    network = functools.partial(logits_fn, variables)
    ball = norms.named(norm)
    outcome.check_at_least("queries", queries, 1)
    outcome.check_at_least("restarts", restarts, 1)
    if not 0 < initial_share <= 1:
        raise ValueError(
            f"initial_share must be above 0 and at most 1: {initial_share}"
        )
    task = outcome.prepare(network, images, labels, eps, quantise)
    outcome.check_key(key, len(images))
    found = search_squares(
        network,
        ball,
        task,
        key,
        outcome.is_fooled(network(task.images), task.labels),
        queries=queries,
        initial_share=initial_share,
        restarts=restarts,
        lanes=lanes,
        quantise=quantise,
    )
    task = dataclasses.replace(task, queries=task.queries + 1)  # the images themselves
    rest = {"quantise": quantise, "keep_failed": keep_failed}
    return outcome.conclude_search(network, task, found, size=ball.size, **rest)


def search_squares(
    network: Network,
    ball: norms.Norm,
    task: Task,
    key: chex.PRNGKey,
    done: chex.Array,
    *,
    queries: int = 5000,
    initial_share: float = 0.8,
    restarts: int = 1,
    lanes: int | None = None,
    quantise: bool = True,
) -> Found:
    """`square` for those of a batch that need it.

    Args:
      network: see `outcome.Network`.
      ball: the norm.
      task: what the attack was given.
      key: `[B]`.
      done: `[B]` bool, images that cost nothing and come back as they are.
      queries: this and the rest as for `square`.
      initial_share: likewise.
      restarts: likewise.
      lanes: likewise.
      quantise: likewise.
    """
    task = limit_radius(ball, task)
    shape = task.images.shape[1:3]
    propose = _propose_linf if ball.name == "linf" else _propose_l2
    propose = functools.partial(propose, square_sizes(shape, initial_share, ball.name))

    def step(constants: tuple, state: _Search) -> _Search:
        task, key = constants
        turn = state.shown % (queries + 1)
        keys = fold(key, state.shown)
        moved = jax.vmap(propose)(keys, turn, task.images, state.moved, task.radius)
        shown = to_levels(ball, task, moved, quantise).astype(moved.dtype)
        logits = network(shown)
        margin = outcome.margin(logits, task.labels).astype(moved.dtype)
        success = outcome.is_surely_fooled(logits, task.labels)
        better = success | (turn == 0) | (margin < state.margin)
        count = state.shown + 1
        return _Search(
            moved=jnp.where(norms.each(better), moved, state.moved),
            margin=jnp.where(better, margin, state.margin),
            shown=count,
            success=success,
            done=success | (count >= restarts * (queries + 1)),
        )

    first = _Search(
        moved=task.images,
        margin=jnp.full_like(task.radius, jnp.inf),
        shown=jnp.zeros_like(task.queries),
        success=jnp.zeros_like(done),
        done=done,
    )
    last = batched_while(step, (task, key), first, lanes=lanes)
    levels = to_levels(ball, task, last.moved, quantise).astype(last.moved.dtype)
    return Found(levels, last.success, last.shown, last.shown)


def square_sizes(
    shape: tuple[int, int], initial_share: float, norm: str
) -> tuple[int, ...]:
    """The sides of the squares in pixels, before and after each of `HALVED_AFTER`.

    Args:
      shape: height and width.
      initial_share: of the image, that the first square covers.
      norm: "linf", or "l2", whose squares have a middle: they are odd, from 3.
    """
    sizes = []
    for halvings in range(len(HALVED_AFTER) + 1):
        size = round((initial_share / 2**halvings * shape[0] * shape[1]) ** 0.5)
        size = max(size, 1) if norm == "linf" else max(size, 3) // 2 * 2 + 1
        sizes.append(min(size, *shape))
    return tuple(sizes)


def bump(size: int) -> np.ndarray:
    """A positive and a negative heap beside each other, `[size, size]`, of L2 norm one.

    Section 3.3 of the paper: each is a sum of centred rectangles, the n-th from outside
    of height 1 / n^2 counted from inside, so that most of it is in the middle.
    """

    def heap(rows: int) -> np.ndarray:
        steps = max(rows // 2, size // 2) + 1
        heights = np.cumsum(1.0 / np.arange(steps, 0, -1) ** 2)[::-1]
        away_rows = np.abs(np.arange(rows) - rows // 2)
        away_columns = np.abs(np.arange(size) - size // 2)
        found = heights[np.maximum(away_rows[:, None], away_columns[None])]
        return found / np.maximum(np.linalg.norm(found), 1e-30)

    both = np.concatenate([heap(size // 2), -heap(size - size // 2)])
    return both / np.linalg.norm(both)


def _stage(turn: chex.Array) -> chex.Array:
    """How often the share is halved by now; turn 0 has no square, 1 the first."""
    return jnp.sum(turn - 1 > jnp.asarray(HALVED_AFTER, turn.dtype))


def _place(
    key: chex.PRNGKey, size: chex.Array, shape: tuple[int, int]
) -> tuple[chex.Array, chex.Array]:
    """Rows `[H]` and columns `[W]`, counted from a square's corner, drawn uniformly."""
    most = jnp.asarray(shape, jnp.int32) + 1 - size
    corner = jax.random.randint(key, (2,), 0, most, jnp.int32)
    rows, columns = (jnp.arange(shape[i], dtype=jnp.int32) - corner[i] for i in (0, 1))
    return rows, columns


def _inside(rows: chex.Array, columns: chex.Array, size: chex.Array) -> chex.Array:
    """Bool `[H, W, 1]`: which pixels are in the square."""
    down, right = ((a >= 0) & (a < size) for a in (rows, columns))
    return (down[:, None] & right[None, :])[..., None]


def _signs(key: chex.PRNGKey, shape: tuple[int, ...], dtype: Any) -> chex.Array:
    # Bits, whose draws are the same in single and double precision.
    return (2 * (jax.random.bits(key, shape, jnp.uint8) & 1).astype(dtype)) - 1


def _propose_linf(
    sizes: tuple[int, ...],
    key: chex.PRNGKey,
    turn: chex.Array,
    image: chex.Array,
    best: chex.Array,
    radius: chex.Array,
) -> chex.Array:
    """Levels `[H, W, C]`: stripes at turn 0, then a square of another colour in `best`.

    Every value ends at the end of the ball, or of 0..255.
    """
    height, width, channels = image.shape
    place, stripes, colour = jax.random.split(key, 3)
    size = jnp.asarray(sizes, jnp.int32)[_stage(turn)]
    inside = _inside(*_place(place, size, (height, width)), size)
    striped = _signs(stripes, (1, width, channels), image.dtype)
    coloured = _signs(colour, (1, 1, channels), image.dtype)
    sign = jnp.where(turn == 0, striped, coloured)
    moved = norms.clip_levels(image + radius * sign)
    return jnp.where((turn == 0) | inside, moved, best)


def _propose_l2(
    sizes: tuple[int, ...],
    key: chex.PRNGKey,
    turn: chex.Array,
    image: chex.Array,
    best: chex.Array,
    radius: chex.Array,
) -> chex.Array:
    """Levels `[H, W, C]`: tiles of bumps at turn 0, then one bump more in `best`."""
    moved = _moved_bump(sizes, key, turn, best - image, radius)
    change = jnp.where(turn == 0, _tiles(key, image), moved)
    length = _length(change, (0, 1, 2))
    return norms.clip_levels(image + radius * _divided(change, length))


def _length(change: chex.Array, axes: tuple[int, ...]) -> chex.Array:
    return jnp.sqrt(jnp.sum(change**2, axes, keepdims=True))


def _divided(change: chex.Array, length: chex.Array) -> chex.Array:
    return change / jnp.where(length > 0, length, 1)


def _tiles(key: chex.PRNGKey, image: chex.Array) -> chex.Array:
    """`[H, W, C]`: bumps in five rows and columns, each of its own turn and signs."""
    height, width, channels = image.shape
    side = max(min(height, width) // 5, 1)
    down, right = height // side, width // side
    turned, signed = jax.random.split(key)
    upright = _signs(turned, (down, 1, right, 1, 1), image.dtype) > 0
    one = jnp.asarray(bump(side), image.dtype)
    tiles = jnp.where(
        upright, one[None, :, None, :, None], one.T[None, :, None, :, None]
    )
    tiles = tiles * _signs(signed, (down, 1, right, 1, channels), image.dtype)
    covered = tiles.reshape(down * side, right * side, channels)
    margins = ((n - m) // 2 for n, m in zip(image.shape, covered.shape, strict=True))
    place = tuple(jnp.int32(margin) for margin in margins)
    return jax.lax.dynamic_update_slice(jnp.zeros_like(image), covered, place)


def _moved_bump(
    sizes: tuple[int, ...],
    key: chex.PRNGKey,
    turn: chex.Array,
    change: chex.Array,
    radius: chex.Array,
) -> chex.Array:
    """`change` `[H, W, C]` with a bump more in one square, and nothing in another.

    Algorithm 3 of the paper: in each channel the bump has what the two squares had, and
    its part of what the ball has left.
    """
    height, width, channels = change.shape
    to, fro, turned, signed = jax.random.split(key, 4)
    stage = _stage(turn)
    size = jnp.asarray(sizes, jnp.int32)[stage]
    places = [_place(key, size, (height, width)) for key in (to, fro)]
    receives, gives = (_inside(*place, size) for place in places)
    bumps = np.zeros((len(sizes), max(sizes), max(sizes)))
    for i, side in enumerate(sizes):
        bumps[i, :side, :side] = bump(side)
    one = jnp.asarray(bumps, change.dtype)[stage]
    one = jnp.where(_signs(turned, (1, 1), change.dtype) > 0, one, one.T)
    rows, columns = (jnp.clip(place, 0, max(sizes) - 1) for place in places[0])
    one = one[rows][:, columns][..., None]
    there = jnp.where(receives, change, 0)
    signs = _signs(signed, (1, 1, channels), change.dtype)
    new = jnp.where(receives, signs * one, 0) + _divided(there, _length(there, (0, 1)))
    both = _length(jnp.where(receives | gives, change, 0), (0, 1))
    left = jnp.maximum(radius**2 - jnp.sum(change**2), 0) / channels
    new = _divided(new, _length(new, (0, 1))) * jnp.sqrt(left + both**2)
    return jnp.where(receives, new, jnp.where(gives, 0, change))
