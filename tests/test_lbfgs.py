import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from pixeldefend import attacks
from pixeldefend.attacks import gradients, outcome
from pixeldefend.attacks.batched_while import select
from pixeldefend.attacks.box_lbfgs import BoxLBFGS

module = importlib.import_module("pixeldefend.attacks.lbfgs")
SHAPE = (5, 4, 2)
SIZE = 40


def logits_fn(variables, images):
    flat = images.reshape(images.shape[0], -1).astype(images.dtype) - 127
    return jnp.tanh(flat @ variables["first"]) @ variables["second"]


def linear(variables, images):
    return images.reshape(images.shape[0], -1) @ variables


@pytest.fixture
def problem(rng):
    """A small network of no symmetry, images and the labels that it finds."""
    variables = {
        "first": jnp.asarray(rng.normal(size=(SIZE, 16)) / 100, jnp.float32),
        "second": jnp.asarray(rng.normal(size=(16, 3)), jnp.float32),
    }
    images = rng.integers(0, 256, (6, *SHAPE), dtype=np.uint8)
    # Many values at the bounds, as pictures have them.
    images[:3, :2] = 0
    images[2:, 4:] = 255
    images = jnp.asarray(images)
    labels = jnp.argmax(logits_fn(variables, images.astype(jnp.float32)), -1)
    return variables, images, labels


@functools.cache
def _jitted(network=logits_fn, **options):
    """One compilation serves all tests of the same options."""
    return jax.jit(functools.partial(attacks.lbfgs, network, **options))


def _run(problem, *network, eps=jnp.inf, **options):
    return _jitted(*network, **options)(*problem, eps=eps)


def _distance(found, images):
    moved = np.asarray(found, float) - np.asarray(images, float)
    return np.sqrt(np.sum(moved**2, (1, 2, 3)))


@jax.jit
def _look(variables, image, target):
    def loss(image):
        logits = logits_fn(variables, image[None])[0]
        return -jax.nn.log_softmax(logits)[target], logits

    return jax.value_and_grad(loss, has_aux=True)(image)


def _objective(variables, image, target, constant):
    """Value and slope at a flat image, in double precision."""
    image = np.asarray(image, float).reshape(-1)

    def function(x):
        there = jnp.asarray(x.reshape(SHAPE), jnp.float32)
        (loss, _), slope = _look(variables, there, target)
        moved = (x - image) / 255
        value = np.mean(moved**2) + constant * float(loss)
        slope = constant * np.asarray(slope, float).reshape(-1)
        return value, slope + 2 * moved / 255 / SIZE

    return function


def _scipy(variables, image, target, constant):
    # Scaled up, as foolbox has it, so that it does not stop too early.
    function = _objective(variables, image, target, constant)
    found, value, _ = optimize.fmin_l_bfgs_b(
        lambda x: tuple(1e6 * part for part in function(x)),
        np.asarray(image, float).reshape(-1),
        bounds=[(0, 255)] * SIZE,
        m=15,
    )
    return found, value / 1e6


def _minimise(network, given, constant, minimiser, misled=lambda begun: begun):
    """What the attack's minimisation comes to for one constant, once begun."""
    constant = jnp.full(len(given.images), constant, jnp.float32)

    def objective(shown):
        loss, gradient, _ = gradients.cross_entropy(network, shown, given.labels)
        return module._objective(given, constant, shown, loss, gradient)

    def turn(_, at):
        trial = minimiser.trial(at)
        onward = minimiser.advance(at, trial, *objective(trial))
        return select(at.done, at, onward)

    def run():
        begun = misled(minimiser.init(given.images, *objective(given.images)))
        return jax.lax.fori_loop(0, 2 * minimiser.iterations, turn, begun)

    return jax.jit(run)()


def _minimum(variables, images, targets, constant, **options):
    network = functools.partial(logits_fn, variables)
    given = outcome.prepare(network, images, targets, jnp.inf, False)
    curvature = module._curvature(given.images)
    minimiser = BoxLBFGS(curvature, history=8, tolerance=1e-5, iterations=200)
    return _minimise(network, given, constant, minimiser, **options)


