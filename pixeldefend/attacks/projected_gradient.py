"""Steps up the gradient of the loss, kept in a ball: FGSM, FGM, BIM and PGD.

All are `ascent.ascend` with other options: FGSM and FGM take one step of it, restarts
wrap it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax.numpy as jnp
from flax import struct

from pixeldefend.attacks import gradients, norms, outcome
from pixeldefend.attacks.ascent import Ascent, ascend, climb, limit_radius, to_levels
from pixeldefend.attacks.batched_while import batched_while
from pixeldefend.attacks.draws import fold
from pixeldefend.attacks.outcome import Info, LogitsFn, Network, Task

LOSS_LABELS = ("given", "predicted")


def fgsm(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float,
    loss_labels: str = "given",
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """The fast gradient sign method: one step of eps levels up the loss.

    Norm: L-infinity. PixelDefend, section 2.1, after Goodfellow et al. (2015).

    Args:
      logits_fn: `logits_fn(variables, images) -> [B, K]`, of floating levels.
      variables: for `logits_fn`, any pytree.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      labels: integers `[B]` to get away from; None for the predicted ones, which tell
        nothing about the true ones (as adversarial training wants it).
      key: `[B]`, one an image, for attacks that draw; not used here.
      eps: levels, a number or `[B]`; may be fractional.
      loss_labels: whose cross-entropy rises: of the "given" labels, or of those
        "predicted" for `images`, as in the authors' code. Success is always told of the
        given ones.
      quantise: return whole levels, `uint8`, rounded inside the ball; False returns
        floating ones. It presumes that `images` are whole levels.
      keep_failed: return the attacked image also where the label is still found; False
        returns the clean one there.

    Returns:
      Levels `[B, H, W, C]` within eps of `images` and within 0..255, and what was done.

    Raises:
      ValueError: wrong shapes, negative eps, labels out of range.
    """
    del key
    network = functools.partial(logits_fn, variables)
    options = {"quantise": quantise, "keep_failed": keep_failed}
    return _fast(norms.LINF, network, images, labels, eps, loss_labels, **options)


def fgm(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float,
    loss_labels: str = "given",
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """The fast gradient method: one step along the gradient, of L2 length eps levels.

    Norm: L2. Goodfellow et al. (2015); arguments and result as for `fgsm`.
    """
    del key
    network = functools.partial(logits_fn, variables)
    options = {"quantise": quantise, "keep_failed": keep_failed}
    return _fast(norms.L2, network, images, labels, eps, loss_labels, **options)


def bim(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float,
    steps: int | None = None,
    relative_step: float | None = None,
    ball: bool = True,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """The basic iterative method: small sign steps, kept within the eps ball.

    Norm: L-infinity. As it stands floor(min(eps + 4, 1.25 eps)) steps of one level,
    from the image itself: PixelDefend, section 2.1, after Kurakin et al. (2016). Images
    of small eps wait for those of a large one.

    Args:
      logits_fn: this and what is not listed as for `fgsm`.
      steps: how many; None for the formula above.
      relative_step: size of a step as a share of eps; None for one level.
      ball: False forgets the ball, as the authors' adversarial training does; an image
        may then move by as many levels as there are steps.

    Returns:
      Levels `[B, H, W, C]`, within 0..255 and, with `ball`, within eps of `images`; and
      what was done.

    Raises:
      ValueError: as for `fgsm`, or not at least one step.
    """
    del key
    network = functools.partial(logits_fn, variables)
    if steps is not None:
        outcome.check_at_least("steps", steps, 1)
    if relative_step is not None:
        outcome.check_share("relative_step", relative_step)
    task = outcome.prepare(network, images, labels, eps, quantise)
    task = limit_radius(norms.LINF, task)
    if steps is None:
        formula = jnp.minimum(task.radius + 4, 1.25 * task.radius)
        counts = jnp.floor(formula).astype(jnp.int32)
    else:
        counts = jnp.full_like(task.queries, steps)
    one = jnp.ones_like(task.radius)
    length = one if relative_step is None else relative_step * task.radius
    if not ball:
        task = dataclasses.replace(task, radius=counts.astype(length.dtype) * length)
    ascent = ascend(
        norms.LINF,
        functools.partial(climb, network),
        task,
        task.images,
        steps=counts,
        length=length,
        lanes=len(images),
    )
    return _conclude(network, norms.LINF, task, ascent, quantise, keep_failed)


def pgd(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float,
    norm: str = "linf",
    steps: int = 100,
    relative_step: float = 0.025,
    random_start: bool = True,
    restarts: int = 1,
    stop_early: bool = False,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """Projected gradient descent: from a point of the ball, steps up the loss in it.

    Madry et al. (2018). With several restarts an image stops after the first start that
    ends in success, with `stop_early` at its first point that is one; its place is
    taken by another image (`batched_while`).

    Args:
      logits_fn: this and what is not listed as for `fgsm`.
      key: `[B]`, one an image; needed for random starts.
      eps: levels, a number or `[B]`, in `norm`; may be fractional.
      norm: "linf" or "l2"; steps go along the sign of the gradient, or along itself.
      steps: how many from each start.
      relative_step: size of a step as a share of eps.
      random_start: begin at a point drawn from the ball; False: at the image.
      restarts: how many starts at most.
      stop_early: look at every point as it would be returned, take gradients there
        too, and keep the first success. For defences whose loss leaps from step to
        step, so that the last point is no better than one before it.
      lanes: images at once where they stop at different times; see `batched_while`.
      keep_failed: as for `fgsm`; the image of the last start.

    Returns:
      Levels `[B, H, W, C]`, within eps of `images` and 0..255, and what was done.

    Raises:
      ValueError: as for `fgsm`; unknown norm; no key for random starts; several starts
        that are not random.
    """
    network = functools.partial(logits_fn, variables)
    ball = norms.named(norm)
    _check(steps, relative_step, random_start, restarts)
    task = outcome.prepare(network, images, labels, eps, quantise)
    task = limit_radius(ball, task)
    if random_start:
        outcome.check_key(key, len(images))

    def stop(task: Task, _: Any, moved: chex.Array) -> tuple:
        shown = to_levels(ball, task, moved, quantise).astype(moved.dtype)
        gradient, logits = gradients.log_odds_against(network, shown, task.labels)
        return gradient, outcome.is_surely_fooled(logits, task.labels)

    def attempt(task: Task, key: chex.PRNGKey | None) -> Ascent:
        start = task.images
        if random_start:
            start = ball.draw(key, start, task.radius)
        return ascend(
            ball,
            stop if stop_early else functools.partial(climb, network),
            task,
            start,
            steps=steps,
            length=relative_step * task.radius,
            lanes=lanes if stop_early else len(start),
        )

    if restarts > 1:
        ascent = _restart(network, ball, attempt, task, key, restarts, lanes, quantise)
    else:
        ascent = attempt(task, key)
    return _conclude(network, ball, task, ascent, quantise, keep_failed)


def _fast(
    norm: norms.Norm,
    network: Network,
    images: chex.Array,
    labels: chex.Array | None,
    eps: chex.Array | float,
    loss_labels: str,
    *,
    quantise: bool,
    keep_failed: bool,
) -> tuple[chex.Array, Info]:
    """One step of length eps from the image."""
    if loss_labels not in LOSS_LABELS:
        known = ", ".join(LOSS_LABELS)
        raise ValueError(f"loss_labels must be one of {known}: {loss_labels!r}")
    task = outcome.prepare(network, images, labels, eps, quantise)
    task = limit_radius(norm, task)
    climbed = task
    if loss_labels == "predicted":
        guesses = jnp.argmax(network(task.images), -1)
        climbed = dataclasses.replace(task, labels=guesses.astype(task.labels.dtype))
    look = functools.partial(climb, network)
    ascent = ascend(
        norm, look, climbed, task.images, steps=1, length=task.radius, lanes=None
    )
    return _conclude(network, norm, task, ascent, quantise, keep_failed)


def _restart(
    network: Network,
    norm: norms.Norm,
    attempt: Callable[[Task, chex.PRNGKey], Ascent],
    task: Task,
    key: chex.PRNGKey,
    restarts: int,
    lanes: int | None,
    quantise: bool,
) -> Ascent:
    """Attempts with keys of their own, up to the first that ends in success."""

    def step(constants: tuple, state: _Restarts) -> _Restarts:
        task, key = constants
        one = attempt(task, fold(key, state.count))
        shown = to_levels(norm, task, one.moved, quantise).astype(one.moved.dtype)
        success = outcome.is_surely_fooled(network(shown), task.labels)
        count = state.count + 1
        return _Restarts(
            moved=one.moved,
            steps=state.steps + one.steps,
            # The start is judged with a query of its own.
            queries=state.queries + one.queries + 1,
            done=success | (count >= restarts),
            count=count,
        )

    none = jnp.zeros_like(task.queries)
    first = _Restarts(task.images, none, none, none > 0, none)
    return batched_while(step, (task, key), first, lanes=lanes)


@struct.dataclass
class _Restarts(Ascent):
    """The last attempt of each image; `count` `[B]` int32 is how many there were."""

    count: chex.Array


def _conclude(
    network: Network,
    norm: norms.Norm,
    task: Task,
    ascent: Ascent,
    quantise: bool,
    keep_failed: bool,
) -> tuple[chex.Array, Info]:
    return outcome.conclude(
        network,
        task,
        to_levels(norm, task, ascent.moved, quantise),
        ascent.steps,
        ascent.queries,
        size=norm.size,
        keep_failed=keep_failed,
    )


def _check(
    steps: int,
    relative_step: float,
    random_start: bool,
    restarts: int,
) -> None:
    outcome.check_at_least("steps", steps, 1)
    outcome.check_at_least("restarts", restarts, 1)
    outcome.check_share("relative_step", relative_step)
    if restarts > 1 and not random_start:
        raise ValueError("restarts differ only where random_start is True")
