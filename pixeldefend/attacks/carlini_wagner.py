"""Carlini and Wagner's attacks: Adam on the image, for the smallest perturbation.

Both work in the paper's units, in which the range of a value is 1 (constants and
tolerances published elsewhere are in these).
"""

import dataclasses
import functools
from typing import Any

import chex
import jax.numpy as jnp
import optax
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import box_descent, norms, outcome, rounding
from pixeldefend.attacks.batched_while import batched_while, select
from pixeldefend.attacks.box_descent import Descent
from pixeldefend.attacks.outcome import Info, LogitsFn, Network, Task

_RANGE = pixels.LEVELS - 1
# What of the constant counts as no loss at all.
_SOLVED = 1e-4


@struct.dataclass
class _Shrinking:
    """One image's way under `cw_linf`.

    Attributes:
      descent: see there.
      const: `[B]`, weight of the margin.
      tau: `[B]`, size from which on perturbations cost.
      best: levels `[B, H, W, C]`, of the last success.
      taken: `[B]` int32, steps altogether.
      done: `[B]` bool.
    """

    descent: Descent
    const: chex.Array
    tau: chex.Array
    best: chex.Array
    taken: chex.Array
    done: chex.Array


@struct.dataclass
class _Bisection:
    """One image's way under `cw_l2`.

    Attributes:
      descent: see there.
      const: `[B]`, weight of the margin.
      lower: `[B]`, the largest constant that is known to be too small.
      upper: `[B]`, the smallest known to succeed.
      succeeded: `[B]` bool, with this constant.
      previous: `[B]`, loss when progress was last looked at.
      best: levels `[B, H, W, C]`, of the nearest success.
      nearest: `[B]`, its distance in levels, at first infinite.
      searched: `[B]` int32, constants that were tried.
      taken: `[B]` int32, steps altogether.
      done: `[B]` bool.
    """

    descent: Descent
    const: chex.Array
    lower: chex.Array
    upper: chex.Array
    succeeded: chex.Array
    previous: chex.Array
    best: chex.Array
    nearest: chex.Array
    searched: chex.Array
    taken: chex.Array
    done: chex.Array


