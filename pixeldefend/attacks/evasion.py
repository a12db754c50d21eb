"""Attacks that have to get past a detector as well as a classifier."""

from typing import Any

import chex
import jax.numpy as jnp

from pixeldefend.attacks import norms, outcome, walk
from pixeldefend.attacks.outcome import Info, LogitsFn, Task
from pixeldefend.attacks.walk import ScoreFn


def evade(
    logits_fn: LogitsFn,
    score_fn: ScoreFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float,
    threshold: chex.Array | float,
    steps: int = 100,
    relative_step: float = 0.025,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """Selective projected gradient descent: past a classifier and a detector.

    Norm: L-infinity. While an image is taken for its label, a sign step up the loss;
    once it is not, a sign step up the detector's score; it stops where it is not taken
    for its label and its score is no less than the threshold. No weight between the two
    aims has to be found. Bryniarski et al., Evading Adversarial Example Detection
    Defenses with Orthogonal Projected Gradient Descent (ICLR 2022), section 4.1. Slopes
    are taken at the image as it would be returned.

    Args:
      logits_fn: as for `fgsm`.
      score_fn: `score_fn(variables, images) -> [B]` of floating levels, such as the
        log-probability of a density model; the detector rejects low scores.
      variables: for both.
      images: as for `fgsm`.
      labels: likewise.
      key: not used.
      eps: levels, a number or `[B]`.
      threshold: the least score that the detector lets pass, a number or `[B]`.
      steps: how many at most.
      relative_step: size of a step as a share of eps.
      lanes: images at once; see `lanes.until_done`.
      quantise: as for `fgsm`.
      keep_failed: return the image of the last step also where it fails.

    Returns:
      Levels `[B, H, W, C]`, within eps of `images` and 0..255, and what was done;
      `success` says that both were deceived.

    Raises:
      ValueError: as for `pgd`.
    """
    del key
    outcome.check_at_least("steps", steps, 1)
    outcome.check_share("relative_step", relative_step)
    given = outcome.task(logits_fn, variables, images, labels, eps, quantise)
    given = walk.in_reach(norms.LINF, given)
    bar = jnp.broadcast_to(jnp.asarray(threshold, given.radius.dtype), (len(images),))

    def look(given: Task, bar: chex.Array, shown: chex.Array) -> tuple:
        up_loss, logits = walk.slope_of_loss(logits_fn, variables, shown, given.labels)
        up_score, score = walk.slope_of_score(score_fn, variables, shown)
        fooled = outcome.surely_fooled(logits, given.labels)
        # Not by a rounding error, which falls differently in another batch.
        noise = 64 * jnp.finfo(score.dtype).eps * jnp.abs(score)
        slope = jnp.where(norms.each(fooled), up_score, up_loss)
        return slope, fooled & (score - noise > bar)

    way = walk.walk(
        norms.LINF,
        look,
        given,
        given.images,
        bar,
        steps=steps,
        relative_step=relative_step,
        quantise=quantise,
        lanes=lanes,
    )
    found = walk.whole(norms.LINF, given, way.moved, quantise)
    return outcome.concluded(
        logits_fn,
        variables,
        given,
        found,
        way.steps,
        way.queries,
        size=norms.linf,
        keep_failed=keep_failed,
        passes=score_fn(variables, found.astype(given.images.dtype)) >= bar,
    )
