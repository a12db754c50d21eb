import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixeldefend import attacks
from pixeldefend.attacks import norms

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
    found, info = attacks.fgsm(
        logits_fn, variables, images, labels, eps=3, keep_failed=True
    )
    slope = jax.grad(_loss, 1)(variables, images.astype(jnp.float32), labels)
    expected = np.clip(np.asarray(images, int) + 3 * np.sign(slope), 0, 255)
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, expected)
    assert np.all(info.steps == 1) and np.all(info.queries == 2)


def test_fgm_is_one_step_along_the_gradient(problem):
    variables, images, labels = problem
    middle = jnp.full_like(images, 128)  # no level is near an end
    found, info = attacks.fgm(
        logits_fn, variables, middle, labels, eps=40.0, quantise=False, keep_failed=True
    )
    slope = np.asarray(
        jax.grad(_loss, 1)(variables, middle.astype(jnp.float32), labels)
    )
    size = np.sqrt(np.sum(slope**2, (1, 2, 3), keepdims=True))
    np.testing.assert_allclose(found, 128 + 40 * slope / size, atol=1e-3)
    np.testing.assert_allclose(info.distance, 40, atol=1e-3)


def test_fgsm_up_the_loss_of_the_predicted_label(problem):
    variables, images, labels = problem
    made = {"eps": 3, "keep_failed": True}
    found, info = attacks.fgsm(
        logits_fn, variables, images, labels, loss_labels="predicted", **made
    )
    expected, _ = attacks.fgsm(logits_fn, variables, images, None, **made)
    np.testing.assert_array_equal(found, expected)
    guesses = jnp.argmax(logits_fn(variables, found), -1)
    np.testing.assert_array_equal(info.success, guesses != labels)


def test_bim_equals_a_naive_loop_for_every_image_and_eps(problem):
    variables, images, labels = problem
    eps = np.array([0.0, 0.5, 1.0, 2.6, 8.0, 20.0], np.float32)
    found, info = attacks.bim(
        logits_fn,
        variables,
        images,
        labels,
        eps=jnp.asarray(eps),
        quantise=False,
        keep_failed=True,
    )
    np.testing.assert_array_equal(info.steps, [0, 0, 1, 3, 10, 24])
    for i in range(len(eps)):
        expected = _naive_bim(variables, images[i], int(labels[i]), eps[i])
        np.testing.assert_allclose(found[i], expected, atol=1e-4)


@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.bim])
def test_without_labels_the_predicted_ones_are_meant(problem, attack):
    variables, images, labels = problem
    guesses = jnp.argmax(logits_fn(variables, images), -1)
    made = {"eps": 6, "keep_failed": True}
    found, _ = attack(logits_fn, variables, images, None, **made)
    expected, _ = attack(logits_fn, variables, images, guesses, **made)
    np.testing.assert_array_equal(found, expected)
    other, _ = attack(logits_fn, variables, images, labels, **made)
    assert np.any(np.asarray(other != expected))


@pytest.mark.parametrize("eps, steps", [(2, 2), (8, 10), (16, 20), (25, 29), (1.5, 1)])
def test_bim_takes_as_many_steps_as_the_paper_says(eps, steps):
    # A slope of one sign, and a ball that is forgotten, so that steps can be counted.
    images = jnp.full((1, *SHAPE), 100, jnp.uint8)
    weights = jnp.ones((40, 2), jnp.float32) * jnp.asarray([[-1e-4, 1e-4]])
    made = {"eps": eps, "keep_failed": True}
    label = jnp.asarray([0])
    found, info = attacks.bim(linear, weights, images, label, ball=False, **made)
    assert info.steps == steps
    np.testing.assert_array_equal(found, np.full((1, *SHAPE), 100 + steps))
    kept, _ = attacks.bim(linear, weights, images, label, **made)
    np.testing.assert_array_equal(
        kept, np.full((1, *SHAPE), 100 + int(min(eps, steps)))
    )


def test_bim_takes_the_steps_that_it_is_given():
    images = jnp.full((1, *SHAPE), 100, jnp.uint8)
    weights = jnp.ones((40, 2), jnp.float32) * jnp.asarray([[-1e-4, 1e-4]])
    found, _ = attacks.bim(
        linear,
        weights,
        images,
        jnp.asarray([0]),
        eps=10,
        steps=3,
        relative_step=0.25,
        quantise=False,
        keep_failed=True,
    )
    np.testing.assert_allclose(found, 107.5)


