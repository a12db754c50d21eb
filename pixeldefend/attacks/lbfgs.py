"""The first attack: L-BFGS on distance and cross-entropy within the box. Norm: L2.

For a constant c it minimises over the box 0..255

    mean(((x - image) / 255)^2) + c cross-entropy(x, target),

and looks for the smallest c whose minimum fools: doubled until one does, then halved
into.

The box is kept by projection. A change of variables (x = 127.5 + 127.5 tanh w) has no
slope where a value is 0 or 255, and most values of many images are just that. So values
that stand at a bound and would leave the box are held, the others move along the
quasi-Newton direction of their own history (Bertsekas 1982, Kim, Sra and Dhillon 2010),
and a step is projected and halved until the objective has fallen enough. Images are at
different constants and steps at any time; each takes one gradient a turn.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.lanes import until_done, where
from pixeldefend.attacks.outcome import Info, LogitsFn, Task
from pixeldefend.attacks.targets import aimed

# A step is accepted if the objective falls by this share of what its slope promises.
_ENOUGH = 1e-4
_HALVINGS = 20


def lbfgs(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float = jnp.inf,
    targets: chex.Array | None = None,
    constant: float = 2e-5,
    doublings: int = 29,
    bisections: int = 8,
    steps: int = 150,
    history: int = 5,
    tolerance: float = 1e-3,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """The nearest image of a target class, by L-BFGS in the box and a line search on c.

    Norm: L2. Szegedy et al. (2013), in the units of foolbox 1 and 2. Every c begins at
    the image itself. Any class but the label is a success. The state of an image is 2
    `history` + 6 times as large as the image.

    Args:
      logits_fn: `logits_fn(variables, images) -> [B, K]`, of floating levels.
      variables: for `logits_fn`, any pytree.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      labels: integers `[B]` to get away from; None for the predicted ones.
      key: not used.
      eps: levels, a number or `[B]`: an image farther than this is no success.
      targets: integers `[B]`, the classes to aim at; None for the runners-up. (foolbox
        aims where a single step along the gradient leads, or at random.)
      constant: the first c.
      doublings: how often c is doubled at most until its minimum fools.
      bisections: how often the interval below that c is halved then.
      steps: of L-BFGS at most, for one c.
      history: how many steps the curvature is estimated from.
      tolerance: a minimum is reached when a step promises less than this share of the
        objective. (Measured on a VGG: at 1e-3 distances are within 5 % of those at
        1e-6, for a sixth of the queries or less.)
      lanes: images at once; see `lanes.until_done`.
      quantise: return whole levels, `uint8`, which are also what decides whether a
        minimum fools; False returns floating ones.
      keep_failed: return the last minimum within eps where none fools; False returns
        the clean image there.

    Returns:
      Levels `[B, H, W, C]`, the nearest success, and what was done. An image that is
      misclassified already is returned as it is.

    Raises:
      ValueError: wrong shapes, negative eps, labels or targets out of range; constant
        not above 0; not at least one step and a history of one.
    """
    del key
    _check(constant, tolerance, doublings, bisections, steps, history)
    given = outcome.task(logits_fn, variables, images, labels, eps, quantise)
    given, targets, logits = aimed(logits_fn, variables, given, targets)
    clean = _crossed(logits_fn, variables, given.images, targets)[:2]
    given = given.replace(queries=given.queries + 1)

    def step(rows: tuple, state: _Search) -> _Search:
        given, targets, clean = rows
        at = state.descent
        shown = jnp.where(norms.each(at.over), _returned(at.here, quantise), _trial(at))
        loss, slope, logits = _crossed(logits_fn, variables, shown, targets)
        state = state.replace(queries=state.queries + 1)
        objective = _objective(given, state.constant, shown, loss, slope)
        onward = _advanced(at, shown, *objective, steps, tolerance)
        moved = (onward.taken - at.taken).astype(jnp.int32)
        onward = state.replace(descent=onward, steps=state.steps + moved)
        judged = _judged(state, given, shown, logits, doublings, bisections)
        begun = _begun(given, judged.constant, *clean, history)
        judged = judged.replace(descent=begun)
        return where(at.over, judged, onward)

    first = _first(
        given, clean, outcome.fooled(logits, given.labels), constant, history
    )
    last = until_done(step, (given, targets, clean), first, lanes=lanes)
    return outcome.concluded(
        logits_fn,
        variables,
        given,
        last.found.astype(jnp.uint8) if quantise else last.found,
        last.steps,
        last.queries,
        size=norms.l2,
        keep_failed=keep_failed,
    )


@struct.dataclass
class _Descent:
    """The minimisation for one constant.

    Attributes:
      here: levels `[B, H, W, C]`, the last that was accepted.
      value: `[B]`, the objective there, and
      slope: `[B, H, W, C]`, its slope.
      direction: `[B, H, W, C]`, where the next step goes.
      length: `[B]`, its length as a share of `direction`.
      moves: `[B, N, H, W, C]`, the last accepted steps, the newest last, and
      bends: `[B, N, H, W, C]`, how the slope changed in them.
      taken: `[B]`, how many steps were accepted.
      over: `[B]`, whether a minimum is reached.
    """

    here: chex.Array
    value: chex.Array
    slope: chex.Array
    direction: chex.Array
    length: chex.Array
    moves: chex.Array
    bends: chex.Array
    taken: chex.Array
    over: chex.Array


@struct.dataclass
class _Search:
    """The search for the constant.

    Attributes:
      descent: the minimisation that is under way.
      constant: `[B]`, what it is for.
      low: `[B]`, the largest constant that did not fool.
      high: `[B]`, the smallest that did; infinite before there is one.
      doubled: `[B]`, how often the constant was doubled.
      halved: `[B]`, how often the interval was halved.
      found: levels `[B, H, W, C]`, the nearest that fools, or else the last within eps.
      distance: `[B]`, of the nearest that fools.
      steps: `[B]`.
      queries: `[B]`.
      done: `[B]`.
    """

    descent: _Descent
    constant: chex.Array
    low: chex.Array
    high: chex.Array
    doubled: chex.Array
    halved: chex.Array
    found: chex.Array
    distance: chex.Array
    steps: chex.Array
    queries: chex.Array
    done: chex.Array


def _first(
    given: Task, clean: tuple, done: chex.Array, constant: float, history: int
) -> _Search:
    constant = jnp.full_like(given.radius, constant)
    none = jnp.zeros_like(given.queries)
    return _Search(
        descent=_begun(given, constant, *clean, history),
        constant=constant,
        low=jnp.zeros_like(constant),
        high=jnp.full_like(constant, jnp.inf),
        doubled=none,
        halved=none,
        found=given.images,
        distance=jnp.full_like(constant, jnp.inf),
        steps=none,
        queries=none,
        done=done,
    )


def _crossed(
    logits_fn: LogitsFn, variables: Any, images: chex.Array, targets: chex.Array
) -> tuple[chex.Array, chex.Array, chex.Array]:
    """The cross-entropy `[B]` towards the targets, its slope and the logits."""

    def total(images: chex.Array) -> tuple[chex.Array, tuple]:
        logits = logits_fn(variables, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.sum(losses), (losses, logits)

    slope, (losses, logits) = jax.grad(total, has_aux=True)(images)
    return losses, slope, logits


def _curvature(images: chex.Array) -> float:
    """Of the mean squared distance in units of the range, the same in any direction."""
    return 2 / (images[0].size * (pixels.LEVELS - 1) ** 2)


def _objective(
    given: Task,
    constant: chex.Array,
    shown: chex.Array,
    loss: chex.Array,
    slope: chex.Array,
) -> tuple[chex.Array, chex.Array]:
    """The objective and its slope, from those of the cross-entropy."""
    curvature = _curvature(given.images)
    moved = shown - given.images
    value = curvature / 2 * jnp.sum(moved**2, (1, 2, 3)) + constant * loss
    return value, curvature * moved + norms.each(constant) * slope


def _begun(
    given: Task,
    constant: chex.Array,
    loss: chex.Array,
    slope: chex.Array,
    history: int,
) -> _Descent:
    """At the image itself, where the cross-entropy is known."""
    value, slope = _objective(given, constant, given.images, loss, slope)
    shape = (len(given.images), history, *given.images.shape[1:])
    none = jnp.zeros(shape, slope.dtype)
    direction = _steepest(given.images, slope)
    return _Descent(
        here=given.images,
        value=value,
        slope=slope,
        direction=direction,
        length=jnp.ones_like(value),
        moves=none,
        bends=none,
        taken=jnp.zeros_like(given.queries),
        over=jnp.all(direction == 0, (1, 2, 3)),
    )


def _steepest(here: chex.Array, slope: chex.Array) -> chex.Array:
    """What `_direction` comes to without a history, of images `[B, H, W, C]`."""
    return -jnp.where(_free(here, slope), slope, 0) / _curvature(here)


def _forgetful(at: _Descent, which: chex.Array) -> _Descent:
    """Those images `[B]` go on along the slope, without their history."""
    fresh = at.replace(
        direction=_steepest(at.here, at.slope),
        length=jnp.ones_like(at.length),
        moves=jnp.zeros_like(at.moves),
        bends=jnp.zeros_like(at.bends),
    )
    return where(which, fresh, at)


def _promised(at: _Descent) -> chex.Array:
    """By how much `[B]` the objective falls in the next step, going by its slope."""
    return -jnp.sum(at.slope * (_trial(at) - at.here), (1, 2, 3))


def _free(here: chex.Array, slope: chex.Array) -> chex.Array:
    """Which values stand at no bound that they would cross down the slope."""
    top = pixels.LEVELS - 1
    return ~(((here <= 0) & (slope > 0)) | ((here >= top) & (slope < 0)))


def _direction(
    here: chex.Array, slope: chex.Array, moves: chex.Array, bends: chex.Array
) -> chex.Array:
    """One image's quasi-Newton direction, zero where the box holds a value.

    The two loops of Nocedal (1980) over the history of the values that are free. Pairs
    along which the objective does not curve upwards teach nothing.
    """
    free = _free(here, slope)
    slope, moves, bends = (jnp.where(free, x, 0) for x in (slope, moves, bends))
    curved = jnp.sum(moves * bends, (1, 2, 3))
    good = curved > 0
    inverse = jnp.where(good, 1 / jnp.where(good, curved, 1), 0)
    pairs = moves, bends, inverse

    def back(rest: chex.Array, pair: tuple) -> tuple[chex.Array, chex.Array]:
        move, bend, inverse = pair
        share = inverse * jnp.sum(move * rest)
        return rest - share * bend, share

    def forth(rest: chex.Array, pair: tuple) -> tuple[chex.Array, None]:
        move, bend, inverse, share = pair
        return rest + (share - inverse * jnp.sum(bend * rest)) * move, None

    rest, shares = jax.lax.scan(back, slope, pairs, reverse=True)
    # Scaled as the newest pair curves; without one, as the distance alone does.
    steep = jnp.sum(bends[-1] ** 2)
    known = good[-1] & (steep > 0)
    scale = curved[-1] / jnp.where(known, steep, 1)
    rest *= jnp.where(known, scale, 1 / _curvature(here[None]))
    return -jax.lax.scan(forth, rest, (*pairs, shares))[0]


def _trial(at: _Descent) -> chex.Array:
    return norms.among_levels(at.here + norms.each(at.length) * at.direction)


def _advanced(
    at: _Descent,
    shown: chex.Array,
    value: chex.Array,
    slope: chex.Array,
    steps: int,
    tolerance: float,
) -> _Descent:
    """Accepts the trial if the objective has fallen enough, else halves the step.

    A history whose direction leads uphill, as rounding and the box may have it, or
    along which no step is short enough, is dropped: the descent goes on along the
    slope.
    """
    move = shown - at.here
    promised = jnp.sum(at.slope * move, (1, 2, 3))
    accepted = value <= at.value + _ENOUGH * promised
    newest = (x[:, None] for x in (move, slope - at.slope))
    moves, bends = (
        jnp.concatenate([old[:, 1:], new], 1)
        for old, new in zip((at.moves, at.bends), newest, strict=True)
    )
    there = _Descent(
        here=shown,
        value=value,
        slope=slope,
        direction=jax.vmap(_direction)(shown, slope, moves, bends),
        length=jnp.ones_like(at.length),
        moves=moves,
        bends=bends,
        taken=at.taken + 1,
        over=at.taken + 1 >= steps,
    )
    there = _forgetful(there, _promised(there) <= 0)
    there = there.replace(over=there.over | (_promised(there) <= tolerance * value))
    here = at.replace(length=at.length / 2)
    spent = here.length < 2.0**-_HALVINGS
    remembers = jnp.any(here.moves != 0, (1, 2, 3, 4))
    here = _forgetful(here, spent & remembers)
    here = here.replace(over=spent & ~remembers)
    return where(accepted, there, here)


def _judged(
    state: _Search,
    given: Task,
    shown: chex.Array,
    logits: chex.Array,
    doublings: int,
    bisections: int,
) -> _Search:
    """Keeps a minimum that fools and is the nearest; the constant after it."""
    success = outcome.surely_fooled(logits, given.labels)
    distance = norms.l2(shown - given.images)
    near = distance <= given.radius
    hit = near & success & (distance < state.distance)
    take = hit | (near & jnp.isinf(state.distance))
    low = jnp.where(success, state.low, state.constant)
    high = jnp.where(success, state.constant, state.high)
    bracketed = jnp.isfinite(high)
    # The halving that this constant came from, if it came from one.
    halved = state.halved + jnp.isfinite(state.high).astype(jnp.int32)
    spent = jnp.where(bracketed, halved >= bisections, state.doubled >= doublings)
    return state.replace(
        found=jnp.where(norms.each(take), shown, state.found),
        distance=jnp.where(hit, distance, state.distance),
        constant=jnp.where(bracketed, (low + high) / 2, 2 * state.constant),
        low=low,
        high=high,
        doubled=state.doubled + (~bracketed).astype(jnp.int32),
        halved=halved,
        done=spent,
    )


def _returned(moved: chex.Array, quantise: bool) -> chex.Array:
    return jnp.round(moved) if quantise else moved


def _check(
    constant: float,
    tolerance: float,
    doublings: int,
    bisections: int,
    steps: int,
    history: int,
) -> None:
    for name, value in (("constant", constant), ("tolerance", tolerance)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0: {value}")
    least = {"doublings": 0, "bisections": 0, "steps": 1, "history": 1}
    values = doublings, bisections, steps, history
    for (name, smallest), value in zip(least.items(), values, strict=True):
        outcome.check_at_least(name, value, smallest)