def _uphill(begun):
    """A history that leads nowhere, as rounding may leave one."""
    return begun.replace(
        direction=-begun.direction, moves=begun.moves + 1, bends=begun.bends - 1
    )


def test_a_history_that_leads_uphill_is_dropped(problem):
    variables, images, labels = problem
    given = variables, images, (labels + 1) % 3, 1e-3
    misled, straight = _minimum(*given, misled=_uphill), _minimum(*given)
    assert np.all(misled.done) and np.all(misled.iterations > 0)
    np.testing.assert_allclose(misled.value, straight.value, rtol=1e-4)


@pytest.mark.parametrize("constant", [1e-3, 3e-2])
def test_the_minimum_for_a_constant_is_that_of_scipy(constant, problem):
    variables, images, labels = problem
    targets = (labels + 1) % 3
    at = _minimum(variables, images, targets, constant)
    assert np.all(at.done)
    held = 0
    for i in range(len(images)):
        target = int(targets[i])
        function = _objective(variables, images[i], target, constant)
        found = np.asarray(at.point[i], float).reshape(-1)
        expected, least = _scipy(variables, images[i], target, constant)
        value = function(found)[0]
        start = function(np.asarray(images[i], float).reshape(-1))[0]
        # At larger constants there are several minima, and either may find the deeper.
        assert value <= least + 1e-3 * (start - least)
        held += np.sum((found == 0) | (found == 255))
    assert held > 20


def test_the_box_holds_values_that_would_leave_it(rng):
    # Two classes and a slope that draws some values out of the box; the condition for
    # a minimum with bounds must hold at every value.
    weights = jnp.asarray(rng.normal(size=(SIZE, 2)) / 20, jnp.float32)
    images = jnp.asarray(rng.choice([0, 3, 120, 252, 255], (3, *SHAPE)), jnp.uint8)
    network = functools.partial(linear, weights)
    given = outcome.prepare(network, images, jnp.asarray([0, 0, 1]), jnp.inf, False)
    curvature = module._curvature(given.images)
    minimiser = BoxLBFGS(curvature, history=5, tolerance=1e-7, iterations=100)
    at = _minimise(network, given, 0.1, minimiser)
    here, slope = np.asarray(at.point), np.asarray(at.gradient)
    steepest = np.max(np.abs(slope))
    inside = (here > 0) & (here < 255)
    assert np.max(np.abs(slope[inside])) < 0.02 * steepest
    assert np.all(slope[here == 0] > -0.02 * steepest)
    assert np.all(slope[here == 255] < 0.02 * steepest)
    assert 10 < inside.sum() < inside.size - 10


def test_a_linear_classifier_is_fooled_at_its_boundary(rng):
    # Far from the box the nearest image of the other class is known: along the
    # difference of the weights, as far as the logits differ.
    weights = rng.normal(size=(SIZE, 2)).astype(np.float32) / 20
    images = jnp.asarray(rng.integers(110, 146, (5, *SHAPE), dtype=np.uint8))
    weights -= np.mean(weights, 0)  # so that the classes are near each other
    logits = linear(jnp.asarray(weights), images.astype(jnp.float32))
    labels = jnp.argmax(logits, -1)
    gap = np.abs(np.asarray(logits[:, 0] - logits[:, 1]))
    nearest = gap / np.linalg.norm(weights[:, 0] - weights[:, 1])
    problem = jnp.asarray(weights), images.astype(jnp.float32), labels
    found, info = _run(problem, linear, bisections=14, quantise=False)
    assert np.all(info.success)
    np.testing.assert_allclose(info.distance, nearest, rtol=0.01)
    assert np.all(info.distance >= 0.999 * nearest)


def _naive(variables, image, label):
    """The distance that scipy and a line search on c come to, on whole levels."""
    logits = np.asarray(_look(variables, jnp.asarray(image, jnp.float32), 0)[0][1])
    target = next(k for k in np.argsort(-logits) if k != label)

    def fools(constant):
        found = np.round(_scipy(variables, image, target, constant)[0])
        there = jnp.asarray(found.reshape(SHAPE), jnp.float32)
        logits = np.asarray(_look(variables, there, 0)[0][1])
        away = np.linalg.norm(found - np.asarray(image, float).reshape(-1))
        return np.argmax(logits) != label, away

    high, low, best = 2e-5, 0.0, np.inf
    while not fools(high)[0]:
        low, high = high, 2 * high
        if high > 1e4:
            return np.inf
    best = fools(high)[1]
    for _ in range(8):
        middle = (low + high) / 2
        success, away = fools(middle)
        low, high = (low, middle) if success else (middle, high)
        best = min(best, away) if success else best
    return best


