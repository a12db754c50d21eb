"""Blur, less contrast, salt and pepper: corruptions, no stronger than they need be.

No gradients and no ball: one number, the strength, is searched (`weakest.py`).
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from pixeldefend import pixels
from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.outcome import Info, LogitsFn
from pixeldefend.attacks.weakest import Strengths, weakest

MIDDLE = (pixels.LEVELS - 1) / 2


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
    the image, as in foolbox 1 and 2; see `blur`.

    Args:
      logits_fn: this and what is not listed as for `fgsm`.
      eps: levels, a number or `[B]`: an image farther than this is no success.
      grid: how many strengths divide an interval.
      refinements: how often the interval below the weakest strength that fools is
        divided again.
      at_once: strengths of an image in one call of the network.
      lanes: images in one call; see `batched_while`.
      quantise: return whole levels, `uint8`, which are also what the search judges;
        False returns, and judges, floating ones.
      keep_failed: return the strongest corruption within eps where none fools; False
        returns the clean image there.

    Returns:
      Levels `[B, H, W, C]` and what was done; a step is a corrupted image that was
      tried. An image that is misclassified already is returned as it is.

    Raises:
      ValueError: as for `fgsm`; less than one strength in the grid or at once, or less
        than no refinements.
    """
    del key
    network = functools.partial(logits_fn, variables)
    pixels.check_images(images)
    longest = max(images.shape[1:3])

    def corrupt(
        images: chex.Array, keys: None, attempt: chex.Array, strength: chex.Array
    ) -> chex.Array:
        del keys, attempt
        return blur(images, sigma=strength * longest)

    task = outcome.prepare(network, images, labels, eps, quantise)
    search = Strengths(grid, refinements, at_once, quantise)
    return weakest(corrupt, network, task, None, search, lanes, keep_failed)


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
    network = functools.partial(logits_fn, variables)

    def corrupt(
        images: chex.Array, keys: None, attempt: chex.Array, strength: chex.Array
    ) -> chex.Array:
        del keys, attempt
        return images + norms.each(strength) * (MIDDLE - images)

    task = outcome.prepare(network, images, labels, eps, quantise)
    search = Strengths(grid, refinements, at_once, quantise)
    return weakest(corrupt, network, task, None, search, lanes, keep_failed)


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
      logits_fn: this and what is not listed as for `gaussian_blur`.
      key: `[B]`, one an image.
      repetitions: how many draws are tried.

    Returns:
      As `gaussian_blur`.

    Raises:
      ValueError: as for `gaussian_blur`; no keys; less than one repetition.
    """
    network = functools.partial(logits_fn, variables)
    task = outcome.prepare(network, images, labels, eps, quantise)
    outcome.check_key(key, len(images))
    search = Strengths(grid, refinements, at_once, quantise, repetitions)
    return weakest(_speckle, network, task, key, search, lanes, keep_failed)


def blur(images: chex.Array, *, sigma: chex.Array) -> chex.Array:
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


def _speckle(
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
