"""Carlini and Wagner's attacks: Adam on the image, for the smallest perturbation.

Both work in the paper's units, in which the range of a value is 1 (constants and
tolerances published elsewhere are in these).
"""

from typing import Any

import chex
import jax.numpy as jnp
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import norms, outcome, rounding
from pixeldefend.attacks.box_descent import Descent, Here, descended, look, started
from pixeldefend.attacks.lanes import until_done, where
from pixeldefend.attacks.outcome import Info, LogitsFn, Task

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
    While they do not, the constant grows, up to `largest_const`. The last success is
    returned. Images wait for no other (`lanes.until_done`).

    Args:
      logits_fn: `logits_fn(variables, images) -> [B, K]`, of floating levels.
      variables: for `logits_fn`, any pytree.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      labels: integers `[B]` to get away from; None for the predicted ones.
      key: not used.
      eps: levels, a number or `[B]`; the result is cut to this ball.
      steps: of Adam with each constant, at most.
      step_size: of Adam, in the space of the tanh.
      initial_const: the constant at first.
      largest_const: constants from here on are not tried.
      const_factor: by which the constant grows.
      decrease_factor: by which tau falls; it ends at 1/256 of the range.
      lanes: images at once; see `lanes.until_done`.
      quantise: return whole levels, `uint8`, that still succeed (`rounding.rounded`);
        False returns floating ones. It presumes that `images` are whole levels.
      keep_failed: return what is left after the cut to the ball also where the label
        is still found; False returns the clean image there.

    Returns:
      Levels `[B, H, W, C]`, within eps of `images` and within 0..255, and what was
      done. Images that were not taken for their label come back as they are.

    Raises:
      ValueError: wrong shapes, negative eps, labels out of range, not at least one
        step, a constant that does not grow or a bound that does not fall.
    """
    del key
    outcome.check_at_least("steps", steps, 1)
    if not const_factor > 1 or not 0 < decrease_factor < 1:
        raise ValueError(
            "const_factor must be above 1 and decrease_factor between 0 and 1: "
            f"{const_factor}, {decrease_factor}"
        )
    given = outcome.task(logits_fn, variables, images, labels, eps, quantise)

    def step(given: Task, state: _Shrinking) -> _Shrinking:
        def cost(moved: chex.Array) -> chex.Array:
            excess = jnp.abs(moved - given.images) / _RANGE - norms.each(state.tau)
            return jnp.sum(jnp.maximum(excess, 0), (1, 2, 3))

        here = look(
            logits_fn, variables, given, state.descent.point, cost, state.const, 0.0
        )
        solved = here.fooled & (here.loss < _SOLVED * state.const)
        size = norms.linf(here.moved - given.images) / _RANGE
        tau = decrease_factor * jnp.minimum(state.tau, size)
        descent = descended(state.descent, here.slope, step_size)
        failed = ~solved & (descent.steps >= steps)
        const = jnp.where(failed, const_factor * state.const, state.const)
        # Adam goes on with the new constant, as in the authors' code.
        descent = descent.replace(steps=jnp.where(failed, 0, descent.steps))
        return _Shrinking(
            descent=where(solved, started(here.moved), descent),
            const=const,
            tau=jnp.where(solved, tau, state.tau),
            best=where(solved, here.moved, state.best),
            taken=state.taken + 1,
            done=(failed & (const >= largest_const)) | (solved & (tau <= 1 / 256)),
        )

    full = jnp.ones_like(given.radius)
    first = _Shrinking(
        descent=started(given.images),
        const=initial_const * full,
        tau=full,
        best=given.images,
        taken=jnp.zeros_like(given.queries),
        done=outcome.fooled(logits_fn(variables, given.images), given.labels),
    )
    last = until_done(step, given, first, lanes=lanes)
    return rounding.ended(
        logits_fn,
        variables,
        given,
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
    until it succeeds, then bisected; the nearest success of all is returned. Images
    wait for no other (`lanes.until_done`).

    Args:
      logits_fn: as for `cw_linf`.
      variables: for `logits_fn`.
      images: as for `cw_linf`.
      labels: as for `cw_linf`.
      key: not used.
      eps: levels, a number or `[B]`, in L2; the result is cut to this ball.
      search_steps: how many constants are tried.
      steps: of Adam with each constant, at most.
      step_size: of Adam, in the space of the tanh.
      initial_const: the constant at first.
      confidence: by how much another logit must exceed the label's.
      abort_early: leave a constant when the image's loss has not fallen by 0.01 % in a
        tenth of the steps.
      lanes: as for `cw_linf`.
      quantise: as for `cw_linf`; of the confidence only the sign is kept.
      keep_failed: as for `cw_linf`.

    Returns:
      As for `cw_linf`; the distance is that of L2.

    Raises:
      ValueError: wrong shapes, negative eps, labels out of range, not at least one step
        or constant, negative confidence.
    """
    del key
    outcome.check_at_least("steps", steps, 1)
    outcome.check_at_least("search_steps", search_steps, 1)
    if confidence < 0:
        raise ValueError(f"confidence must not be negative: {confidence}")
    given = outcome.task(logits_fn, variables, images, labels, eps, quantise)

    def step(given: Task, state: _Bisection) -> _Bisection:
        def cost(moved: chex.Array) -> chex.Array:
            return jnp.sum(((moved - given.images) / _RANGE) ** 2, (1, 2, 3))

        point, const = state.descent.point, state.const
        here = look(logits_fn, variables, given, point, cost, const, confidence)
        state = _noted(state, given, here)
        descent = descended(state.descent, here.slope, step_size)
        over = descent.steps >= steps
        if abort_early:
            state, stuck = _checked(state, here.loss, -(-steps // 10))
            over |= stuck
        state = state.replace(descent=descent, taken=state.taken + 1)
        # Afresh from the image itself.
        next_ = _next_constant(state, search_steps).replace(
            descent=started(given.images)
        )
        state = where(over, next_, state)
        return state.replace(done=state.searched >= search_steps)

    first = _unsearched(given, started(given.images), initial_const)
    clean = outcome.fooled(logits_fn(variables, given.images), given.labels)
    last = until_done(step, given, first.replace(done=clean), lanes=lanes)
    return rounding.ended(
        logits_fn,
        variables,
        given,
        last.best,
        last.taken,
        last.taken + 1,
        norm=norms.L2,
        lanes=lanes,
        quantise=quantise,
        keep_failed=keep_failed,
    )


def _unsearched(given: Task, descent: Descent, const: float) -> _Bisection:
    """Nothing tried yet."""
    zeros = jnp.zeros_like(given.radius)
    none = jnp.zeros_like(given.queries)
    return _Bisection(
        descent=descent,
        const=zeros + const,
        lower=zeros,
        upper=zeros + jnp.inf,
        succeeded=none > 0,
        previous=zeros + jnp.inf,
        best=given.images,
        nearest=zeros + jnp.inf,
        searched=none,
        taken=none,
        done=none > 0,
    )


def _noted(state: _Bisection, given: Task, here: Here) -> _Bisection:
    """Keeps the image, where it succeeds and none was nearer."""
    distance = norms.l2(here.moved - given.images)
    nearer = here.fooled & (distance < state.nearest)
    return state.replace(
        succeeded=state.succeeded | here.fooled,
        best=where(nearer, here.moved, state.best),
        nearest=jnp.where(nearer, distance, state.nearest),
    )


def _checked(
    state: _Bisection, loss: chex.Array, every: int
) -> tuple[_Bisection, chex.Array]:
    """Every so many steps: has the loss not fallen since? `[B]` bool."""
    now = state.descent.steps % every == 0
    stuck = now & ~(loss <= 0.9999 * state.previous)
    return state.replace(previous=jnp.where(now, loss, state.previous)), stuck


def _next_constant(state: _Bisection, search_steps: int) -> _Bisection:
    """Between those that failed and those that succeeded, or ten times as large."""
    upper = jnp.where(state.succeeded, state.const, state.upper)
    lower = jnp.where(state.succeeded, state.lower, state.const)
    const = jnp.where(jnp.isinf(upper), 10 * state.const, (lower + upper) / 2)
    searched = state.searched + 1
    if search_steps >= 10:
        # A long search ends with a constant that is known to succeed, if one is.
        final = (searched == search_steps - 1) & jnp.isfinite(upper)
        const = jnp.where(final, upper, const)
    return state.replace(
        const=const,
        lower=lower,
        upper=upper,
        succeeded=jnp.zeros_like(state.succeeded),
        previous=jnp.full_like(state.previous, jnp.inf),
        searched=searched,
    )
