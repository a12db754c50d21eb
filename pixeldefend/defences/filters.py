"""Filters: feature squeezing, and what any image program offers.

A purifier that costs a thousand times as much has to be better than these.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import pixels
from pixeldefend.defences import base

MEDIANS = ("paper", "code")


def reduce_colours(images: chex.Array, *, colours: int) -> chex.Array:
    """Rounds every value to the nearest of evenly spaced levels from 0 to 255.

    Its slope is zero almost everywhere; attacks go through `median` alone.

    Args:
      images: levels `[B, H, W, C]`, `uint8` or floating.
      colours: how many levels stay; the paper keeps 32 for CIFAR-10 and 8 for
        Fashion-MNIST.

    Returns:
      Whole levels of the same shape and type.

    Raises:
      ValueError: not between 2 and 256 colours.
    """
    if not 2 <= colours <= pixels.LEVELS:
        raise ValueError(f"colours must be between 2 and 256: {colours}")
    largest = pixels.LEVELS - 1
    levels = jnp.round(jnp.linspace(0.0, largest, colours))
    steps = jnp.round(images.astype(jnp.float32) * ((colours - 1) / largest))
    return levels[steps.astype(jnp.int32)].astype(images.dtype)


def median(images: chex.Array, *, preset: str = "paper") -> chex.Array:
    """A 2 x 2 median filter; each window ends at its own pixel.

    The first row and column are repeated in front of the image (reflect padding as
    scipy has it, which feature squeezing was introduced with).

    Args:
      images: levels `[B, H, W, C]`, `uint8` or floating.
      preset: "paper", the mean of the two middle values (of `uint8`, halves rounded
        up); or "code", the larger of the two, as the authors' code takes.

    Returns:
      Levels of the same shape and type.

    Raises:
      ValueError: unknown preset.
    """
    if preset not in MEDIANS:
        raise ValueError(f"preset must be one of {', '.join(MEDIANS)}: {preset!r}")
    x = jnp.pad(images, ((0, 0), (1, 0), (1, 0), (0, 0)), mode="symmetric")
    above, below = x[:, :-1], x[:, 1:]
    first = _ordered(above[:, :, :-1], above[:, :, 1:])
    second = _ordered(below[:, :, :-1], below[:, :, 1:])
    # Of two ordered pairs, the smallest and the largest of all four fall out.
    one = jnp.maximum(first[0], second[0])
    other = jnp.minimum(first[1], second[1])
    if preset == "code":
        return jnp.maximum(one, other)
    if jnp.issubdtype(images.dtype, jnp.floating):
        return (one + other) / 2
    total = one.astype(jnp.int32) + other.astype(jnp.int32)
    return ((total + 1) // 2).astype(images.dtype)


def _ordered(a: chex.Array, b: chex.Array) -> tuple[chex.Array, chex.Array]:
    return jnp.minimum(a, b), jnp.maximum(a, b)


def squeeze_features(
    images: chex.Array, *, colours: int, preset: str = "paper"
) -> chex.Array:
    """Feature squeezing: fewer colours, then a median filter.

    PixelDefend, section 2.2 and Appendix B, after Xu et al. (2017).

    Args:
      images: levels `[B, H, W, C]`, `uint8` or floating.
      colours: for `reduce_colours`.
      preset: for `median`.

    Returns:
      Levels of the same shape and type.

    Raises:
      ValueError: as both parts.
    """
    pixels.check_images(images)
    return median(reduce_colours(images, colours=colours), preset=preset)


@dataclasses.dataclass(frozen=True)
class Squeeze(base.Defence):
    """`squeeze_features` as a defence.

    The attacks of a table see the median filter in any case (`always_seen`), as in
    PixelDefend's experiments, and none sees the rounding of colours: whatever gradient
    is asked for, it is the filter's own.

    Attributes:
      colours: as for `squeeze_features`.
      preset: likewise.
    """

    name = "squeeze"
    gradients = base.GRADIENTS
    forwards = ()
    always_seen = "median"
    colours: int = 8
    preset: str = "paper"

    @classmethod
    def build(cls, given: base.Given) -> tuple[base.Defence, base.Params]:
        """As for every defence; takes `squeeze.colours` and `squeeze.preset`."""
        found = cls(
            given.settings["squeeze"]["colours"], given.settings["squeeze"]["preset"]
        )
        found.compute({}, np.zeros((1, 2, 2, 1), np.uint8), None)  # raises what it must
        return found, {}

    def compute(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> base.Computed:
        """Squeezed `images`."""
        del params, key
        found = squeeze_features(images, colours=self.colours, preset=self.preset)
        return {"images": found}

    def view(
        self, params: base.Params, images: chex.Array, key: base.Keys, gradient: str
    ) -> chex.Array:
        """The median filter, whatever the gradient asked for."""
        del params, key, gradient
        return median(images, preset=self.preset)


def median_3x3(images: chex.Array) -> chex.Array:
    """A 3 x 3 median filter; the image is mirrored at its edges.

    Args:
      images: levels `[B, H, W, C]`, `uint8` or floating.

    Returns:
      Levels of the same shape and type.
    """
    _, height, width, _ = images.shape
    x = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="symmetric")
    shifted = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.sort(jnp.stack(shifted), axis=0)[4]


def denoise(images: chex.Array, *, weight: float, steps: int = 60) -> chex.Array:
    """The image of least total variation near each image.

    Minimised are, for each channel by itself, half the squared distance to the image
    and `weight` times the sum of the lengths of the gradients (Rudin, Osher and Fatemi
    1992), by accelerated projection of the dual (Chambolle 2004, Beck and Teboulle
    2009).

    Args:
      images: levels `[B, H, W, C]`, `uint8` or floating.
      weight: levels; noise of about this size goes.
      steps: of the projection.

    Returns:
      Floating levels.

    Raises:
      ValueError: weight not above 0, or not at least one step.
    """
    if not weight > 0 or steps < 1:
        raise ValueError(
            f"weight must be above 0 and steps at least 1: {weight}, {steps}"
        )
    target = images.astype(pixels.at_least_float32(images.dtype))

    def gradient(image: chex.Array) -> chex.Array:
        """Differences to the next row and column, `[2, B, H, W, C]`; 0 at the end."""
        down = jnp.diff(image, axis=1, append=image[:, -1:])
        right = jnp.diff(image, axis=2, append=image[:, :, -1:])
        return jnp.stack([down, right])

    def divergence(field: chex.Array) -> chex.Array:
        """The negative adjoint of `gradient`."""
        down = field[0].at[:, -1].set(0)
        right = field[1].at[:, :, -1].set(0)
        zero = jnp.zeros_like
        return jnp.diff(down, axis=1, prepend=zero(down[:, :1])) + jnp.diff(
            right, axis=2, prepend=zero(right[:, :, :1])
        )

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        field, ahead, momentum = state
        # 8 bounds the squared norm of `gradient`.
        moved = ahead + gradient(target + weight * divergence(ahead)) / (8 * weight)
        length = jnp.sum(moved**2, 0, keepdims=True)
        # Where there is nothing to shorten the square root would have no slope.
        long = length > 1
        moved = jnp.where(long, moved / jnp.sqrt(jnp.where(long, length, 1)), moved)
        onward = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + (momentum - 1) / onward * (moved - field)
        return (moved, ahead, onward), None

    none = jnp.zeros((2, *target.shape), target.dtype)
    first = none, none, jnp.ones((), target.dtype)
    (field, _, _), _ = jax.lax.scan(step, first, length=steps)
    return jnp.clip(target + weight * divergence(field), 0, pixels.LEVELS - 1)


@dataclasses.dataclass(frozen=True)
class Median(base.Smooth):
    """`median_3x3` as a defence."""

    name = "median3"

    def smooth(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> chex.Array:
        """Filtered images; each value's gradient goes to the one that it was."""
        del params, key
        return median_3x3(images)