@pytest.mark.slow
def test_distances_are_those_of_scipy_and_a_line_search(problem):
    variables, images, labels = problem
    found, info = _run(problem)
    assert np.all(info.success)
    expected = [_naive(variables, images[i], int(labels[i])) for i in range(6)]
    # From the same start, but there are several minima.
    ratio = np.asarray(info.distance) / expected
    assert np.all(ratio < 1.05) and np.sum(ratio > 0.95) >= 4


@pytest.mark.parametrize("quantise", [True, False])
def test_images_returned_are_what_is_told_of_them(quantise, problem):
    variables, images, labels = problem
    labels = labels.at[0].set((labels[0] + 1) % 3)
    found, info = _run((variables, images, labels), quantise=quantise)
    assert found.dtype == (jnp.uint8 if quantise else jnp.float32)
    assert np.min(found) >= 0 and np.max(found) <= 255
    guesses = jnp.argmax(logits_fn(variables, found.astype(jnp.float32)), -1)
    np.testing.assert_array_equal(guesses != labels, info.success)
    np.testing.assert_allclose(info.distance, _distance(found, images), rtol=1e-5)
    np.testing.assert_array_equal(found[0], images[0].astype(found.dtype))
    assert info.success[0] and info.distance[0] == 0 and info.steps[0] == 0
    assert np.all(info.steps[1:] > 0)


def test_what_is_farther_than_eps_is_no_success(problem):
    variables, images, labels = problem
    _, free = _run(problem)
    eps = float(np.median(free.distance)) + 0.01
    found, info = _run(problem, eps=eps)
    np.testing.assert_array_equal(info.success, np.asarray(free.distance) <= eps)
    failed = ~np.asarray(info.success)
    assert 0 < failed.sum() < 6
    np.testing.assert_array_equal(np.asarray(found)[failed], images[failed])
    kept, _ = _run(problem, eps=eps, keep_failed=True)
    moved = _distance(kept, images)
    assert np.all(moved <= eps) and np.all(moved[failed] > 0)


def test_one_compile_serves_every_eps(problem):
    run = jax.jit(functools.partial(attacks.lbfgs, logits_fn, steps=2, bisections=0))
    for eps in (0.0, 30.0, jnp.inf):
        run(*problem, eps=jnp.asarray(eps))
    assert run._cache_size() == 1


def test_an_image_does_not_depend_on_its_batch_or_lanes(problem):
    variables, images, labels = problem
    whole, info = _run(problem)
    again, _ = _run(problem, lanes=2)
    np.testing.assert_array_equal(whole, again)
    alone, _ = _run((variables, images[3:4], labels[3:4]))
    np.testing.assert_array_equal(whole[3:4], alone)
    assert len(set(info.queries.tolist())) > 3  # images stop at different times


def test_more_bisections_come_nearer(problem):
    _, some = _run(problem, bisections=0)
    _, more = _run(problem, bisections=6)
    assert np.all(more.distance <= some.distance)
    assert np.all(more.success) and np.any(more.distance < 0.95 * some.distance)


def test_a_constant_classifier_is_left_alone(problem):
    _, images, _ = problem

    def constant(variables, images):
        return jnp.zeros((len(images), 3)).at[:, 1].set(1)

    found, info = attacks.lbfgs(
        constant, None, images, jnp.ones(6, jnp.int32), keep_failed=True, doublings=3
    )
    np.testing.assert_array_equal(found, images)
    assert not np.any(info.success) and not np.any(info.steps)


@pytest.mark.parametrize(
    "option", [{"constant": 0.0}, {"steps": 0}, {"history": 0}, {"bisections": -1}]
)
def test_wrong_options_are_refused(option, problem):
    with pytest.raises(ValueError, match=next(iter(option))):
        _run(problem, **option)
