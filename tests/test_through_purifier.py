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
    seen = jax.jit(attacks.behind_purifier(network, model))
    expected = network(variables["classifier"], _purified(*defence))
    moved = images.astype(jnp.float32).at[:, 0].add(0.4)  # rounded away
    moved = jnp.clip(moved, 0, 255)
    np.testing.assert_allclose(seen(variables, moved), expected, rtol=1e-5)
    assert not np.array_equal(_purified(*defence), images)


def test_backwards_it_is_the_classifier_at_the_purified_image(defence):
    model, variables, images = defence
    seen = attacks.behind_purifier(network, model)
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


@pytest.mark.parametrize("slope", ["straight_through", "expectation"])
def test_slopes_through_the_scan_are_those_of_relaxed_levels(defence, slope):
    model, variables, images = defence
    seen = attacks.behind_purifier(network, model, slope=slope, width=19)
    straight = slope == "straight_through"
    moved = images.astype(jnp.float32).clip(1, 254) + 0.3

    def composed(images):
        if straight:
            images = images + jax.lax.stop_gradient(jnp.round(images) - images)
        relaxed = purification.relax(
            model,
            variables["params"],
            images,
            eps=9,
            straight_through=straight,
            width=19,
        )
        return network(variables["classifier"], relaxed)

    def loss(function, images):
        return jnp.sum(jnp.sin(function(images)))

    whole = functools.partial(seen, variables)
    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(loss, f)))(moved)
        for f in (whole, composed)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-7)
    assert np.any(np.asarray(found[1]) != 0)
    if straight:  # forwards it is the defence itself
        purified = _purified(*defence)
        logits = network(variables["classifier"], purified)
        np.testing.assert_allclose(whole(images.astype(jnp.float32)), logits, rtol=1e-5)


def test_unknown_slopes_are_refused(defence):
    with pytest.raises(ValueError, match="bpda, straight_through, expectation"):
        attacks.behind_purifier(network, defence[0], slope="identity")


def test_without_a_ball_of_the_defence_it_is_the_classifier(defence):
    model, variables, images = defence
    variables = variables | {"eps": jnp.int32(0)}
    labels = jnp.argmax(network(variables["classifier"], images), -1)
    # BIM takes whole steps, so that rounding has nothing to do.
    attack = functools.partial(attacks.bim, eps=6, keep_failed=True)
    through = functools.partial(attack, attacks.behind_purifier(network, model))
    found, _ = jax.jit(through)(variables, images, labels)
    bare = jax.jit(functools.partial(attack, network))
    expected, _ = bare(variables["classifier"], images, labels)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("slope", attacks.SLOPES)
def test_adaptive_defences_leave_likely_images_alone(defence, slope):
    model, variables, images = defence
    bits = density.bits_per_dim(model, variables["params"], images)
    threshold = jnp.sort(bits)[2]  # two images are below
    variables = variables | {"threshold": threshold}
    seen = jax.jit(attacks.behind_purifier(network, model, slope=slope, adaptive=True))
    found = seen(variables, images.astype(jnp.float32))
    purified = _purified(*defence)
    if slope == "expectation":
        levels = images.astype(jnp.float32)
        purified = purification.relax(model, variables["params"], levels, eps=9)
    alone = (bits < threshold)[:, None, None, None]
    shown = jnp.where(alone, images.astype(purified.dtype), purified)
    assert alone.sum() == 2
    expected = network(variables["classifier"], shown)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_attack_through_the_purifier_hurts_more_than_one_in_front_of_it(defence):
    """Of the loss that both raise, measured behind the purifier."""
    model, variables, images = defence
    labels = jnp.argmax(network(variables["classifier"], _purified(*defence)), -1)
    attack = functools.partial(attacks.bim, eps=20, steps=25, keep_failed=True)
    through = jax.jit(
        functools.partial(attack, attacks.behind_purifier(network, model))
    )
    bare = jax.jit(functools.partial(attack, network))
    white, _ = through(variables, images, labels)
    grey, _ = bare(variables["classifier"], images, labels)

    def loss(moved):
        logits = network(variables["classifier"], _purified(model, variables, moved))
        return -np.mean(jax.nn.log_softmax(logits)[np.arange(4), labels])

    assert loss(white) > loss(grey) > loss(images)
