import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from pixeldefend.attacks.batched_while import batched_while


@struct.dataclass
class Count:
    steps: jax.Array
    done: jax.Array


def _counted(wanted, begun, lanes):
    def step(wanted, state):
        steps = state.steps + 1
        return Count(steps, steps >= wanted)

    states = Count(jnp.where(begun, -7, 0), begun)
    run = jax.jit(lambda: batched_while(step, wanted, states, lanes=lanes))
    return run().steps


@pytest.mark.parametrize("lanes", [1, 2, 5, 40, None])
def test_every_image_takes_its_own_number_of_steps(lanes, rng):
    wanted = jnp.asarray(rng.integers(1, 12, 33))
    begun = jnp.asarray(rng.random(33) < 0.3)
    found = _counted(wanted, begun, lanes)
    np.testing.assert_array_equal(found, np.where(begun, -7, wanted))


def test_nothing_runs_when_all_are_done():
    found = _counted(jnp.ones(4, int), jnp.ones(4, bool), 2)
    np.testing.assert_array_equal(found, -7)


def test_work_is_the_sum_of_the_steps_and_not_the_largest(rng):
    calls = []

    def step(wanted, state):
        jax.debug.callback(lambda: calls.append(1))
        steps = state.steps + 1
        return Count(steps, steps >= wanted)

    wanted = jnp.asarray([30] + [1] * 63)
    states = Count(jnp.zeros(64, int), jnp.zeros(64, bool))
    jax.block_until_ready(batched_while(step, wanted, states, lanes=4))
    jax.effects_barrier()
    # The slow image keeps one lane, the other 63 share three.
    assert len(calls) == 30
