import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import SHAPE, bent, compiled, draw, linear, sizes

from pixeldefend import attacks

NORMS = ("linf", "l2")


def _change(found, images):
    return np.asarray(found, float) - np.asarray(images, float)


def _naive(variables, image, label, norm, *, rescale, steps=50, overshoot=0.02):
    """One image by Moosavi-Dezfooli's algorithm 2, class by class, in numpy."""
    start = np.asarray(image, float)
    moved, total, taken = start, np.zeros_like(start), 0

    def logits(moved):
        return np.asarray(bent(variables, jnp.asarray(moved)[None])[0])

    while logits(moved).argmax() == label and taken < steps:
        values, best = logits(moved), np.inf
        for other in range(len(values)):
            if other == label:
                continue
            slope = np.asarray(
                jax.grad(
                    lambda x, k=other: (
                        bent(variables, x[None])[0, k]
                        - bent(variables, x[None])[0, label]
                    )
                )(jnp.asarray(moved))
            )
            gap = abs(values[other] - values[label])
            if norm == "linf":
                reach, toward = gap / np.abs(slope).sum(), np.sign(slope)
            else:
                length = np.sqrt((slope**2).sum())
                reach, toward = gap / length, slope / length
            if reach < best:
                best, step = reach, (reach + 1e-4) * toward
        total = total + step
        moved = start + (1 + overshoot) * total
        if not rescale:
            moved = np.clip(moved, 0, 255)
        taken += 1
    if rescale and (moved.min() < 0 or moved.max() > 255):
        moved = (moved - moved.min()) / (moved.max() - moved.min()) * 255
    return moved, taken


