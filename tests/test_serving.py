"""`Purifier` and `Screener`: other layouts, ranges, numbers and kinds of arrays."""

import concurrent.futures
import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pixeldefend
from pixeldefend import detection
from pixeldefend.experiment import zoo


def _purifier(toy, kind=pixeldefend.Purifier, **options):
    options = {"eps": toy.eps, "batch": 2, "cache": False} | options
    return kind(toy.folder, **options)


@pytest.fixture(scope="module")
def purifier(toy):
    return _purifier(toy)


@pytest.fixture(scope="module")
def screener(toy):
    return _purifier(
        toy, pixeldefend.Screener, layout="NCHW", range=(-1, 1), rejects=0.3
    )


def test_any_number_of_levels_is_purified_as_by_the_function(purifier, toy):
    assert np.any(toy.purified != toy.levels)
    for count in (11, 8, 3, 1):  # four devices take two each
        found = purifier(toy.levels[:count])
        assert isinstance(found, np.ndarray) and found.dtype == np.uint8
        np.testing.assert_array_equal(found, toy.purified[:count])
    found = purifier(toy.levels.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, toy.purified)
    again = purifier(jnp.asarray(toy.levels))
    assert isinstance(again, jax.Array)
    np.testing.assert_array_equal(again, toy.purified)


def test_one_program_serves_all_and_threads_share_it(toy):
    purifier = _purifier(toy)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        parts = np.array_split(toy.levels, 5)
        found = list(pool.map(purifier, parts))
    np.testing.assert_array_equal(np.concatenate(found), toy.purified)
    seconds = purifier.compile()
    assert purifier.compile() == seconds > 0


def test_only_who_needs_a_program_waits_for_it(purifier, toy):
    """While another thread compiles, what is compiled already runs."""
    purifier.compile()
    with purifier._lock, concurrent.futures.ThreadPoolExecutor(1) as pool:
        found = pool.submit(purifier, toy.levels).result(timeout=60)
    np.testing.assert_array_equal(found, toy.purified)


def test_copies_and_pickles_are_made_of_its_arguments(purifier, screener, toy):
    assert copy.deepcopy(purifier) is purifier
    again = pickle.loads(pickle.dumps(screener))
    assert repr(again) == repr(screener) and again.rejects == 0.3
    assert "range=(-1, 1)" in repr(again) and again.defence == screener.defence


def test_arrays_of_jax_stay_on_their_devices(purifier, screener, toy):
    devices = np.asarray(jax.devices()[:2])
    mesh = jax.sharding.Mesh(devices, "x")
    spec = jax.sharding.PartitionSpec("x", None, None, None)
    placed = jax.sharding.NamedSharding(mesh, spec)
    images = (toy.levels[:4] / 127.5 - 1).transpose(0, 3, 1, 2).astype(np.float32)
    found = screener(jax.device_put(images, placed))
    assert found.images.sharding == placed and found.p_values.shape == (4,)
    alone = jax.device_put(images, devices[1])
    assert screener(alone).p_values.devices() == {devices[1]}


def test_gradients_of_a_step_are_those_of_what_is_seen(purifier, toy):
    """In NHWC and levels; other units and layouts beside torch, in test_adapters."""
    levels = toy.levels[:3].astype(np.float32)
    towards = np.random.default_rng(3).normal(size=levels.shape).astype(np.float32)
    assert purifier.pull_back(levels, towards, gradient="bpda") is towards
    found = purifier.pull_back(levels, towards)

    @jax.jit
    def back(levels, towards):
        def seen(levels):
            return purifier.defence.view(
                purifier.params, levels, None, "straight_through"
            )

        return jax.vjp(seen, levels)[1](towards)[0]

    expected = np.asarray(back(levels, towards))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert np.any(found != 0) and found.dtype == np.float32


def test_its_defence_is_what_others_take(purifier, toy):
    apply = functools.partial(pixeldefend.defences.base.apply, [purifier.defence])
    found = jax.jit(apply)([purifier.params], jnp.asarray(toy.levels))
    np.testing.assert_array_equal(found.images, toy.purified)


