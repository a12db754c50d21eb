"""Classifiers that may reject an image as attacked: any score with a threshold.

Scores say how suspicious an image is: its distance from a reconstruction, or minus its
log-probability. What scores above a threshold is rejected, that is, gets the label K
beside the classifier's 0 to K - 1 (Meng and Chen, MagNet, 2017; Wester and Thisted,
2020, section 4).
"""

import dataclasses

import chex
import jax.numpy as jnp

from pixeldefend.defences import base
from pixeldefend.defences.base import rejected
from pixeldefend.density import likelihood, pixelcnn

__all__ = [
    "RejectUnlikely",
    "correct",
    "rejected",
    "shares",
    "thresholds",
    "with_rejection",
]


def thresholds(scores: chex.Array, *, false_positive_rate: float) -> chex.Array:
    """Thresholds above which few innocent images score.

    All detectors reject the same share by themselves, the largest for which no more
    images than asked for are rejected by any of them.

    Args:
      scores: of innocent images, such as validation images, `[D, N]` of D detectors.
      false_positive_rate: the share of the images that may be rejected, at most.

    Returns:
      `[D]`, for each detector one of its scores; minus infinity where all images may be
      rejected.

    Raises:
      ValueError: a rate that is no share, or no scores.
    """
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must be [D, N]: {scores.shape}")
    if not 0 <= false_positive_rate <= 1:
        raise ValueError(
            f"false_positive_rate must be from 0 to 1: {false_positive_rate}"
        )
    count = scores.shape[1]
    # What is no number is rejected by any threshold.
    scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)
    falling = -jnp.sort(-scores, axis=1)
    # How many score as high, by the detector that finds the image most suspicious: with
    # that many above or level, the next score as threshold rejects it.
    ranks = [
        jnp.searchsorted(-own, -of, side="right")
        for own, of in zip(falling, scores, strict=True)
    ]
    ordered = jnp.sort(jnp.min(jnp.stack(ranks), 0))
    room = int(false_positive_rate * count + 1e-9)
    highest = count if room >= count else ordered[room] - 1
    never = jnp.full_like(falling[:, :1], -jnp.inf)
    return jnp.concatenate([falling, never], 1)[:, highest]


def with_rejection(
    classes: chex.Array, rejected: chex.Array, *, label: int
) -> chex.Array:
    """Predicted classes `[N]`, with the label K where an image was rejected."""
    return jnp.where(rejected, label, classes)


def correct(
    found: chex.Array, labels: chex.Array, *, label: int, attacked: bool
) -> chex.Array:
    """What counts as right in the thesis (its section 3.2), `[N]` bool.

    Args:
      found: classes, or the label K, `[N]`.
      labels: the true ones `[N]`.
      label: K.
      attacked: whether the images are; then to reject them is right as well, and of
        innocent ones it is wrong.
    """
    right = found == labels
    return right | (found == label) if attacked else right


def shares(found: chex.Array, labels: chex.Array, *, label: int) -> base.Computed:
    """Fractions of images that are classified `right`, `wrong` and not: `rejected`.

    Arguments as for `correct`. To reject is not to classify, so that these, and not the
    thesis's accuracy, say how many images a defence brings back.
    """
    out = found == label
    right = (found == labels) & ~out
    return {
        "right": jnp.mean(right),
        "wrong": jnp.mean(~right & ~out),
        "rejected": jnp.mean(out),
    }


@dataclasses.dataclass(frozen=True)
class RejectUnlikely(base.Detector):
    """Rejects images that the density model finds too unlikely (PixelDefend, 3).

    Its `params`: `params` of the density model and `threshold` `[1]`, of minus the
    log-probability.

    Attributes:
      density_model: the description.
    """

    name = "reject_p_value"
    model = "density_model"
    density_model: pixelcnn.PixelCNN

    def scores(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> chex.Array:
        """Minus the log-probabilities, `[1, B]` nats."""
        del key
        return -likelihood.log_prob(self.density_model, params["params"], images)[None]

    def compute(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> base.Computed:
        """The `scores` `[B, 1]` of the images, rounded to whole levels."""
        return super().compute(params, base.whole(images), key)
