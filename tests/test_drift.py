import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import mostly_slow, tiny

from pixeldefend.defences import drift, purification
from pixeldefend.density import likelihood

SHAPE = (4, 4, 3)


@pytest.mark.parametrize(
    "conditionals", mostly_slow(["independent", "joint", "softmax"], 1)
)
def test_clean_context_is_the_score_and_own_context_what_was_decoded(rng, conditionals):
    model, params, _, _ = tiny(SHAPE, resolutions=1, conditionals=conditionals)
    images = jnp.asarray(rng.integers(0, 256, (3, *SHAPE), dtype=np.uint8))
    moved = np.asarray(images, int) + rng.integers(-8, 9, images.shape)
    attacked = jnp.asarray(np.clip(moved, 0, 255), jnp.uint8)
    run = jax.jit(functools.partial(drift.drift, model, eps=11))
    found = run(params, images, attacked)
    assert set(found) == set(drift.CONTEXTS)
    score = jax.jit(functools.partial(likelihood.bits_per_dim, model))
    bits = score(params, images)
    np.testing.assert_allclose(found["clean"].bits, bits, rtol=1e-5)
    purify = jax.jit(functools.partial(purification.purify, model, eps=11))
    purified = purify(params, attacked)
    np.testing.assert_array_equal(found["own"].levels, purified)
    for step in found.values():
        far = np.abs(np.asarray(step.levels, int) - np.asarray(attacked, int))
        assert far.max() <= 11 and step.levels.dtype == jnp.uint8
    # At the first position there is no context, at others it counts.
    first = [np.asarray(step.levels)[:, 0, 0, 0] for step in found.values()]
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[0], first[2])
    assert np.any(found["clean"].levels != found["attacked"].levels)


def test_where_nothing_is_attacked_or_purified_all_contexts_are_one(rng):
    model, params, _, _ = tiny(SHAPE, resolutions=1)
    images = jnp.asarray(rng.integers(0, 256, (2, *SHAPE), dtype=np.uint8))
    run = jax.jit(functools.partial(drift.drift, model, eps=0))
    found = run(params, images, images)
    for step in found.values():
        np.testing.assert_array_equal(step.levels, images)
        np.testing.assert_array_equal(step.bits, found["clean"].bits)
