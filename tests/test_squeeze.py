import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pixeldefend.defences import filters


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
