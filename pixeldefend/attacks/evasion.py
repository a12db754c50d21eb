"""Attacks that have to get past a detector as well as a classifier."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax.numpy as jnp

from pixeldefend.attacks import gradients, norms, outcome
from pixeldefend.attacks.ascent import ascend, limit_radius, to_levels
from pixeldefend.attacks.outcome import Info, LogitsFn, Network, Task

# `score_fn(variables, images) -> [B]`, of floating levels.
ScoreFn = Callable[[Any, chex.Array], chex.Array]


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
    Defenses with Orthogonal Projected Gradient Descent (ICLR 2022), section 4.1.
    Gradients are taken at the image as it would be returned.

    Args:
      logits_fn: this and what is not listed as for `fgsm`.
      score_fn: `score_fn(variables, images) -> [B]` of floating levels, such as the
        log-probability of a density model; the detector rejects low scores.
      variables: for both.
      threshold: the least score that the detector lets pass, a number or `[B]`.
      steps: how many at most.
      relative_step: size of a step as a share of eps.
      lanes: images at once; see `batched_while`.
      keep_failed: return the image of the last step also where it fails.

    Returns:
      Levels `[B, H, W, C]`, within eps of `images` and 0..255, and what was done;
      `success` says that both were deceived.

    Raises:
      ValueError: as for `pgd`.
    """
    del key
    network = functools.partial(logits_fn, variables)
    detector = functools.partial(score_fn, variables)
    outcome.check_at_least("steps", steps, 1)
    outcome.check_share("relative_step", relative_step)
    task = outcome.prepare(network, images, labels, eps, quantise)
    task = limit_radius(norms.LINF, task)
    bar = jnp.broadcast_to(jnp.asarray(threshold, task.radius.dtype), (len(images),))

    ascent = ascend(
        norms.LINF,
        functools.partial(_look, network, detector, quantise),
        task,
        task.images,
        bar,
        steps=steps,
        length=relative_step * task.radius,
        lanes=lanes,
    )
    adversarial = to_levels(norms.LINF, task, ascent.moved, quantise)
    return outcome.conclude(
        network,
        task,
        adversarial,
        ascent.steps,
        ascent.queries,
        size=norms.linf,
        keep_failed=keep_failed,
        passes=detector(adversarial.astype(task.images.dtype)) >= bar,
    )


def _look(
    network: Network,
    detector: Callable[[chex.Array], chex.Array],
    quantise: bool,
    task: Task,
    bar: chex.Array,
    moved: chex.Array,
) -> tuple[chex.Array, chex.Array]:
    """See `ascent.Look`: up the loss, then up the score, until both are deceived."""
    shown = to_levels(norms.LINF, task, moved, quantise).astype(moved.dtype)
    up_loss, logits = gradients.log_odds_against(network, shown, task.labels)
    score, up_score = gradients.score(detector, shown)
    fooled = outcome.is_surely_fooled(logits, task.labels)
    # Not by a rounding error, which falls differently in another batch.
    noise = 64 * jnp.finfo(score.dtype).eps * jnp.abs(score)
    gradient = jnp.where(norms.each(fooled), up_score, up_loss)
    return gradient, fooled & (score - noise > bar)
