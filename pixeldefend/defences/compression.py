"""JPEG compression: what any upload does to an image, as a defence.

Everything of baseline JPEG that loses something (ITU-T T.81; colours as JFIF has them,
4:2:0), in JAX, so that it runs where the classifier runs and has a gradient; what
follows in a file, entropy coding, loses nothing. Within a level or two of libjpeg,
whose integer arithmetic rounds on the way.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import pixels
from pixeldefend.defences import base

BLOCK = 8
# Steps of the 64 coefficients at quality 50: T.81, Tables K.1 and K.2.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMINANCE = np.full((BLOCK, BLOCK), 99)
CHROMINANCE[:4, :4] = [
    [17, 18, 24, 47],
    [18, 21, 26, 66],
    [24, 26, 56, 99],
    [47, 66, 99, 99],
]
# Red, green, blue to luminance and two colour differences (JFIF).
_COLOURS = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.168735892, -0.331264108, 0.5],
        [0.5, -0.418687589, -0.081312411],
    ]
)


def compress(images: chex.Array, *, quality: chex.Array | int) -> chex.Array:
    """Images as they come back from a JPEG file.

    Coefficients are rounded with the gradient of not rounding, the usual way to
    differentiate JPEG (Shin and Song 2017).

    Args:
      images: levels `[B, H, W, C]`, `uint8` or floating; colour ones lose half of the
        resolution of their colours, as nearly all files have it.
      quality: 1 to 100, as libjpeg scales its tables; a number or integers `[B]`, data.

    Returns:
      Floating levels, not rounded.

    Raises:
      ValueError: quality out of range or of a shape that does not fit, or neither one
        channel nor three.
    """
    check_quality(quality)
    if jnp.shape(quality) not in ((), images.shape[:1]):
        raise ValueError(
            f"quality must be a number or [{len(images)}], one per image: "
            f"{list(jnp.shape(quality))}"
        )
    height, width, channels = images.shape[1:]
    if channels not in (1, 3):
        raise ValueError(f"images must have 1 channel or 3 for JPEG: {channels}")
    levels = images.astype(pixels.at_least_float32(images.dtype))
    if channels == 1:
        return _cut(_code(_fill(levels, BLOCK), _steps(LUMINANCE, quality)), images)
    planes = levels @ jnp.asarray(_COLOURS.T, levels.dtype)
    planes = _fill(base.straight_through(planes, jnp.round(planes)), 2 * BLOCK)
    luminance, colours = planes[..., :1], planes[..., 1:] + 128
    luminance = _code(luminance, _steps(LUMINANCE, quality))
    colours = _code(_halve(colours), _steps(CHROMINANCE, quality))
    # libjpeg interpolates within the image that it was given, not in its padding.
    half = -(-height // 2), -(-width // 2)
    colours = _double(colours[:, : half[0], : half[1]])
    both = [_cut(luminance, images), _cut(colours, images) - 128]
    inverse = jnp.asarray(np.linalg.inv(_COLOURS).T, levels.dtype)
    return jnp.clip(jnp.concatenate(both, -1) @ inverse, 0, pixels.LEVELS - 1)


def check_quality(quality: chex.Array | int) -> None:
    """Raises ValueError for qualities other than 1 to 100; tracers pass."""
    if isinstance(quality, jax.core.Tracer):
        return
    array = np.asarray(quality)
    whole = np.issubdtype(array.dtype, np.integer)
    if not whole or not np.all((array >= 1) & (array <= 100)):
        raise ValueError(f"quality must be between 1 and 100, whole: {quality}")


def _steps(table: np.ndarray, quality: chex.Array | int) -> chex.Array:
    """The steps of quality 50 scaled as libjpeg does it, `[B or 1, 8, 8]`."""
    quality = jnp.asarray(quality, jnp.int32).reshape(-1, 1, 1)
    scale = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return jnp.clip((jnp.asarray(table, jnp.int32)[None] * scale + 50) // 100, 1, 255)


def _fill(images: chex.Array, multiple: int) -> chex.Array:
    """Repeats the last row and column until a multiple divides both sides."""
    _, height, width, _ = images.shape
    more = ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0))
    return jnp.pad(images, more, mode="edge")


def _cut(planes: chex.Array, images: chex.Array) -> chex.Array:
    """The part that shows the image."""
    return planes[:, : images.shape[1], : images.shape[2]]


def _code(planes: chex.Array, steps: chex.Array) -> chex.Array:
    """Rounds the coefficients of every block to multiples of their steps."""
    batch, height, width, channels = planes.shape
    blocks = planes - 128
    blocks = blocks.reshape(batch, height // BLOCK, BLOCK, width // BLOCK, BLOCK, -1)
    waves = jnp.asarray(_cosines(), planes.dtype)
    sizes = steps.astype(planes.dtype)[:, None, :, None, :, None]
    coefficients = jnp.einsum("ui,bhiwjc,vj->bhuwvc", waves, blocks, waves)
    parts = coefficients / sizes
    kept = sizes * base.straight_through(parts, jnp.round(parts))
    blocks = jnp.einsum("ui,bhuwvc,vj->bhiwjc", waves, kept, waves)
    planes = blocks.reshape(batch, height, width, channels) + 128
    clipped = jnp.clip(planes, 0, pixels.LEVELS - 1)
    return base.straight_through(clipped, jnp.round(clipped))


def _cosines() -> np.ndarray:
    """The orthonormal DCT-II `[frequency, place]`."""
    place = np.arange(BLOCK)
    waves = np.cos(np.pi * place[:, None] * (2 * place[None] + 1) / (2 * BLOCK)) / 2
    waves[0] /= np.sqrt(2)
    return waves


def _halve(planes: chex.Array) -> chex.Array:
    """The mean of 2 x 2 values."""
    batch, height, width, channels = planes.shape
    planes = planes.reshape(batch, height // 2, 2, width // 2, 2, channels)
    means = jnp.mean(planes, (2, 4))
    return base.straight_through(means, jnp.round(means))


def _double(planes: chex.Array) -> chex.Array:
    """Twice as large, each value 3/4 of the nearest and 1/4 of the next one."""
    for axis in (1, 2):
        size, more = planes.shape[axis], [(0, 0)] * 4
        more[axis] = (1, 1)
        wide = jnp.pad(planes, more, mode="edge")
        pair = [
            0.75 * planes + 0.25 * jax.lax.slice_in_dim(wide, k, k + size, axis=axis)
            for k in (0, 2)
        ]
        shape = list(planes.shape)
        shape[axis] *= 2
        planes = jnp.stack(pair, axis + 1).reshape(shape)
    return base.straight_through(planes, jnp.round(planes))


@dataclasses.dataclass(frozen=True)
class Jpeg(base.Smooth):
    """`compress` as a defence.

    Attributes:
      quality: as for `compress`.
    """

    name = "jpeg75"
    quality: int = 75

    def smooth(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> chex.Array:
        """Compressed images, with the gradient of not rounding coefficients."""
        del params, key
        return compress(images, quality=self.quality)


@dataclasses.dataclass(frozen=True)
class Jpeg50(Jpeg):
    """JPEG of quality 50."""

    name = "jpeg50"
    quality: int = 50


@dataclasses.dataclass(frozen=True)
class Jpeg20(Jpeg):
    """JPEG of quality 20."""

    name = "jpeg20"
    quality: int = 20
