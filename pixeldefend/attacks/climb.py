"""The ascents of APGD: attempt after attempt, with steps that halve where none pays."""

import dataclasses
from collections.abc import Iterable, Sequence

import chex
import jax
import jax.numpy as jnp
from flax import struct

from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.ascent import limit_radius
from pixeldefend.attacks.batched_while import batched_while, select
from pixeldefend.attacks.draws import Draws, fold, mean
from pixeldefend.attacks.losses import LOSSES, gradient_of
from pixeldefend.attacks.outcome import Found, Task

# Shares of the steps, in hundredths: until the first look back, by how much each
# interval is shorter than the one before, and how short they become.
_FIRST, _SHORTER, _SHORTEST = 22, 3, 6
# Of a step's progress; the rest is momentum.
_PROGRESS = 0.75


def attempts(starts: Iterable[tuple[str, int]], targets: int) -> list[tuple[str, int]]:
    """The loss of each attempt, and at which of the targets it aims if it does.

    Args:
      starts: losses in the order in which they are tried, each with how many.
      targets: how many there are.
    """
    return [
        (loss, rank)
        for loss, count in starts
        for rank in range(targets if loss == "targeted_dlr" else 1)
        for _ in range(count)
    ]


@struct.dataclass
class Ascents(Found):
    """What `search_ascents` found.

    Attributes:
      attempt: `[B]` int32, the last one of each image.
      flat: `[B]` bool: it saw a gradient of zero, from which no way leads up.
    """

    attempt: chex.Array
    flat: chex.Array


@struct.dataclass
class _Climb:
    """One image's ascent.

    Attributes:
      moved: levels `[B, H, W, C]` to be looked at next.
      previous: those before.
      best: of this attempt, the levels of the highest loss; in the end those found.
      best_gradient: there.
      best_loss: there, `[B]`.
      last_loss: at the point before, `[B]`.
      length: of a step, levels `[B]`.
      look: `[B]`, how many of this attempt's looks are behind.
      interval: `[B]`, steps between the last checkpoint and the next.
      since: `[B]`, how many of them are behind.
      rises: `[B]`, at how many of them the loss rose.
      halved: `[B]` bool, whether the last checkpoint halved the step.
      checked_loss: `best_loss` at the last checkpoint, `[B]`.
      attempt: `[B]`, how many are behind.
      success, steps, queries: as for `Found`.
      flat: as for `Ascents`.
      done: `[B]` bool.
    """

    moved: chex.Array
    previous: chex.Array
    best: chex.Array
    best_gradient: chex.Array
    best_loss: chex.Array
    last_loss: chex.Array
    length: chex.Array
    look: chex.Array
    interval: chex.Array
    since: chex.Array
    rises: chex.Array
    halved: chex.Array
    checked_loss: chex.Array
    attempt: chex.Array
    success: chex.Array
    steps: chex.Array
    queries: chex.Array
    flat: chex.Array
    done: chex.Array


def search_ascents(
    network: Draws,
    norm: norms.Norm,
    task: Task,
    key: chex.PRNGKey,
    done: chex.Array,
    tries: Sequence[tuple[str, int]],
    *,
    aims: chex.Array,
    steps: chex.Array | int = 100,
    rising: float = 0.75,
    lanes: int | None,
    quantise: bool,
) -> Ascents:
    """Attempts one after the other, for each image up to the first that succeeds.

    Args:
      network: see `Draws`.
      norm: of the ball.
      task: what the attack was given.
      key: `[B]`.
      done: `[B]` bool: images that need no attack.
      tries: from `attempts`.
      aims: `[B, T]`, the targets of losses that aim at one.
      steps: of each attempt.
      rising: see `apgd`.
      lanes: see `batched_while`.
      quantise: whether whole levels are to come back.
    """
    task = limit_radius(norm, task)
    kinds = jnp.array([LOSSES.index(loss) for loss, _ in tries])
    aims = aims[:, [rank for _, rank in tries]]

    def step(constants: tuple, state: _Climb) -> _Climb:
        task, key, aims = constants
        aim = jnp.take_along_axis(aims, state.attempt[:, None], 1)[:, 0]
        kind = kinds[state.attempt]
        keys = fold(fold(key, state.attempt), state.look)
        gradient, loss, logits = gradient_of(
            network, state.moved, keys, task.labels, aim, kind
        )
        fooled = outcome.is_surely_fooled(logits, task.labels)
        shown, success, more = state.moved, fooled, 0
        if quantise:
            shown, success, more = _judge(network, norm, task, shown, keys, fooled)
        state = dataclasses.replace(
            state,
            queries=state.queries + 1 + more,
            flat=state.flat | (~fooled & ~jnp.any(gradient, (1, 2, 3))),
        )
        over = ~success & (state.look >= steps)
        state = dataclasses.replace(
            state, steps=state.steps + (~(over | success)).astype(jnp.int32)
        )
        state = _climb(norm, task, state, loss, gradient, steps, rising)
        state = _next_attempt(norm, task, key, state, over, len(tries), steps)
        return dataclasses.replace(
            state,
            best=jnp.where(norms.each(success), shown, state.best),
            success=success,
            done=success | state.done,
        )

    first = _begin(norm, task, key, jnp.zeros_like(task.labels), done, steps)
    last = batched_while(step, (task, key, aims), first, lanes=lanes)
    levels = last.best
    if quantise:
        # What failed is a floating point of its ascent.
        whole = norm.whole(task.images, levels, task.radius).astype(levels.dtype)
        levels = jnp.where(norms.each(last.success), levels, whole)
    return Ascents(
        levels, last.success, last.steps, last.queries, last.attempt, last.flat
    )


