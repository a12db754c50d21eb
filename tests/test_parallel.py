import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixeldefend.experiment import interruption, parallel, processes, train


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


def test_a_map_is_made_once_for_what_it_is_bound_to():
    maps = parallel.BatchMaps()
    floats, whole = np.ones(3, np.float32), np.ones(3, np.int32)

    def times(factor, _, x):
        return factor * x

    twice = maps.of(times, (2,), 4, floats)
    assert maps.of(times, (2,), 4, floats[:2]) is not twice  # a smaller batch
    assert maps.of(times, (2,), 3, floats) is twice  # the same, for so few
    assert maps.of(times, (2,), 4, whole) is not twice
    thrice = maps.of(times, (3,), 4, floats)
    np.testing.assert_array_equal(twice(None, floats), 2 * floats)
    np.testing.assert_array_equal(thrice(None, floats), 3 * floats)


def test_a_training_batch_that_devices_do_not_divide_is_refused():
    assert jax.device_count() == 4
    with pytest.raises(ValueError, match="train.batch .* multiple of 4 devices: 6"):
        parallel.per_device(6, "train.batch")
    assert parallel.per_device(8) == 2


def test_a_batch_without_images_is_refused():
    with pytest.raises(ValueError, match="score.batch must be at least 1: 0"):
        parallel.check_batch(0, "score.batch")
    with pytest.raises(ValueError, match="at least 1"):
        parallel.BatchMap(lambda _, x: x, 0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_share_the_rows(count, monkeypatch):
    """Each row is one process's, whichever rows are left; a batch is a device's."""
    rows = np.array([0, 2, 3, *range(5, 40)])
    values = np.arange(50, dtype=np.float32)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(processes, "stop_wanted", lambda: 0)
    found = []
    for process in range(count):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        mapped = parallel.BatchMap(lambda v, x: v * x, 2)
        found += mapped.batches(np.float32(3), values, rows=rows)
    assert all(len(own) <= 2 * 4 for own, _ in found)
    shared = np.concatenate([own for own, _ in found])
    np.testing.assert_array_equal(np.sort(shared), rows)
    for own, result in found:
        np.testing.assert_array_equal(result, 3 * values[own])


def test_rows_that_are_missing_or_there_twice_are_noticed():
    parts = [(np.array([2, 0]), np.array([20, 0])), (np.array([1]), np.array([10]))]
    np.testing.assert_array_equal(processes.in_order(parts, 3), [0, 10, 20])
    for count, wrong in ((4, parts), (3, [*parts, parts[1]])):
        with pytest.raises(ValueError, match=f"rows, not of {count}"):
            processes.in_order(wrong, count)


def test_a_wish_to_stop_ends_a_map_after_what_is_running(monkeypatch):
    wishes = iter([0, 0, 75])
    monkeypatch.setattr(processes, "stop_wanted", lambda: next(wishes))
    mapped = parallel.BatchMap(lambda v, x: v * x, 1)
    found = []
    with pytest.raises(interruption.Interrupted):
        for rows, _ in mapped.batches(np.float32(3), np.arange(40, dtype=np.float32)):
            found += list(rows)
    assert found == list(range(8))


@pytest.mark.parametrize("most, counts", [(1, [1, 1]), (3, [3]), (3, [2, 1])])
def test_steps_are_averaged_over_devices(most, counts):
    def step(state, batch, key, learning_rate, told):
        del key
        mean, heard = jax.lax.pmean((batch.mean(), told), parallel.AXIS)
        return state + learning_rate * mean, {"mean": mean, "told": heard}

    run = parallel.map_step(train.several(step, most), most)
    images = parallel.on_every_device(np.arange(100, dtype=np.float32))
    rows = np.arange(24).reshape(3, 8)
    rates = np.array([2.0, 3.0, 5.0])
    state, done, total = jnp.zeros(()), 0, 0.0
    for count in counts:
        now = slice(done, done + count)
        told = (1.0, 5.0)
        state, sums = run(state, images, rows[now], rates[now], jax.random.key(0), told)
        np.testing.assert_array_equal(np.asarray(sums["told"]) / count, told)
        total, done = total + float(sums["mean"]), done + count
    means = rows[:done].mean(1)
    assert float(state) == rates[:done] @ means and total == means.sum()


def test_the_host_has_a_device_of_its_own():
    with parallel.on_host():
        assert jnp.zeros(1).devices().pop().platform == "cpu"
    assert parallel.steps_per_call(0) == 1 and parallel.steps_per_call(7) == 7


def test_a_gpu_that_jax_does_not_see_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parallel, "_GPU", tmp_path)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    parallel.warn_of_idle_gpu()
    assert 'this machine has a GPU, but JAX uses its CPU: pip install "jax[cuda12' in (
        capsys.readouterr().err
    )
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    parallel.warn_of_idle_gpu()
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(parallel, "_GPU", tmp_path / "none")
    parallel.warn_of_idle_gpu()
    assert not capsys.readouterr().err
