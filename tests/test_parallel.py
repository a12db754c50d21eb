import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixeldefend import parallel


@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
def test_any_number_of_rows_comes_back_in_order(count):
    mapped = parallel.BatchMap(lambda scale, x: {"y": scale * x, "x": x}, 8)
    rows = np.arange(count, dtype=np.float32)
    found = mapped(np.float32(3), rows)
    np.testing.assert_array_equal(found["y"], 3 * rows)
    np.testing.assert_array_equal(found["x"], rows)


def test_variables_that_sit_on_one_device_serve_all():
    # As a restored checkpoint leaves them.
    scale = jax.device_put(np.float32(3), jax.devices()[1])
    mapped = parallel.BatchMap(lambda v, x: v["scale"] * x, 4)
    rows = np.arange(9, dtype=np.float32)
    variables = {"scale": scale, "unused": scale, "nothing": None}
    np.testing.assert_array_equal(mapped(variables, rows), 3 * rows)


def test_one_program_serves_every_batch():
    traces = []

    def counted(_, x):
        traces.append(1)
        return x

    mapped = parallel.BatchMap(counted, 4)
    mapped(None, np.arange(10.0, dtype=np.float32))
    mapped(None, np.arange(3.0, dtype=np.float32))
    assert len(traces) == 1 and mapped.compile_seconds > 0


def test_a_batch_that_devices_do_not_divide_is_refused():
    assert jax.local_device_count() == 4
    with pytest.raises(ValueError, match="multiple of 4 devices"):
        parallel.BatchMap(lambda _, x: x, 6)


def test_steps_are_averaged_over_devices():
    def step(state, batch, key, learning_rate):
        del key
        mean = jax.lax.pmean(batch.mean(), parallel.AXIS)
        return state + learning_rate * mean, {"mean": mean}

    run = parallel.map_step(step)
    state, metrics = run(
        jnp.zeros(()), np.arange(8, dtype=np.float32), jax.random.key(0), 2.0
    )
    assert float(state) == 7.0 and float(metrics["mean"]) == 3.5
