import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixeldefend import attacks

SHAPE = (5, 4, 2)


@pytest.fixture
def problem(rng):
    """A small network, a detector that likes grey images, and images with labels."""
    variables = {
        "first": jnp.asarray(rng.normal(size=(40, 16)) / 100, jnp.float32),
        "second": jnp.asarray(rng.normal(size=(16, 3)), jnp.float32),
        "liked": jnp.asarray(rng.uniform(90, 160, size=(40,)), jnp.float32),
    }
    images = jnp.asarray(rng.integers(60, 190, (8, *SHAPE), dtype=np.uint8))
    logits = logits_fn(variables, images.astype(jnp.float32))
    return variables, images, jnp.argmax(logits, -1)


def logits_fn(variables, images):
    flat = images.reshape(images.shape[0], -1)
    return jnp.tanh(flat @ variables["first"]) @ variables["second"]


def score_fn(variables, images):
    flat = images.reshape(images.shape[0], -1)
    return -jnp.mean((flat - variables["liked"][None]) ** 2, -1)


def _loss(images, variables, label):
    return -jax.nn.log_softmax(logits_fn(variables, images[None]))[0, label]


def _naive(variables, image, label, eps, bar, steps, size):
    """One image, one step after another; whether it arrived, and the steps."""
    start = np.asarray(image, np.float32)
    moved = start.copy()
    for taken in range(steps + 1):
        shown = jnp.asarray(np.round(moved))
        fooled = np.argmax(logits_fn(variables, shown[None])[0]) != label
        if fooled and score_fn(variables, shown[None])[0] >= bar:
            return shown, True, taken
        if taken == steps:
            return shown, False, taken
        if fooled:
            slope = jax.grad(lambda x: score_fn(variables, x[None])[0])(shown)
        else:
            slope = jax.grad(_loss)(shown, variables, label)
        moved = np.clip(moved + size * np.sign(slope), start - eps, start + eps)
        moved = np.clip(moved, 0, 255)


def test_it_takes_the_steps_of_a_naive_loop(problem):
    variables, images, labels = problem
    bars = score_fn(variables, images.astype(jnp.float32)) + 5.0
    run = jax.jit(
        functools.partial(
            attacks.evade, logits_fn, score_fn, steps=30, relative_step=0.1, lanes=3
        )
    )
    found, info = run(variables, images, labels, eps=40.0, threshold=bars)
    kept, _ = jax.jit(
        functools.partial(
            attacks.evade,
            logits_fn,
            score_fn,
            steps=30,
            relative_step=0.1,
            keep_failed=True,
        )
    )(variables, images, labels, eps=40.0, threshold=bars)
    for i in range(len(images)):
        expected, success, taken = _naive(
            variables, images[i], labels[i], 40.0, bars[i], 30, 4.0
        )
        assert (info.success[i], info.steps[i]) == (success, taken)
        np.testing.assert_array_equal(kept[i], expected)
        np.testing.assert_array_equal(found[i], expected if success else images[i])
    assert 0 < np.sum(info.success) and len(set(info.steps.tolist())) > 2


def test_what_it_finds_deceives_both_and_stays_in_the_ball(problem):
    variables, images, labels = problem
    bar = jnp.min(score_fn(variables, images.astype(jnp.float32)))
    found, info = attacks.evade(
        logits_fn, score_fn, variables, images, labels, eps=30, threshold=bar
    )
    shown = found.astype(jnp.float32)
    wrong = jnp.argmax(logits_fn(variables, shown), -1) != labels
    passes = score_fn(variables, shown) >= bar
    np.testing.assert_array_equal(info.success, wrong & passes)
    assert np.any(info.success)
    moved = np.abs(np.asarray(shown) - np.asarray(images, np.float32)).max((1, 2, 3))
    np.testing.assert_allclose(info.distance, moved)
    assert moved.max() <= 30 and found.dtype == jnp.uint8


def test_a_detector_that_passes_everything_leaves_plain_descent(problem):
    variables, images, labels = problem
    options = {"eps": 30.0, "steps": 20, "relative_step": 0.1}
    found, info = attacks.evade(
        logits_fn, score_fn, variables, images, labels, threshold=-jnp.inf, **options
    )
    expected, its = attacks.pgd(
        logits_fn,
        variables,
        images,
        labels,
        random_start=False,
        stop_early=True,
        **options,
    )
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(info.steps, its.steps)


def test_a_detector_that_passes_nothing_is_not_deceived(problem):
    variables, images, labels = problem
    found, info = attacks.evade(
        logits_fn,
        score_fn,
        variables,
        images,
        labels,
        eps=9,
        threshold=jnp.inf,
        steps=3,
    )
    assert not np.any(info.success) and not np.any(info.distance)
    np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"relative_step": 0.0}, "relative_step must be above 0"),
        ({"eps": -1}, "eps must be a number and not negative"),
    ],
)
def test_what_is_wrong_is_said(problem, options, message):
    variables, images, labels = problem
    given = {"eps": 3, "threshold": 0.0} | options
    with pytest.raises(ValueError, match=message):
        attacks.evade(logits_fn, score_fn, variables, images, labels, **given)
