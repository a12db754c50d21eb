"""Steps up the gradient of the loss, kept in a ball: FGSM, FGM, BIM and PGD."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from pixeldefend.attacks import norms, outcome, walk
from pixeldefend.attacks.lanes import until_done
from pixeldefend.attacks.outcome import Info, LogitsFn, Task

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
      key: not used.
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
    options = quantise, keep_failed
    return _single(
        norms.LINF, logits_fn, variables, images, labels, eps, loss_labels, options
    )


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
    options = quantise, keep_failed
    return _single(
        norms.L2, logits_fn, variables, images, labels, eps, loss_labels, options
    )


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
      logits_fn: as for `fgsm`.
      variables: for `logits_fn`.
      images: as for `fgsm`.
      labels: as for `fgsm`; the predicted ones are those of `images`.
      key: not used.
      eps: levels, a number or `[B]`; may be fractional.
      steps: how many; None for the formula above.
      relative_step: size of a step as a share of eps; None for one level.
      ball: False forgets the ball, as the authors' adversarial training does; an image
        may then move by as many levels as there are steps.
      quantise: as for `fgsm`.
      keep_failed: as for `fgsm`.

    Returns:
      Levels `[B, H, W, C]`, within 0..255 and, with `ball`, within eps of `images`; and
      what was done.

    Raises:
      ValueError: as for `fgsm`, or not at least one step.
    """
    del key
    if steps is not None:
        outcome.check_at_least("steps", steps, 1)
    if relative_step is not None:
        outcome.check_share("relative_step", relative_step)
    given = outcome.task(logits_fn, variables, images, labels, eps, quantise)
    given = walk.in_reach(norms.LINF, given)
    if steps is None:
        formula = jnp.minimum(given.radius + 4, 1.25 * given.radius)
        counts = jnp.floor(formula).astype(jnp.int32)
    else:
        counts = jnp.full_like(given.queries, steps)
    one = jnp.ones_like(given.radius)
    length = one if relative_step is None else relative_step * given.radius
    if not ball:
        given = given.replace(radius=counts.astype(length.dtype) * length)
    moved = _ascended(
        norms.LINF, logits_fn, variables, given, given.images, counts, length
    )
    return outcome.concluded(
        logits_fn,
        variables,
        given,
        walk.whole(norms.LINF, given, moved, quantise),
        counts,
        counts,
        size=norms.linf,
        keep_failed=keep_failed,
    )


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
    taken by another image (`lanes.until_done`).

    Args:
      logits_fn: as for `fgsm`.
      variables: for `logits_fn`.
      images: as for `fgsm`.
      labels: as for `fgsm`; the predicted ones are those of `images`.
      key: `[B]`, one an image; needed for random starts.
      eps: levels, a number or `[B]`, in `norm`; may be fractional.
      norm: "linf" or "l2"; steps go along the sign of the gradient, or along itself.
      steps: how many from each start.
      relative_step: size of a step as a share of eps.
      random_start: begin at a point drawn from the ball; False: at the image.
      restarts: how many starts at most.
      stop_early: look at every point as it would be returned, slopes are taken there
        too, and keep the first success. For defences whose loss leaps from step to
        step, so that the last point is no better than one before it.
      lanes: images at once where they stop at different times; see `lanes.until_done`.
      quantise: as for `fgsm`.
      keep_failed: as for `fgsm`; the image of the last start.

    Returns:
      Levels `[B, H, W, C]`, within eps of `images` and 0..255, and what was done.

    Raises:
      ValueError: as for `fgsm`; unknown norm; no key for random starts; several starts
        that are not random, or with `stop_early`.
    """
    ball = norms.named(norm)
    outcome.check_at_least("steps", steps, 1)
    outcome.check_at_least("restarts", restarts, 1)
    outcome.check_share("relative_step", relative_step)
    if restarts > 1 and not random_start:
        raise ValueError("restarts differ only where random_start is True")
    if restarts > 1 and stop_early:
        raise ValueError("stop_early is for one start: restarts must be 1")
    given = outcome.task(logits_fn, variables, images, labels, eps, quantise)
    given = walk.in_reach(ball, given)
    if random_start:
        outcome.check_key(key, len(images))

    def begun(given: Task, keys: chex.PRNGKey | None) -> chex.Array:
        if random_start:
            return ball.draw(keys, given.images, given.radius)
        return given.images

    def attempt(given: Task, keys: chex.PRNGKey | None) -> chex.Array:
        counts = jnp.full_like(given.queries, steps)
        length = relative_step * given.radius
        first = begun(given, keys)
        moved = _ascended(ball, logits_fn, variables, given, first, counts, length)
        return walk.whole(ball, given, moved, quantise)

    if stop_early:

        def look(given: Task, _: Any, shown: chex.Array) -> tuple:
            slope, logits = walk.slope_of_loss(
                logits_fn, variables, shown, given.labels
            )
            return slope, outcome.surely_fooled(logits, given.labels)

        way = walk.walk(
            ball,
            look,
            given,
            begun(given, key),
            steps=steps,
            relative_step=relative_step,
            quantise=quantise,
            lanes=lanes,
        )
        found = walk.whole(ball, given, way.moved, quantise)
        taken, queries = way.steps, way.queries
    elif restarts == 1:
        found, taken, queries = attempt(given, key), steps, steps
    else:
        found, starts = _first_success(
            attempt, logits_fn, variables, given, key, restarts, lanes
        )
        taken, queries = starts * steps, starts * (steps + 1)
    return outcome.concluded(
        logits_fn,
        variables,
        given,
        found,
        taken,
        queries,
        size=ball.size,
        keep_failed=keep_failed,
    )


@struct.dataclass
class _Starts:
    """One image's attempts: what the last one found, how many there were."""

    found: chex.Array
    count: chex.Array
    done: chex.Array


