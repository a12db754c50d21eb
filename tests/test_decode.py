import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import apply, mostly_slow, naive_purify, tiny

from pixeldefend.defences import graded, purification
from pixeldefend.density import conditionals, decode, likelihood, pixelcnn

purify = jax.jit(purification.purify, static_argnums=0, static_argnames="window")
CONFIGURATIONS = [
    ((4, 8, 3), {"resolutions": 3, "conditionals": "joint"}),
    ((3, 5, 1), {"resolutions": 1, "conditionals": "softmax"}),
    ((3, 4, 3), {"resolutions": 1, "conditionals": "independent", "classes": 2}),
    ((8, 8, 1), {"resolutions": 3, "conditionals": "independent", "depth": 2}),
    ((8, 4, 3), {"resolutions": 2, "conditionals": "joint", "classes": 2}),
    ((4, 6, 3), {"resolutions": 2, "conditionals": "softmax"}),
]


@pytest.mark.parametrize("shape, options", mostly_slow(CONFIGURATIONS, 3))
def test_the_scan_computes_what_the_network_does(shape, options, float64):
    model, params, images, labels = tiny(shape, **options)
    whole = apply(model, params, images, labels=labels)
    teacher_forced = jax.jit(decode.teacher_forced, static_argnums=0)
    cached = teacher_forced(model, params, images, labels=labels)
    scale = np.abs(whole).max()
    np.testing.assert_allclose(cached / scale, whole / scale, atol=1e-13)


@pytest.mark.parametrize("shape, options", mostly_slow(CONFIGURATIONS, 3))
def test_purify_equals_the_naive_decoder(shape, options, float64):
    model, params, images, labels = tiny(shape, **options)
    expected = naive_purify(model, params, images, 20, labels)
    assert np.any(expected != np.asarray(images)), "the test would prove nothing"
    found = purify(model, params, images, eps=20, labels=labels, window=41)
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, expected)


def test_bounds_are_levels():
    images = np.array([0, 3, 100, 250, 255], np.uint8).reshape(5, 1, 1, 1)
    lower, upper = purification.bounds(images, 8)
    np.testing.assert_array_equal(lower.ravel(), [0, 0, 92, 242, 247])
    np.testing.assert_array_equal(upper.ravel(), [8, 11, 108, 255, 255])


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32])
@pytest.mark.parametrize("level", [0, 100, 255])
def test_the_window_depends_on_eps_and_not_on_the_images(dtype, level, monkeypatch):
    """Of dark and bright images half the ball is cut off."""
    model, params, images, _ = tiny((4, 4, 1), resolutions=1)
    images = jnp.full_like(images, level, dtype=dtype)
    policies = {}

    def widths(candidates, log_mass, level, keys):
        return jnp.full_like(level, len(candidates) - 1)

    monkeypatch.setattr(purification, "likeliest", widths)
    monkeypatch.setattr(purification, "mean", widths)
    call = purification.purify if dtype == jnp.uint8 else purification.relax
    for eps in (3, 8, 9, 16, 40, 255):
        found = call(model, params, images, eps=eps)
        traced = jax.jit(lambda eps: call(model, params, images, eps=eps))(eps)
        policies[eps] = {int(a) + 1 for a in (found.max(), traced.max(), traced.min())}
    assert policies == {eps: {purification.window_for(eps)} for eps in policies}


@pytest.mark.parametrize(
    "eps, window", [(0, 17), (8, 17), (9, 33), (127, 256), (255, 256)]
)
def test_the_window_for_an_eps_is_the_narrowest_that_holds_its_ball(eps, window):
    assert purification.window_for(eps) == window


@pytest.fixture(scope="module")
def compiled():
    model, params, images, _ = tiny((4, 4, 3), conditionals="joint", resolutions=2)
    traces = []

    def counted(params, images, eps):
        traces.append(1)
        return purification.purify(model, params, images, eps=eps)

    return model, params, images, jax.jit(counted), traces


