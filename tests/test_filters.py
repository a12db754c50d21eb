import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, optimize

from pixeldefend.defences import DEFENCES, base, filters, pipeline
from pixeldefend.density import likelihood, pixelcnn


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (2, 7, 6, 3), dtype=np.uint8)


def _windows(images):
    """The four values of every window, the last axis."""
    x = np.pad(images.astype(float), ((0, 0), (1, 0), (1, 0), (0, 0)), mode="symmetric")
    return np.stack([x[:, i : i + 7, j : j + 6] for i in (0, 1) for j in (0, 1)], -1)


def test_the_codes_median_is_the_second_largest_as_scipy_has_it(images):
    found = filters.median(jnp.asarray(images), preset="code")
    expected = ndimage.median_filter(images, size=(1, 2, 2, 1), mode="reflect")
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, np.sort(_windows(images))[..., 2])


def test_the_papers_median_is_the_median(images):
    floating = filters.median(jnp.asarray(images, jnp.float32))
    expected = np.median(_windows(images), -1)
    np.testing.assert_array_equal(floating, expected)
    whole = filters.median(jnp.asarray(images))
    assert whole.dtype == jnp.uint8
    np.testing.assert_array_equal(whole, np.floor(expected + 0.5))


def test_all_levels_survive_the_arithmetic():
    bright = jnp.full((1, 3, 3, 1), 255, jnp.uint8)
    for preset in filters.MEDIANS:
        np.testing.assert_array_equal(filters.median(bright, preset=preset), bright)


@pytest.mark.parametrize("colours", [2, 8, 32, 256])
def test_colours_are_evenly_spaced_and_the_nearest_is_taken(colours):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    found = np.asarray(filters.reduce_colours(jnp.asarray(levels), colours=colours))
    kept = np.unique(found)
    assert len(kept) == colours and kept[0] == 0 and kept[-1] == 255
    assert np.ptp(np.diff(kept.astype(int))) <= 1
    nearest = np.abs(levels.astype(int).ravel()[:, None] - kept).min(1)
    # A level half-way between two colours may go to either, up to their rounding.
    assert np.all(np.abs(found.astype(int) - levels).ravel() <= nearest + 1)
    again = filters.reduce_colours(jnp.asarray(found), colours=colours)
    np.testing.assert_array_equal(again, found)


def test_squeezing_is_colours_then_median(images):
    x = jnp.asarray(images)
    found = filters.squeeze_features(x, colours=8)
    expected = filters.median(filters.reduce_colours(x, colours=8))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == jnp.uint8


def test_the_median_passes_gradients_on(images):
    x = jnp.asarray(images, jnp.float32)
    for preset in filters.MEDIANS:
        slope = jax.grad(lambda x, p=preset: jnp.sum(filters.median(x, preset=p)))(x)
        # Every window gives its slope to values of its own.
        assert float(slope.sum()) == pytest.approx(x.size, rel=1e-5)


def test_mistakes_are_named(images):
    with pytest.raises(ValueError, match="colours"):
        filters.reduce_colours(jnp.asarray(images), colours=1)
    with pytest.raises(ValueError, match="preset"):
        filters.median(jnp.asarray(images), preset="strong")


def test_the_median_of_nine_is_scipys(images):
    expected = ndimage.median_filter(images, size=(1, 3, 3, 1), mode="reflect")
    found = filters.median_3x3(jnp.asarray(images))
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, expected)
    floating = filters.median_3x3(jnp.asarray(images, jnp.float32))
    np.testing.assert_array_equal(floating, expected)


def _total_variation(image, target, weight):
    """Rudin, Osher and Fatemi's objective of one channel, `[H, W]`."""
    down = np.pad(np.diff(image, axis=0), ((0, 1), (0, 0)))
    right = np.pad(np.diff(image, axis=1), ((0, 0), (0, 1)))
    return 0.5 * np.sum((image - target) ** 2) + weight * np.sum(np.hypot(down, right))


@pytest.mark.parametrize("weight", [2.0, 40.0])
def test_nothing_has_less_total_variation_as_near_as_that(float64, rng, weight):
    target = rng.integers(60, 200, (1, 5, 4, 2)).astype(float)
    found = np.asarray(filters.denoise(jnp.asarray(target), weight=weight, steps=3000))
    for channel in range(2):
        given = target[0, ..., channel]

        def objective(flat, given=given):
            return _total_variation(flat.reshape(given.shape), given, weight)

        # Powell's method knows no gradient; from our result and from the image.
        ours = objective(found[0, ..., channel].ravel())
        for start in (found[0, ..., channel], given):
            options = {"maxiter": 200, "ftol": 1e-12}
            best = optimize.minimize(
                objective, start.ravel(), method="Powell", options=options
            )
            assert ours <= best.fun * (1 + 1e-6)
    assert np.ptp(found) < np.ptp(target)