def _naive_pgd_l2(variables, image, label, eps, steps, share):
    start = np.asarray(image, np.float64)
    moved = start.copy()
    for _ in range(steps):
        x = jnp.asarray(moved, jnp.float32)[None]
        slope = np.asarray(jax.grad(_loss, 1)(variables, x, jnp.asarray([label]))[0])
        moved = moved + share * eps * slope / np.linalg.norm(slope)
        change = moved - start
        moved = start + change * min(1, eps / np.linalg.norm(change))
        moved = np.clip(moved, 0, 255)
    return moved


def test_pgd_in_l2_equals_a_naive_loop(problem):
    variables, images, labels = problem
    found, info = attacks.pgd(
        logits_fn,
        variables,
        images,
        labels,
        eps=50.0,
        norm="l2",
        steps=7,
        relative_step=0.3,
        random_start=False,
        quantise=False,
        keep_failed=True,
    )
    for i in range(len(images)):
        expected = _naive_pgd_l2(variables, images[i], int(labels[i]), 50.0, 7, 0.3)
        np.testing.assert_allclose(found[i], expected, atol=1e-2)
    assert np.all(info.distance <= 50.001) and np.all(info.steps == 7)


def test_restarts_stop_at_the_first_success(problem):
    """Each start by itself, one after another, finds what the lanes found."""
    variables, images, labels = problem
    keys = jax.random.split(jax.random.key(1), len(images))
    options = {"eps": 9.0, "steps": 2, "relative_step": 0.1, "keep_failed": True}
    found, info = attacks.pgd(
        logits_fn, variables, images, labels, keys, restarts=4, lanes=2, **options
    )
    assert len(set(info.steps.tolist())) > 1, "every image took as many starts"
    once = jax.jit(functools.partial(attacks.pgd, logits_fn, **options))
    for i in range(len(images)):
        for start in range(4):
            key = jax.random.fold_in(keys[i], start)[None]
            one, its = once(variables, images[i : i + 1], labels[i : i + 1], key)
            if its.success[0]:
                break
        np.testing.assert_array_equal(found[i], one[0])
        assert info.steps[i] == 2 * (start + 1) and info.success[i] == its.success[0]


def test_stopping_early_keeps_the_first_point_that_is_a_success(problem):
    variables, images, labels = problem
    options = {"eps": 9.0, "relative_step": 0.1, "random_start": False}
    found, info = attacks.pgd(
        logits_fn,
        variables,
        images,
        labels,
        stop_early=True,
        steps=6,
        lanes=2,
        **options,
    )
    assert len(set(info.steps.tolist())) > 2, "all stopped at the same time"
    for i in range(len(images)):
        label = labels[i : i + 1]
        image = images[i : i + 1].astype(jnp.float32)
        # Slopes are taken at whole levels, so each step is a run of its own.
        moved, taken = image, 0
        while taken < 6 and not _fooled(variables, jnp.round(moved), label):
            slope = jax.grad(_loss, 1)(variables, jnp.round(moved), label)
            moved = jnp.clip(moved + 0.9 * jnp.sign(slope), image - 9.0, image + 9.0)
            moved, taken = jnp.clip(moved, 0, 255), taken + 1
        success = bool(_fooled(variables, jnp.round(moved), label))
        assert (info.steps[i], info.success[i]) == (taken, success)
        expected = jnp.round(moved) if success else image
        np.testing.assert_array_equal(found[i], expected[0].astype(jnp.uint8))
        stopped = taken < 6
        assert info.queries[i] == taken + stopped + 1


def test_restarts_stop_early_too_and_go_on_where_one_has_failed(problem):
    variables, images, labels = problem
    key = jax.random.split(jax.random.key(1), len(images))
    options = {"eps": 6.0, "steps": 4, "relative_step": 0.1, "stop_early": True}

    @functools.partial(jax.jit, static_argnames="restarts")
    def run(restarts):
        return attacks.pgd(
            logits_fn, variables, images, labels, key, restarts=restarts, **options
        )

    _, several = run(4)
    # One after the other by hand: the first start that succeeds is the last.
    fold = jax.vmap(jax.random.fold_in)
    steps, done = np.zeros(len(images), int), np.zeros(len(images), bool)
    for start in range(4):
        keys = fold(key, jnp.full(len(images), start))
        _, one = attacks.pgd(logits_fn, variables, images, labels, keys, **options)
        steps += np.where(done, 0, one.steps)
        done |= np.asarray(one.success)
    np.testing.assert_array_equal(several.success, done)
    np.testing.assert_array_equal(several.steps, steps)
    assert 0 < done.sum() and len(set(steps.tolist())) > 2


