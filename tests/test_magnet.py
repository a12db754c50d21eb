import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from networks import linear
from scipy import signal, spatial

from pixeldefend.defences import magnet, reject
from pixeldefend.experiment import data

SHAPE = (6, 4, 2)
COPIES = 3


def _compiled(function, *names):
    return jax.jit(function, static_argnums=0, static_argnames=names)


init = _compiled(magnet.init)
rebuild = _compiled(magnet.reconstructions)
chosen = _compiled(magnet.chosen)
reform = _compiled(magnet.reform)
reformed = _compiled(magnet.reformed)
loss = _compiled(magnet.loss)
errors = _compiled(magnet.reconstruction_error, "autoencoder", "power")
scores = _compiled(magnet.scores, "detectors", "logits_fn")
divergences = _compiled(magnet.divergence, "logits_fn", "autoencoder", "temperature")

MODEL = magnet.MagNet(features=2, copies=COPIES)


def _random(rng, model, images, dtype="float32"):
    """Variables of which every number matters; first ones make every image grey."""
    first = functools.partial(magnet.init, model)
    return jax.tree.map(
        lambda leaf: jnp.asarray(2 * rng.normal(size=leaf.shape), dtype),
        jax.eval_shape(first, jax.random.key(0), images),
    )


def _drawn(rng, dtype="float32"):
    """A model, its variables, four images and a key for each."""
    images = jnp.asarray(rng.integers(0, 256, (4, *SHAPE), dtype=np.uint8))
    variables = _random(rng, MODEL, images, dtype)
    return MODEL, variables, images, jax.random.split(jax.random.key(1), 4)


def _classifier(rng, dtype="float32"):
    """Variables of `linear` with three classes."""
    weights = rng.normal(size=(np.prod(SHAPE), 3)) / 500
    return jnp.asarray(weights, dtype), jnp.asarray(rng.normal(size=3), dtype)


def _picked(model, variables, images, key):
    """Every autoencoder's answer by its copy, in fractions: `[A, B, H, W, C]`."""
    found = np.asarray(rebuild(model, variables, images)) / 255
    copies = np.asarray(chosen(model, key))
    return np.stack([found[:, copy, i] for i, copy in enumerate(copies)], 1)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _convolved(x, layer, copy):
    """One image `[H, W, I]` by the weights of one copy."""
    kernel, bias = (np.asarray(layer[name])[copy] for name in ("kernel", "bias"))
    sums = [
        sum(
            signal.correlate2d(x[..., i], kernel[..., i, o], mode="same")
            for i in range(x.shape[-1])
        )
        for o in range(kernel.shape[-1])
    ]
    return _sigmoid(np.stack(sums, -1) + bias)


def _pooled(x, layers, copy):
    x = _convolved(x, layers[0], copy)
    x = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
    x = _convolved(_convolved(x, layers[1], copy), layers[2], copy)
    x = np.kron(x, np.ones((2, 2, 1)))
    return _convolved(_convolved(x, layers[3], copy), layers[4], copy)


def _plain(x, layers, copy):
    for layer in layers:
        x = _convolved(x, layer, copy)
    return x


def test_both_architectures_are_those_of_a_naive_stack(float64, rng):
    model, variables, images, _ = _drawn(rng, "float64")
    found = rebuild(model, variables, images.astype(jnp.float64))
    assert found.shape == (2, COPIES, 4, *SHAPE) and found.dtype == jnp.float64
    for place, (naive, depth) in enumerate(((_pooled, 5), (_plain, 3))):
        network = variables["params"][f"networks_{place}"]
        layers = [network[f"Conv_{i}"] for i in range(depth)]
        assert len(network) == depth
        for copy, i in np.ndindex(COPIES, 4):
            wanted = 255 * naive(np.asarray(images[i]) / 255, layers, copy)
            np.testing.assert_allclose(found[place, copy, i], wanted, atol=1e-9)


