import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import tiny

from pixeldefend import attacks, density, purification

SHAPE = (6, 6, 1)


@pytest.fixture
def defence():
    """A small defence of a network that is not linear, and its variables."""
    model, params, _, _ = tiny(SHAPE, levels=1)
    rng = np.random.default_rng(1)
    weights = (
        jnp.asarray(rng.normal(size=(36, 8)) / 300, jnp.float32),
        jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
    )
    images = jnp.asarray(rng.integers(0, 256, (4, *SHAPE), dtype=np.uint8))
    variables = {"classifier": weights, "params": params, "eps": jnp.int32(9)}
    return model, variables, images


def network(weights, images):
    flat = images.reshape(images.shape[0], -1).astype(jnp.float32) - 128
    return jnp.tanh(flat @ weights[0]) @ weights[1]


def _purified(model, variables, images, eps=None):
    eps = variables["eps"] if eps is None else eps
    function = jax.jit(purification.purify, static_argnums=0)
    return function(model, variables["params"], images, eps=eps)


def test_forwards_it_is_the_defence(defence):
    model, variables, images = defence
    seen = jax.jit(attacks.bpda(network, model))
    expected = network(variables["classifier"], _purified(*defence))
    moved = images.astype(jnp.float32).at[:, 0].add(0.4)  # rounded away
    moved = jnp.clip(moved, 0, 255)
    np.testing.assert_allclose(seen(variables, moved), expected, rtol=1e-5)
    assert not np.array_equal(_purified(*defence), images)


def test_backwards_it_is_the_classifier_at_the_purified_image(defence):
    model, variables, images = defence
    seen = attacks.bpda(network, model)
    purified = _purified(*defence).astype(jnp.float32)

    def loss(function, variables, images):
        return jnp.sum(jnp.sin(function(variables, images)))

    found = jax.jit(jax.grad(functools.partial(loss, seen), argnums=1))(
        variables, images.astype(jnp.float32)
    )
    expected = jax.grad(functools.partial(loss, network), argnums=1)(
        variables["classifier"], purified
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert np.any(np.asarray(found) != 0)


def test_without_a_ball_of_the_defence_it_is_the_classifier(defence):
    model, variables, images = defence
    variables = variables | {"eps": jnp.int32(0)}
    labels = jnp.argmax(network(variables["classifier"], images), -1)
    # BIM takes whole steps, so that rounding has nothing to do.
    attack = functools.partial(attacks.bim, eps=6, keep_failed=True)
    through = functools.partial(attack, attacks.bpda(network, model))
    found, _ = jax.jit(through)(variables, images, labels)
    bare = jax.jit(functools.partial(attack, network))
    expected, _ = bare(variables["classifier"], images, labels)
    np.testing.assert_array_equal(found, expected)


def test_adaptive_defences_leave_likely_images_alone(defence):
    model, variables, images = defence
    bits = density.bits_per_dim(model, variables["params"], images)
    threshold = jnp.sort(bits)[2]  # two images are below
    variables = variables | {"threshold": threshold}
    seen = jax.jit(attacks.bpda(network, model, adaptive=True))
    found = seen(variables, images.astype(jnp.float32))
    purified = _purified(*defence)
    alone = (bits < threshold)[:, None, None, None]
    shown = jnp.where(alone, images, purified)
    assert alone.sum() == 2
    expected = network(variables["classifier"], shown)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_attack_through_the_purifier_hurts_more_than_one_in_front_of_it(defence):
    """Of the loss that both raise, measured behind the purifier."""
    model, variables, images = defence
    labels = jnp.argmax(network(variables["classifier"], _purified(*defence)), -1)
    attack = functools.partial(attacks.bim, eps=20, steps=25, keep_failed=True)
    through = jax.jit(functools.partial(attack, attacks.bpda(network, model)))
    bare = jax.jit(functools.partial(attack, network))
    white, _ = through(variables, images, labels)
    grey, _ = bare(variables["classifier"], images, labels)

    def loss(moved):
        logits = network(variables["classifier"], _purified(model, variables, moved))
        return -np.mean(jax.nn.log_softmax(logits)[np.arange(4), labels])

    assert loss(white) > loss(grey) > loss(images)
