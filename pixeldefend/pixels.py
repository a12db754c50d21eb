"""The only unit conversions: levels 0..255 (stored) and what networks work in.

The density model works in units -1..1, autoencoders in fractions 0..1.
"""

import chex
import jax.numpy as jnp

LEVELS = 256
HALF_RANGE = 127.5


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
