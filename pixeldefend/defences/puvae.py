"""PuVAE: purifying by a conditional variational autoencoder.

To purify, an image is encoded and decoded as if it were of each class in turn, and the
reconstruction nearest to it is what the classifier gets: Hwang et al., PuVAE (2019), as
Wester and Thisted's thesis (2020) has it, section 3.1. The network and its training are
those of `models.puvae`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from pixeldefend import pixels
from pixeldefend.defences import base
from pixeldefend.models.puvae import (
    PuVAE,
    Weights,
    check_shape,
    describe,
    divergence,
    init,
    loss,
)

__all__ = [
    "NOISE",
    "PuVAE",
    "Reconstruct",
    "Reconstruction",
    "RejectDistant",
    "Weights",
    "check_shape",
    "describe",
    "divergence",
    "init",
    "loss",
    "purify",
    "reconstruct",
    "reconstructions",
]
# Of the latent noise when purifying, against 1 in training. The thesis does not say.
NOISE = 0.1


@struct.dataclass
class Reconstruction:
    """Images as a PuVAE gives them again.

    Attributes:
      images: floating levels `[B, H, W, C]`.
      rmse: `[B]` levels, root of the mean squared distance to what was given.
      labels: `[B]`, under which they are nearest.
    """

    images: chex.Array
    rmse: chex.Array
    labels: chex.Array


def reconstructions(
    model: PuVAE,
    params: dict,
    images: chex.Array,
    key: chex.PRNGKey,
    *,
    labels: int | None = None,
    samples: int = 1,
    noise: chex.Array | float = NOISE,
) -> tuple[chex.Array, chex.Array]:
    """Images given again as if they were of each class (the thesis's Figure 6).

    Args:
      model: the description.
      params: from training or a released model.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      key: `[B]`, one for each image.
      labels: how many classes are tried, the first L; None for all.
      samples: S, draws of z for each image; its classes share them.
      noise: of the draws, times their standard deviation.

    Returns:
      Floating levels `[B, S, L, H, W, C]`, and the root of the mean squared distance of
      each from its image, `[B, S, L]` levels.

    Raises:
      ValueError: a wrong shape, or not at least one label and one sample.
    """
    _check(model, images, labels, samples)
    count = labels or model.classes
    batch = len(images)
    apply: Callable[..., Any] = model.apply  # to flax it may return variables too
    features = apply(params, images, method="features")
    tried = jnp.arange(count)[None]
    mean, deviation = apply(params, features[:, None], tried, method="posterior")
    drawn = noise * _normal(key, samples, model.latents, mean.dtype)
    latents = mean[:, None] + deviation[:, None] * drawn[:, :, None]
    every = jnp.broadcast_to(tried[None], (batch, samples, count)).reshape(-1)
    log_odds = apply(params, latents.reshape(-1, model.latents), every, method="decode")
    found = pixels.from_fractions(nn.sigmoid(log_odds))
    found = found.reshape(batch, samples, count, *images.shape[1:])
    return found, _rmse(found, images[:, None, None])


def reconstruct(
    model: PuVAE,
    params: dict,
    images: chex.Array,
    key: chex.PRNGKey,
    *,
    labels: int | None = None,
    samples: int = 1,
    noise: chex.Array | float = NOISE,
) -> Reconstruction:
    """The nearest of all `reconstructions`, differentiable.

    Its slope is that of the one reconstruction that is chosen; the choice has none, so
    that only this one is computed backwards.

    Args:
      model: as for `reconstructions`, and so are the others.
      params: likewise.
      images: likewise.
      key: likewise.
      labels: likewise.
      samples: likewise.
      noise: likewise.

    Returns:
      The nearest, how far it is, and its label.

    Raises:
      ValueError: as for `reconstructions`.
    """
    fixed = jax.lax.stop_gradient((params, images))
    _, every = reconstructions(
        model, *fixed, key, labels=labels, samples=samples, noise=noise
    )
    count = every.shape[-1]
    nearest = jnp.argmin(every.reshape(len(images), -1), -1)
    label, sample = nearest % count, nearest // count
    apply: Callable[..., Any] = model.apply  # to flax it may return variables too
    features = apply(params, images, method="features")
    mean, deviation = apply(params, features, label, method="posterior")
    drawn = noise * _normal(key, samples, model.latents, mean.dtype)
    drawn = jnp.take_along_axis(drawn, sample[:, None, None], 1)[:, 0]
    log_odds = apply(params, mean + deviation * drawn, label, method="decode")
    found = pixels.from_fractions(nn.sigmoid(log_odds))
    return Reconstruction(found, _rmse(found, images), label)


def purify(
    model: PuVAE,
    params: dict,
    images: chex.Array,
    key: chex.PRNGKey,
    *,
    labels: int | None = None,
    samples: int = 1,
    noise: chex.Array | float = NOISE,
) -> chex.Array:
    """Purified images `[B, H, W, C]` uint8: the nearest of all `reconstructions`.

    Unlike PixelDefend's they are not bound to stay near what was given.

    Args:
      model: as for `reconstructions`, and so are the others.
      params: likewise.
      images: likewise.
      key: likewise.
      labels: likewise.
      samples: likewise.
      noise: likewise.

    Raises:
      ValueError: as for `reconstructions`.
    """
    found = reconstruct(
        model, params, images, key, labels=labels, samples=samples, noise=noise
    )
    return jnp.round(found.images).astype(jnp.uint8)


def _check(model: PuVAE, images: chex.Array, labels: int | None, samples: int) -> None:
    pixels.check_images(images)
    pixels.check_some(images)
    check_shape(model, images)
    if labels is not None and not 1 <= labels <= model.classes:
        raise ValueError(f"labels must be from 1 to {model.classes}: {labels}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1: {samples}")


def _normal(
    key: chex.PRNGKey, samples: int, latents: int, dtype: jnp.dtype
) -> chex.Array:
    """Standard normal draws `[B, S, Z]`, of each image's own key."""
    return jax.vmap(lambda k: jax.random.normal(k, (samples, latents), dtype))(key)


def _rmse(found: chex.Array, images: chex.Array) -> chex.Array:
    """`[...]` levels: over values of floating levels `[..., H, W, C]`."""
    squares = jnp.mean((found - images.astype(found.dtype)) ** 2, (-3, -2, -1))
    # The root has no slope at zero.
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(squares.dtype).tiny))