@pytest.mark.parametrize("norm", NORMS)
def test_distances_to_linear_boundaries_are_the_closed_form(rng, norm):
    weights = rng.normal(size=(40, 4))
    variables = jnp.asarray(weights, jnp.float32), jnp.zeros(4)
    # In the middle of the range, so that its ends do not matter.
    images = jnp.asarray(rng.integers(100, 156, (8, *SHAPE), dtype=np.uint8))
    logits = np.asarray(images, float).reshape(8, -1) @ weights
    expected = np.full(8, np.inf)
    for i, label in enumerate(logits.argmax(-1)):
        for other in set(range(4)) - {label}:
            slope = weights[:, other] - weights[:, label]
            dual = np.abs(slope).sum() if norm == "linf" else np.linalg.norm(slope)
            gap = logits[i, label] - logits[i, other]
            expected[i] = min(expected[i], gap / dual)
    found, info = attacks.deepfool(
        linear, variables, images, None, norm=norm, quantise=False
    )
    assert np.all(info.success) and np.all(info.steps == 1)
    np.testing.assert_allclose(info.distance, 1.02 * (expected + 1e-4), rtol=1e-3)
    np.testing.assert_allclose(
        info.distance, sizes(_change(found, images), norm), rtol=1e-4
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rescale", [False, True])
def test_deepfool_equals_a_naive_loop(float64, rng, norm, rescale):
    variables, images, labels = draw(rng, 6, dtype="float64")
    run = compiled(
        attacks.deepfool,
        norm=norm,
        rescale=rescale,
        quantise=False,
        keep_failed=True,
    )
    found, info = run(variables, images.astype(jnp.float64), labels)
    assert np.max(info.steps) >= 2
    for i in range(6):
        expected, taken = _naive(
            variables, images[i], int(labels[i]), norm, rescale=rescale
        )
        assert taken == info.steps[i]
        np.testing.assert_allclose(found[i], expected, atol=1e-6)


def test_rescaling_harms(rng):
    variables, images, _ = draw(rng, 32)
    # So that each leaves its range.
    images = images.at[:, 0, 0].set(jnp.asarray([0, 255], jnp.uint8)[None])
    distance = {}
    for rescale in (False, True):
        options = {"rescale": rescale, "quantise": False, "keep_failed": True}
        _, info = compiled(attacks.deepfool, **options)(variables, images, None)
        distance[rescale] = np.median(info.distance), np.mean(info.success)
    assert distance[True][0] > 1.1 * distance[False][0]
    assert distance[True][1] <= distance[False][1] == 1


def test_bounded_steps_are_fewer_on_black_and_white(rng):
    variables, images, labels = draw(rng, 32)
    images = jnp.where(images < 128, 0, 255).astype(jnp.uint8)
    info = {}
    for bounded in (False, True):
        run = compiled(attacks.deepfool, bounded=bounded, quantise=False)
        found, info[bounded] = run(variables, images, None)
        assert np.min(found) >= 0 and np.max(found) <= 255
    assert np.mean(info[True].success) >= np.mean(info[False].success)
    assert np.mean(info[True].steps) < 0.8 * np.mean(info[False].steps)
    both = np.asarray(info[True].success & info[False].success)
    distance = np.median(np.asarray(info[True].distance)[both])
    assert distance <= 1.25 * np.median(np.asarray(info[False].distance)[both])


@pytest.mark.parametrize("norm", NORMS)
def test_rounding_keeps_success_and_nearly_the_distance(rng, norm):
    variables, images, labels = draw(rng, 64)
    task = variables, images, labels
    floating, before = compiled(attacks.deepfool, norm=norm, quantise=False)(*task)
    whole, after = compiled(attacks.deepfool, norm=norm)(*task)
    assert whole.dtype == jnp.uint8 and floating.dtype == jnp.float32
    np.testing.assert_array_equal(after.success, before.success)
    assert np.mean(after.success) > 0.9
    # What plain rounding would have left.
    plain = jnp.round(floating)
    undone = np.asarray(jnp.argmax(bent(variables, plain), -1) == labels)
    assert np.mean(undone & np.asarray(before.success)) > 0.2
    near = np.asarray(before.distance)
    if norm == "linf":
        # The next whole number, or at worst a few images one more.
        more = np.asarray(after.distance) - np.ceil(near)
        assert np.mean(more <= 0) > 0.8 and np.max(more) <= 1
    else:
        large = near > 5
        assert np.median((np.asarray(after.distance) / near)[large]) < 1.1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("quantise", [True, False])
def test_results_stay_in_the_ball_and_among_levels(rng, norm, quantise):
    variables, images, labels = draw(rng, 12)
    run = compiled(attacks.deepfool, norm=norm, quantise=quantise, keep_failed=True)
    far = np.asarray(run(variables, images, labels, eps=jnp.full(12, 1e6))[1].distance)
    eps = jnp.asarray(far * np.tile([0.5, 1.0, 2.0], 4), jnp.float32)
    found, info = run(variables, images, labels, eps=eps)
    moved = sizes(_change(found, images), norm)
    assert np.all(moved <= np.asarray(eps) * (1 + 1e-5))
    assert np.min(found) >= 0 and np.max(found) <= 255
    assert np.all(info.success[2::3]) and not np.all(info.success[::3])
    assert np.any(moved[::3] > 0)


def test_rounding_that_needs_more_than_the_ball_has_is_no_success(rng):
    variables, images, labels = draw(rng, 64)
    task = variables, images, labels
    _, floating = compiled(attacks.deepfool, norm="l2", quantise=False)(*task)
    # Just enough for fractions of levels.
    eps = 1.02 * floating.distance + 0.01
    _, info = compiled(attacks.deepfool, norm="l2")(*task, eps=eps)
    assert np.all(info.distance <= eps * (1 + 1e-5))
    assert 0.1 < np.mean(info.success) < 1


@pytest.mark.filterwarnings("ignore:eps 0.001 is less than one level")
def test_failed_images_are_clean_ones(rng):
    variables, images, labels = draw(rng, 8)
    for quantise in (True, False):
        run = compiled(attacks.deepfool, eps=1e-3, quantise=quantise)
        found, info = run(variables, images, labels)
        assert not np.any(info.success)
        np.testing.assert_array_equal(found, images.astype(found.dtype))
        assert np.all(info.distance == 0)


def test_images_that_are_not_taken_for_their_label_come_back(rng):
    variables, images, labels = draw(rng, 6)
    others = labels.at[::2].set((labels[::2] + 1) % 5)
    found, info = compiled(attacks.deepfool)(variables, images, others)
    np.testing.assert_array_equal(found[::2], images[::2])
    assert np.all(info.success[::2]) and np.all(info.distance[::2] == 0)
    assert np.all(info.steps[::2] == 0) and np.all(info.steps[1::2] > 0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.slow
def test_neither_lanes_nor_the_batch_change_an_image(rng, norm, float64):
    # In float32 the last step depends on the order of sums.
    variables, images, labels = draw(rng, 9, dtype="float64")
    images = images.astype(jnp.float64)
    run = compiled(attacks.deepfool, norm=norm)
    expected, reference = run(variables, images, labels)
    for lanes in (1, 3):
        other = compiled(attacks.deepfool, norm=norm, lanes=lanes)
        found, info = other(variables, images, labels)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(info.steps, reference.steps)
    part, _ = run(variables, images[4:6], labels[4:6])
    np.testing.assert_array_equal(part, expected[4:6])


def test_one_compile_serves_every_eps(rng):
    variables, images, labels = draw(rng, 4)
    run = jax.jit(functools.partial(attacks.deepfool, bent))
    results = [run(variables, images, labels, eps=eps)[0] for eps in (1.0, 9.0, 99.0)]
    assert run._cache_size() == 1
    assert np.any(results[0] != results[2])


def test_the_network_is_not_run_once_for_every_class(rng):
    calls = []

    def counted(variables, images):
        calls.append(images.shape)
        return bent(variables, images)

    counts = []
    for classes in (3, 9):
        variables, images, labels = draw(rng, 4, classes=classes)
        calls.clear()
        jax.eval_shape(
            functools.partial(attacks.deepfool, counted), variables, images, labels
        )
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_candidates_limit_the_classes_that_are_looked_at(rng):
    variables, images, labels = draw(rng, 16)
    second = jnp.argsort(bent(variables, images), -1)[:, -2]
    options = {"quantise": False, "steps": 1, "overshoot": 0.1, "keep_failed": True}
    found, _ = attacks.deepfool(
        bent, variables, images, labels, candidates=2, **options
    )
    every, _ = attacks.deepfool(bent, variables, images, labels, **options)
    assert np.any(np.asarray(found != every))
    # One step towards the runner-up alone: its lead grows with the sign of its slope.
    for i in range(4):
        slope = jax.grad(
            lambda x, i=i: (
                bent(variables, x)[0, second[i]] - bent(variables, x)[0, labels[i]]
            )
        )(images[i : i + 1].astype(jnp.float32))
        moved = _change(found[i], images[i])
        assert np.all(moved * np.asarray(slope)[0] >= 0) and np.any(moved != 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"norm": "l1"}, "norm must be one of linf, l2: 'l1'"),
        ({"steps": 0}, "steps must be at least 1: 0"),
        ({"candidates": 1}, "candidates must be at least 2: 1"),
        ({"eps": -1}, "eps must be a number and not negative"),
    ],
)
def test_mistakes_are_told(rng, options, message):
    with pytest.raises(ValueError, match=message):
        attacks.deepfool(bent, *draw(rng, 2), **options)