def _begin(
    norm: norms.Norm,
    task: Task,
    key: chex.PRNGKey,
    attempt: chex.Array,
    done: chex.Array,
    steps: chex.Array | int,
) -> _Climb:
    """At a point of the ball that is drawn for this attempt."""
    start = norm.draw(fold(key, attempt), task.images, task.radius)
    none = jnp.zeros_like(attempt)
    low = jnp.full_like(task.radius, -jnp.inf)
    return _Climb(
        moved=start,
        previous=start,
        best=jnp.where(norms.each(done), task.images, start),
        best_gradient=jnp.zeros_like(start),
        best_loss=low,
        last_loss=low,
        length=2 * task.radius,
        look=none,
        interval=none + _share(_FIRST, steps),
        since=none - 1,
        rises=none - 1,
        halved=jnp.ones_like(done),
        checked_loss=low,
        attempt=attempt,
        success=jnp.zeros_like(done),
        steps=none,
        queries=none,
        flat=jnp.zeros_like(done),
        done=done,
    )


def _climb(
    norm: norms.Norm,
    task: Task,
    state: _Climb,
    loss: chex.Array,
    gradient: chex.Array,
    steps: chex.Array | int,
    rising: float,
) -> _Climb:
    """The state after a look: what it makes of the step's length, and a step."""
    better = loss > state.best_loss
    best = jnp.where(norms.each(better), state.moved, state.best)
    best_gradient = jnp.where(norms.each(better), gradient, state.best_gradient)
    best_loss = jnp.where(better, loss, state.best_loss)
    # The first look is no step: it brings what was begun with -1 to 0.
    since = state.since + 1
    rose = (loss > state.last_loss) | (state.look == 0)
    rises = state.rises + rose.astype(jnp.int32)

    checked = since == state.interval
    few = rises.astype(loss.dtype) <= rising * state.interval.astype(loss.dtype)
    stuck = ~state.halved & (state.checked_loss >= best_loss)
    halve = checked & (few | stuck)
    length = jnp.where(halve, state.length / 2, state.length)
    at = jnp.where(norms.each(halve), best, state.moved)
    gradient = jnp.where(norms.each(halve), best_gradient, gradient)
    interval = jnp.maximum(
        state.interval - _share(_SHORTER, steps), _share(_SHORTEST, steps)
    )

    ahead = at + norms.each(length) * norm.direction(gradient)
    ahead = norm.project(task.images, ahead, task.radius)
    progress = norms.each(jnp.where(state.look == 0, 1, _PROGRESS).astype(at.dtype))
    moved = at + progress * (ahead - at) + (1 - progress) * (at - state.previous)
    none = jnp.zeros_like(since)
    return dataclasses.replace(
        state,
        moved=norm.project(task.images, moved, task.radius),
        previous=at,
        best=best,
        best_gradient=best_gradient,
        best_loss=best_loss,
        last_loss=loss,
        length=length,
        look=state.look + 1,
        interval=jnp.where(checked, interval, state.interval),
        since=jnp.where(checked, none, since),
        rises=jnp.where(checked, none, rises),
        halved=jnp.where(checked, halve, state.halved),
        checked_loss=jnp.where(checked, best_loss, state.checked_loss),
    )


def _next_attempt(
    norm: norms.Norm,
    task: Task,
    key: chex.PRNGKey,
    state: _Climb,
    over: chex.Array,
    attempts: int,
    steps: chex.Array | int,
) -> _Climb:
    """Begins anew where an attempt is over, and ends after the last."""
    ended = over & (state.attempt + 1 >= attempts)
    again = over & ~ended

    def anew(state: _Climb) -> _Climb:
        begun = _begin(norm, task, key, state.attempt + 1, state.done, steps)
        kept = dataclasses.replace(
            begun, steps=state.steps, queries=state.queries, flat=state.flat
        )
        return select(again, kept, state)

    state = jax.lax.cond(jnp.any(again), anew, lambda state: state, state)
    return dataclasses.replace(state, done=state.done | ended)


def _share(hundredths: int, steps: chex.Array | int) -> chex.Array:
    """So many hundredths of the steps, whole, at least one."""
    return jnp.maximum(hundredths * jnp.asarray(steps, jnp.int32) // 100, 1)


def _judge(
    network: Draws,
    norm: norms.Norm,
    task: Task,
    moved: chex.Array,
    keys: chex.PRNGKey,
    fooled: chex.Array,
) -> tuple[chex.Array, chex.Array, chex.Array]:
    """Rounded levels, whether these fool as well, and how many were shown."""

    def whole(_: None) -> tuple[chex.Array, chex.Array]:
        shown = norm.whole(task.images, moved, task.radius).astype(moved.dtype)
        logits = mean(network(shown, keys))
        return shown, fooled & outcome.is_surely_fooled(logits, task.labels)

    # A query more only where one is fooled already.
    shown, success = jax.lax.cond(
        jnp.any(fooled), whole, lambda _: (moved, fooled), None
    )
    return shown, success, fooled.astype(jnp.int32)
