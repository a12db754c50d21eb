import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import tiny
from scipy import stats

from pixeldefend import detection
from pixeldefend.density import conditionals, likelihood, pixelcnn


def _keys(count, seed=0):
    key = jax.random.key(seed)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def test_log_prob_equals_the_sum_over_positions(float64):
    model, params, images, _ = tiny((4, 4, 3), resolutions=1, conditionals="joint")

    @jax.jit
    def level_log_probs(params, images):
        outputs = pixelcnn.apply(model, params, images)
        head = params["head"]
        return conditionals.level_log_probs(model.family, head, outputs, images)

    rows = level_log_probs(params, images)
    taken = np.take_along_axis(np.asarray(rows), np.asarray(images)[..., None], -1)
    found = jax.jit(functools.partial(likelihood.log_prob, model))(params, images)
    np.testing.assert_allclose(found, taken.sum((1, 2, 3, 4)), rtol=1e-12)
    bits = jax.jit(functools.partial(likelihood.bits_per_dim, model))(params, images)
    np.testing.assert_allclose(bits, -found / (4 * 4 * 3 * math.log(2)), rtol=1e-12)


def test_draws_follow_the_given_masses(rng):
    log_mass = jnp.log(jnp.asarray([0.5, 0.0, 0.2, 0.3])) - 3.0
    count = 20_000
    tiled = jnp.broadcast_to(log_mass[:, None], (4, count))
    candidates = jnp.broadcast_to(jnp.arange(4)[:, None] + 10, (4, count))
    levels = likelihood.draw(candidates, tiled, jnp.zeros(count), _keys(count))
    found = np.bincount(np.asarray(levels) - 10, minlength=4)
    assert found[1] == 0
    expected = count * np.array([0.5, 0.2, 0.3])
    assert stats.chisquare(found[[0, 2, 3]], expected).pvalue > 1e-3


def test_samples_do_not_depend_on_the_batch():
    model, params, _, _ = tiny((4, 4, 3), resolutions=1, conditionals="joint")
    sample = jax.jit(
        lambda keys: likelihood.sample(model, params, keys, height=4, width=4)
    )
    four = np.asarray(sample(_keys(4)))
    swapped = np.asarray(sample(_keys(4)[::-1]))
    np.testing.assert_array_equal(four, swapped[::-1])
    assert four.shape == (4, 4, 4, 3) and four.dtype == np.uint8
    assert len({image.tobytes() for image in four}) == 4


@pytest.mark.slow
def test_samples_are_likelier_than_noise():
    model, params, noise, _ = tiny((8, 8, 1), resolutions=2, conditionals="softmax")
    images = likelihood.sample(model, params, _keys(2), height=8, width=8)
    drawn = np.asarray(likelihood.bits_per_dim(model, params, images))
    uniform = np.asarray(likelihood.bits_per_dim(model, params, noise))
    assert drawn.max() < uniform.min()


def test_log_prob_has_a_gradient_in_the_image():
    model, params, images, _ = tiny((4, 4, 1), resolutions=1)
    levels = images.astype(jnp.float32)
    slope = jax.grad(lambda x: likelihood.log_prob(model, params, x).sum())
    gradient = jax.jit(slope)(levels)
    assert np.isfinite(gradient).all() and np.any(gradient != 0)


def test_p_values_are_ranks_among_the_reference(rng):
    reference = np.sort(rng.normal(size=99)).astype(np.float32)
    values = np.concatenate(
        [
            rng.normal(size=20).astype(np.float32),
            reference[[0, 98]],
            np.float32([-99, 99]),
        ]
    )
    found = detection.p_values(jnp.asarray(values), jnp.asarray(reference))
    expected = [(1 + np.sum(reference <= v)) / 100 for v in values]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[-2] == 0.01 and found[-1] == 1.0
    unknown = detection.p_values(jnp.array([np.nan, 0.0]), jnp.asarray(reference))
    assert np.isnan(unknown[0]) and not np.isnan(unknown[1])
