"""APGD: ascent that halves its steps wherever they no longer pay."""

import dataclasses
from typing import Any

import chex
import jax.numpy as jnp

from pixeldefend import pixels
from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.climb import attempts, search_ascents
from pixeldefend.attacks.draws import drawing, judging
from pixeldefend.attacks.losses import LOSSES
from pixeldefend.attacks.outcome import Info, LogitsFn, Task


def apgd(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey,
    *,
    eps: chex.Array | float,
    norm: str = "linf",
    loss: str | tuple[str, ...] = "ce",
    targets: chex.Array | int = 9,
    steps: chex.Array | int = 100,
    restarts: int = 1,
    rising: float = 0.75,
    draws: int = 0,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """Auto-PGD: ascent with momentum from a random point, whose steps need no tuning.

    It begins with steps of 2 eps; at checkpoints that follow each other ever faster a
    step is halved, and the best point so far returned to, where the loss rose at too
    few of the steps, or not at all and the step is an old one. Croce and Hein, Reliable
    Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks (ICML 2020), section 3. An image is done at its first point that fools, as
    it would be returned.

    Args:
      logits_fn: this and what is not listed as for `fgsm`.
      key: `[B]`, one an image.
      eps: levels, a number or `[B]`, in `norm`; may be fractional.
      norm: "linf" or "l2".
      loss: what rises. "ce": cross-entropy (its log-odds, which order points alike and
        do not flatten). "dlr": the difference of logits ratio (their section 4), which
        no scaling of the logits changes. "targeted_dlr": its form that aims at a class.
        Two classes leave no ratio: there all are log-odds; with three the targeted
        ratio divides by the span of the logits. Several follow each other.
      targets: of "targeted_dlr": how many classes are aimed at in turn, the likeliest
        first; or the classes themselves, integers `[B]`. Any other class than the label
        is a success.
      steps: how many from each start; may be traced.
      restarts: how many starts at most (of "targeted_dlr": at each class).
      rising: the share of an interval's steps at which the loss must rise.
      draws: of a random `logits_fn`, whose `variables["key"]` is drawn anew for every
        look: the loss is the mean over as many draws, and fooled is the mean of their
        log-probabilities (expectation over transformation). 0: not random.
      lanes: images at once; see `batched_while`.
      keep_failed: as for `fgsm`; the best point of the last start.

    Returns:
      Levels `[B, H, W, C]`, within eps of `images` and 0..255, and what was done.

    Raises:
      ValueError: as for `pgd`; an unknown loss, or targets that cannot be.
    """
    losses = (loss,) if isinstance(loss, str) else tuple(loss)
    _check_options(losses, steps, restarts, draws)
    pixels.check_images(images)
    outcome.check_key(key, len(images))
    network = drawing(logits_fn, variables, draws)
    judge = judging(network, key)
    ball = norms.named(norm)
    task = outcome.prepare(judge, images, labels, eps, quantise)
    task, aims = _aims(judge, task, targets if "targeted_dlr" in losses else None)
    found = search_ascents(
        network,
        ball,
        task,
        key,
        jnp.zeros(len(images), bool),
        attempts([(one, restarts) for one in losses], aims.shape[1]),
        aims=aims,
        steps=steps,
        rising=rising,
        lanes=lanes,
        quantise=quantise,
    )
    options = {"quantise": quantise, "keep_failed": keep_failed}
    return outcome.conclude_search(judge, task, found, size=ball.size, **options)


def _check_options(
    losses: tuple[str, ...], steps: chex.Array | int, restarts: int, draws: int
) -> None:
    """Raises ValueError where one of the options of `apgd` cannot be."""
    for one in losses or ("",):
        if one not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}: {one!r}")
    for name, value, least in (("restarts", restarts, 1), ("draws", draws, 0)):
        outcome.check_at_least(name, value, least)
    if isinstance(steps, int):
        outcome.check_at_least("steps", steps, 1)


def _aims(
    judge: outcome.Network, task: Task, targets: chex.Array | int | None
) -> tuple[Task, chex.Array]:
    """The classes `[B, T]` to aim at, of which None aims at none, and the task then."""
    if targets is None:
        return task, task.labels[:, None]
    if not isinstance(targets, int):
        task, aims, _ = outcome.with_targets(judge, task, targets)
        return task, aims[:, None]
    outcome.check_at_least("targets", targets, 1)
    aims = outcome.rivals(judge(task.images), task.labels, targets)
    return dataclasses.replace(task, queries=task.queries + 1), aims
