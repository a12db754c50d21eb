import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pixeldefend import attacks
from pixeldefend.attacks import corruption

SHAPE = (6, 5, 2)
ATTACKS = (attacks.gaussian_blur, attacks.contrast_reduction, attacks.salt_and_pepper)


def logits_fn(variables, images):
    flat = images.reshape(images.shape[0], -1).astype(jnp.float32) - 127
    return jnp.tanh(flat @ variables["first"]) @ variables["second"]


def unmoved(variables, images):
    """The same class for every image."""
    return jnp.zeros((len(images), 3)).at[:, 1].set(1)


@pytest.fixture
def problem(rng):
    """A small network of no symmetry, images, the labels that it finds, keys."""
    variables = {
        "first": jnp.asarray(rng.normal(size=(60, 16)) / 100, jnp.float32),
        "second": jnp.asarray(rng.normal(size=(16, 3)), jnp.float32),
    }
    images = jnp.asarray(rng.integers(0, 256, (8, *SHAPE), dtype=np.uint8))
    labels = jnp.argmax(logits_fn(variables, images.astype(jnp.float32)), -1)
    return variables, images, labels, jax.random.split(jax.random.key(0), 8)


@functools.cache
def _jitted(attack, **options):
    """One compilation serves all tests of the same options."""
    return jax.jit(functools.partial(attack, logits_fn, **options))


def _run(attack, problem, eps=jnp.inf, **options):
    return _jitted(attack, **options)(*problem, eps=eps)


def _once(attack):
    return {"repetitions": 1} if attack is attacks.salt_and_pepper else {}


def _distance(found, images):
    moved = np.asarray(found, float) - np.asarray(images, float)
    return np.sqrt(np.sum(moved**2, (1, 2, 3)))


def _corrupted(attack, image, strength, key, attempt=0):
    """One image, written from the definitions, without any of the attack's code."""
    image = np.asarray(image, np.float64)
    if attack is attacks.gaussian_blur:
        sigma = strength * max(SHAPE[:2])
        found = ndimage.gaussian_filter(image, (sigma, sigma, 0))
    elif attack is attacks.contrast_reduction:
        found = (1 - strength) * image + strength * 127.5
    else:
        key = jax.random.fold_in(key, attempt)
        draw = np.asarray(jax.random.uniform(key, (*SHAPE[:2], 1), jnp.float32))
        found = np.where(draw < strength / 2, 0, image)
        found = np.where(draw >= 1 - strength / 2, 255, found)
    return np.round(np.clip(found, 0, 255)).astype(np.uint8)


def _brute(attack, problem, i, strengths):
    """Of many strengths the weakest that fools, and its distance; infinite for none."""
    variables, images, labels, keys = problem
    tried = np.stack([_corrupted(attack, images[i], s, keys[i]) for s in strengths])
    logits = logits_fn(variables, jnp.asarray(tried))
    fools = np.argmax(np.asarray(logits), -1) != int(labels[i])
    if not fools.any():
        return np.inf, np.inf
    first = fools.argmax()
    return strengths[first], _distance(tried[first][None], images[i][None])[0]


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.6, 2.3, 17.0, 40.0])
@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 40, 1)])
def test_blur_is_that_of_scipy(rng, sigma, shape):
    images = rng.uniform(0, 255, (2, *shape)).astype(np.float32)
    sigma = min(sigma, max(shape))
    found = corruption.blur(jnp.asarray(images), sigma=jnp.asarray([sigma, 1.0]))
    for image, got, deviation in zip(images, found, (sigma, 1.0), strict=True):
        expected = ndimage.gaussian_filter(image, (deviation, deviation, 0))
        np.testing.assert_allclose(got, expected, atol=1e-3)


def test_noise_grows_and_turns_all_channels_of_a_pixel(problem):
    _, images, _, keys = problem
    levels = jnp.clip(images, 1, 254).astype(jnp.float32)
    before = np.zeros(images.shape[:3], bool)
    for strength in (0.0, 0.2, 0.5, 0.8, 1.0):
        attempt = jnp.zeros(8, jnp.int32)
        found = corruption._speckle(levels, keys, attempt, jnp.full(8, strength))
        turned = np.asarray(found != levels)
        assert np.all(turned == turned[..., :1])
        turned = turned[..., 0]
        assert np.all(turned[before])
        assert abs(turned.mean() - strength) < 0.1
        assert set(np.unique(np.asarray(found)[turned])) <= {0, 255}
        before = turned
    assert 0.3 < np.mean(np.asarray(found) == 0) < 0.7


def _same(info, expected):
    success = np.isfinite(expected)
    np.testing.assert_array_equal(info.success, success)
    # A level that lies between two may be rounded either way.
    distance = np.asarray(info.distance)
    np.testing.assert_allclose(distance[success], expected[success], rtol=0.005)
    assert 4 <= success.sum()