@settings(deadline=None, max_examples=25)
@given(eps=st.lists(st.integers(0, 255), min_size=2, max_size=2))
def test_stays_in_the_ball_and_one_program_serves_all_eps(compiled, eps):
    _, params, images, purify, traces = compiled
    found = np.asarray(purify(params, images, jnp.asarray(eps, jnp.int32)), int)
    distance = np.abs(found - np.asarray(images, int)).max((1, 2, 3))
    assert np.all(distance <= eps)
    assert len(traces) == 1


def test_eps_zero_is_the_identity(compiled):
    _, params, images, purify, _ = compiled
    np.testing.assert_array_equal(purify(params, images, jnp.zeros(2, int)), images)


@pytest.mark.slow
def test_each_level_is_at_least_as_likely_as_the_one_it_replaced(compiled):
    model, params, images, purify, _ = compiled
    found = purify(params, images, jnp.full(2, 30))
    outputs = apply(model, params, found)
    rows = np.asarray(
        conditionals.level_log_probs(model.family, params["head"], outputs, found)
    )
    chosen = np.take_along_axis(rows, np.asarray(found)[..., None], -1)
    replaced = np.take_along_axis(rows, np.asarray(images)[..., None], -1)
    assert np.all(chosen >= replaced - 1e-5)
    assert np.any(chosen > replaced)


@pytest.mark.slow
def test_purification_makes_images_likelier(compiled):
    model, params, images, purify, _ = compiled
    before = likelihood.log_prob(model, params, images)
    after = likelihood.log_prob(model, params, purify(params, images, jnp.full(2, 30)))
    assert np.all(after > before)


@pytest.mark.slow
def test_a_static_window_changes_nothing(float64):
    """In double precision: two programs may round a near-tie of float32 otherwise."""
    model, params, images, _ = tiny((4, 4, 3), conditionals="joint", resolutions=2)
    fixed = purify(model, params, images, eps=16, window=33)
    np.testing.assert_array_equal(fixed, purify(model, params, images, eps=16))


@pytest.mark.slow
def test_one_device_and_four_give_equal_bytes(compiled):
    model, params, images, _, _ = compiled
    tiled = jnp.concatenate([images, images[:, ::-1], images[:, :, ::-1], 255 - images])
    mapped = jax.pmap(
        lambda p, x: purification.purify(model, p, x, eps=16), in_axes=(None, 0)
    )
    many = mapped(params, tiled.reshape(4, 2, *images.shape[1:]))
    single = [purify(model, params, tiled[i : i + 2], eps=16) for i in range(0, 8, 2)]
    np.testing.assert_array_equal(np.asarray(many), np.stack(single))


def test_ties_go_to_the_smallest_level():
    model, params, images, _ = tiny((3, 4, 1), resolutions=1, conditionals="softmax")
    flat = dict(params)
    flat["head"] = jax.tree.map(jnp.zeros_like, params["head"])
    found = np.asarray(purify(model, flat, images, eps=7))
    np.testing.assert_array_equal(found, np.maximum(np.asarray(images, int) - 7, 0))


RELAXED = [
    ((4, 4, 1), {}),
    ((4, 4, 3), {}),
    ((2, 2, 3), {"resolutions": 2, "conditionals": "joint"}),
    ((3, 2, 3), {"resolutions": 1, "conditionals": "softmax", "classes": 3}),
]


def naive_relax(model, params, images, eps, labels=None):
    """Whole network before every position and channel, and all levels of the ball."""

    @jax.jit
    def all_log_probs(images):
        outputs = pixelcnn.apply(model, params, images, labels=labels)
        return conditionals.level_log_probs(
            model.family, params["head"], outputs, images
        )

    original, result = np.asarray(images), np.array(images)
    for i, j, c in np.ndindex(images.shape[1:]):
        here = np.asarray(all_log_probs(jnp.asarray(result)))[:, i, j, c]
        levels = np.arange(256.0)
        near = np.abs(levels[None] - original[:, i, j, c][:, None]) <= eps
        weights = np.where(near, np.exp(here), 0)
        result[:, i, j, c] = (weights * levels).sum(-1) / weights.sum(-1)
    return result


