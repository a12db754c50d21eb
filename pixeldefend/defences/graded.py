"""Purification by degrees: the more suspicious an image, the more is done to it."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import pixels
from pixeldefend.defences import base, compression, purification
from pixeldefend.density import likelihood, pixelcnn

_MOST = 1e6  # bits/dim of a threshold, more than any model gives


def adaptive_eps(
    bits_per_dim: chex.Array, *, eps: chex.Array | int, threshold: chex.Array | float
) -> chex.Array:
    """`eps` for images that look perturbed, 0 for those that look clean.

    Adaptive PixelDefend (section 4.2, Appendix B): images whose bits per dimension
    are below the threshold are left alone. (Section 4.2 says "probability below", the
    wrong way round; the appendix gives the thresholds in bits per dimension.)

    Args:
      bits_per_dim: of the images, `[B]`, from `likelihood.bits_per_dim`.
      eps: whole levels 0..255, a number or `[B]`.
      threshold: bits per dimension; the paper's are 3.2 for CIFAR-10 and 1.8 for
        Fashion-MNIST, for its own models.

    Returns:
      int32 `[B]`, for `purify`.

    Raises:
      TypeError: eps is not an integer.
      ValueError: eps is out of range.
    """
    radius = purification.check_eps(eps).astype(jnp.int32)
    return jnp.where(pixels.native(bits_per_dim) < threshold, 0, radius)


def graded_eps(
    bits_per_dim: chex.Array, *, thresholds: chex.Array, eps: chex.Array
) -> chex.Array:
    """The more suspicious an image, the larger its ball: eps as a step function.

    One threshold and an eps of 0 below it is `adaptive_eps`.

    Args:
      bits_per_dim: of the images, `[B]`, from `likelihood.bits_per_dim`.
      thresholds: `[T]`, bits per dimension, ascending; from each on the next eps holds.
      eps: `[T + 1]`, whole levels 0..255.

    Returns:
      int32 `[B]`, for `purify`. What is no number counts as above all thresholds.

    Raises:
      TypeError: eps is not integers.
      ValueError: eps out of range, thresholds that do not ascend, or not one eps more
        than thresholds.
    """
    radius = purification.check_eps(eps).astype(jnp.int32)
    traced = isinstance(thresholds, jax.core.Tracer)
    ladder = thresholds if traced else np.asarray(thresholds, np.float32)
    if ladder.ndim != 1 or radius.shape != (len(ladder) + 1,):
        raise ValueError(
            f"thresholds {list(ladder.shape)} need one eps more than there are "
            f"thresholds: {list(radius.shape)}"
        )
    if not traced and not np.all(np.diff(ladder) > 0):
        raise ValueError(f"thresholds must ascend: {ladder.tolist()}")
    passed = ~(pixels.native(bits_per_dim)[:, None] < jnp.asarray(ladder)[None])
    return radius[jnp.sum(passed.astype(jnp.int32), 1)]


def compressed(images: chex.Array, *, quality: chex.Array) -> chex.Array:
    """Floating levels `[B, H, W, C]` after JPEG of `quality [B]`, 0 for none."""
    found = compression.compress(images, quality=jnp.maximum(quality, 1))
    return jnp.where((quality > 0)[:, None, None, None], found, images)


def _seen_bits(
    model: pixelcnn.PixelCNN, params: base.Params, images: chex.Array
) -> chex.Array:
    """Bits per dimension `[B]` of images as they are seen: rounded, no gradient."""
    whole = base.whole(jax.lax.stop_gradient(images))
    return likelihood.bits_per_dim(model, params["params"], whole)


@dataclasses.dataclass(frozen=True)
class PurifyAdaptively(purification.Purify):
    """`purify` where an image looks perturbed, see `adaptive_eps`.

    Its `params` have a `threshold` besides, bits/dim.
    """

    name = "purify_adaptive"

    @classmethod
    def build(cls, given: base.Given) -> tuple[base.Defence, base.Params]:
        """As for `Purify`; takes `purify.threshold` too.

        Raises:
          ValueError: a threshold that no bits/dim can have.
        """
        defence, its = super().build(given)
        threshold = given.settings["purify"]["threshold"]
        if not 0 <= threshold <= _MOST:
            raise ValueError(
                f"purify.threshold must be bits/dim, from 0 to {_MOST}: {threshold}"
            )
        return defence, its | {"threshold": jnp.float32(threshold)}

    @property
    def computed_by(self) -> base.Defence:
        """`Purify`: all images are purified, and those of some are not used."""
        return purification.Purify(self.density_model, self.window)

    def decide(
        self, params: base.Params, computed: base.Computed, images: chex.Array
    ) -> base.Passed:
        """The likely images as they were, the others purified."""
        given = computed["given_log_probs"]
        bits = likelihood.to_bits_per_dim(given, images.shape[1:])
        alone = bits < params["threshold"]
        purified = computed["images"].astype(images.dtype)
        return base.Passed(
            jnp.where(alone[:, None, None, None], images, purified),
            log_prob=jnp.where(alone, given, computed["log_probs"]),
        )

    def facts(self, params: base.Params) -> dict[str, Any]:
        """`eps_defend`, levels, and `threshold`, bits/dim."""
        threshold = round(float(params["threshold"]), 6)
        return super().facts(params) | {"threshold": threshold}

    def view(
        self, params: base.Params, images: chex.Array, key: base.Keys, gradient: str
    ) -> chex.Array:
        """As for `Purify`, with an eps of 0 where the rounded image is likely."""
        bits = _seen_bits(self.density_model, params, images)
        eps = adaptive_eps(bits, eps=params["eps"], threshold=params["threshold"])
        return super().view(params | {"eps": eps}, images, key, gradient)


@dataclasses.dataclass(frozen=True)
class PurifyGraded(purification.Purify):
    """The more suspicious an image, the more strongly it is purified.

    The grade is found as by `graded_eps`. An image is purified and then
    compressed (`compression.compress`): greedy decoding leaves specks of colour that no
    photograph has, and JPEG removes those first.

    Its `params` have `eps` `[T + 1]`, `thresholds` `[T]`, bits/dim, and `quality`
    `[T + 1]`, that of JPEG, 0 for no compression.
    """

    name = "purify_graded"

    @classmethod
    def build(cls, given: base.Given) -> tuple[base.Defence, base.Params]:
        """As for every defence; takes `purify.grades`, see `read_grades`, whose largest
        eps is `purify.eps`: one that differs would be a setting without effect.

        Raises:
          ValueError: grades that are none, or that go up to another eps.
        """
        settings = given.settings["purify"]
        its = read_grades(settings["grades"])
        largest = int(its["eps"].max())
        if settings["eps"] != largest:
            raise ValueError(
                f"purify.grades go up to eps {largest}, purify.eps is "
                f"{settings['eps']}: make them equal, or give no grades "
                '(--config.purify.grades="()") for the same eps everywhere'
            )
        window = purification.window_for(largest)
        params: base.Params = {name: jnp.asarray(its[name]) for name in its}
        return cls(given.model, window), params | {"params": given.params}

    def compute(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> base.Computed:
        """As for `Purify`; the `log_probs` are those of the compressed images."""
        grade = self._grade(params, images)
        at_grade = params | {"eps": params["eps"][grade]}
        computed = super().compute(at_grade, images, key)
        purified = computed["images"].astype(jnp.float32)
        found = base.whole(compressed(purified, quality=params["quality"][grade]))
        log_probs = likelihood.log_prob(self.density_model, params["params"], found)
        return computed | {"images": found, "log_probs": log_probs}

    def facts(self, params: base.Params) -> dict[str, Any]:
        """`eps_defend`, the largest, and `grades` in words."""
        starts = (0.0, *np.asarray(params["thresholds"], float))
        words: list[str] = []
        for start, eps, quality in zip(
            starts, params["eps"], params["quality"], strict=True
        ):
            word = f"{int(eps)} with JPEG {int(quality)}" if quality else f"{int(eps)}"
            words.append(word + (f" from {start:.6g}" if words else ""))
        largest = int(np.max(params["eps"]))
        return {"eps_defend": largest, "grades": ", ".join(words)}

    def view(
        self, params: base.Params, images: chex.Array, key: base.Keys, gradient: str
    ) -> chex.Array:
        """As for `Purify`, compression with it; the grade has no gradient."""
        grade = self._grade(params, images)
        at_grade = params | {"eps": params["eps"][grade]}
        purified = super().view(at_grade, images, key, gradient)
        found = compressed(purified, quality=params["quality"][grade])
        if gradient == "expectation":
            return found
        onto = images if gradient == "bpda" else found
        levels = jnp.round(jax.lax.stop_gradient(found))
        return base.straight_through(onto, levels)

    def _grade(self, params: base.Params, images: chex.Array) -> chex.Array:
        """Of images `[B]`, 0 for the least suspicious."""
        bits = _seen_bits(self.density_model, params, images)
        grades = jnp.arange(len(params["eps"]), dtype=jnp.int32)
        return graded_eps(bits, thresholds=params["thresholds"], eps=grades)


def read_grades(grades: Any) -> dict[str, np.ndarray]:
    """Grades as a config has them, as arrays.

    Args:
      grades: for each the bits/dim from which on it holds, eps, and the quality of JPEG
        afterwards, which may be left out: ((0.0, 16), (4.5, 24, 75)).

    Returns:
      `thresholds` `[T]`, `eps` `[T + 1]` and `quality` `[T + 1]`, 0 for none.

    Raises:
      ValueError: no such grades, or not ascending from 0.
    """
    try:
        rows = [(float(start), *levels) for start, *levels in grades]
    except (TypeError, ValueError):
        rows = []
    fits = rows and all(
        len(row) in (2, 3) and all(type(level) is int for level in row[1:])
        for row in rows
    )
    starts = [row[0] for row in rows]
    ascend = rows and starts[0] == 0 and np.all(np.diff(starts) > 0)
    if not fits or not ascend or starts[-1] > _MOST:
        raise ValueError(
            "purify.grades must be (bits/dim, eps) or (bits/dim, eps, quality of "
            "JPEG), eps and quality whole, bits/dim ascending from 0, such as "
            f"((0.0, 16), (4.5, 24, 75)): {grades!r}"
        )
    found = {
        "thresholds": np.array(starts[1:], np.float32),
        "eps": np.array([row[1] for row in rows], np.int32),
        "quality": np.array([row[2] if len(row) > 2 else 0 for row in rows], np.int32),
    }
    purification.check_eps(found["eps"])
    compression.check_quality(np.maximum(found["quality"], 1))
    if np.any(found["quality"] < 0):
        raise ValueError(f"quality must be between 1 and 100, whole: {grades!r}")
    return found