def test_parameters_and_types_meet_at_the_wider_one(float64, rng):
    model, variables, images, _ = _drawn(rng, "float64")
    whole = rebuild(model, variables, images)
    assert whole.dtype == jnp.float64
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
    assert rebuild(model, narrow, images).dtype == jnp.float32
    assert rebuild(model, narrow, images.astype(jnp.float16)).dtype == jnp.float32
    assert rebuild(model, narrow, images.astype(jnp.float64)).dtype == jnp.float64
    np.testing.assert_allclose(rebuild(model, narrow, images), whole, atol=0.01)


def test_the_sizes_are_those_of_the_paper():
    def count(model, shape):
        images = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
        first = functools.partial(magnet.init, model)
        shapes = jax.eval_shape(first, jax.random.key(0), images)["params"]
        return [sum(a.size for a in jax.tree.leaves(shapes[n])) for n in sorted(shapes)]

    # Nine weights for every pair of maps and one bias for every map.
    assert count(magnet.MagNet(), (28, 28, 1)) == [30 + 3 * 84 + 28, 30 + 84 + 28]
    colour = magnet.MagNet(("plain",), features=32)
    assert count(colour, (32, 32, 3)) == [896 + 9248 + 867]


def test_first_weights_differ_between_copies():
    images = jnp.zeros((1, *SHAPE), jnp.uint8)
    params = init(MODEL, jax.random.key(0), images)["params"]
    for network in params.values():
        for layer in network.values():
            kernels = np.asarray(layer["kernel"])
            assert kernels.shape[0] == COPIES
            assert np.ptp(kernels, axis=0).min() > 0


def test_reform_takes_the_copy_that_chosen_names_and_rounds(rng):
    model, variables, images, key = _drawn(rng)
    wanted = 255 * _picked(model, variables, images, key)[0]
    floating = reformed(model, variables, images, key)
    np.testing.assert_allclose(floating, wanted, atol=1e-3)
    found = reform(model, variables, images, key)
    assert found.dtype == jnp.uint8 and found.shape == images.shape
    np.testing.assert_array_equal(found, np.rint(floating))
    copies = np.asarray(rebuild(model, variables, images))[0]
    assert len(set(np.asarray(chosen(model, key)).tolist())) == COPIES
    assert np.abs(copies[0] - copies[1]).max() > 1


@pytest.mark.parametrize("bias, level", [(1e4, 255), (-1e4, 0)])
def test_reformed_levels_reach_both_ends(rng, bias, level):
    model, variables, images, key = _drawn(rng)
    variables["params"]["networks_0"]["Conv_4"]["bias"] += bias
    found = reform(model, variables, images, key)
    np.testing.assert_array_equal(found, level)


def test_all_copies_are_chosen_equally_often():
    key = jax.random.split(jax.random.key(3), 3000)
    copies = np.asarray(magnet.chosen(MODEL, key))
    counts = np.bincount(copies)
    assert len(counts) == COPIES
    # Four standard deviations.
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(3000 * 2 / 9)
    assert not np.asarray(magnet.chosen(magnet.MagNet(), key)).any()


def test_an_image_is_reformed_alike_in_any_company(rng):
    model, variables, images, key = _drawn(rng)
    together = np.asarray(reformed(model, variables, images, key))
    for order in ([2, 0, 3, 1], [3, 3, 3, 2]):
        order = np.array(order)
        again = reformed(model, variables, images[order], key[order])
        np.testing.assert_allclose(again, together[order], atol=1e-3)


def test_slopes_go_through_the_reformer_alone_of_each_image(rng):
    model, variables, images, key = _drawn(rng)

    @jax.jit
    def slope(images):
        def total(images):
            return jnp.sum(magnet.reformed(model, variables, images, key)[1] ** 2)

        return jax.grad(total)(images)

    found = np.asarray(slope(images.astype(jnp.float32)))
    assert np.isfinite(found).all() and np.abs(found[1]).max() > 0
    assert not found[[0, 2, 3]].any()


