import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import pixels


def test_every_level_survives_the_round_trip_fused_or_not():
    levels = jnp.arange(256).astype(jnp.uint8)
    round_trip = lambda x: pixels.to_levels(pixels.to_units(x))  # noqa: E731
    np.testing.assert_array_equal(round_trip(levels), levels)
    np.testing.assert_array_equal(jax.jit(round_trip)(levels), levels)


def test_units_run_from_minus_one_to_one():
    units = pixels.to_units(jnp.array([0, 255], jnp.uint8))
    np.testing.assert_array_equal(units, np.array([-1.0, 1.0], np.float32))


def test_floating_levels_are_the_same_scale():
    levels = jnp.arange(256)
    np.testing.assert_array_equal(
        pixels.to_units(levels.astype(jnp.float32)), pixels.to_units(levels)
    )


def test_floating_levels_undo_units():
    levels = jnp.asarray([0.0, 0.3, 127.5, 254.9, 255.0])
    found = pixels.to_floating_levels(pixels.to_units(levels))
    np.testing.assert_allclose(found, levels, atol=1e-4)
