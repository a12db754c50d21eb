import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import bent, draw, sizes

from pixeldefend import attacks
from pixeldefend.attacks.auto_attack import PARTS, has_loops

SMALL = {"steps": 12, "queries": 60}


def keys(count):
    return jax.random.split(jax.random.key(5), count)


@functools.partial(jax.jit, static_argnames=("network", "norm", "version", "lanes"))
def attacked(variables, images, labels, key, eps, network=bent, **options):
    return attacks.auto_attack(
        network, variables, images, labels, key, eps=eps, **(SMALL | options)
    )


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 3.0), pytest.param("l2", 12.0, marks=pytest.mark.slow)]
)
def test_what_any_part_finds_is_found(rng, norm, eps):
    variables, images, labels = draw(rng, 32)
    labels = labels.at[:3].set((labels[:3] + 1) % 5)  # misclassified as they are
    key = keys(32)
    found, info = attacked(variables, images, labels, key, eps, norm=norm)
    change = np.asarray(found, float) - np.asarray(images, float)
    assert found.dtype == jnp.uint8 and np.all(sizes(change, norm) <= eps)
    guesses = jnp.argmax(bent(variables, found.astype(jnp.float32)), -1)
    np.testing.assert_array_equal(info.success, guesses != labels)
    assert 0 < np.mean(info.success) < 1

    by = np.asarray(info.by)
    np.testing.assert_array_equal(by >= 0, info.success)
    clean = jnp.argmax(bent(variables, images.astype(jnp.float32)), -1) != labels
    np.testing.assert_array_equal(by == PARTS.index("clean"), clean)
    np.testing.assert_array_equal(found[clean], images[clean])
    # The first part alone finds what it is said to have found, and nothing more.
    _, alone = attacks.apgd(
        bent, variables, images, labels, key, eps=eps, norm=norm, steps=SMALL["steps"]
    )
    first = np.isin(by, [PARTS.index(part) for part in ("clean", "apgd_ce")])
    np.testing.assert_array_equal(alone.success, first)


@pytest.mark.slow
def test_an_image_depends_on_nothing_but_itself_and_its_key(rng):
    variables, images, labels = draw(rng, 12)
    eps = jnp.float32(2)
    found, info = attacked(variables, images, labels, keys(12), eps, lanes=3)
    order = np.array([7, 2, 11, 0])
    task = images[order], labels[order], keys(12)[order]
    other, its = attacked(variables, *task, eps, lanes=4)
    np.testing.assert_array_equal(other, found[order])
    np.testing.assert_array_equal(its.queries, info.queries[order])
    # Those that fooled cost little, those that did not all of it.
    lost = ~np.asarray(info.success)
    assert lost.any() and np.min(info.queries[lost]) > 10 * np.min(info.queries)


def stepped(variables, images):
    """As `bent`, but flat nearly everywhere: only queries find the way."""
    return bent(variables, 24 * jnp.round(images / 24))


def test_where_gradients_are_zero_the_square_attack_tells(rng):
    variables, images, labels = draw(rng, 24)
    labels = jnp.argmax(stepped(variables, images.astype(jnp.float32)), -1)
    _, info = attacked(
        variables, images, labels, keys(24), jnp.float32(16), network=stepped
    )
    by = np.asarray(info.by)
    # Some are fooled as they are, or by the point where the ascent begins.
    lucky = np.isin(by, [PARTS.index("clean"), PARTS.index("apgd_ce")])
    assert np.all(info.flat[~lucky])
    assert np.mean(by == PARTS.index("square")) > 0.2


def noisy(variables, images):
    noise = 0.3 * jax.random.normal(variables["key"], (images.shape[0], 5))
    return bent(variables["true"], images) + noise


@pytest.mark.slow
def test_a_random_network_is_told_and_attacked_over_draws(rng):
    true, images, labels = draw(rng, 16)
    variables = {"true": true, "key": jax.random.key(2)}
    _, info = attacked(
        variables,
        images,
        labels,
        keys(16),
        jnp.float32(4),
        network=noisy,
        version="rand",
    )
    assert np.all(info.random) and not np.any(info.loops)
    assert 0 < np.mean(info.success) < 1
    assert set(np.asarray(info.by)) <= {-1, 0, 1, 2}
    _, plain = attacked(true, images, labels, keys(16), jnp.float32(4))
    assert not np.any(plain.random)


def test_loops_in_a_network_are_seen():
    def looping(images):
        return jax.lax.fori_loop(0, 3, lambda _, x: x / 2, images)

    def hidden(images):
        return jax.jit(lambda x: jax.lax.map(jnp.sum, x))(images)

    images = jnp.zeros((2, 3))
    assert has_loops(looping, images) and has_loops(hidden, images)
    assert not has_loops(lambda x: jnp.tanh(x) @ jnp.ones((3, 2)), images)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
def test_plus_takes_few_classes_and_finds_no_less(rng, classes):
    variables, images, labels = draw(rng, 24, classes=classes)
    task = variables, images, labels, keys(24), jnp.float32(3)
    _, standard = attacked(*task)
    _, plus = attacked(*task, version="plus")
    assert np.all(plus.success[standard.success])
    assert 0 < np.mean(standard.success) < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "fast"}, "version must be one of standard, plus, rand"),
        ({"norm": "l1"}, "norm must be one of linf, l2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"version": "rand", "draws": 0}, "draws must be at least 1"),
        ({"key": None}, "a random attack needs keys"),
    ],
)
def test_what_cannot_be_is_said(rng, options, message):
    variables, images, labels = draw(rng, 3)
    options = {"eps": 2.0, "key": keys(3)} | options
    with pytest.raises(ValueError, match=message):
        attacks.auto_attack(bent, variables, images, labels, **options)