@pytest.mark.parametrize("autoencoder", [0, 1])
@pytest.mark.parametrize("power", [1, 2])
def test_errors_are_means_over_an_images_values(rng, autoencoder, power):
    model, variables, images, key = _drawn(rng)
    rebuilt = _picked(model, variables, images, key)[autoencoder]
    found = errors(model, variables, images, key, autoencoder=autoencoder, power=power)
    for i, image in enumerate(np.asarray(images)):
        distances = [
            abs(image[at] / 255 - rebuilt[i][at]) ** power for at in np.ndindex(SHAPE)
        ]
        assert float(found[i]) == pytest.approx(sum(distances) / len(distances), 1e-4)


@settings(deadline=None, max_examples=50)
@given(
    hnp.arrays(np.float64, (2, 5, 4), elements=st.floats(-50, 50)),
    st.sampled_from([0.5, 1.0, 10.0, 40.0]),
)
def test_the_divergence_is_scipys_and_lies_within_its_bounds(logits, temperature):
    laws = np.exp(logits / temperature - (logits / temperature).max(-1, keepdims=True))
    laws /= laws.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a root of just below zero
        root = spatial.distance.jensenshannon(laws[0], laws[1], axis=-1)
    with jax.enable_x64(True):
        pair = jnp.asarray(logits)
        found = magnet.jensen_shannon(pair[0], pair[1], temperature=temperature)
        mirrored = magnet.jensen_shannon(pair[1], pair[0], temperature=temperature)
        assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, np.nan_to_num(root) ** 2, atol=1e-12)
    np.testing.assert_allclose(found, mirrored, atol=1e-15)
    assert np.all(np.asarray(found) >= 0)
    assert np.all(np.asarray(found) <= np.log(2) + 1e-12)


def test_small_divergences_survive_single_precision(rng):
    """Those of a confident classifier at a high temperature."""
    first = (100 * rng.normal(size=(20, 10))).astype(np.float32)
    second = first + rng.normal(size=first.shape).astype(np.float32) / 10
    found = magnet.jensen_shannon(first, second, temperature=40.0)
    with jax.enable_x64(True):
        exact = magnet.jensen_shannon(
            first.astype(np.float64), second.astype(np.float64), temperature=40.0
        )
    assert np.asarray(exact).max() < 1e-5
    np.testing.assert_allclose(found, exact, rtol=0.01)
    assert not np.asarray(magnet.jensen_shannon(first, first)).any()


SATURATED = [
    ([1e4, 0, -1e4], [-1e4, 0, 1e4], np.log(2)),
    ([1e30, 0, 0], [0, 0, 1e30], np.log(2)),
    ([0, -np.inf, -np.inf], [-np.inf, 0, -np.inf], np.log(2)),
    ([0, -np.inf, -np.inf], [5, -np.inf, -np.inf], 0),
    ([3e38, 0, 0], [3e38, 0, 0], 0),
    # Their mixture gives 3/4 and 1/4.
    ([0, 0, -np.inf], [0, -np.inf, -np.inf], 0.75 * np.log(4 / 3)),
]


@pytest.mark.parametrize("first, second, wanted", SATURATED)
def test_impossible_classes_leave_numbers_and_slopes(first, second, wanted):
    pair = [jnp.asarray(logits, jnp.float32) for logits in (first, second)]
    found, slopes = jax.value_and_grad(magnet.jensen_shannon, (0, 1))(*pair)
    assert np.isfinite(slopes).all()
    assert float(found) == pytest.approx(wanted, abs=1e-5)


def test_slopes_of_the_divergence_are_those_of_differences(float64, rng):
    first, second = jnp.asarray(3 * rng.normal(size=(2, 6)))
    function = functools.partial(magnet.jensen_shannon, second=second, temperature=2.0)
    found = jax.grad(function)(first)
    for i, step in enumerate(1e-5 * np.eye(6)):
        wanted = (function(first + step) - function(first - step)) / 2e-5
        assert float(found[i]) == pytest.approx(float(wanted), abs=1e-9)


