import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from reproduction import likelihood_ascent

SHAPE = (3, 2, 1)


def hill(images):
    """A crooked hill with its top outside some boxes."""
    flat = images.reshape(images.shape[0], -1)
    far = flat - jnp.linspace(90.0, 160.0, 6, dtype=flat.dtype)[None]
    return -jnp.sum(far**2, -1) / 100 - 3 * jnp.sum(jnp.cos(far / 4), -1)


def value_and_grad(images):
    total, slopes = jax.value_and_grad(lambda x: jnp.sum(hill(x)))(jnp.asarray(images))
    del total
    return hill(jnp.asarray(images)), slopes


def _box(rng, count):
    middle = rng.uniform(60, 190, size=(1, *SHAPE))
    lower, upper = middle - 25, middle + 25
    return rng.uniform(lower, upper, size=(count, *SHAPE)), lower[0], upper[0]


def test_searches_in_step_are_scipys_one_by_one(rng, float64):
    starts, lower, upper = _box(rng, 7)
    ended, asked = likelihood_ascent.climb(
        value_and_grad, starts, lower=lower, upper=upper, iterations=40
    )
    assert len(set(asked.tolist())) > 1, "all ended at the same time"
    for i, start in enumerate(starts):
        one = scipy.optimize.minimize(
            lambda x: [
                -np.asarray(a, np.float64).ravel()
                for a in value_and_grad(x.reshape(1, *SHAPE))
            ],
            start.ravel(),
            jac=True,
            method="L-BFGS-B",
            bounds=scipy.optimize.Bounds(lower.ravel(), upper.ravel()),
            options={"maxiter": 40},
        )
        np.testing.assert_allclose(ended[i].ravel(), one.x, atol=1e-6)
        assert asked[i] == one.nfev


def test_it_climbs_and_stays_in_the_box(rng, float64):
    starts, lower, upper = _box(rng, 5)
    ended, _ = likelihood_ascent.climb(
        value_and_grad, starts, lower=lower, upper=upper, iterations=3
    )
    assert np.all(ended >= lower) and np.all(ended <= upper)
    assert np.all(hill(jnp.asarray(ended)) >= hill(jnp.asarray(starts)))


@pytest.mark.parametrize("count", [1, 4])
def test_a_function_that_fails_ends_all_searches(rng, count):
    starts, lower, upper = _box(rng, count)

    def broken(images):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        likelihood_ascent.climb(broken, starts, lower=lower, upper=upper, iterations=3)


def test_what_fails_inside_of_a_search_is_heard(rng):
    starts, lower, upper = _box(rng, 3)

    def useless(images):
        return np.zeros((len(images), 2)), np.zeros_like(images)

    with pytest.raises(TypeError):
        likelihood_ascent.climb(useless, starts, lower=lower, upper=upper, iterations=3)


def test_what_is_wrong_is_said(rng):
    starts, lower, upper = _box(rng, 1)
    climb = likelihood_ascent.climb
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        climb(value_and_grad, starts, lower=lower, upper=upper, iterations=0)
    with pytest.raises(ValueError, match="lower bounds above"):
        climb(value_and_grad, starts, lower=upper, upper=lower, iterations=3)
