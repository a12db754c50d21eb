"""L-BFGS within the box 0..255, of many images at once and one gradient a turn.

The box is kept by projection. A change of variables (x = 127.5 + 127.5 tanh w) has no
gradient where a value is 0 or 255, and most values of many images are just that. So
values that stand at a bound and would leave the box are held, the others move along the
quasi-Newton direction of their own history (Bertsekas 1982, Kim, Sra and Dhillon 2010),
and a step is projected and halved until the objective has fallen enough.

The caller evaluates the objective, so that what images minimise may differ:

    state = minimiser.init(images, value, gradient)
    trial = minimiser.trial(state)
    state = minimiser.advance(state, trial, value at trial, gradient at trial)
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks import norms
from pixeldefend.attacks.batched_while import select

# A step is accepted if the objective falls by this share of what its gradient promises.
_ENOUGH = 1e-4
_HALVINGS = 20


@struct.dataclass
class State:
    """Where the minimisation of each image is.

    Attributes:
      point: levels `[B, H, W, C]`, the last that was accepted.
      value: `[B]`, the objective there, and
      gradient: `[B, H, W, C]`, its gradient.
      direction: `[B, H, W, C]`, where the next step goes.
      length: `[B]`, its length as a share of `direction`.
      moves: `[B, N, H, W, C]`, the last accepted steps, the newest last, and
      bends: `[B, N, H, W, C]`, how the gradient changed in them.
      iterations: `[B]` int32, how many steps were accepted.
      done: `[B]` bool, whether a minimum is reached or no iteration is left.
    """

    point: chex.Array
    value: chex.Array
    gradient: chex.Array
    direction: chex.Array
    length: chex.Array
    moves: chex.Array
    bends: chex.Array
    iterations: chex.Array
    done: chex.Array


@dataclasses.dataclass(frozen=True)
class BoxLBFGS:
    """A minimiser of functions of floating levels.

    Attributes:
      curvature: second derivative that is presumed while there is no history.
      history: how many steps the curvature is estimated from after that.
      tolerance: a minimum is reached when a step promises less than this share of the
        objective.
      iterations: at most.
    """

    curvature: float
    history: int
    tolerance: float
    iterations: int

    def init(
        self, images: chex.Array, value: chex.Array, gradient: chex.Array
    ) -> State:
        """At levels `[B, H, W, C]` with their objective `[B]` and its gradient."""
        shape = (len(images), self.history, *images.shape[1:])
        none = jnp.zeros(shape, gradient.dtype)
        direction = self._steepest(images, gradient)
        return State(
            point=images,
            value=value,
            gradient=gradient,
            direction=direction,
            length=jnp.ones_like(value),
            moves=none,
            bends=none,
            iterations=jnp.zeros(len(images), jnp.int32),
            done=jnp.all(direction == 0, (1, 2, 3)),
        )

    def trial(self, state: State) -> chex.Array:
        """The levels `[B, H, W, C]` at which the objective is wanted next."""
        step = norms.each(state.length) * state.direction
        return norms.clip_levels(state.point + step)

    def advance(
        self, state: State, trial: chex.Array, value: chex.Array, gradient: chex.Array
    ) -> State:
        """Accepts the trial if the objective has fallen enough, else halves the step.

        A history whose direction leads uphill, as rounding and the box may have it, or
        along which no step is short enough, is dropped: the descent goes on along the
        gradient.
        """
        move = trial - state.point
        promise = jnp.sum(state.gradient * move, (1, 2, 3))
        accepted = value <= state.value + _ENOUGH * promise
        newest = (x[:, None] for x in (move, gradient - state.gradient))
        moves, bends = (
            jnp.concatenate([old[:, 1:], new], 1)
            for old, new in zip((state.moves, state.bends), newest, strict=True)
        )
        count = state.iterations + 1
        there = State(
            point=trial,
            value=value,
            gradient=gradient,
            direction=jax.vmap(self._direction)(trial, gradient, moves, bends),
            length=jnp.ones_like(state.length),
            moves=moves,
            bends=bends,
            iterations=count,
            done=count >= self.iterations,
        )
        there = self._forget(there, self._promise(there) <= 0)
        flat = self._promise(there) <= self.tolerance * value
        there = dataclasses.replace(there, done=there.done | flat)
        here = dataclasses.replace(state, length=state.length / 2)
        spent = here.length < 2.0**-_HALVINGS
        remembers = jnp.any(here.moves != 0, (1, 2, 3, 4))
        here = self._forget(here, spent & remembers)
        here = dataclasses.replace(here, done=spent & ~remembers)
        return select(accepted, there, here)

    def _steepest(self, point: chex.Array, gradient: chex.Array) -> chex.Array:
        """What `_direction` comes to without a history, of images `[B, H, W, C]`."""
        return -jnp.where(_free(point, gradient), gradient, 0) / self.curvature

    def _forget(self, state: State, which: chex.Array) -> State:
        """Those images `[B]` go on along the gradient, without their history."""
        fresh = dataclasses.replace(
            state,
            direction=self._steepest(state.point, state.gradient),
            length=jnp.ones_like(state.length),
            moves=jnp.zeros_like(state.moves),
            bends=jnp.zeros_like(state.bends),
        )
        return select(which, fresh, state)

    def _promise(self, state: State) -> chex.Array:
        """By how much `[B]` the next step lowers the objective, to first order."""
        return -jnp.sum(state.gradient * (self.trial(state) - state.point), (1, 2, 3))

    def _direction(
        self,
        point: chex.Array,
        gradient: chex.Array,
        moves: chex.Array,
        bends: chex.Array,
    ) -> chex.Array:
        """One image's quasi-Newton direction, zero where the box holds a value.

        The two loops of Nocedal (1980) over the history of the values that are free.
        Pairs along which the objective does not curve upwards teach nothing.
        """
        free = _free(point, gradient)
        gradient, moves, bends = (
            jnp.where(free, x, 0) for x in (gradient, moves, bends)
        )
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

        rest, shares = jax.lax.scan(back, gradient, pairs, reverse=True)
        # Scaled as the newest pair curves; without one, as is presumed.
        steep = jnp.sum(bends[-1] ** 2)
        known = good[-1] & (steep > 0)
        scale = curved[-1] / jnp.where(known, steep, 1)
        rest *= jnp.where(known, scale, 1 / self.curvature)
        return -jax.lax.scan(forth, rest, (*pairs, shares))[0]


def _free(point: chex.Array, gradient: chex.Array) -> chex.Array:
    """Which values stand at no bound that they would cross down the gradient."""
    top = pixels.LEVELS - 1
    return ~(((point <= 0) & (gradient > 0)) | ((point >= top) & (gradient < 0)))
