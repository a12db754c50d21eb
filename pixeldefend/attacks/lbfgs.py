"""The first attack: L-BFGS on distance and cross-entropy within the box. Norm: L2.

For a constant c it minimises over the box 0..255

    mean(((x - image) / 255)^2) + c cross-entropy(x, target),

and looks for the smallest c whose minimum fools: doubled until one does, then halved
into. Images are at different constants and iterations at any time; each takes one
gradient a turn.
"""

import dataclasses
import functools
from typing import Any

import chex
import jax.numpy as jnp
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import box_lbfgs, gradients, norms, outcome
from pixeldefend.attacks.batched_while import batched_while, select
from pixeldefend.attacks.box_lbfgs import BoxLBFGS
from pixeldefend.attacks.outcome import Info, LogitsFn, Task


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
      logits_fn: this and what is not listed as for `fgsm`.
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
      lanes: images at once; see `batched_while`.
      quantise: return whole levels, `uint8`, which are also what decides whether a
        minimum fools; False returns floating ones.
      keep_failed: return the last minimum within eps where none fools; False returns
        the clean image there.

    Returns:
      Levels `[B, H, W, C]`, the nearest success, and what was done. An image that is
      misclassified already is returned as it is.

    Raises:
      ValueError: as for `fgsm`; targets out of range, constant not above 0, not at
        least one step and a history of one.
    """
    del key
    network = functools.partial(logits_fn, variables)
    _check(constant, tolerance, doublings, bisections, steps, history)
    task = outcome.prepare(network, images, labels, eps, quantise)
    task, targets, logits = outcome.with_targets(network, task, targets)
    loss, gradient, _ = gradients.cross_entropy(network, task.images, targets)
    task = dataclasses.replace(task, queries=task.queries + 1)
    minimiser = BoxLBFGS(_curvature(task.images), history, tolerance, steps)
    constants = task, targets, (loss, gradient)
    step = functools.partial(_step, network, minimiser, doublings, bisections, quantise)
    fooled = outcome.is_fooled(logits, task.labels)
    first = _init(minimiser, task, (loss, gradient), fooled, constant)
    last = batched_while(step, constants, first, lanes=lanes)
    return outcome.conclude(
        network,
        task,
        last.best.astype(jnp.uint8) if quantise else last.best,
        last.steps,
        last.queries,
        size=norms.l2,
        keep_failed=keep_failed,
    )


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
      best: levels `[B, H, W, C]`, the nearest that fools, or else the last within eps.
      distance: `[B]`, of the nearest that fools.
      steps: `[B]`.
      queries: `[B]`.
      done: `[B]`.
    """

    descent: box_lbfgs.State
    constant: chex.Array
    low: chex.Array
    high: chex.Array
    doubled: chex.Array
    halved: chex.Array
    best: chex.Array
    distance: chex.Array
    steps: chex.Array
    queries: chex.Array
    done: chex.Array


def _init(
    minimiser: BoxLBFGS, task: Task, clean: tuple, done: chex.Array, constant: float
) -> _Search:
    constants = jnp.full_like(task.radius, constant)
    none = jnp.zeros_like(task.queries)
    return _Search(
        descent=_restart(minimiser, task, constants, clean),
        constant=constants,
        low=jnp.zeros_like(constants),
        high=jnp.full_like(constants, jnp.inf),
        doubled=none,
        halved=none,
        best=task.images,
        distance=jnp.full_like(constants, jnp.inf),
        steps=none,
        queries=none,
        done=done,
    )


def _step(
    network: outcome.Network,
    minimiser: BoxLBFGS,
    doublings: int,
    bisections: int,
    quantise: bool,
    constants: tuple,
    state: _Search,
) -> _Search:
    """One look of the network: at a trial of the descent, or at its minimum.

    `constants` are the task, the targets, and the cross-entropy and its gradient at the
    clean images.
    """
    task, targets, clean = constants
    descent = state.descent
    minimum = jnp.round(descent.point) if quantise else descent.point
    trial = minimiser.trial(descent)
    shown = jnp.where(norms.each(descent.done), minimum, trial)
    loss, gradient, logits = gradients.cross_entropy(network, shown, targets)
    state = dataclasses.replace(state, queries=state.queries + 1)
    objective = _objective(task, state.constant, shown, loss, gradient)
    advanced = minimiser.advance(descent, shown, *objective)
    moved = advanced.iterations - descent.iterations
    onward = dataclasses.replace(state, descent=advanced, steps=state.steps + moved)
    anew = _judge(state, task, shown, logits, doublings, bisections)
    anew = dataclasses.replace(
        anew, descent=_restart(minimiser, task, anew.constant, clean)
    )
    return select(descent.done, anew, onward)


def _curvature(images: chex.Array) -> float:
    """Of the mean squared distance in units of the range, the same in any direction."""
    return 2 / (images[0].size * (pixels.LEVELS - 1) ** 2)


def _objective(
    task: Task,
    constant: chex.Array,
    shown: chex.Array,
    loss: chex.Array,
    gradient: chex.Array,
) -> tuple[chex.Array, chex.Array]:
    """The objective and its gradient, from those of the cross-entropy."""
    curvature = _curvature(task.images)
    moved = shown - task.images
    value = curvature / 2 * jnp.sum(moved**2, (1, 2, 3)) + constant * loss
    return value, curvature * moved + norms.each(constant) * gradient


def _restart(
    minimiser: BoxLBFGS, task: Task, constant: chex.Array, clean: tuple
) -> box_lbfgs.State:
    """At the image itself, where cross-entropy and gradient are known."""
    objective = _objective(task, constant, task.images, *clean)
    return minimiser.init(task.images, *objective)


def _judge(
    state: _Search,
    task: Task,
    shown: chex.Array,
    logits: chex.Array,
    doublings: int,
    bisections: int,
) -> _Search:
    """Keeps a minimum that fools and is the nearest; the constant after it."""
    success = outcome.is_surely_fooled(logits, task.labels)
    distance = norms.l2(shown - task.images)
    near = distance <= task.radius
    hit = near & success & (distance < state.distance)
    take = hit | (near & jnp.isinf(state.distance))
    low = jnp.where(success, state.low, state.constant)
    high = jnp.where(success, state.constant, state.high)
    bracketed = jnp.isfinite(high)
    # The halving that this constant came from, if it came from one.
    halved = state.halved + jnp.isfinite(state.high).astype(jnp.int32)
    spent = jnp.where(bracketed, halved >= bisections, state.doubled >= doublings)
    return dataclasses.replace(
        state,
        best=jnp.where(norms.each(take), shown, state.best),
        distance=jnp.where(hit, distance, state.distance),
        constant=jnp.where(bracketed, (low + high) / 2, 2 * state.constant),
        low=low,
        high=high,
        doubled=state.doubled + (~bracketed).astype(jnp.int32),
        halved=halved,
        done=spent,
    )


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