@pytest.mark.parametrize("shape, options", RELAXED)
@pytest.mark.slow
def test_relaxed_levels_are_those_of_a_naive_loop(shape, options, float64):
    model, params, images, labels = tiny(shape, **({"resolutions": 1} | options))
    images = images.astype(jnp.float64)
    found = jax.jit(functools.partial(purification.relax, model, eps=9, window=19))(
        params, images=images, labels=labels
    )
    expected = naive_relax(model, params, images, 9, labels)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert np.any(found != np.round(found))


@pytest.mark.parametrize("shape, options", RELAXED)
@pytest.mark.slow
def test_slopes_of_relaxed_levels_are_those_of_differences(shape, options, float64):
    """Along random directions, from images that lie between whole levels."""
    model, params, images, labels = tiny(shape, **({"resolutions": 1} | options))
    rng = np.random.default_rng(2)
    # Off the edges of windows: where a level enters or leaves one there is no slope.
    start = jnp.asarray(rng.uniform(20.2, 20.8, images.shape) * 5).clip(12.3, 240.6)
    weights = jnp.asarray(rng.normal(size=images.shape))

    @jax.jit
    def value(images):
        relaxed = purification.relax(
            model, params, images, eps=9, labels=labels, window=19
        )
        return jnp.sum(weights * relaxed)

    slope = jax.jit(jax.grad(value))(start)
    assert np.all(np.isfinite(slope)) and np.any(slope != 0)
    for _ in range(3):
        direction = jnp.asarray(rng.normal(size=images.shape))
        step = 1e-5 * direction
        difference = (value(start + step) - value(start - step)) / 2e-5
        np.testing.assert_allclose(np.vdot(slope, direction), difference, rtol=1e-5)


