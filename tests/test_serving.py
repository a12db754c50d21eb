"""`Purifier` and `Screener`: other layouts, ranges, numbers and kinds of arrays."""

import concurrent.futures
import functools

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
        (lambda x: x[0], ValueError, r"must be \[N, 3, 4, 6\].*of one image images\["),
        (
            lambda x: x.transpose(0, 2, 3, 1),
            ValueError,
            r'\[11, 4, 6, 3\]; layout="NHWC" takes them',
        ),
        (lambda x: x[:0], ValueError, "there is no image"),
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


def test_levels_are_checked_as_everywhere(purifier, toy):
    with pytest.raises(ValueError, match="these are 0..1, times 255"):
        purifier(toy.levels / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": None}, "either eps or grades"),
        ({"grades": ((0.0, 9),)}, "either eps or grades"),
        ({"eps": 256}, "between 0 and 255"),
        ({"layout": "CHW"}, "layout must be one of NHWC, NCHW: 'CHW'"),
        ({"range": (1, 0)}, "two numbers that ascend"),
        ({"range": 255}, "two numbers that ascend"),
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
