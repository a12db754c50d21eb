import dataclasses
import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from models import tiny

from pixeldefend import attacks
from pixeldefend.defences import base, compression, filters, purification
from pixeldefend.defences import graded as graded_purification
from pixeldefend.density import likelihood

SHAPE = (6, 6, 1)


@pytest.fixture
def defence():
    """A small defence of a network that is not linear, and its variables."""
    model, params, _, _ = tiny(SHAPE, resolutions=1)
    rng = np.random.default_rng(1)
    weights = (
        jnp.asarray(rng.normal(size=(36, 8)) / 300, jnp.float32),
        jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
    )
    images = jnp.asarray(rng.integers(0, 256, (4, *SHAPE), dtype=np.uint8))
    its = {"params": params, "eps": jnp.int32(9)}
    return model, {"classifier": weights, "defences": (its,)}, images


def behind(model, gradient="bpda", window=None, kind=purification.Purify):
    return base.behind((kind(model, window),), network, gradient=gradient)


def network(weights, images):
    flat = images.reshape(images.shape[0], -1).astype(jnp.float32) - 128
    return jnp.tanh(flat @ weights[0]) @ weights[1]


def _purified(model, variables, images):
    (its,) = variables["defences"]
    function = jax.jit(purification.purify, static_argnums=0)
    return function(model, its["params"], images, eps=its["eps"])


def test_forwards_it_is_the_defence(defence):
    model, variables, images = defence
    seen = jax.jit(behind(model))
    expected = network(variables["classifier"], _purified(*defence))
    moved = images.astype(jnp.float32).at[:, 0].add(0.4)  # rounded away
    moved = jnp.clip(moved, 0, 255)
    np.testing.assert_allclose(seen(variables, moved), expected, rtol=1e-5)
    assert not np.array_equal(_purified(*defence), images)


