"""Blur, less contrast, salt and pepper: corruptions, no stronger than they need be.

No gradients and no ball: one number, the strength from 0 to 1, is searched for the
smallest that fools the classifier. Bisection would need ten images, but presumes that
whatever is stronger fools as well, which does not hold for blur. Trying a thousand
strengths in turn presumes nothing, as foolbox 1 and 2 did, and is dear. Here a coarse
grid is tried from its weak end, a few strengths in one call of the network, and the
interval below the first that fools is tried again on a grid as fine: an early success
is missed only where it is narrower than a coarse interval. `grid=1000, refinements=0`
is the exhaustive search.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.lanes import until_done
from pixeldefend.attacks.outcome import Info, LogitsFn, Task

MIDDLE = (pixels.LEVELS - 1) / 2

# `corrupt(images [B, H, W, C], keys [B] or None, attempt [B], strength [B])`.
_Corrupt = Callable[[chex.Array, Any, chex.Array, chex.Array], chex.Array]


def gaussian_blur(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float = jnp.inf,
    grid: int = 32,
    refinements: int = 1,
    at_once: int = 8,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """Blurs an image until it is misclassified.

    Norm: L2. The Gaussian's standard deviation is the strength times the longer side of
    the image, as in foolbox 1 and 2; see `blurred`.

    Args:
      logits_fn: `logits_fn(variables, images) -> [B, K]`, of floating levels.
      variables: for `logits_fn`, any pytree.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      labels: integers `[B]` to get away from; None for the predicted ones.
      key: not used.
      eps: levels, a number or `[B]`: an image farther than this is no success.
      grid: how many strengths divide an interval.
      refinements: how often the interval below the weakest strength that fools is
        divided again.
      at_once: strengths of an image in one call of the network.
      lanes: images in one call; see `lanes.until_done`.
      quantise: return whole levels, `uint8`, which are also what the search judges;
        False returns, and judges, floating ones.
      keep_failed: return the strongest corruption within eps where none fools; False
        returns the clean image there.

    Returns:
      Levels `[B, H, W, C]` and what was done; a step is a corrupted image that was
      tried. An image that is misclassified already is returned as it is.

    Raises:
      ValueError: wrong shapes, negative eps, labels out of range; less than one
        strength in the grid or at once, or less than no refinements.
    """
    del key
    longest = max(images.shape[1:3])

    def corrupt(
        images: chex.Array, keys: None, attempt: chex.Array, strength: chex.Array
    ) -> chex.Array:
        del keys, attempt
        return blurred(images, sigma=strength * longest)

    given = outcome.task(logits_fn, variables, images, labels, eps)
    search = _Strengths(grid, refinements, at_once, quantise)
    return _weakest(
        corrupt, logits_fn, variables, given, None, search, lanes, keep_failed
    )


def contrast_reduction(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float = jnp.inf,
    grid: int = 32,
    refinements: int = 1,
    at_once: int = 8,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """Mixes an image with grey until it is misclassified.

    Norm: L2. The strength is the share of the grey, 127.5, the middle of the range, as
    in foolbox 1 and 2. (The mean of the image would keep its brightness; with the
    middle, strength 1 is the same picture for all.) Arguments and result as for
    `gaussian_blur`.
    """
    del key

    def corrupt(
        images: chex.Array, keys: None, attempt: chex.Array, strength: chex.Array
    ) -> chex.Array:
        del keys, attempt
        return images + norms.each(strength) * (MIDDLE - images)

    given = outcome.task(logits_fn, variables, images, labels, eps)
    search = _Strengths(grid, refinements, at_once, quantise)
    return _weakest(
        corrupt, logits_fn, variables, given, None, search, lanes, keep_failed
    )


def salt_and_pepper(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float = jnp.inf,
    repetitions: int = 10,
    grid: int = 32,
    refinements: int = 1,
    at_once: int = 8,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """Turns random pixels black and white until an image is misclassified.

    Norm: L2. The strength is a pixel's probability to be turned, all its channels
    together, black or white alike, as in foolbox 1 and 2. There every strength has a
    draw of its own; here a repetition has one draw, and what is stronger contains what
    is weaker, so that "the weakest" means something. The nearest success of all
    repetitions is returned.

    Args:
      logits_fn: as for `gaussian_blur`.
      variables: for `logits_fn`.
      images: as for `gaussian_blur`.
      labels: as for `gaussian_blur`.
      key: `[B]`, one an image.
      eps: as for `gaussian_blur`.
      repetitions: how many draws are tried.
      grid: as for `gaussian_blur`.
      refinements: as for `gaussian_blur`.
      at_once: as for `gaussian_blur`.
      lanes: as for `gaussian_blur`.
      quantise: as for `gaussian_blur`.
      keep_failed: as for `gaussian_blur`.

    Returns:
      As `gaussian_blur`.

    Raises:
      ValueError: as for `gaussian_blur`; no keys; less than one repetition.
    """
    outcome.check_key(key, len(images))
    given = outcome.task(logits_fn, variables, images, labels, eps)
    search = _Strengths(grid, refinements, at_once, quantise, repetitions)
    return _weakest(
        _speckled, logits_fn, variables, given, key, search, lanes, keep_failed
    )


def blurred(images: chex.Array, *, sigma: chex.Array) -> chex.Array:
    """A Gaussian blur of height and width; channels stay apart.

    The image is mirrored at its edges, edge values twice, as often as the kernel
    reaches (scipy.ndimage's "reflect"), which keeps a constant image constant; and the
    kernel ends at four standard deviations, both as `scipy.ndimage.gaussian_filter` has
    it.

    Args:
      images: floating levels `[B, H, W, C]`.
      sigma: standard deviation in pixels, `[B]`, at most the longer side.

    Returns:
      Floating levels `[B, H, W, C]`.
    """
    height, width = images.shape[1:3]
    reach = 4 * max(height, width)
    rows = _mixing(height, sigma, reach)
    columns = _mixing(width, sigma, reach)
    # Half precision in the products would show in the levels.
    precision = jax.lax.Precision.HIGHEST
    images = jnp.einsum("bij,bjwc->biwc", rows, images, precision=precision)
    return jnp.einsum("bij,bhjc->bhic", columns, images, precision=precision)


def _mixing(size: int, sigma: chex.Array, reach: int) -> chex.Array:
    """`[B, size, size]`: how much of each place every place of an axis receives."""
    offsets = jnp.arange(-reach, reach + 1)
    away = offsets.astype(sigma.dtype)[None]
    sigma = sigma[:, None]
    floor = jnp.finfo(sigma.dtype).tiny ** 0.25  # a kernel of one, where sigma is 0
    weights = jnp.exp(-0.5 * (away / jnp.maximum(sigma, floor)) ** 2)
    weights = jnp.where(jnp.abs(away) <= jnp.floor(4 * sigma + 0.5), weights, 0)
    weights /= jnp.sum(weights, 1, keepdims=True)
    # Mirrored at both ends an axis repeats after twice its length, so the kernel can be
    # wound around that circle; on it a place lies at itself and at its mirror image.
    circle = jnp.zeros((len(sigma), 2 * size), sigma.dtype)
    circle = circle.at[:, offsets % (2 * size)].add(weights)
    here, there = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    mirrored = 2 * size - 1 - there
    return (
        circle[:, (there - here) % (2 * size)]
        + circle[:, (mirrored - here) % (2 * size)]
    )


def _speckled(
    images: chex.Array, keys: chex.PRNGKey, attempt: chex.Array, strength: chex.Array
) -> chex.Array:
    def draw(key: chex.PRNGKey, attempt: chex.Array) -> chex.Array:
        # Fixed type: the draws would differ under double precision.
        key = jax.random.fold_in(key, attempt)
        return jax.random.uniform(key, (*images.shape[1:3], 1), jnp.float32)

    draws = jax.vmap(draw)(keys, attempt).astype(images.dtype)
    half = norms.each(strength) / 2
    peppered = jnp.where(draws < half, 0, images)
    return jnp.where(draws >= 1 - half, pixels.LEVELS - 1, peppered)


@dataclasses.dataclass(frozen=True)
class _Strengths:
    """Which strengths are tried; see `gaussian_blur` and `salt_and_pepper`."""

    grid: int
    refinements: int
    at_once: int
    quantise: bool
    repetitions: int = 1

    def __post_init__(self):
        least = {"grid": 1, "refinements": 0, "at_once": 1, "repetitions": 1}
        for name, smallest in least.items():
            outcome.check_at_least(name, getattr(self, name), smallest)


@struct.dataclass
class _Search:
    """One image's search.

    Attributes:
      found: levels `[B, H, W, C]`: the nearest that fools, or else the last within eps.
      distance: `[B]`, of the nearest that fools; infinite where none does yet.
      low: `[B]`, the lower end of the interval that is divided, and
      width: `[B]`, its width.
      place: `[B]`, how much of its grid is behind.
      refined: `[B]`, how often the interval was narrowed.
      attempt: `[B]`, how many draws are behind.
      tried: `[B]`, how many corrupted images were shown to the network.
      done: `[B]`, whether the search is over.
    """

    found: chex.Array
    distance: chex.Array
    low: chex.Array
    width: chex.Array
    place: chex.Array
    refined: chex.Array
    attempt: chex.Array
    tried: chex.Array
    done: chex.Array


def _weakest(
    corrupt: _Corrupt,
    logits_fn: LogitsFn,
    variables: Any,
    given: Task,
    key: chex.PRNGKey | None,
    search: _Strengths,
    lanes: int | None,
    keep_failed: bool,
) -> tuple[chex.Array, Info]:
    """The smallest strength that fools, for each image."""

    def step(rows: tuple, state: _Search) -> _Search:
        given, keys = rows
        place = state.place[:, None] + jnp.arange(search.at_once, dtype=jnp.int32)[None]
        shown = _corrupted(corrupt, given, keys, state, search, place)
        logits = logits_fn(variables, shown.reshape(-1, *shown.shape[2:]))
        logits = logits.reshape(*place.shape, -1)
        fools = outcome.surely_fooled(logits, given.labels[:, None])
        moved = shown - given.images[:, None]
        distance = jax.vmap(norms.l2, 1, 1)(moved)
        counts = place < search.grid
        near = counts & (distance <= given.radius[:, None])
        near &= distance < state.distance[:, None]
        state = state.replace(tried=state.tried + jnp.sum(counts, 1, jnp.int32))
        return _judged(state, search, shown, distance, near, counts & fools)

    clean = logits_fn(variables, given.images)
    first = _first(given, outcome.fooled(clean, given.labels))
    last = until_done(step, (given, key), first, lanes=lanes)
    found = last.found.astype(jnp.uint8) if search.quantise else last.found
    return outcome.concluded(
        logits_fn,
        variables,
        given,
        found,
        last.tried,
        last.tried + 1,
        size=norms.l2,
        keep_failed=keep_failed,
    )


def _first(given: Task, done: chex.Array) -> _Search:
    none = jnp.zeros_like(given.queries)
    low = jnp.zeros_like(given.radius)
    return _Search(
        found=given.images,
        distance=jnp.full_like(low, jnp.inf),
        low=low,
        width=jnp.ones_like(low),
        place=none,
        refined=none,
        attempt=none,
        tried=none,
        done=done,
    )


def _corrupted(
    corrupt: _Corrupt,
    given: Task,
    keys: chex.PRNGKey | None,
    state: _Search,
    search: _Strengths,
    place: chex.Array,
) -> chex.Array:
    """Levels `[L, S, H, W, C]`: each image with the strengths at `place [L, S]`."""
    share = (place + 1).astype(state.low.dtype) / search.grid
    strength = state.low[:, None] + state.width[:, None] * share

    def one(strength: chex.Array) -> chex.Array:
        found = corrupt(given.images, keys, state.attempt, strength)
        found = norms.among_levels(found)
        return jnp.round(found) if search.quantise else found

    return jax.vmap(one, 1, 1)(jnp.minimum(strength, 1))


def _judged(
    state: _Search,
    search: _Strengths,
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
    state = state.replace(
        found=jnp.where(norms.each(take), image, state.found),
        distance=jnp.where(close, nearest, state.distance),
    )
    found = state.place + first
    return _moved_on(state, search, jnp.any(fools, 1), hope, found)


def _moved_on(
    state: _Search,
    search: _Strengths,
    hit: chex.Array,
    hope: chex.Array,
    found: chex.Array,
) -> _Search:
    """To a finer grid after a hit, along this one, or to the next draw.

    `found [L]` is where on the grid the hit lies; though it may be too far itself, what
    lies below it may not. Distances grow with the strength, so that where none of
    several strengths was near enough, no stronger one is.
    """
    finer = hit & (state.refined < search.refinements)
    behind = state.place + search.at_once
    over = jnp.where(hit, ~finer, (behind >= search.grid) | ~hope)
    share = found.astype(state.low.dtype) / search.grid
    low = jnp.where(finer, state.low + state.width * share, state.low)
    width = jnp.where(finer, state.width / search.grid, state.width)
    attempt = state.attempt + over.astype(jnp.int32)
    return state.replace(
        low=jnp.where(over, 0, low),
        width=jnp.where(over, 1, width),
        place=jnp.where(over | finer, 0, behind),
        refined=jnp.where(over, 0, state.refined + finer.astype(jnp.int32)),
        attempt=attempt,
        done=attempt >= search.repetitions,
    )