@pytest.mark.slow
def test_straight_through_goes_on_with_purified_levels(float64):
    model, params, images, _ = tiny((2, 3, 3), resolutions=1)
    levels = images.astype(jnp.float64)
    relax = functools.partial(
        purification.relax, model, params, eps=9, straight_through=True, window=19
    )
    purified = purify(model, params, images, eps=9)
    np.testing.assert_array_equal(relax(levels), purified)
    # The last level's slope is that of its expectation, given what was chosen before.
    last = (0, -1, -1, -1)
    levels = levels.at[last].set(120.0)
    purified = purify(model, params, levels.astype(jnp.uint8), eps=9)
    slope = jax.jit(jax.grad(lambda levels: relax(levels)[last]))(levels)[last]
    family = model.family
    outputs = pixelcnn.apply(model, params, purified)[0, -1, -1][:, None]
    state = family.read(params["head"], outputs)
    for channel in range(2):
        chosen = purified[0, -1, -1, channel][None].astype(jnp.float64)
        state = family.condition(state, channel, chosen)

    def expected(level):
        log_mass = family.log_mass(state, 2, jnp.asarray([level - 9]), 19)[:, 0]
        mass = np.exp(log_mass - np.max(log_mass))
        return np.sum(mass * (level - 9 + np.arange(19))) / np.sum(mass)

    difference = (expected(120 + 1e-5) - expected(120 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-5)
    assert 1e-3 < abs(difference)


def test_relaxing_wants_floating_images():
    model, params, images, _ = tiny((4, 4, 1), resolutions=1)
    with pytest.raises(TypeError, match="floating levels"):
        purification.relax(model, params, images, eps=9)


@pytest.mark.slow
def test_soft_decoding_approaches_greedy_as_it_cools(float64):
    model, params, images, _ = tiny((4, 4, 3), resolutions=1)

    def cold(candidates, log_mass, level, keys):
        del level, keys
        weights = jax.nn.softmax(1e9 * log_mass, axis=0)
        return jnp.sum(weights * candidates.astype(weights.dtype), axis=0)

    lower, upper = purification.bounds(images, 12)
    found = decode.decode(
        model, params, images.astype(jnp.float64), cold, lower=lower, upper=upper
    )
    np.testing.assert_allclose(found, purify(model, params, images, eps=12), atol=1e-3)


def test_graded_eps_is_a_step_function():
    bits = np.array([0.0, 2.49, 2.5, 3.0, 4.6, 9.0, np.nan], np.float32)
    thresholds, eps = np.array([2.5, 4.5], np.float32), np.array([3, 8, 40])
    found = graded.graded_eps(jnp.asarray(bits), thresholds=thresholds, eps=eps)
    np.testing.assert_array_equal(found, eps[np.digitize(bits, thresholds)])
    assert found.dtype == jnp.int32
    one = {"eps": np.array([0, 16]), "thresholds": np.array([2.5])}
    np.testing.assert_array_equal(
        graded.graded_eps(jnp.asarray(bits), **one),
        graded.adaptive_eps(jnp.asarray(bits), eps=16, threshold=2.5),
    )


@pytest.mark.parametrize(
    "thresholds, eps, message",
    [
        ([2.0, 1.0], [1, 2, 3], "thresholds must ascend"),
        ([2.0, 2.0], [1, 2, 3], "thresholds must ascend"),
        ([2.0], [1, 2, 3], r"\[1\] need one eps more than .*: \[3\]"),
        ([2.0], [1, 256], "between 0 and 255"),
    ],
)
def test_grades_that_are_none_are_refused(thresholds, eps, message):
    with pytest.raises(ValueError, match=message):
        graded.graded_eps(
            jnp.zeros(2), thresholds=np.array(thresholds), eps=np.array(eps)
        )


def test_adaptive_eps_spares_images_below_the_threshold():
    bits = jnp.array([1.0, 2.0, 3.0])
    eps = graded.adaptive_eps(bits, eps=16, threshold=2.0)
    np.testing.assert_array_equal(eps, [0, 16, 16])
    own = jnp.array([3, 4, 5])
    eps = graded.adaptive_eps(bits, eps=own, threshold=2.5)
    np.testing.assert_array_equal(eps, [0, 0, 5])


@pytest.mark.parametrize(
    "eps, error",
    [
        (-1, ValueError),
        (256, ValueError),
        (16.5, TypeError),
        (16.0, TypeError),
        (np.array([1, 2, 3]), ValueError),
        (np.zeros((2, 1), int), ValueError),
    ],
)
def test_a_wrong_eps_is_refused(eps, error):
    model, params, images, _ = tiny((4, 4, 1), resolutions=1)
    with pytest.raises(error, match="eps"):
        purification.purify(model, params, images, eps=eps)


def test_wrong_images_bounds_and_windows_are_refused():
    model, params, images, _ = tiny((4, 4, 1), resolutions=1)
    with pytest.raises(TypeError, match=r"uint8 .* \(round, then astype\)"):
        purification.purify(model, params, np.asarray(images, np.float32), eps=1)
    with pytest.raises(ValueError, match="window must be at least 33"):
        purification.purify(model, params, images, eps=16, window=17)
    lower, upper = purification.bounds(images, 3)
    with pytest.raises(ValueError, match="lower"):
        decode.decode(
            model, params, images, purification.likeliest, lower=lower[:1], upper=upper
        )
    for window in (0, 257, 17.0):
        with pytest.raises(ValueError, match="window must be a whole number"):
            decode.decode(
                model,
                params,
                images,
                purification.likeliest,
                lower=lower,
                upper=upper,
                window=window,
            )


@pytest.mark.slow
def test_the_model_may_run_in_bfloat16():
    model, params, images, _ = tiny((4, 4, 1), resolutions=1)
    rough = dataclasses.replace(model, dtype="bfloat16")
    found = np.asarray(purify(rough, params, images, eps=9), int)
    assert np.abs(found - np.asarray(images, int)).max() <= 9
    assert pixelcnn.apply(rough, params, images).dtype == jnp.float32