def _first_success(
    attempt: Any,
    logits_fn: LogitsFn,
    variables: Any,
    given: Task,
    key: chex.PRNGKey,
    restarts: int,
    lanes: int | None,
) -> tuple[chex.Array, chex.Array]:
    def step(rows: tuple, state: _Starts) -> _Starts:
        given, key = rows
        found = attempt(given, jax.vmap(jax.random.fold_in)(key, state.count))
        logits = logits_fn(variables, found.astype(given.images.dtype))
        count = state.count + 1
        success = outcome.surely_fooled(logits, given.labels)
        return _Starts(found, count, success | (count >= restarts))

    shape = jax.eval_shape(attempt, given, key)
    none = _Starts(
        found=jnp.zeros(shape.shape, shape.dtype),
        count=jnp.zeros_like(given.queries),
        done=jnp.zeros(given.queries.shape, bool),
    )
    last = until_done(step, (given, key), none, lanes=lanes)
    return last.found, last.count


def _single(
    norm: norms.Norm,
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    eps: chex.Array | float,
    loss_labels: str,
    options: tuple[bool, bool],
) -> tuple[chex.Array, Info]:
    """One step of length eps."""
    if loss_labels not in LOSS_LABELS:
        known = ", ".join(LOSS_LABELS)
        raise ValueError(f"loss_labels must be one of {known}: {loss_labels!r}")
    quantise, keep_failed = options
    given = outcome.task(logits_fn, variables, images, labels, eps, quantise)
    given = walk.in_reach(norm, given)
    climbed = given.labels
    if loss_labels == "predicted":
        guesses = outcome.predicted(logits_fn, variables, given.images)
        climbed = guesses.astype(given.labels.dtype)
    slope, _ = walk.slope_of_loss(logits_fn, variables, given.images, climbed)
    moved = given.images + norms.each(given.radius) * norm.direction(slope)
    moved = norm.project(given.images, moved, given.radius)
    return outcome.concluded(
        logits_fn,
        variables,
        given,
        walk.whole(norm, given, moved, quantise),
        1,
        1,
        size=norm.size,
        keep_failed=keep_failed,
    )


def _ascended(
    norm: norms.Norm,
    logits_fn: LogitsFn,
    variables: Any,
    given: Task,
    first: chex.Array,
    steps: chex.Array,
    length: chex.Array,
) -> chex.Array:
    """`first` after `steps [B]` projected steps of `length [B]` levels."""

    def step(i: chex.Array, moved: chex.Array) -> chex.Array:
        slope, _ = walk.slope_of_loss(logits_fn, variables, moved, given.labels)
        next_ = moved + norms.each(length) * norm.direction(slope)
        next_ = norm.project(given.images, next_, given.radius)
        return jnp.where(norms.each(i < steps), next_, moved)

    return jax.lax.fori_loop(0, jnp.max(steps, initial=0), step, first)