def test_the_usual_steps_are_nearly_enough(rng):
    target = jnp.asarray(rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8))
    short = filters.denoise(target, weight=8.0)
    long = filters.denoise(target, weight=8.0, steps=2000)
    assert np.max(np.abs(short - long)) < 1.5
    assert np.mean(np.abs(short - long)) < 0.1


@pytest.mark.parametrize(
    "weight, steps", [(0.0, 60), (-1.0, 60), (float("nan"), 60), (8.0, 0)]
)
def test_a_weight_or_steps_that_cannot_be_are_refused(images, weight, steps):
    with pytest.raises(ValueError, match="weight must be above 0 and steps at least 1"):
        filters.denoise(jnp.asarray(images), weight=weight, steps=steps)


@pytest.mark.parametrize(
    "name",
    [
        "mirror",
        "median3",
        "total_variation",
        "bit_depth3",
        "jpeg75",
        "jpeg50",
        "jpeg20",
    ],
)
def test_filters_are_defences_with_finite_gradients(rng, name):
    defence = DEFENCES[name]()
    images = jnp.asarray(rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8))
    images = images.at[1].set(77)  # without a slope anywhere
    found = defence.compute({}, images, None)["images"]
    assert found.dtype == jnp.uint8 and found.shape == images.shape
    assert np.any(found[0] != images[0])
    floating = images.astype(jnp.float32)
    for kind in defence.gradients:

        def seen(images, kind=kind):
            return jnp.sum(defence.view({}, images, None, kind) ** 2)

        forwards = defence.view({}, floating, None, kind)
        if kind != "expectation":
            np.testing.assert_array_equal(forwards, found.astype(jnp.float32))
        gradient = jax.grad(seen)(floating)
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


@pytest.mark.parametrize("gradient", base.GRADIENTS)
def test_a_mirror_is_looked_through_exactly(rng, gradient):
    """The identity, which BPDA takes of other defences, would lead astray."""
    images = jnp.asarray(rng.integers(0, 256, (2, 4, 4, 3)), jnp.float32)
    weights = rng.normal(size=(4 * 4 * 3, 2))

    def logits_fn(weights, images):
        return images.reshape(len(images), -1) @ weights

    seen = base.behind((filters.Mirror(),), logits_fn, gradient=gradient)
    variables = {"classifier": jnp.asarray(weights), "defences": ({},)}
    mirrored = np.asarray(images)[:, :, ::-1].reshape(2, -1)
    np.testing.assert_allclose(seen(variables, images), mirrored @ weights, rtol=1e-5)
    found = jax.grad(lambda images: seen(variables, images)[:, 1].sum())(images)
    expected = weights[:, 1].reshape(4, 4, 3)[:, ::-1]
    np.testing.assert_allclose(found, np.stack([expected] * 2), rtol=1e-6)


def test_the_main_job_classifies_what_is_mirrored_and_hands_on_what_is_not(rng):
    model = pixelcnn.PixelCNN(features=4, depth=1, mixtures=2)
    clean = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    params = pixelcnn.init(model, jax.random.key(0), clean)
    weights = jnp.asarray(rng.normal(size=(8 * 8 * 3, 10)), jnp.float32)

    def logits_fn(weights, images):
        return images.reshape(len(images), -1).astype(jnp.float32) @ weights

    chain = (filters.Mirror(), filters.Median(), filters.Mirror(), filters.Mirror())
    job = pipeline.perturb_and_defend(model, None, logits_fn, chain)
    variables = {"params": params, "classifier": weights, "defences": ({},) * 4}
    variables |= {"eps_attack": jnp.float32(0), "key": jax.random.key(0)}
    found = job(variables, clean, -jnp.ones(3, jnp.int32), jnp.arange(3))
    filtered = filters.median_3x3(clean[:, :, ::-1])
    np.testing.assert_array_equal(found["purified"], filtered[:, :, ::-1])
    shown = logits_fn(weights, filtered)
    np.testing.assert_array_equal(found["purified_prediction"], shown.argmax(1))
    assert np.any(found["purified_prediction"] != found["clean_prediction"])
    scored = likelihood.log_prob(model, params, found["purified"])
    np.testing.assert_allclose(found["purified_log_prob"], scored, rtol=1e-5)


def test_bits_are_colours(images):
    found = DEFENCES["bit_depth3"]().compute({}, jnp.asarray(images), None)["images"]
    assert len(np.unique(found)) == 8
    expected = filters.reduce_colours(jnp.asarray(images), colours=8)
    np.testing.assert_array_equal(found, expected)
    assert issubclass(DEFENCES["jpeg75"], base.Smooth)
