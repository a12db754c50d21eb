"""Levels 0..255: what counts as such, and the only conversions to what networks take.

The density model works in units -1..1, autoencoders in fractions 0..1.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

LEVELS = 256
HALF_RANGE = 127.5


def check_images(images: Any, channels: int | None = None) -> None:
    """Checks that images are levels, as far as can be seen; tracers have no values.

    Args:
      images: should be `[B, H, W, C]`, integer or floating levels 0..255.
      channels: C, where it is known.

    Raises:
      TypeError: no array of numpy or JAX, or of a type that holds no levels.
      ValueError: another shape, values outside 0..255 (or no numbers), or floating ones
        that look like 0..1.
    """
    if not isinstance(images, np.ndarray | jax.Array):
        kind = type(images)
        raise TypeError(
            "images must be an array of numpy or JAX (np.asarray, jnp.from_dlpack): "
            f"{kind.__module__}.{kind.__qualname__}"
        )
    # To numpy, spans of time are integers; bfloat16 is a kind of its own to it.
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    if not floating and np.dtype(images.dtype).kind not in "iu":
        raise TypeError(f"images must be levels 0..255, not {images.dtype}")
    if not np.dtype(images.dtype).isnative:
        raise TypeError(
            f"images are in another machine's byte order, {images.dtype}: "
            "images.astype(images.dtype.newbyteorder('='))"
        )
    wanted = f"[B, H, W, {channels or 'C'}]"
    fits = images.ndim == 4 and channels in (None, images.shape[-1])
    if not fits:
        hint = ""
        if images.ndim == 3:
            hint = "; for a single image give images[None]"
        elif images.ndim == 4 and images.shape[1] == channels:
            hint = "; this looks like NCHW: images.transpose(0, 2, 3, 1)"
        raise ValueError(f"images must be {wanted}: {list(images.shape)}{hint}")
    seen = not isinstance(images, jax.core.Tracer) and images.size
    if not seen or images.dtype == np.uint8:
        return
    values = np.asarray(images, np.float64)
    if not np.all((values >= 0) & (values <= LEVELS - 1)):
        raise ValueError("images must be levels 0 to 255")
    if values.max() <= 1 and np.any(values % 1):
        raise ValueError(
            "images must be levels 0..255: these are 0..1, multiply by 255"
        )


def check_some(images: chex.Array) -> None:
    """Raises ValueError where there is no image: scores and searches are of some.

    Networks and filters give nothing for nothing.
    """
    if not images.shape[0]:
        raise ValueError(f"images must hold at least one: {list(images.shape)}")


def native(values: Any) -> chex.Array:
    """Numbers as JAX takes them: of a list, or of an array in another byte order."""
    if isinstance(values, jax.Array):
        return values
    array = np.asarray(values)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def at_least_float32(dtype: jnp.dtype | str) -> jnp.dtype:
    """The floating type itself, or float32 where it is narrower."""
    dtype = jnp.dtype(dtype)
    return dtype if dtype.itemsize > 4 else jnp.dtype(jnp.float32)


def to_units(levels: chex.Array, dtype: jnp.dtype = jnp.float32) -> chex.Array:
    """Maps levels 0..255, integer or floating, to floating units -1..1.

    Args:
      levels: any shape; `uint8` or any integer or floating type.
      dtype: floating type of the result; the arithmetic is never narrower than
        float32.

    Returns:
      The same shape in units: level 0 is -1, level 255 is 1.
    """
    levels = levels.astype(at_least_float32(dtype))
    return ((levels - HALF_RANGE) / HALF_RANGE).astype(dtype)


def to_levels(units: chex.Array) -> chex.Array:
    """Maps units -1..1 to the nearest `uint8` level; the inverse of `to_units`.

    Rounds before the cast: truncating `units * 127.5 + 127.5` is one level too dark
    for a quarter of all levels once a compiler contracts it to a fused multiply-add.
    """
    levels = jnp.round(units * HALF_RANGE + HALF_RANGE)
    return jnp.clip(levels, 0, LEVELS - 1).astype(jnp.uint8)


def to_floating_levels(units: chex.Array) -> chex.Array:
    """Maps units -1..1 to levels 0..255 that need not be whole, for optimisers."""
    return (units + 1) * HALF_RANGE


def to_fractions(levels: chex.Array) -> chex.Array:
    """Maps levels 0..255, integer or floating, to fractions 0..1.

    Args:
      levels: any shape, or distances in levels.

    Returns:
      The same shape, at least float32.
    """
    return levels.astype(at_least_float32(levels.dtype)) / (LEVELS - 1)


def from_fractions(fractions: chex.Array) -> chex.Array:
    """Maps fractions 0..1 to levels 0..255 that need not be whole."""
    return fractions * (LEVELS - 1)
