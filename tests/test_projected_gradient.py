import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixeldefend import attacks

SHAPE = (5, 4, 2)


@pytest.fixture
def problem(rng):
    """A small network of no symmetry, images and labels."""
    variables = {
        "first": jnp.asarray(rng.normal(size=(40, 16)) / 100, jnp.float32),
        "second": jnp.asarray(rng.normal(size=(16, 3)), jnp.float32),
    }
    images = jnp.asarray(rng.integers(0, 256, (6, *SHAPE), dtype=np.uint8))
    return variables, images, jnp.asarray([0, 1, 2, 0, 1, 2])


def logits_fn(variables, images):
    flat = images.reshape(images.shape[0], -1).astype(jnp.float32)
    return jnp.tanh(flat @ variables["first"]) @ variables["second"]


def linear(variables, images):
    return images.reshape(images.shape[0], -1).astype(jnp.float32) @ variables


def _loss(variables, images, labels):
    log_probs = jax.nn.log_softmax(logits_fn(variables, images))
    return -jnp.sum(jnp.take_along_axis(log_probs, labels[:, None], 1))


def _naive_bim(variables, image, label, eps):
    """One image, one step after another, in numpy but for the slope."""
    start = np.asarray(image, np.float32)
    moved = start.copy()
    for _ in range(int(np.floor(min(eps + 4, 1.25 * eps)))):
        x, y = jnp.asarray(moved)[None], jnp.asarray([label])
        moved = moved + np.sign(jax.grad(_loss, 1)(variables, x, y)[0])
        moved = np.clip(np.clip(moved, start - eps, start + eps), 0, 255)
    return moved


def test_fgsm_is_one_step_up_the_loss_of_the_true_label(problem):
    variables, images, labels = problem
    found = attacks.fgsm(logits_fn, variables, images, labels, eps=3)
    slope = jax.grad(_loss, 1)(variables, images.astype(jnp.float32), labels)
    expected = np.clip(np.asarray(images, int) + 3 * np.sign(slope), 0, 255)
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, expected)


def test_bim_equals_a_naive_loop_for_every_image_and_eps(problem):
    variables, images, labels = problem
    eps = np.array([0.0, 0.5, 1.0, 2.6, 8.0, 20.0], np.float32)
    found = attacks.bim(
        logits_fn, variables, images, labels, eps=jnp.asarray(eps), quantise=False
    )
    for i in range(len(eps)):
        expected = _naive_bim(variables, images[i], int(labels[i]), eps[i])
        np.testing.assert_allclose(found[i], expected, atol=1e-4)


@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.bim])
@pytest.mark.parametrize("quantise", [True, False])
def test_attacks_stay_in_the_ball_and_among_levels(problem, attack, quantise):
    variables, images, labels = problem
    eps = jnp.asarray([0.0, 0.4, 1.5, 2.7, 8.0, 30.0])
    found = attack(logits_fn, variables, images, labels, eps=eps, quantise=quantise)
    assert found.dtype == (jnp.uint8 if quantise else jnp.float32)
    moved = np.abs(np.asarray(found, float) - np.asarray(images, float)).max((1, 2, 3))
    assert np.all(moved <= np.asarray(eps) + 1e-4)
    assert np.min(found) >= 0 and np.max(found) <= 255
    whole = np.floor(eps) if quantise else np.asarray(eps)
    np.testing.assert_allclose(moved[3:], whole[3:], atol=1e-4)


@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.bim])
def test_without_labels_the_predicted_ones_are_meant(problem, attack):
    variables, images, labels = problem
    guesses = jnp.argmax(logits_fn(variables, images), -1)
    found = attack(logits_fn, variables, images, None, eps=6)
    expected = attack(logits_fn, variables, images, guesses, eps=6)
    np.testing.assert_array_equal(found, expected)
    other = attack(logits_fn, variables, images, labels, eps=6)
    assert np.any(np.asarray(other != expected))


@pytest.mark.parametrize("eps, steps", [(2, 2), (8, 10), (16, 20), (25, 29), (1.5, 1)])
def test_bim_takes_as_many_steps_as_the_paper_says(eps, steps):
    # A slope of one sign, and a ball that is forgotten, so that steps can be counted.
    images = jnp.full((1, *SHAPE), 100, jnp.uint8)
    weights = jnp.ones((40, 2), jnp.float32) * jnp.asarray([[-1e-4, 1e-4]])
    found = attacks.bim(linear, weights, images, jnp.asarray([0]), eps=eps, ball=False)
    np.testing.assert_array_equal(found, np.full((1, *SHAPE), 100 + steps))
    kept = attacks.bim(linear, weights, images, jnp.asarray([0]), eps=eps)
    np.testing.assert_array_equal(
        kept, np.full((1, *SHAPE), 100 + int(min(eps, steps)))
    )


def test_one_compile_serves_every_eps(problem):
    variables, images, labels = problem
    for attack in (attacks.fgsm, attacks.bim):
        run = jax.jit(functools.partial(attack, logits_fn))
        for eps in (1.0, 4.0, 9.0):
            run(variables, images, labels, eps=eps)
        assert run._cache_size() == 1


def test_a_batch_changes_nothing_about_its_images(problem):
    variables, images, labels = problem
    whole = attacks.bim(logits_fn, variables, images, labels, eps=5)
    part = attacks.bim(logits_fn, variables, images[2:3], labels[2:3], eps=5)
    np.testing.assert_array_equal(whole[2:3], part)