@dataclasses.dataclass(frozen=True)
class Reconstruct(base.Smooth):
    """`purify` as a defence; its own gradient is that of the chosen reconstruction.

    Its `params`: `params` of the PuVAE.

    Attributes:
      puvae: the description.
      samples: as for `reconstruct`.
      noise: likewise.
    """

    name = "puvae"
    model = "puvae"
    random = True
    puvae: PuVAE
    samples: int = 1
    noise: float = NOISE

    @classmethod
    def build(cls, given: base.Given) -> tuple[base.Defence, base.Params]:
        """As for every defence; takes `puvae.samples` and `puvae.noise`."""
        samples, noise = (
            given.settings["puvae"][name] for name in ("samples", "noise")
        )
        if samples < 1:
            raise ValueError(f"puvae.samples must be at least 1: {samples}")
        if not 0 <= noise < float("inf"):
            raise ValueError(f"puvae.noise must be finite and not negative: {noise}")
        return cls(given.model, samples, noise), {"params": given.params}

    def _reconstruct(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> Reconstruction:
        return reconstruct(
            self.puvae,
            params["params"],
            images,
            key,
            samples=self.samples,
            noise=self.noise,
        )

    def smooth(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> chex.Array:
        """The nearest reconstruction."""
        return self._reconstruct(params, images, key).images

    def compute(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> base.Computed:
        """Purified `images` and the `rmse` to those given, `[B]` levels."""
        found = self._reconstruct(params, images, key)
        return {"images": base.whole(found.images), "rmse": found.rmse}


@dataclasses.dataclass(frozen=True)
class RejectDistant(base.Detector, Reconstruct):
    """Rejects images that their reconstruction is far from (the thesis's section 3.2).

    Hands on the images as they were; what it computes is what `Reconstruct` does.
    """

    name = "reject_rmse"

    @property
    def computed_by(self) -> base.Defence:
        """`Reconstruct`, which knows the distance too."""
        return Reconstruct(self.puvae, self.samples, self.noise)

    def scores(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> chex.Array:
        """The root of the mean squared distance, `[1, B]` levels."""
        return self._reconstruct(params, images, key).rmse[None]

    def compute(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> base.Computed:
        """As `Reconstruct`."""
        return self.computed_by.compute(params, images, key)

    def computed_scores(self, computed: base.Computed) -> chex.Array:
        """The scores `[1, B]` in what was computed."""
        return computed["rmse"][None]