def test_screening_tells_scores_and_purifies(toy, screener):
    images = (toy.levels / 127.5 - 1).transpose(0, 3, 1, 2).astype(np.float32)
    found = screener(images)
    assert found.images.dtype == np.float32 and found.images.shape == images.shape
    expected = (toy.purified / 127.5 - 1).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found.images, expected, atol=1e-6)

    score = jax.jit(functools.partial(pixeldefend.log_prob, toy.model))
    log_probs = score(toy.params, jnp.asarray(toy.levels))
    bits = -np.asarray(log_probs) / (toy.levels[0].size * np.log(2))
    np.testing.assert_allclose(found.bits_per_dim, bits, rtol=1e-5)
    ranks = np.asarray(detection.p_values(log_probs, np.float32(toy.reference)))
    np.testing.assert_allclose(found.p_values, ranks, rtol=1e-6)
    np.testing.assert_array_equal(found.suspicious, ranks <= 0.3)
    assert 0 < np.mean(found.suspicious) < 1


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_narrow_and_wide_types_come_back(screener, dtype, toy):
    images = (toy.levels / 127.5 - 1).transpose(0, 3, 1, 2).astype(dtype)
    if dtype == jnp.bfloat16:  # not every level is a number of its own
        images = jnp.asarray(images)
    found = screener(images).images
    assert found.dtype == images.dtype and type(found) is type(images)
    if dtype != jnp.bfloat16:
        expected = (toy.purified / 127.5 - 1).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_grades_are_those_of_the_defence(toy):
    grades = ((0.0, 4), (5.0, 9, 75))
    found = _purifier(toy, eps=None, grades=grades)(toy.levels)
    settings = {"purify": {"eps": 9, "grades": grades}}
    defence, its = pixeldefend.PurifyGraded.build(
        pixeldefend.defences.base.Given(settings, toy.model, toy.params)
    )
    expected = jax.jit(defence.compute)(its, jnp.asarray(toy.levels), None)["images"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x: x[0],
            ValueError,
            r"must be \[N, 3, 4, 6\].*a single image give images\[",
        ),
        (
            lambda x: x.transpose(0, 2, 3, 1),
            ValueError,
            r'\[11, 4, 6, 3\]; layout="NHWC" takes them',
        ),
        (lambda x: x[:0], ValueError, "images must hold at least one"),
        (lambda x: x * 255, ValueError, "must be from -1 to 1: -255 to 255"),
        (lambda x: x * np.nan, ValueError, "must be from -1 to 1"),
        (lambda x: x.astype(int), TypeError, "must be floating: int64"),
        (lambda x: x.tolist(), TypeError, "tensor of torch: builtins.list"),
    ],
)
def test_images_that_cannot_be_are_told(screener, change, error, message):
    images = np.linspace(-1, 1, 11 * 72).reshape(11, 3, 4, 6)
    with pytest.raises(error, match=message):
        screener(change(images))


def test_what_cannot_be_differentiated_is_told(purifier, toy):
    levels = toy.levels[:2]
    with pytest.raises(TypeError, match="whole levels have no gradient.*uint8"):
        purifier.pull_back(levels, levels)
    floating = levels.astype(np.float32)
    with pytest.raises(ValueError, match=r"towards must be \[2, 4, 6, 3\]"):
        purifier.pull_back(floating, floating[:1])
    with pytest.raises(TypeError, match="towards must be an array.*builtins.list"):
        purifier.pull_back(floating, [1])
    with pytest.raises(ValueError, match="gradient must be one of bpda, straight"):
        purifier.pull_back(floating, floating, gradient="none")
    with pytest.raises(TypeError, match="traced: under jit or grad call Purifier.t"):
        jax.jit(purifier)(floating)


def test_within_a_program_it_purifies_the_same(toy):
    purifier = _purifier(toy, layout="NCHW", range=(-1, 1))
    images = (toy.levels[:3].transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
    outside = 1.5 * images
    for given in (images, np.clip(outside, -1, 1)):
        expected = purifier(given)
        found = jax.jit(purifier.traced)(given)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(jax.jit(purifier.traced)(outside), found)
    for gradient in ("bpda", "straight_through"):
        seen = functools.partial(purifier.traced, gradient=gradient)
        _, back = jax.vjp(jax.jit(seen), images)
        pulled = purifier.pull_back(images, expected, gradient=gradient)
        np.testing.assert_allclose(back(expected)[0], pulled, rtol=1e-4, atol=1e-6)


def test_levels_are_checked_as_everywhere(purifier, toy):
    rounded = toy.levels.astype(np.float32) * np.float32(1 + 1e-6) - 1e-6
    np.testing.assert_array_equal(np.rint(purifier(rounded)), toy.purified)
    with pytest.raises(ValueError, match="must be from 0 to 255: 0.5 to 256"):
        purifier(np.linspace(0.5, 256, toy.levels.size).reshape(toy.levels.shape))
    with pytest.raises(TypeError, match="not bool"):
        purifier(toy.levels > 3)
    with pytest.raises(ValueError, match="these are 0..1, multiply by 255"):
        purifier(toy.levels / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": None}, "either eps, such as 16, or grades"),
        ({"grades": ((0.0, 9),)}, "either eps, such as 16, or grades"),
        ({"eps": 256}, "between 0 and 255"),
        ({"layout": "CHW"}, "layout must be one of NHWC, NCHW: 'CHW'"),
        ({"range": (1, 0)}, "two ascending numbers"),
        ({"range": 255}, "two ascending numbers"),
        ({"range": "01"}, "two ascending numbers"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_told(toy, options, message):
    with pytest.raises(ValueError, match=message):
        _purifier(toy, **options)


def test_models_that_cannot_serve_are_told(toy, tmp_path):
    with pytest.raises(ValueError, match="is a classifier, not a density model"):
        pixeldefend.Purifier("mnist/cnn_a", eps=9)
    with pytest.raises(FileNotFoundError, match="no model 'mnist/nothing'"):
        pixeldefend.Purifier("mnist/nothing", eps=9)
    with pytest.raises(ValueError, match="rejects must be between 0 and 1: 2"):
        _purifier(toy, pixeldefend.Screener, rejects=2)
    shape = toy.levels.shape[1:]
    card = {"kind": "pixelcnn", "dataset": "cifar10", "image_shape": shape}
    zoo.save_released(tmp_path / "toy", toy.model, toy.params, card)
    with pytest.raises(ValueError, match="has no reference.npy"):
        pixeldefend.Screener(str(tmp_path / "toy"), eps=9)