def test_detectors_score_by_error_and_by_divergence(float64, rng):
    model, variables, images, key = _drawn(rng, "float64")
    images = images.astype(jnp.float64)
    classifier = _classifier(rng, "float64")
    detectors = (
        magnet.Detector("far", 0, power=2),
        magnet.Detector("near", 1, power=1),
        magnet.Detector("unsure", 1, temperature=3.0),
    )
    given = model, variables, images, key
    options = {"logits_fn": linear, "classifier_variables": classifier}
    found = scores(*given, detectors=detectors, **options)
    wanted = [
        errors(*given, autoencoder=0, power=2),
        errors(*given, autoencoder=1, power=1),
        divergences(*given, autoencoder=1, temperature=3.0, **options),
    ]
    np.testing.assert_allclose(found, np.stack(wanted), atol=1e-12)
    rebuilt = 255 * _picked(model, variables, images, key)[1]
    logits = [np.asarray(linear(classifier, x)) / 3 for x in (images, rebuilt)]
    laws = [np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits]
    root = spatial.distance.jensenshannon(*laws, axis=-1)
    np.testing.assert_allclose(found[2], root**2, atol=1e-12)
    assert np.asarray(found).min() > 1e-6


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_papers_detectors_score_images(name, rng):
    images = jnp.asarray(data.sample(name)[0][:2])
    options = {"autoencoders": ("plain",)} if name == "cifar10" else {}
    model = magnet.MagNet(copies=2, **options)
    detectors = magnet.detectors_of(model)
    variables = _random(rng, model, images)
    weights = jnp.asarray(rng.normal(size=(images[0].size, 3)), jnp.float32)
    found = scores(
        model,
        variables,
        images,
        jax.random.split(jax.random.key(1), 2),
        detectors=detectors,
        logits_fn=linear,
        classifier_variables=(weights, jnp.zeros(3)),
    )
    assert found.shape == (len(detectors), 2) and np.isfinite(found).all()
    assert len({detector.name for detector in detectors}) == len(detectors)


def test_one_score_above_its_threshold_is_enough():
    scores = jnp.array([[0.0, 2, 1, 0, np.nan], [5, 5, 5, 6, 0]])
    found = reject.rejected(scores, jnp.array([1.0, 5]))
    np.testing.assert_array_equal(found, [False, True, False, True, True])


def test_without_noise_the_loss_is_the_mean_squared_error(rng):
    model, variables, images, _ = _drawn(rng)
    found, parts = loss(model, variables, images, jax.random.key(0), noise=0.0)
    rebuilt = np.asarray(rebuild(model, variables, images)) / 255
    wanted = np.mean((rebuilt - np.asarray(images) / 255) ** 2)
    assert float(found) == float(parts["reconstruction"])
    assert float(found) == pytest.approx(wanted, 1e-5)
    spread = np.mean((rebuilt - rebuilt.mean(1, keepdims=True)) ** 2)
    assert float(parts["diversity"]) == pytest.approx(spread, 1e-4)
    other, _ = loss(
        model, variables, images, jax.random.key(0), noise=0.0, diversity=0.5
    )
    assert float(other) == pytest.approx(wanted - spread / 2, 1e-4)
    assert float(other) < float(found)


def test_equal_copies_are_not_diverse(rng):
    model, variables, images, _ = _drawn(rng)
    same = jax.tree.map(lambda leaf: leaf[:1].repeat(COPIES, 0), variables)
    _, parts = loss(model, same, images, jax.random.key(0), noise=0.1)
    assert float(parts["diversity"]) < 1e-12


def test_noise_has_its_deviation_and_stays_within_the_range(monkeypatch):
    seen = []

    def watched(model, variables, images):
        seen.append(np.asarray(images) / 255)
        return images[None, None]

    monkeypatch.setattr("pixeldefend.models.magnet.reconstructions", watched)
    images = jnp.asarray(np.repeat([0, 127, 255], 400).astype(np.uint8))
    images = images.reshape(3, 20, 20, 1)
    for key in (0, 0, 1):
        magnet.loss(MODEL, {}, images, jax.random.key(key), noise=0.1)
    one, again, other = seen
    assert one.min() == 0 and one.max() == 1
    moved = one - np.asarray(images) / 255
    assert moved[1].std() == pytest.approx(0.1, rel=0.15)
    assert abs(moved[1].mean()) < 0.02
    assert np.all(moved[0] >= 0) and np.all(moved[2] <= 1e-6)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1