@dataclasses.dataclass(frozen=True)
class TotalVariation(base.Smooth):
    """`denoise` as a defence.

    Attributes:
      weight: as for `denoise`.
    """

    name = "total_variation"
    weight: float = 8.0

    def smooth(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> chex.Array:
        """Denoised images, differentiable."""
        del params, key
        return denoise(images, weight=self.weight)


@dataclasses.dataclass(frozen=True)
class Mirror(base.Smooth):
    """The image mirrored from left to right.

    A classifier that was trained on mirrored images takes it for the same. What is left
    of an attack on the image as it was fits it less well; an attacker who knows of the
    mirror loses nothing.
    """

    name = "mirror"

    def smooth(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> chex.Array:
        """Mirrored images."""
        del params, key
        return images[:, :, ::-1]

    def view(
        self, params: base.Params, images: chex.Array, key: base.Keys, gradient: str
    ) -> chex.Array:
        """As for every defence, but for BPDA too by its own gradient: where each pixel
        went is known, and the identity would lead an attack astray."""
        own = "straight_through" if gradient == "bpda" else gradient
        return super().view(params, images, key, own)

    @staticmethod
    def upright(images: chex.Array) -> chex.Array:
        """Images as they came."""
        return images[:, :, ::-1]


@dataclasses.dataclass(frozen=True)
class BitDepth(base.Defence):
    """`reduce_colours` as a defence, to a few bits a value (Xu et al. 2017).

    Attributes:
      bits: that stay.
    """

    name = "bit_depth3"
    bits: int = 3

    def compute(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> base.Computed:
        """The `images`, rounded."""
        del params, key
        return {"images": reduce_colours(images, colours=2**self.bits)}
