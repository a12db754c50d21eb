"""Distances in levels, and the balls that attacks stay in.

A norm is a handful of functions of perturbations `[B, H, W, C]`, so that an attack is
written once for L-infinity and L2.
"""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from pixeldefend import pixels

_AXES = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class Norm:
    """What an attack needs to know of its norm; `radius` is `[B]`, in levels.

    Attributes:
      name: "linf" or "l2", as rows and configs have it.
      size: `size(moved) -> [B]`.
      dual: `dual(gradient) -> [B]`: how fast a linear loss rises along `direction`.
      direction: `direction(gradient) -> [B, H, W, C]`, of size one (zero where the
        gradient is), along which a linear loss rises fastest.
      project: `project(start, moved, radius)`: the nearest levels in the ball around
        `start` and within 0..255.
      widest: `widest(images) -> float`: no two images are farther apart.
      draw: `draw(keys, start, radius)`: levels drawn uniformly from the ball, then cut
        to 0..255; `keys` is `[B]`.
      whole: `whole(start, moved, radius)`: `uint8` levels near `moved` and inside the
        ball; `start` must be whole. Like `project` it takes what is no number for the
        value in `start`.
    """

    name: str
    size: Callable[[chex.Array], chex.Array]
    dual: Callable[[chex.Array], chex.Array]
    direction: Callable[[chex.Array], chex.Array]
    project: Callable[[chex.Array, chex.Array, chex.Array], chex.Array]
    widest: Callable[[chex.Array], float]
    draw: Callable[[chex.PRNGKey, chex.Array, chex.Array], chex.Array]
    whole: Callable[[chex.Array, chex.Array, chex.Array], chex.Array]


def each(values: chex.Array) -> chex.Array:
    """`[B]` as `[B, 1, 1, 1]`."""
    return values[:, None, None, None]


def clip_levels(moved: chex.Array) -> chex.Array:
    """Cut to 0..255."""
    return jnp.clip(moved, 0, pixels.LEVELS - 1)


def _replace_nan(start: chex.Array, moved: chex.Array) -> chex.Array:
    """`start` where `moved` is no number, as gradients that are none make it."""
    return jnp.where(jnp.isnan(moved), start, moved)


def _linf_project(
    start: chex.Array, moved: chex.Array, radius: chex.Array
) -> chex.Array:
    moved = _replace_nan(start, moved)
    return clip_levels(jnp.clip(moved, start - each(radius), start + each(radius)))


def _linf_draw(keys: chex.PRNGKey, start: chex.Array, radius: chex.Array) -> chex.Array:
    def noise(key: chex.PRNGKey) -> chex.Array:
        return jax.random.uniform(key, start.shape[1:], start.dtype, -1, 1)

    return clip_levels(start + each(radius) * jax.vmap(noise)(keys))


def _linf_whole(start: chex.Array, moved: chex.Array, radius: chex.Array) -> chex.Array:
    # Whole levels within the whole radius: rounding must not leave the ball.
    return _linf_project(start, jnp.round(moved), jnp.floor(radius)).astype(jnp.uint8)


def linf(moved: chex.Array) -> chex.Array:
    """`[B]`: the largest of the absolute values."""
    return jnp.max(jnp.abs(moved), _AXES)


def l1(moved: chex.Array) -> chex.Array:
    """`[B]`: the sum of the absolute values."""
    return jnp.sum(jnp.abs(moved), _AXES)


def l2(moved: chex.Array) -> chex.Array:
    """`[B]`: the root of the sum of squares."""
    return jnp.sqrt(jnp.sum(moved**2, _AXES))


def _l2_direction(gradient: chex.Array) -> chex.Array:
    # By its largest value first, so that tiny gradients do not vanish when squared.
    largest = each(jnp.max(jnp.abs(gradient), _AXES))
    gradient = gradient / jnp.where(largest > 0, largest, 1)
    size = each(l2(gradient))
    return gradient / jnp.where(size > 0, size, 1)


def _l2_project(start: chex.Array, moved: chex.Array, radius: chex.Array) -> chex.Array:
    moved = _replace_nan(start, moved)
    size = l2(moved - start)
    shrunk = jnp.where(size > radius, radius / jnp.where(size > 0, size, 1), 1)
    return clip_levels(start + (moved - start) * each(shrunk))


def _l2_draw(keys: chex.PRNGKey, start: chex.Array, radius: chex.Array) -> chex.Array:
    shape = start.shape[1:]

    def noise(key: chex.PRNGKey) -> chex.Array:
        direction, length = jax.random.split(key)
        toward = jax.random.normal(direction, shape, start.dtype)
        share = jax.random.uniform(length, (), start.dtype) ** (1 / toward.size)
        return share * toward / jnp.linalg.norm(toward.reshape(-1))

    return clip_levels(start + each(radius) * jax.vmap(noise)(keys))


def _l2_whole(start: chex.Array, moved: chex.Array, radius: chex.Array) -> chex.Array:
    """Rounds to the nearest, as far as the ball has room, the nearest first.

    Truncating towards `start` never leaves the ball, but stops small perturbations
    altogether; so the values whose rounding away from `start` changes least are
    rounded so, while their squares fit.
    """
    count = len(start)
    change = (_l2_project(start, moved, radius) - start).reshape(count, -1)
    near = jnp.trunc(change)
    rest = jnp.abs(change) - jnp.abs(near)
    # Squares are whole numbers, exact in float32 up to 2^24: 258 values by 255 levels,
    # and far more of any perturbation in use.
    cost = jnp.where(rest >= 0.5, 2 * jnp.abs(near) + 1, 0)
    order = jnp.argsort(-rest, axis=1)
    spent = jnp.cumsum(jnp.take_along_axis(cost, order, 1), 1)
    room = radius**2 - jnp.sum(near**2, 1)
    fits = jnp.take_along_axis(rest, order, 1) >= 0.5
    fits &= spent <= room[:, None]
    rounded = jnp.zeros_like(fits).at[jnp.arange(count)[:, None], order].set(fits)
    whole = near + jnp.where(rounded, jnp.sign(change), 0)
    return (start + whole.reshape(start.shape)).astype(jnp.uint8)


def l0(moved: chex.Array) -> chex.Array:
    """`[B]`: how many values differ from zero."""
    return jnp.sum((moved != 0).astype(moved.dtype), _AXES)


LINF = Norm(
    "linf",
    linf,
    l1,
    jnp.sign,
    _linf_project,
    lambda images: pixels.LEVELS - 1,
    _linf_draw,
    _linf_whole,
)
L2 = Norm(
    "l2",
    l2,
    l2,
    _l2_direction,
    _l2_project,
    lambda images: (pixels.LEVELS - 1) * images[0].size ** 0.5,
    _l2_draw,
    _l2_whole,
)
NORMS = {norm.name: norm for norm in (LINF, L2)}


def named(name: str) -> Norm:
    """The norm of that name; raises ValueError where there is none."""
    if name not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}: {name!r}")
    return NORMS[name]