@pytest.mark.parametrize("attack", ATTACKS)
def test_exhaustive_search_finds_what_a_loop_over_strengths_finds(attack, problem):
    found, info = _run(attack, problem, grid=50, refinements=0, **_once(attack))
    strengths = np.arange(1, 51) / 50
    _same(info, np.array([_brute(attack, problem, i, strengths)[1] for i in range(8)]))
    failed = ~np.asarray(info.success)
    np.testing.assert_array_equal(np.asarray(found)[failed], problem[1][failed])


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.slow
def test_the_interval_below_a_success_is_searched_again(attack, problem):
    _, info = _run(attack, problem, grid=20, refinements=1, **_once(attack))
    coarse, expected, least = np.full((3, 8), np.inf)
    for i in range(8):
        first, coarse[i] = _brute(attack, problem, i, np.arange(1, 21) / 20)
        _, least[i] = _brute(attack, problem, i, np.arange(1, 401) / 400)
        if np.isfinite(first):
            below = first - 0.05 + np.arange(1, 21) / 400
            _, expected[i] = _brute(attack, problem, i, below)
    _same(info, expected)
    # What one fine grid finds is rarely nearer, and one coarse grid finds worse.
    assert np.mean(expected <= least) >= 0.6
    assert np.sum(expected < 0.99 * coarse) >= 2


def test_the_nearest_of_several_draws_is_kept(problem):
    distances = []
    for repetitions in (1, 6):
        _, info = _run(attacks.salt_and_pepper, problem, repetitions=repetitions)
        distances.append(np.where(info.success, info.distance, np.inf))
    assert np.all(distances[1] <= distances[0])
    assert np.any(distances[1] < distances[0])


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("quantise", [True, False])
def test_images_returned_are_what_is_told_of_them(attack, quantise, problem):
    variables, images, labels, keys = problem
    labels = labels.at[0].set((labels[0] + 1) % 3)
    found, info = _run(
        attack, (variables, images, labels, keys), quantise=quantise, **_once(attack)
    )
    assert found.dtype == (jnp.uint8 if quantise else jnp.float32)
    assert np.min(found) >= 0 and np.max(found) <= 255
    guesses = jnp.argmax(logits_fn(variables, found), -1)
    success = np.asarray(info.success)
    np.testing.assert_array_equal((guesses != labels)[success], True)
    np.testing.assert_allclose(info.distance, _distance(found, images), rtol=1e-5)
    assert success[0] and info.distance[0] == 0 and info.steps[0] == 0
    np.testing.assert_array_equal(info.distance > 0, success & (np.arange(8) > 0))


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_farther_than_eps_is_no_success(attack, problem):
    variables, images, labels, keys = problem
    run = jax.jit(functools.partial(attack, logits_fn, **_once(attack)))
    _, free = run(variables, images, labels, keys, eps=jnp.inf)
    nearest = np.where(free.success, free.distance, np.inf)
    eps = float(np.median(nearest[np.isfinite(nearest)])) + 0.01
    found, info = run(variables, images, labels, keys, eps=eps)
    np.testing.assert_array_equal(info.success, nearest <= eps)
    assert 0 < np.sum(info.success) < np.sum(free.success)
    failed = ~np.asarray(info.success)
    np.testing.assert_array_equal(np.asarray(found)[failed], images[failed])
    assert run._cache_size() == 1
    kept, _ = _run(attack, problem, eps=eps, keep_failed=True, **_once(attack))
    moved = _distance(kept, images)
    assert np.all(moved <= eps) and np.all(moved[failed] > 0)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch_lanes_or_grouping(attack, problem):
    variables, images, labels, keys = problem
    whole, info = _run(attack, problem)
    again, _ = _run(attack, problem, at_once=5, lanes=3)
    np.testing.assert_array_equal(whole, again)
    i = int(np.argmax(info.distance))
    part = slice(i, i + 1)
    alone = variables, images[part], labels[part], keys[part]
    alone, _ = _run(attack, alone, at_once=64)
    np.testing.assert_array_equal(whole[part], alone)


def test_salt_and_pepper_is_its_key_s(problem):
    variables, images, labels, keys = problem
    run = functools.partial(attacks.salt_and_pepper, logits_fn, repetitions=2)
    run = functools.partial(jax.jit(run), variables, images)
    found, _ = run(labels, keys)
    np.testing.assert_array_equal(found, run(labels, keys)[0])
    assert np.any(np.asarray(found != run(labels, keys[::-1])[0]))
    with pytest.raises(ValueError, match="keys"):
        run(labels, None)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_constant_classifier_is_never_fooled(attack, problem):
    _, images, _, keys = problem
    labels = jnp.ones(8, jnp.int32)
    run = functools.partial(attack, unmoved, grid=7, refinements=2)
    found, info = jax.jit(run)(None, images, labels, keys)
    np.testing.assert_array_equal(found, images)
    assert not np.any(info.success)
    repetitions = 10 if attack is attacks.salt_and_pepper else 1
    np.testing.assert_array_equal(info.steps, 7 * repetitions)


@pytest.mark.parametrize(
    "option", [{"grid": 0}, {"at_once": 0}, {"refinements": -1}, {"eps": -1.0}]
)
def test_wrong_options_are_refused(option, problem):
    variables, images, labels, _ = problem
    with pytest.raises(ValueError, match=next(iter(option))):
        attacks.gaussian_blur(logits_fn, variables, images, labels, **option)