def test_backwards_it_is_the_classifier_at_the_purified_image(defence):
    model, variables, images = defence
    seen = behind(model)
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
@pytest.mark.slow
def test_slopes_through_the_scan_are_those_of_relaxed_levels(defence, slope):
    model, variables, images = defence
    seen = behind(model, slope, 19)
    straight = slope == "straight_through"
    moved = images.astype(jnp.float32).clip(1, 254) + 0.3

    def composed(images):
        if straight:
            images = images + jax.lax.stop_gradient(jnp.round(images) - images)
        relaxed = purification.relax(
            model,
            variables["defences"][0]["params"],
            images,
            eps=9,
            straight_through=straight,
            window=19,
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
        behind(defence[0], "identity")


def test_without_a_ball_of_the_defence_it_is_the_classifier(defence):
    model, variables, images = defence
    its = variables["defences"][0] | {"eps": jnp.int32(0)}
    variables = variables | {"defences": (its,)}
    labels = jnp.argmax(network(variables["classifier"], images), -1)
    # BIM takes whole steps, so that rounding has nothing to do.
    attack = functools.partial(attacks.bim, eps=6, keep_failed=True)
    through = functools.partial(attack, behind(model))
    found, _ = jax.jit(through)(variables, images, labels)
    bare = jax.jit(functools.partial(attack, network))
    expected, _ = bare(variables["classifier"], images, labels)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("slope", base.GRADIENTS)
@pytest.mark.slow
def test_adaptive_defences_leave_likely_images_alone(defence, slope):
    model, variables, images = defence
    params = variables["defences"][0]["params"]
    bits = likelihood.bits_per_dim(model, params, images)
    threshold = jnp.sort(bits)[2]  # two images are below
    its = variables["defences"][0] | {"threshold": threshold}
    variables = variables | {"defences": (its,)}
    seen = jax.jit(behind(model, slope, kind=graded_purification.PurifyAdaptively))
    found = seen(variables, images.astype(jnp.float32))
    purified = _purified(*defence)
    if slope == "expectation":
        levels = images.astype(jnp.float32)
        purified = purification.relax(model, params, levels, eps=9)
    alone = (bits < threshold)[:, None, None, None]
    shown = jnp.where(alone, images.astype(purified.dtype), purified)
    assert alone.sum() == 2
    expected = network(variables["classifier"], shown)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.fixture
def graded(defence):
    """Half of the images in each grade, of which the second is compressed."""
    model, variables, images = defence
    bits = likelihood.bits_per_dim(model, variables["defences"][0]["params"], images)
    its = variables["defences"][0] | {
        "thresholds": jnp.sort(bits)[2:3],
        "eps": jnp.asarray([4, 9]),
        "quality": jnp.asarray([0, 60]),
    }
    kind = functools.partial(graded_purification.PurifyGraded, model)
    return kind, variables | {"defences": (its,)}, images, np.asarray(bits)


def test_the_more_suspicious_an_image_the_more_is_done_to_it(defence, graded):
    model = defence[0]
    kind, variables, images, bits = graded
    (its,) = variables["defences"]
    found = jax.jit(kind().compute)(its, images, None)
    suspicious = bits >= np.sort(bits)[2]
    assert suspicious.sum() == 2
    for row, much in enumerate(suspicious):
        eps = jnp.int32(9 if much else 4)
        alone = images[row : row + 1]
        expected = purification.purify(model, its["params"], alone, eps=eps)
        if much:
            expected = jnp.round(compression.compress(expected, quality=60))
        np.testing.assert_array_equal(found["images"][row], expected[0])
    expected = likelihood.log_prob(model, its["params"], found["images"])
    np.testing.assert_allclose(found["log_probs"], expected, rtol=1e-5)
    assert kind().facts(its) == {
        "eps_defend": 9,
        "grades": f"4, 9 with JPEG 60 from {np.sort(bits)[2]:.6g}",
    }


@pytest.mark.parametrize("gradient", base.GRADIENTS)
@pytest.mark.slow
def test_attackers_see_the_grades(graded, gradient):
    kind, variables, images, _ = graded
    (its,) = variables["defences"]
    floating = images.astype(jnp.float32)

    def loss(images):
        seen = kind(window=19).view(its, images, None, gradient)
        return jnp.sum(jnp.sin(seen / 40)), seen

    found, seen = jax.jit(jax.grad(loss, has_aux=True))(floating)
    assert np.all(np.isfinite(found)) and np.all(np.any(found != 0, (1, 2, 3)))
    levels = kind(window=19).compute(its, images, None)["images"]
    if gradient == "expectation":
        assert np.any(seen != levels.astype(jnp.float32))
    else:
        np.testing.assert_array_equal(seen, levels.astype(jnp.float32))
    if gradient == "bpda":
        expected = np.cos(np.asarray(levels, np.float32) / 40) / 40
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_an_eps_that_would_be_without_effect_is_refused(defence):
    model, variables, _ = defence
    its = variables["defences"][0]["params"]

    def build(eps):
        purify = {"eps": eps, "grades": ((0.0, 4), (3.5, 9, 60))}
        given = base.Given({"purify": purify}, model, its)
        return graded_purification.PurifyGraded.build(given)

    defence, params = build(9)
    assert defence.window == purification.window_for(9)
    np.testing.assert_array_equal(params["eps"], [4, 9])
    np.testing.assert_array_equal(params["quality"], [0, 60])
    with pytest.raises(ValueError, match="go up to eps 9, purify.eps is 16"):
        build(16)


@pytest.mark.slow
def test_an_attacker_can_stay_below_a_grade(graded):
    kind, variables, images, bits = graded
    (its,) = variables["defences"]
    threshold = float(its["thresholds"][0])
    seen = base.behind((kind(window=19),), network)
    labels = attacks.predicted(seen, variables, images)

    def likely(variables, images):
        of = variables["defences"][0]["params"]
        return -likelihood.bits_per_dim(kind().density_model, of, images)

    attack = functools.partial(attacks.evade, seen, likely, steps=60, eps=60)
    found, info = jax.jit(attack)(variables, images, labels, threshold=-threshold)
    assert np.sum(info.success) >= 1
    model = kind().density_model
    after = np.asarray(likelihood.bits_per_dim(model, its["params"], found))
    assert np.all(after[info.success] <= threshold)
    # Among them one that was suspicious, and is now purified gently.
    assert np.any(info.success & (bits > threshold))


@pytest.mark.parametrize(
    "grades",
    [
        (),
        16,
        ((0.0,),),
        ((0.0, 16.5),),
        ((1.0, 16),),
        ((0.0, 16, 101),),
        ((0.0, 16, -1),),
        ((0.0, 16), (0.0, 24)),
        ((0.0, 16), (5.0, 24), (4.0, 30)),
        ((0.0, 256),),
        (("a", 16),),
        ((0.0, 16, 75, 1),),
    ],
)
def test_grades_that_cannot_be_are_refused(grades):
    with pytest.raises(ValueError, match="grades|ascend|between"):
        graded_purification.read_grades(grades)


def test_an_attack_through_the_purifier_hurts_more_than_one_in_front_of_it(defence):
    """Of the loss that both raise, measured behind the purifier."""
    model, variables, images = defence
    labels = jnp.argmax(network(variables["classifier"], _purified(*defence)), -1)
    attack = functools.partial(attacks.bim, eps=20, steps=25, keep_failed=True)
    through = jax.jit(functools.partial(attack, behind(model)))
    bare = jax.jit(functools.partial(attack, network))
    white, _ = through(variables, images, labels)
    grey, _ = bare(variables["classifier"], images, labels)

    def loss(moved):
        logits = network(variables["classifier"], _purified(model, variables, moved))
        return -np.mean(jax.nn.log_softmax(logits)[np.arange(4), labels])

    assert loss(white) > loss(grey) > loss(images)


@dataclasses.dataclass(frozen=True)
class Rebuild(base.Smooth):
    """A smooth autoencoder with noise of its own, which is not linear."""

    name = "rebuild"
    random = True

    def smooth(self, params, images, key):
        flat = images.reshape(len(images), -1) - 128
        noise = jax.vmap(lambda key: jax.random.normal(key, (36,)))(key)
        found = 128 + 60 * jnp.tanh(flat @ params["params"]) * (1 + 0.2 * noise)
        return found.reshape(images.shape)


@pytest.fixture
def rebuilt_defence():
    rng = np.random.default_rng(2)
    draw = functools.partial(jnp.asarray, dtype=jnp.float32)
    classifier = (
        draw(rng.normal(size=(36, 8)) / 300),
        draw(rng.normal(size=(8, 3))),
    )
    variables = {
        "classifier": classifier,
        "defences": ({"params": draw(rng.normal(size=(36, 36)) / 300)},),
        "key": jax.random.key(7),
    }
    images = draw(rng.uniform(0, 255, (4, *SHAPE)))
    return variables, images, draw(rng.normal(size=(4, 3)))


def _rebuilt(variables, images, key=None):
    key = variables["key"] if key is None else key
    keys = jnp.stack([key] * len(images))
    return Rebuild().smooth(variables["defences"][0], images, keys)


@jax.jit
def _looked(variables, images, towards):
    """Of each way to look: logits, and their slope by the images."""

    def look(slope):
        seen = base.behind((Rebuild(),), network, gradient=slope, draws=3)
        found, back = jax.vjp(functools.partial(seen, variables), images)
        return found, back(towards)[0]

    return {slope: look(slope) for slope in base.GRADIENTS}


@pytest.mark.parametrize("slope", ["bpda", "straight_through"])
def test_forwards_it_is_the_classifier_at_the_rounded_rebuilt_image(
    rebuilt_defence, slope
):
    variables, images, towards = rebuilt_defence
    found, _ = _looked(*rebuilt_defence)[slope]
    shown = np.rint(_rebuilt(variables, images))
    wanted = network(variables["classifier"], shown)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    unrounded = network(variables["classifier"], _rebuilt(variables, images))
    assert np.abs(found - unrounded).max() > 1e-3


def test_bpda_slopes_are_the_classifiers_at_the_rebuilt_image(rebuilt_defence):
    variables, images, towards = rebuilt_defence
    _, found = _looked(*rebuilt_defence)["bpda"]
    shown = jnp.round(_rebuilt(variables, images))
    classifier = functools.partial(network, variables["classifier"])
    (wanted,) = jax.vjp(classifier, shown)[1](towards)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
    assert np.abs(wanted).max() > 1e-4


def test_straight_slopes_follow_the_chain_rule_past_the_rounding(rebuilt_defence):
    variables, images, towards = rebuilt_defence
    _, found = _looked(*rebuilt_defence)["straight_through"]
    rebuilt, back = jax.vjp(functools.partial(_rebuilt, variables), images)
    classifier = functools.partial(network, variables["classifier"])
    (outer,) = jax.vjp(classifier, jnp.round(rebuilt))[1](towards)
    (wanted,) = back(outer)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
    assert np.abs(found - outer).max() > 1e-4


def test_an_expectation_is_over_draws_of_log_probabilities(rebuilt_defence):
    variables, images, towards = rebuilt_defence
    found, slope = _looked(*rebuilt_defence)["expectation"]
    keys = jax.random.split(variables["key"], 3)

    def drawn(images):
        rebuilt = [_rebuilt(variables, images, key) for key in keys]
        logits = [network(variables["classifier"], one) for one in rebuilt]
        laws = [jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True) for x in logits]
        return jnp.stack([jnp.log(law) for law in laws])

    each, back = jax.vjp(drawn, images)
    assert np.abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(found, np.mean(each, 0), rtol=1e-4, atol=1e-5)
    (wanted,) = back(jnp.stack([towards / 3] * 3))
    np.testing.assert_allclose(slope, wanted, rtol=1e-3, atol=1e-6)
    assert np.abs(wanted).max() > 1e-5