def _fooled(variables, images, labels):
    return jnp.argmax(logits_fn(variables, images), -1)[0] != labels[0]


def test_random_starts_fill_the_ball(rng):
    start = jnp.full((2000, 2, 1, 1), 128.0)
    keys = jax.random.split(jax.random.key(0), 2000)
    for norm, fraction in ((norms.LINF, 0.25), (norms.L2, 0.25)):
        moved = norm.draw(keys, start, jnp.full(2000, 10.0)) - start
        sizes = norm.size(moved)
        assert np.max(sizes) <= 10.0001
        # Half the radius holds a fourth of a disc, and of a square.
        assert np.mean(np.asarray(sizes) < 5) == pytest.approx(fraction, abs=0.04)


@hypothesis.given(st.integers(0, 2**32 - 1), st.floats(0, 300))
@hypothesis.settings(max_examples=30, deadline=None)
def test_rounding_stays_in_the_l2_ball_and_near(seed, radius):
    rng = np.random.default_rng(seed)
    start = jnp.asarray(rng.integers(0, 256, (4, 3, 3, 1)), jnp.float32)
    moved = start + jnp.asarray(rng.normal(size=start.shape) * 30, jnp.float32)
    radius = jnp.full(4, radius, jnp.float32)
    moved = norms.L2.project(start, moved, radius)
    whole = norms.L2.whole(start, moved, radius).astype(jnp.float32)
    assert np.all(norms.l2(whole - start) <= radius * (1 + 1e-5))
    assert np.all(np.abs(whole - moved) < 1)
    # Where the nearest levels are in the ball, they are what one gets.
    nearest = np.round(np.asarray(moved))
    inside = np.asarray(norms.l2(nearest - start)) <= np.asarray(radius)
    np.testing.assert_array_equal(np.asarray(whole)[inside], nearest[inside])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"norm": "l1"}, "linf, l2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"restarts": 2, "random_start": False}, "restarts differ only"),
        ({"key": None}, "needs keys"),
        ({"eps": -1}, "eps must be a number and not negative"),
        ({"labels": jnp.asarray([0, 1, 2, 0, 1, 3])}, "labels must be 0 to 2: 3"),
        ({"labels": jnp.asarray([0, 1])}, "one for each image"),
        ({"eps": jnp.ones(2)}, "eps must be a number or one"),
        ({"logits_fn": lambda variables, images: images}, r"must return \[B, K\]"),
    ],
)
def test_what_is_wrong_is_said(problem, options, message):
    variables, images, labels = problem
    given = {"logits_fn": logits_fn, "labels": labels, "eps": 1}
    given["key"] = jax.random.split(jax.random.key(0), len(images))
    given |= options
    with pytest.raises(ValueError, match=message):
        attacks.pgd(variables=variables, images=images, **given)


def test_probabilities_in_place_of_logits_are_warned_of(problem):
    variables, images, labels = problem

    def probabilities(variables, images):
        return jax.nn.softmax(logits_fn(variables, images))

    with pytest.warns(UserWarning, match="attacks need logits, not probabilities"):
        attacks.check_logits(probabilities, variables, images)
    attacks.check_logits(logits_fn, variables, images)


def test_one_class_and_spans_of_time_are_refused(problem):
    variables, images, labels = problem

    def single(variables, images):
        return logits_fn(variables, images)[:, :1]

    with pytest.raises(ValueError, match="at least two classes"):
        attacks.fgsm(single, variables, images, labels * 0, eps=2)
    spans = np.asarray(labels).astype("m8[s]")
    with pytest.raises(ValueError, match="labels must be integers: timedelta64"):
        attacks.fgsm(logits_fn, variables, images, spans, eps=2)


def test_logits_that_are_not_finite_are_told_apart(problem):
    variables, images, _ = problem
    attacks.check_logits(logits_fn, variables, images)
    broken = variables | {"second": variables["second"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="6 of 6 images are not finite"):
        attacks.check_logits(logits_fn, broken, images)
