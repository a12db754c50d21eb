"""Detecting adversarial images by the rank of their likelihood."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from pixeldefend import pixels


def p_values(log_probs: chex.Array, reference: chex.Array) -> chex.Array:
    """How unusual images are relative to those the model was trained on.

    p = (1 + #{i: p(X_i) <= p(X')}) / (N + 1) over the training images X_i; small means
    less likely than almost all of them (PixelDefend, section 3.2).

    Args:
      log_probs: `[...]` nats.
      reference: of the training images, `[N]` nats, sorted.

    Returns:
      `[...]` in (0, 1]; NaN where the log-probability is.

    Raises:
      ValueError: a reference that is empty or, where its values can be seen, not
        sorted.
    """
    reference = _sorted(reference)
    log_probs = jnp.asarray(pixels.native(log_probs))
    no_likelier = jnp.searchsorted(reference, log_probs, side="right")
    ranks = (1 + no_likelier) / (reference.shape[0] + 1)
    return jnp.where(jnp.isnan(log_probs), jnp.nan, ranks)


def two_sided_p_values(log_probs: chex.Array, reference: chex.Array) -> chex.Array:
    """How unusual images are in either direction: too unlikely, or too likely.

    Twice the smaller of `p_values` and its mirror image, at most 1. Purified images are
    often likelier than almost all training images, which the one-sided value, small
    only for unlikely ones, takes for innocence.

    Args:
      log_probs: as for `p_values`.
      reference: likewise.

    Returns:
      `[...]` in (0, 1]; NaN where the log-probability is.

    Raises:
      ValueError: as for `p_values`.
    """
    reference = _scores(reference, "reference")  # `p_values` sees whether it ascends
    log_probs = jnp.asarray(pixels.native(log_probs))
    count = reference.shape[0]
    no_less_likely = count - jnp.searchsorted(reference, log_probs, side="left")
    high = (1 + no_less_likely) / (count + 1)
    return jnp.minimum(2 * jnp.minimum(p_values(log_probs, reference), high), 1)


def _sorted(reference: chex.Array) -> chex.Array:
    """Reference scores, which must ascend; of tracers that cannot be seen."""
    reference = _scores(reference, "reference")
    if isinstance(reference, jax.core.Tracer):
        return reference
    values = np.asarray(reference)
    if np.any(values[1:] < values[:-1]) or np.any(np.isnan(values)):
        raise ValueError(
            "the reference must be sorted, without NaN: use np.sort(reference)"
        )
    return reference


def _scores(scores: chex.Array, name: str) -> chex.Array:
    """Scores `[N]`, at least one."""
    scores = pixels.native(scores)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"{name} must be scores [N], at least one: {scores.shape}")
    return scores


def _no_numbers_first(scores: chex.Array, name: str) -> chex.Array:
    """Scores `[N]` with what is no number below all others, as detectors reject it."""
    scores = _scores(scores, name)
    return jnp.where(jnp.isnan(scores), -jnp.inf, scores)


def auc(negatives: chex.Array, positives: chex.Array) -> chex.Array:
    """Area under the ROC curve of "a low score is an attack".

    The chance that a positive scores below a negative, ties counted as a half (Mann and
    Whitney); scores are p-values or log-probabilities. 0.5: they tell nothing. What is
    no number is below all others, as detectors reject it.

    Args:
      negatives: scores of innocent images, `[N]`.
      positives: scores of attacked images, `[M]`.

    Returns:
      A number from 0 to 1.

    Raises:
      ValueError: no scores, or not `[N]`.
    """
    negatives = _no_numbers_first(negatives, "negatives")
    positives = _no_numbers_first(positives, "positives")
    ordered = jnp.sort(negatives)
    below = jnp.searchsorted(ordered, positives, side="left")
    up_to = jnp.searchsorted(ordered, positives, side="right")
    count = ordered.shape[0]
    # Twice as many as the negatives above, and once those that are level.
    doubled = 2 * (count - up_to) + (up_to - below)
    return jnp.mean(doubled / (2 * count))


def roc(
    negatives: chex.Array, positives: chex.Array
) -> tuple[chex.Array, chex.Array, chex.Array]:
    """The ROC curve of "a score of at most t is an attack" (PixelDefend, Figure 6).

    Args:
      negatives: scores of innocent images, `[N]`.
      positives: scores of attacked images, `[M]`.

    Returns:
      False positive rates, true positive rates and thresholds t, `[N + M + 1]` each,
      rising; the first t is minus infinity. Equal scores give equal points. What is no
      number is rejected at every t.

    Raises:
      ValueError: no scores, or not `[N]`.
    """
    negatives = _no_numbers_first(negatives, "negatives")
    positives = _no_numbers_first(positives, "positives")
    scores = jnp.sort(jnp.concatenate([negatives, positives]))
    thresholds = jnp.concatenate([jnp.full_like(scores, -jnp.inf, shape=1), scores])

    def share(of: chex.Array) -> chex.Array:
        return jnp.searchsorted(jnp.sort(of), thresholds, side="right") / of.shape[0]

    return share(negatives), share(positives), thresholds


def threshold_for(scores: chex.Array, *, false_positive_rate: float) -> chex.Array:
    """The largest t for which "a score below t is an attack" is seldom wrong.

    Args:
      scores: of innocent images, `[N]`, such as validation images.
      false_positive_rate: the share of them that may be rejected, at most.

    Returns:
      One of the scores; infinity where all of them may be rejected, minus infinity
      where more of them than that are no numbers.

    Raises:
      ValueError: no scores, not `[N]`, or no rate from 0 to 1.
    """
    scores = _no_numbers_first(scores, "scores")
    if not 0 <= false_positive_rate <= 1:
        raise ValueError(
            f"false_positive_rate must be from 0 to 1: {false_positive_rate}"
        )
    ordered = jnp.concatenate(
        [jnp.sort(scores), jnp.full_like(scores, jnp.inf, shape=1)]
    )
    return ordered[int(false_positive_rate * scores.shape[0] + 1e-9)]


def distance_from_uniform(p_values: chex.Array) -> float:
    """Kolmogorov and Smirnov's distance of p-values `[N]` from the uniform law.

    Returns:
      The largest difference between their distribution function and the identity on
      [0, 1], a number from 0 to 1.

    Raises:
      ValueError: no p-values, or not `[N]`.
    """
    values = _scores(p_values, "p_values")
    return float(stats.kstest(np.asarray(values), "uniform").statistic)
