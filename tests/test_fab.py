import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from networks import SHAPE, bent, compiled, draw, linear, sizes

from pixeldefend import attacks
from pixeldefend.attacks import norms, outcome
from pixeldefend.attacks.fab import FabOptions, raise_by, search_boundary

NORMS = ("linf", "l2")
_raise_by = {
    norm: jax.jit(functools.partial(raise_by, norms.NORMS[norm])) for norm in NORMS
}


def _flat(values):
    return np.asarray(values, float).reshape(len(values), -1)


def _least_linf(levels, slope, rise):
    """The least L-infinity size, by linear programming; None where nothing will do."""
    n = len(levels)
    one = np.ones((n, 1))
    found = scipy.optimize.linprog(
        np.eye(n + 1)[-1],
        A_ub=np.block([[np.eye(n), -one], [-np.eye(n), -one]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.append(slope, 0)[None],
        b_eq=[rise],
        bounds=[(-level, 255 - level) for level in levels] + [(0, None)],
    )
    return found.fun if found.status == 0 else None


def _least_l2(levels, slope, rise):
    """The least L2 size: scipy's quadratic programme, in units of 255 levels."""
    low, high = -levels / 255, 1 - levels / 255
    most = np.maximum(low * slope, high * slope).sum() * 255
    least = np.minimum(low * slope, high * slope).sum() * 255
    if not least < rise < most:
        return None
    found = scipy.optimize.minimize(
        lambda change: change @ change / 2,
        np.clip(slope * rise / 255 / (slope @ slope), low, high),
        jac=lambda change: change,
        bounds=list(zip(low, high, strict=True)),
        constraints={
            "type": "eq",
            "fun": lambda change: change @ slope - rise / 255,
            "jac": lambda change: slope,
        },
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success, found.message
    return 255 * np.linalg.norm(found.x)


@pytest.mark.parametrize("norm", NORMS)
@hypothesis.given(seed=st.integers(0, 2**32 - 1), share=st.floats(-1.2, 1.2))
@hypothesis.settings(max_examples=40, deadline=None)
def test_planes_are_reached_by_the_shortest_way_within_the_range(norm, seed, share):
    rng = np.random.default_rng(seed)
    levels = rng.uniform(0, 255, (1, 3, 2, 2))
    # As images are: some at an end of the range; and some that do not matter.
    levels = np.where(rng.random(levels.shape) < 0.3, 255.0 * (levels > 128), levels)
    slope = rng.normal(size=levels.shape) * (rng.random(levels.shape) < 0.9)
    most = np.maximum(slope * (255 - levels), -slope * levels).sum()
    least = np.minimum(slope * (255 - levels), -slope * levels).sum()
    rise = share * (most if share > 0 else -least)
    given = (jnp.asarray(a, jnp.float32) for a in (levels, slope, [rise]))
    change = np.asarray(_raise_by[norm](*given), float)
    moved = levels + change
    assert moved.min() > -1e-3 and moved.max() < 255 + 1e-3
    assert np.all(change[slope == 0] == 0)
    reached = (slope * change).sum()
    scale = max(most, -least, 1e-9)
    np.testing.assert_allclose(reached, np.clip(rise, least, most), atol=1e-5 * scale)
    solve = _least_linf if norm == "linf" else _least_l2
    expected = solve(levels.ravel(), slope.ravel(), rise)
    if expected is not None and abs(share) < 0.999:
        np.testing.assert_allclose(sizes(change, norm), expected, rtol=1e-3, atol=1e-3)


def test_planes_are_reached_alike_whoever_shares_the_batch(rng):
    levels = jnp.asarray(rng.uniform(0, 255, (8, *SHAPE)), jnp.float32)
    slope = jnp.asarray(rng.normal(size=(8, *SHAPE)), jnp.float32)
    # The first at once, the last never.
    rise = jnp.asarray([0, 1, 10, 100, 1000, 2000, 3000, 1e6], jnp.float32)
    for norm in NORMS:
        every = _raise_by[norm](levels, slope, rise)
        for i in range(8):
            part = slice(i, i + 1)
            alone = _raise_by[norm](levels[part], slope[part], rise[part])
            np.testing.assert_allclose(alone[0], every[i], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("norm, targets", [("linf", 0), ("l2", 3)])
def test_the_nearest_point_of_linear_boundaries_is_found(norm, targets, rng, float64):
    weights = rng.normal(size=(40, 4))
    variables = jnp.asarray(weights), jnp.zeros(4)
    # In the middle of the range, so that its ends do not matter.
    images = jnp.asarray(rng.integers(100, 156, (8, *SHAPE), dtype=np.uint8))
    logits = _flat(images) @ weights
    expected = np.full(8, np.inf)
    for i, label in enumerate(logits.argmax(-1)):
        for other in set(range(4)) - {label}:
            slope = weights[:, other] - weights[:, label]
            dual = np.abs(slope).sum() if norm == "linf" else np.linalg.norm(slope)
            gap = logits[i, label] - logits[i, other]
            expected[i] = min(expected[i], gap / dual)
    options = {"norm": norm, "targets": targets, "overshoot": 0.001, "steps": 40}
    images = images.astype(jnp.float64)
    _, info = attacks.fab(linear, variables, images, None, quantise=False, **options)
    assert np.all(info.success) and np.all(info.distance >= expected)
    np.testing.assert_allclose(info.distance, expected, rtol=1e-3)


def test_black_and_white_do_not_hide_the_nearest_point(rng, float64):
    weights = rng.normal(size=(40, 2))
    variables = jnp.asarray(weights), jnp.zeros(2)
    images = jnp.asarray(255 * rng.integers(0, 2, (6, *SHAPE)), jnp.float64)
    found, info = attacks.fab(
        linear, variables, images, None, overshoot=0.001, quantise=False
    )
    assert np.min(found) >= 0 and np.max(found) <= 255 and np.all(info.success)
    logits = _flat(images) @ weights
    for i, label in enumerate(logits.argmax(-1)):
        slope = weights[:, 1 - label] - weights[:, label]
        gap = logits[i, label] - logits[i, 1 - label]
        expected = _least_linf(_flat(images)[i], slope, gap)
        np.testing.assert_allclose(info.distance[i], expected, rtol=1e-3)


def _project(levels, slope, rise, norm):
    """The closest point of a plane within the range, by bisection in numpy."""
    toward, gain = np.sign(slope * rise), np.abs(slope)
    room = np.where(toward > 0, 255 - levels, levels)
    pace = (gain > 0) * 1.0 if norm == "linf" else gain
    low, high = 0.0, 1e9
    for _ in range(200):
        reach = (low + high) / 2
        enough = (gain * np.minimum(reach * pace, room)).sum() >= abs(rise)
        low, high = (low, reach) if enough else (reach, high)
    return toward * np.minimum(high * pace, room)


def _naive(variables, image, label, norm, steps, target):
    """One image by the paper's algorithm 1, in numpy; the nearest that fooled."""
    start = np.asarray(image, float)
    moved, best, nearest = start, np.inf, start

    def logits(moved):
        return np.asarray(bent(variables, jnp.asarray(moved)[None])[0])

    def lead(moved, other):
        both = bent(variables, moved[None])[0]
        return both[other] - both[label]

    def size(change):
        return sizes(change[None], norm)[0]

    others = [k for k in range(len(logits(start))) if k != label]
    others.sort(key=lambda k: -logits(start)[k])
    for _ in range(steps):
        planes = []
        for other in others[:1] if target else others:
            gap, slope = jax.value_and_grad(lead)(jnp.asarray(moved), other)
            gap, slope = float(gap), np.asarray(slope)
            dual = np.abs(slope).sum() if norm == "linf" else np.linalg.norm(slope)
            planes.append((abs(gap) / dual, gap, slope))
        _, gap, slope = min(planes, key=lambda plane: plane[0])
        near = _project(moved, slope, -gap, norm)
        there = gap + (slope * (start - moved)).sum()
        far = _project(start, slope, -there, norm)
        alpha = min(size(near) / (size(near) + size(far)), 0.1)
        moved = (1 - alpha) * (moved + 1.05 * near) + alpha * (start + 1.05 * far)
        moved = np.clip(moved, 0, 255)
        if logits(moved).argmax() != label:
            if size(moved - start) < best:
                best, nearest = size(moved - start), moved
            moved = start + 0.9 * (moved - start)
    return nearest


@pytest.mark.parametrize("norm, targets", [("linf", 0), ("l2", 1)])
def test_fab_equals_a_naive_loop(norm, targets, rng, float64):
    variables, images, labels = draw(rng, 4, dtype="float64")
    run = compiled(attacks.fab, norm=norm, targets=targets, steps=6, quantise=False)
    found, info = run(variables, images.astype(jnp.float64), labels)
    assert np.all(info.success) and np.all(info.steps == 6)
    for i in range(4):
        expected = _naive(variables, images[i], int(labels[i]), norm, 6, targets)
        np.testing.assert_allclose(found[i], expected, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_rounding_costs_no_success_and_nearly_no_distance(norm, rng):
    variables, images, labels = draw(rng, 48)
    task = variables, images, labels
    _, before = compiled(attacks.fab, norm=norm, quantise=False, steps=30)(*task)
    whole = compiled(attacks.fab, norm=norm, steps=30)
    found, after = whole(*task)
    assert found.dtype == jnp.uint8 and np.all(before.success) and np.all(after.success)
    near = np.asarray(before.distance)
    if norm == "linf":
        np.testing.assert_array_less(after.distance, np.ceil(near) + 1.5)
        assert np.mean(after.distance > np.ceil(near)) < 0.2
    else:
        large = near > 5
        assert np.median((np.asarray(after.distance) / near)[large]) < 1.1
    # In a ball: where a floating success is inside, so is a whole one.
    eps = float(np.median(near)) if norm == "l2" else np.round(np.median(near))
    _, within = whole(*task, eps=eps)
    inside = near <= eps
    assert 0.2 < np.mean(inside) < 0.8
    assert np.mean(np.asarray(within.success)[inside]) > 0.95
    assert np.all(within.distance <= eps * (1 + 1e-5))


def test_a_finite_ball_ends_at_the_first_success(rng):
    variables, images, labels = draw(rng, 16)
    run = compiled(attacks.fab, norm="l2", quantise=False, steps=25)
    _, every = run(variables, images, labels)
    _, first = run(variables, images, labels, eps=1e4)
    assert np.all(every.steps == 25) and np.all(every.success)
    assert np.all(first.steps < 25) and np.all(first.success)
    assert np.all(every.distance <= first.distance)
    assert np.any(every.distance < first.distance)
    np.testing.assert_array_equal(first.queries, 2 * first.steps + 2)
    # What is not taken for its label comes back as it is.
    others = labels.at[::2].set((labels[::2] + 1) % 5)
    found, info = run(variables, images, others)
    np.testing.assert_array_equal(found[::2], images[::2].astype(jnp.float32))
    assert np.all(info.success[::2]) and np.all(info.distance[::2] == 0)
    assert np.all(info.steps[::2] == 0) and np.all(info.steps[1::2] == 25)


def test_classes_are_aimed_at_in_turn(rng):
    """Of three linear classes the likeliest other one is the farthest away."""
    weights = np.zeros((40, 3))
    weights[:20, 1], weights[20:, 2] = 0.01, 1
    variables = jnp.asarray(weights, jnp.float32), jnp.asarray([200.0, 140, -2430])
    images = jnp.full((1, *SHAPE), 128, jnp.uint8)
    label = jnp.asarray([0])
    # Leads of -34.4 with slope 0.01, and of -70 with slope 1.
    task = variables, images, label
    one, two = (
        jax.jit(functools.partial(attacks.fab, linear, quantise=False, **options))
        for options in ({"targets": 1, "steps": 10}, {"targets": 9, "steps": 10})
    )
    _, info = one(*task)
    assert info.steps[0] == 10 and not info.success[0]
    _, info = two(*task)
    assert info.steps[0] == 20
    np.testing.assert_allclose(info.distance, 3.5, rtol=0.02)
    _, info = two(*task, eps=4.0)
    assert info.success[0] and 10 < info.steps[0] < 20


def test_other_starts_find_what_the_image_hides(rng):
    def flat_at_the_image(variables, images):
        bright = jnp.sum(jnp.maximum(images - 131, 0), (1, 2, 3))
        return jnp.stack([jnp.full_like(bright, 60), bright], 1)

    images = jnp.full((4, *SHAPE), 128, jnp.uint8)
    labels = jnp.zeros(4, int)
    keys = jax.random.split(jax.random.key(0), 4)
    task = None, images, labels, keys
    attack = functools.partial(attacks.fab, flat_at_the_image, eps=16, steps=4)
    found, info = attack(*task, restarts=3)
    assert np.all(info.success)
    assert np.all(info.steps > 4) and np.all(info.steps < 12)
    assert np.any(np.asarray(found[0] != found[1])), "one draw for all images"
    _, info = attack(*task)
    assert not np.any(info.success) and np.all(info.steps == 4)


def test_two_classes_have_one_target(rng):
    variables, images, labels = draw(rng, 6, classes=2)
    _, info = compiled(attacks.fab, targets=9, steps=10)(variables, images, labels)
    assert np.all(info.success) and np.all(info.steps == 10)


def test_images_that_are_done_cost_nothing(rng):
    variables, images, labels = draw(rng, 6)
    network = functools.partial(bent, variables)
    task = outcome.prepare(network, images, labels, 5.0, True)
    done = jnp.asarray([True, False] * 3)
    logits = network(task.images)
    options = FabOptions(targets=2, steps=10)
    found = search_boundary(
        network, norms.LINF, task, None, done, logits=logits, options=options
    )
    np.testing.assert_array_equal(found.levels[::2], images[::2].astype(jnp.float32))
    assert np.all(found.steps[::2] == 0) and np.all(found.queries[::2] == 0)
    assert not np.any(found.success[::2]) and np.all(found.queries[1::2] > 1)
    surely = outcome.is_surely_fooled(network(found.levels), labels)
    np.testing.assert_array_equal(found.success[1::2], surely[1::2])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.slow
def test_neither_lanes_nor_the_batch_change_an_image(norm, rng, float64):
    # In float32 the last step depends on the order of sums.
    variables, images, labels = draw(rng, 9, dtype="float64")
    images = images.astype(jnp.float64)
    keys = jax.random.split(jax.random.key(0), 9)
    options = {"norm": norm, "eps": 4.0 if norm == "linf" else 20.0, "steps": 10}
    options |= {"targets": 2, "restarts": 2}
    run = compiled(attacks.fab, **options)
    expected, reference = run(variables, images, labels, keys)
    assert len(set(reference.steps.tolist())) > 1
    for lanes in (1, 3):
        other = compiled(attacks.fab, lanes=lanes, **options)
        found, info = other(variables, images, labels, keys)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(info.steps, reference.steps)
    part, _ = run(variables, images[4:6], labels[4:6], keys[4:6])
    np.testing.assert_array_equal(part, expected[4:6])


def test_slopes_that_are_no_numbers_move_nothing(rng):
    variables, images, labels = draw(rng, 4)

    def broken(variables, images):
        # The root has no slope at zero, though its value is a number.
        root = jnp.sqrt(jnp.sum(jnp.maximum(images - 300, 0) ** 2, (1, 2, 3)))
        return bent(variables, images) + root[:, None]

    found, info = attacks.fab(broken, variables, images, labels, eps=8, steps=3)
    np.testing.assert_array_equal(found, images)
    assert not np.any(info.success)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"norm": "l1"}, "norm must be one of linf, l2: 'l1'"),
        ({"steps": 0}, "steps must be at least 1: 0"),
        ({"restarts": 0}, "restarts must be at least 1: 0"),
        ({"restarts": 2}, "needs keys"),
        ({"targets": -1}, "targets must be at least 0: -1"),
        ({"bias": 1.5}, "bias must be a share, 0 to 1: 1.5"),
        ({"overshoot": 1.05}, "overshoot must be a share, 0 to 1: 1.05"),
        ({"backward": -0.1}, "backward must be a share, 0 to 1: -0.1"),
        ({"eps": -1}, "eps must be a number and not negative"),
    ],
)
def test_mistakes_are_told(rng, options, message):
    with pytest.raises(ValueError, match=message):
        attacks.fab(bent, *draw(rng, 2), **options)