def test_an_image_is_seen_alike_in_any_place(rebuilt_defence):
    """An attack may put its images in any order: draws are the same for all."""
    variables, images, towards = rebuilt_defence
    order = np.array([2, 2, 0, 1])
    found = _looked(*rebuilt_defence)
    again = _looked(variables, images[order], towards[order])
    for slope in base.GRADIENTS:
        for one, other in zip(found[slope], again[slope], strict=True):
            np.testing.assert_allclose(one[order], other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gradient", base.GRADIENTS)
@pytest.mark.parametrize("kind", [filters.Squeeze(8), filters.Median()])
def test_who_looks_truly_sees_the_defence_with_the_gradient_of_its_view(
    rng, kind, gradient
):
    variables, images, _ = networks.draw(rng, 4)
    floating = images.astype(jnp.float32) + 0.3  # what is sent is rounded
    seen = {"classifier": variables, "defences": ({},)}
    options = {"gradient": gradient}
    view, truly = (
        base.behind((kind,), networks.bent, truly=truly, **options)
        for truly in (False, True)
    )

    def weighed(network, images):
        logits = network(seen, images)
        return jnp.sum(logits * jnp.arange(5.0)[None]), logits

    def slope(network):
        return jax.jit(jax.grad(functools.partial(weighed, network), has_aux=True))

    (wanted, _), (found, logits) = slope(view)(floating), slope(truly)(floating)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-8)
    passed = kind.compute({}, images, None)["images"].astype(jnp.float32)
    expected = networks.bent(variables, passed)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    np.testing.assert_allclose(truly(seen, floating), expected, rtol=1e-5)
    if gradient not in kind.forwards:
        assert np.abs(view(seen, floating) - expected).max() > 1e-3


def test_mistakes_behind_an_autoencoder_are_named():
    with pytest.raises(ValueError, match="bpda, straight_through, expectation"):
        base.behind((Rebuild(),), network, gradient="identity")
    for slope in base.GRADIENTS:
        with pytest.raises(ValueError, match="draws must be at least 1: 0"):
            base.behind((Rebuild(),), network, gradient=slope, draws=0)