def cw_linf(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float = jnp.inf,
    steps: int = 1000,
    step_size: float = 5e-3,
    initial_const: float = 1e-5,
    largest_const: float = 20.0,
    const_factor: float = 2.0,
    decrease_factor: float = 0.9,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """Carlini and Wagner's L-infinity attack: a bound that shrinks until it holds.

    Carlini & Wagner (2017), section VI.C, with the rules of their code; cut to the ball
    at the end as PixelDefend, section 2.1, has it. Minimised are the margin of the
    label, weighted by a constant, and all that perturbations exceed a bound tau. As
    soon as both vanish, tau falls to `decrease_factor` times the perturbation or
    itself, whichever is smaller, and the search goes on from there with Adam afresh.
    While they do not, the constant grows. The last success is returned.

    Args:
      logits_fn: this and what is not listed as for `fgsm`.
      eps: levels, a number or `[B]`; the result is cut to this ball.
      steps: of Adam with each constant, at most.
      step_size: of Adam, in the space of the tanh.
      initial_const: the constant at first.
      largest_const: constants from here on are not tried.
      const_factor: by which the constant grows.
      decrease_factor: by which tau falls; it ends at 1/256 of the range.
      lanes: images at once; see `batched_while`.
      quantise: return whole levels that still succeed (`rounding.quantise_fooling`).
      keep_failed: return what the cut to the ball leaves also where that fails.

    Returns:
      As for `fgsm`. Images that were not taken for their label come back as they are.

    Raises:
      ValueError: as for `fgsm`; not at least one step, a constant that does not grow or
        a bound that does not fall.
    """
    del key
    network, adam = functools.partial(logits_fn, variables), optax.adam(step_size)
    outcome.check_at_least("steps", steps, 1)
    if not const_factor > 1 or not 0 < decrease_factor < 1:
        raise ValueError(
            "const_factor must be above 1 and decrease_factor between 0 and 1: "
            f"{const_factor}, {decrease_factor}"
        )
    task = outcome.prepare(network, images, labels, eps, quantise)

    step = functools.partial(
        _shrink, network, adam, steps, largest_const, const_factor, decrease_factor
    )
    first = _Shrinking(
        descent=box_descent.init(adam, task.images),
        const=jnp.full_like(task.radius, initial_const),
        tau=jnp.ones_like(task.radius),
        best=task.images,
        taken=jnp.zeros_like(task.queries),
        done=outcome.is_fooled(network(task.images), task.labels),
    )
    last = batched_while(step, task, first, lanes=lanes)
    return rounding.finish(
        network,
        task,
        last.best,
        last.taken,
        last.taken + 1,
        norm=norms.LINF,
        lanes=lanes,
        quantise=quantise,
        keep_failed=keep_failed,
    )


def cw_l2(
    logits_fn: LogitsFn,
    variables: Any,
    images: chex.Array,
    labels: chex.Array | None,
    key: chex.PRNGKey | None = None,
    *,
    eps: chex.Array | float = jnp.inf,
    search_steps: int = 9,
    steps: int = 1000,
    step_size: float = 1e-2,
    initial_const: float = 1e-3,
    confidence: float = 0.0,
    abort_early: bool = True,
    lanes: int | None = None,
    quantise: bool = True,
    keep_failed: bool = False,
) -> tuple[chex.Array, Info]:
    """Carlini and Wagner's L2 attack: distance and margin, weighted by bisection.

    Carlini & Wagner (2017), section VI.A. Minimised are the squared distance and,
    weighted by a constant, the margin of the label. The constant is multiplied by 10
    until it succeeds, then bisected; the nearest success of all is returned.

    Args:
      logits_fn: this and what is not listed as for `cw_linf`.
      eps: levels, a number or `[B]`, in L2; the result is cut to this ball.
      search_steps: how many constants are tried.
      steps: of Adam with each constant, at most.
      step_size: of Adam, in the space of the tanh.
      initial_const: the constant at first.
      confidence: by how much another logit must exceed the label's.
      abort_early: leave a constant when the image's loss has not fallen by 0.01 % in a
        tenth of the steps.
      quantise: as for `cw_linf`; of the confidence only the sign is kept.

    Returns:
      As for `cw_linf`; the distance is that of L2.

    Raises:
      ValueError: as for `fgsm`; not at least one step or constant, negative confidence.
    """
    del key
    network, adam = functools.partial(logits_fn, variables), optax.adam(step_size)
    outcome.check_at_least("steps", steps, 1)
    outcome.check_at_least("search_steps", search_steps, 1)
    if confidence < 0:
        raise ValueError(f"confidence must not be negative: {confidence}")
    task = outcome.prepare(network, images, labels, eps, quantise)

    step = functools.partial(
        _bisect, network, adam, search_steps, steps, confidence, abort_early
    )
    first = _init(task, box_descent.init(adam, task.images), initial_const)
    clean = outcome.is_fooled(network(task.images), task.labels)
    first = dataclasses.replace(first, done=clean)
    last = batched_while(step, task, first, lanes=lanes)
    return rounding.finish(
        network,
        task,
        last.best,
        last.taken,
        last.taken + 1,
        norm=norms.L2,
        lanes=lanes,
        quantise=quantise,
        keep_failed=keep_failed,
    )


def _shrink(
    network: Network,
    adam: optax.GradientTransformation,
    steps: int,
    largest_const: float,
    const_factor: float,
    decrease_factor: float,
    task: Task,
    state: _Shrinking,
) -> _Shrinking:
    """One step of Adam under `cw_linf`, and what follows for tau and the constant."""

    def cost(moved: chex.Array) -> chex.Array:
        excess = jnp.abs(moved - task.images) / _RANGE - norms.each(state.tau)
        return jnp.sum(jnp.maximum(excess, 0), (1, 2, 3))

    moved, fooled, loss, gradient = box_descent.look(
        network, task, state.descent.point, cost, state.const, 0.0
    )
    solved = fooled & (loss < _SOLVED * state.const)
    size = norms.linf(moved - task.images) / _RANGE
    tau = decrease_factor * jnp.minimum(state.tau, size)
    descent = box_descent.advance(adam, state.descent, gradient)
    failed = ~solved & (descent.steps >= steps)
    const = jnp.where(failed, const_factor * state.const, state.const)
    # Adam goes on with the new constant, as in the authors' code.
    descent = dataclasses.replace(descent, steps=jnp.where(failed, 0, descent.steps))
    return _Shrinking(
        descent=select(solved, box_descent.init(adam, moved), descent),
        const=const,
        tau=jnp.where(solved, tau, state.tau),
        best=select(solved, moved, state.best),
        taken=state.taken + 1,
        done=(failed & (const >= largest_const)) | (solved & (tau <= 1 / 256)),
    )


def _bisect(
    network: Network,
    adam: optax.GradientTransformation,
    search_steps: int,
    steps: int,
    confidence: float,
    abort_early: bool,
    task: Task,
    state: _Bisection,
) -> _Bisection:
    """One step of Adam under `cw_l2`, and the next constant after the last one."""

    def cost(moved: chex.Array) -> chex.Array:
        return jnp.sum(((moved - task.images) / _RANGE) ** 2, (1, 2, 3))

    moved, fooled, loss, gradient = box_descent.look(
        network, task, state.descent.point, cost, state.const, confidence
    )
    state = _keep_nearest(state, task, moved, fooled)
    descent = box_descent.advance(adam, state.descent, gradient)
    over = descent.steps >= steps
    if abort_early:
        state, stuck = _check_progress(state, loss, -(-steps // 10))
        over |= stuck
    state = dataclasses.replace(state, descent=descent, taken=state.taken + 1)
    # Afresh from the image itself.
    anew = box_descent.init(adam, task.images)
    state = select(over, _next_constant(state, search_steps, anew), state)
    return dataclasses.replace(state, done=state.searched >= search_steps)


def _init(task: Task, descent: Descent, const: float) -> _Bisection:
    """Nothing tried yet."""
    zeros = jnp.zeros_like(task.radius)
    none = jnp.zeros_like(task.queries)
    return _Bisection(
        descent=descent,
        const=zeros + const,
        lower=zeros,
        upper=zeros + jnp.inf,
        succeeded=none > 0,
        previous=zeros + jnp.inf,
        best=task.images,
        nearest=zeros + jnp.inf,
        searched=none,
        taken=none,
        done=none > 0,
    )


def _keep_nearest(
    state: _Bisection, task: Task, moved: chex.Array, fooled: chex.Array
) -> _Bisection:
    """Keeps the image, where it succeeds and none was nearer."""
    distance = norms.l2(moved - task.images)
    nearer = fooled & (distance < state.nearest)
    return dataclasses.replace(
        state,
        succeeded=state.succeeded | fooled,
        best=select(nearer, moved, state.best),
        nearest=jnp.where(nearer, distance, state.nearest),
    )


def _check_progress(
    state: _Bisection, loss: chex.Array, every: int
) -> tuple[_Bisection, chex.Array]:
    """Every so many steps: has the loss not fallen since? `[B]` bool."""
    now = state.descent.steps % every == 0
    stuck = now & ~(loss <= 0.9999 * state.previous)
    previous = jnp.where(now, loss, state.previous)
    return dataclasses.replace(state, previous=previous), stuck


def _next_constant(
    state: _Bisection, search_steps: int, descent: Descent
) -> _Bisection:
    """Between those that failed and those that succeeded, or ten times as large."""
    upper = jnp.where(state.succeeded, state.const, state.upper)
    lower = jnp.where(state.succeeded, state.lower, state.const)
    const = jnp.where(jnp.isinf(upper), 10 * state.const, (lower + upper) / 2)
    searched = state.searched + 1
    if search_steps >= 10:
        # A long search ends with a constant that is known to succeed, if one is.
        final = (searched == search_steps - 1) & jnp.isfinite(upper)
        const = jnp.where(final, upper, const)
    return dataclasses.replace(
        state,
        descent=descent,
        const=const,
        lower=lower,
        upper=upper,
        succeeded=jnp.zeros_like(state.succeeded),
        previous=jnp.full_like(state.previous, jnp.inf),
        searched=searched,
    )
