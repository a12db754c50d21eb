import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixeldefend import attacks

SHAPE = (5, 4, 2)


def logits_fn(variables, images):
    flat = images.reshape(images.shape[0], -1).astype(jnp.float32) - 127
    return jnp.tanh(flat @ variables["first"]) @ variables["second"]


@pytest.fixture
def problem(rng):
    """A small network of no symmetry, images and the labels that it finds."""
    variables = {
        "first": jnp.asarray(rng.normal(size=(40, 16)) / 200, jnp.float32),
        "second": jnp.asarray(rng.normal(size=(16, 4)), jnp.float32),
    }
    images = rng.integers(0, 256, (8, *SHAPE), dtype=np.uint8)
    # Many values at the bounds, as pictures have them.
    images[:4, :2] = 0
    images[2:6, 4:] = 255
    images = jnp.asarray(images)
    labels = jnp.argmax(logits_fn(variables, images), -1)
    return variables, images, labels


@functools.cache
def _jitted(**options):
    """One compilation serves all tests of the same options."""
    return jax.jit(functools.partial(attacks.saliency_map, logits_fn, **options))


def _run(problem, eps=jnp.inf, targets=None, **options):
    return _jitted(**options)(*problem, eps=eps, targets=targets)


@jax.jit
def _look(variables, image, target):
    def loss(image):
        logits = logits_fn(variables, image[None])[0]
        return -jax.nn.log_softmax(logits)[target], logits

    return jax.grad(loss, has_aux=True)(image)


def _naive(variables, image, label, *, theta, most, eps=np.inf, darker=False):
    """One image, one value after another; the image and how many moves it took."""
    image = np.asarray(image, np.float32).copy()
    counts = np.zeros(image.shape, int)
    order = np.argsort(-np.asarray(_look(variables, image, 0)[1]))
    target = next(k for k in order if k != label)
    for moves in range(2000):
        slope, logits = _look(variables, image, target)
        if np.argmax(logits) != label:
            return image, moves, True
        best, where = 0, None
        for place in np.ndindex(image.shape):
            level, steep, count = image[place], slope[place], counts[place]
            if darker and steep < 0 or count >= most:
                continue
            if (
                level == 0
                and (steep > 0 or count)
                or level == 255
                and (steep < 0 or count)
            ):
                continue
            if not count and np.sum(counts > 0) + 1 > eps:
                continue
            if abs(steep) > best:
                best, where = abs(steep), place
        if where is None:
            return image, moves, False
        moved = image[where] - theta * 255 * np.sign(slope[where])
        image[where] = np.round(np.clip(moved, 0, 255))
        counts[where] += 1
    raise AssertionError("moves without end")


@pytest.mark.parametrize(
    "options",
    [{}, {"signs": "darker"}, {"moves_per_value": 2, "theta": 0.3}, {"eps": 5}],
    ids=str,
)
def test_attack_equals_a_loop_over_one_image(options, problem):
    variables, images, labels = problem
    found, info = _run(problem, keep_failed=True, lanes=3, **options)
    assert found.dtype == jnp.uint8
    for i in range(len(images)):
        expected, moves, success = _naive(
            variables,
            images[i],
            int(labels[i]),
            theta=options.get("theta", 0.1),
            most=options.get("moves_per_value", 7),
            eps=options.get("eps", np.inf),
            darker=options.get("signs") == "darker",
        )
        np.testing.assert_array_equal(found[i], expected)
        assert (info.steps[i], info.success[i]) == (moves, success)
    changed = np.sum(np.asarray(found != images), (1, 2, 3))
    np.testing.assert_array_equal(info.distance, changed)
    assert len(set(info.steps.tolist())) > 2  # images stop at different times


def test_at_most_eps_values_are_moved_and_one_compile_serves_all(problem):
    variables, images, labels = problem
    run = jax.jit(functools.partial(attacks.saliency_map, logits_fn, keep_failed=True))
    successes = []
    for eps in (0.0, 1.0, 3.5, np.inf):
        found, info = run(variables, images, labels, eps=eps)
        changed = np.sum(np.asarray(found != images), (1, 2, 3))
        assert np.all(changed <= eps)
        successes.append(int(np.sum(info.success)))
    assert successes[0] == 0 < successes[1] < successes[-1]
    assert run._cache_size() == 1
    each = np.array([0.0, 1.0, 2.0, 3.0] * 2, np.float32)
    found, _ = _run(problem, eps=each, keep_failed=True, moves_per_value=1)
    changed = np.sum(np.asarray(found != images), (1, 2, 3))
    assert np.all(changed <= each) and np.any(changed > 1)


def test_failed_images_come_back_clean_and_misclassified_ones_as_they_are(problem):
    variables, images, labels = problem
    labels = labels.at[0].set((labels[0] + 1) % 4)
    found, info = _run((variables, images, labels), eps=1.0)
    failed = ~np.asarray(info.success)
    assert 0 < failed.sum() < 7
    np.testing.assert_array_equal(np.asarray(found)[failed], images[failed])
    np.testing.assert_array_equal(found[0], images[0])
    assert info.success[0] and info.steps[0] == 0 and info.distance[0] == 0
    guesses = jnp.argmax(logits_fn(variables, found), -1)
    np.testing.assert_array_equal(guesses != labels, info.success)


def test_the_target_may_be_chosen(problem):
    variables, images, labels = problem
    logits = logits_fn(variables, images)
    order = jnp.argsort(-logits, -1)
    second, _ = _run(problem, targets=order[:, 1])
    runner_up, _ = _run(problem)
    np.testing.assert_array_equal(second, runner_up)
    last, _ = _run(problem, targets=order[:, 3])
    assert np.any(np.asarray(last != second))
    with pytest.raises(ValueError, match="targets"):
        _run(problem, targets=order)


def test_floating_levels_move_by_theta(problem):
    _, images, _ = problem
    found, info = _run(problem, theta=0.01, quantise=False)
    assert found.dtype == jnp.float32
    moved = np.abs(np.asarray(found) - np.asarray(images, np.float32))
    inside = np.asarray((found > 0) & (found < 255))
    whole = moved / 2.55
    np.testing.assert_allclose(whole[inside], np.round(whole[inside]), atol=1e-3)
    assert np.max(whole) <= 7.001 and np.any(whole > 0.9)


def test_an_image_does_not_depend_on_its_batch(problem):
    variables, images, labels = problem
    whole, _ = _run(problem)
    alone, _ = _run((variables, images[2:3], labels[2:3]))
    np.testing.assert_array_equal(whole[2:3], alone)


def test_a_constant_classifier_is_left_alone(problem):
    _, images, _ = problem

    def constant(variables, images):
        return jnp.zeros((len(images), 3)).at[:, 1].set(1)

    found, info = attacks.saliency_map(
        constant, None, images, jnp.ones(8, jnp.int32), keep_failed=True
    )
    np.testing.assert_array_equal(found, images)
    assert not np.any(info.success) and not np.any(info.steps)


@pytest.mark.parametrize(
    "option",
    [{"signs": "brighter"}, {"steps": 0}, {"moves_per_value": 0}, {"theta": 0.0}],
)
def test_wrong_options_are_refused(option, problem):
    with pytest.raises(ValueError, match=next(iter(option))):
        _run(problem, **option)