@pytest.mark.slow
def test_training_lowers_the_loss_and_diversity_spreads_the_copies():
    images = jnp.asarray(data.sample("mnist")[0][:16, 6:22, 6:22])
    model = magnet.MagNet(copies=2)
    optimiser = optax.adam(0.02)

    @functools.partial(jax.jit, static_argnums=1)
    def trained(key, steps, diversity):
        def objective(variables, key):
            return magnet.loss(model, variables, images, key, diversity=diversity)

        def step(carry, key):
            variables, state = carry
            slopes = jax.value_and_grad(objective, has_aux=True)
            (_, parts), slope = slopes(variables, key)
            updates, state = optimiser.update(slope, state, variables)
            return (optax.apply_updates(variables, updates), state), parts

        variables = magnet.init(model, key, images)
        carry = variables, optimiser.init(variables)
        return jax.lax.scan(step, carry, jax.random.split(key, steps))[1]

    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        alone = trained(jax.random.key(0), 120, 0.0)
        together = trained(jax.random.key(0), 120, 0.9)
    squares = np.asarray(alone["reconstruction"])
    assert squares[-1] < squares[0] / 4
    assert squares[-1] < np.var(np.asarray(images) / 255) / 4
    assert together["diversity"][-1] > 2 * alone["diversity"][-1]


def test_a_description_survives_json():
    for model in (magnet.MagNet(), magnet.MagNet(("plain",), features=32, copies=8)):
        written = json.loads(json.dumps(magnet.describe(model)))
        assert set(written) == {"autoencoders", "features", "copies"}
        again = magnet.make(**written)
        assert again == model and hash(again) == hash(model)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"autoencoders": ()}, "autoencoders"),
        ({"autoencoders": ["pooled", "deep"]}, "autoencoders"),
        ({"features": 0}, "features"),
        ({"features": 3.0}, "features"),
        ({"copies": 0}, "copies"),
        ({"copies": True}, "copies"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        magnet.make(**options)


def test_mistakes_are_named(rng):
    model, variables, images, key = _drawn(rng)
    error = functools.partial(errors, model, variables, images, key)
    for autoencoder in (-1, 2):
        with pytest.raises(ValueError, match="autoencoder"):
            error(autoencoder=autoencoder)
    with pytest.raises(ValueError, match="power"):
        error(power=0)
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature"):
            magnet.jensen_shannon(jnp.zeros(2), jnp.zeros(2), temperature=temperature)
    unsure = magnet.Detector("unsure", 0, temperature=1.0)
    with pytest.raises(ValueError, match="logits_fn"):
        magnet.scores(model, variables, images, key, detectors=(unsure,))
    for options in ({}, {"power": 1, "temperature": 1.0}):
        with pytest.raises(ValueError, match="odd: .*power or temperature"):
            magnet.Detector("odd", 0, **options)
    with pytest.raises(ValueError, match=r"pooled\+plain or plain, not plain\+pooled"):
        magnet.detectors_of(magnet.MagNet(("plain", "pooled")))
    assert len(magnet.detectors_of(magnet.MagNet())) == 2
    assert len(magnet.detectors_of(magnet.MagNet(("plain",)))) == 3


@pytest.mark.parametrize("shape", [(7, 4, 1), (4, 7, 1)])
def test_odd_sizes_are_refused_where_they_are_halved(shape):
    images = jnp.zeros((1, *shape), jnp.uint8)
    with pytest.raises(ValueError, match=f"even: {shape[0]} x {shape[1]}"):
        jax.eval_shape(functools.partial(magnet.init, MODEL), jax.random.key(0), images)
    first = functools.partial(magnet.init, magnet.MagNet(("plain",)))
    shapes = jax.eval_shape(first, jax.random.key(0), images)
    assert list(shapes["params"]) == ["networks_0"]
