import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import linear
from scipy import integrate, signal, special, stats

from pixeldefend.defences import puvae
from pixeldefend.experiment import data

# Of which the decoder's sizes are cut, and no two axes are alike.
SHAPE = (12, 10, 1)
CLASSES = 3
SAMPLES = 3
COUNT = 8
MODEL = puvae.PuVAE(divisor=16, shape=SHAPE, latents=4, classes=CLASSES)
COLOUR = puvae.PuVAE("D", shape=(9, 8, 3), latents=5, divisor=16, classes=CLASSES)
WEIGHTS = puvae.Weights(2.0, 0.5, 3.0)

# Programs take seconds to compile, so that tests share them.


@functools.partial(jax.jit, static_argnums=0)
def _every(model, params, images, keys, noise):
    return puvae.reconstructions(
        model, params, images, keys, samples=SAMPLES, noise=noise
    )


def every(*given, noise=1.0):
    return _every(*given, jnp.asarray(noise))


@functools.partial(jax.jit, static_argnums=0)
def _nearest(model, params, images, keys, noise, towards, far):
    def rebuilt(images):
        found = puvae.reconstruct(
            model, params, images, keys, samples=SAMPLES, noise=noise
        )
        return (found.images, found.rmse), found

    _, back, found = jax.vjp(rebuilt, images, has_aux=True)
    slopes = jax.vmap(back)(
        (
            jnp.stack([towards, jnp.zeros_like(towards)]),
            jnp.stack([jnp.zeros_like(far), far]),
        )
    )
    return found, *slopes[0]


def nearest(model, params, images, keys, noise=1.0, towards=None, far=None):
    """The nearest; the slopes of values times `towards` and of distances by `far`."""
    towards = np.zeros(images.shape) if towards is None else towards
    far = np.zeros(len(images)) if far is None else far
    return _nearest(
        model, params, images, keys, *map(jnp.asarray, (noise, towards, far))
    )


@functools.partial(jax.jit, static_argnums=0)
def posterior(model, params, images, labels):
    features = model.apply(params, images, method="features")
    return model.apply(params, features, labels, method="posterior")


@functools.partial(jax.jit, static_argnums=0)
def decode(model, params, latents, labels):
    return model.apply(params, latents, labels, method="decode")


def _random(rng, model, bias=0.5):
    """Parameters of which every number matters, so that classes and draws differ."""
    abstract = _shapes(model)

    def drawn(leaf):
        kernel = len(leaf.shape) > 1
        scale = 2 / np.sqrt(np.prod(leaf.shape[:-1])) if kernel else bias
        return jnp.asarray(scale * rng.normal(size=leaf.shape))

    return jax.tree.map(drawn, abstract)


def _shapes(model):
    images = jax.ShapeDtypeStruct((1, *model.shape), jnp.uint8)
    first = functools.partial(puvae.init, model)
    return jax.eval_shape(first, jax.random.key(0), images)


def _drawn(rng, model=MODEL):
    """A model, its parameters, images and a key for each, all in double precision."""
    params = _random(rng, model)
    images = rng.integers(0, 256, (COUNT, *model.shape)).astype(float)
    return (
        model,
        params,
        jnp.asarray(images),
        jax.random.split(jax.random.key(1), COUNT),
    )


# What follows is the networks in numpy, one image and one label at a time.


def _relu(x):
    return np.maximum(x, 0)


def _dense(x, layer):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer.get("bias", 0))


def _convolved(x, layer, holes=1):
    """`[H, W, I]`, of the same size; of an even kernel more lies below and right."""
    kernel = np.asarray(layer["kernel"])
    wide = np.zeros(
        (*(holes * (n - 1) + 1 for n in kernel.shape[:2]), *kernel.shape[2:])
    )
    wide[::holes, ::holes] = kernel
    around = [((n - 1) // 2, n // 2) for n in wide.shape[:2]]
    x = np.pad(x, (*around, (0, 0)))
    sums = [
        sum(
            signal.correlate2d(x[..., i], wide[..., i, o], mode="valid")
            for i in range(x.shape[-1])
        )
        for o in range(wide.shape[-1])
    ]
    return np.stack(sums, -1) + np.asarray(layer["bias"])


def _doubled(x, layer):
    """Every value is spread by the kernel, turned, around where it goes."""
    kernel = np.asarray(layer["kernel"])
    size = len(kernel)
    height, width, _ = x.shape
    found = np.zeros((2 * height + size, 2 * width + size, kernel.shape[-1]))
    for i, j in np.ndindex(height, width):
        spread = np.einsum("i,hwio->hwo", x[i, j], kernel[::-1, ::-1])
        found[2 * i : 2 * i + size, 2 * j : 2 * j + size] += spread
    first = size - 1 - (size + 1) // 2
    found = found[first : first + 2 * height, first : first + 2 * width]
    return found + np.asarray(layer["bias"])


def _naive(model, params, image, label):
    """Log-odds of white of one image, from the mean of z."""
    p = params["params"]
    one_hot = np.eye(model.classes)[label]
    x = np.asarray(image, float) / 127.5 - 1
    holes = {"C": (2, 2, 2), "D": (1, 2, 2, 2)}[model.variant]
    for place, apart in enumerate(holes):
        x = _relu(_convolved(x, p[f"convolutions_{place}"], apart))
    x = _relu(_dense(x.reshape(-1), p["of_image"]) + _dense(one_hot, p["of_label"]))
    if model.variant == "C":
        x = _relu(_dense(x, p["hidden_0"]))
    x = np.append(_dense(x, p["mean"]), one_hot)
    if model.variant == "D":
        x = _relu(_dense(x, p["dense_0"]))
    height, width = model.shape[:2]
    part = {"C": 8, "D": 2}[model.variant]
    sizes = -(-height // part), -(-width // part)
    x = _relu(_dense(x, p["grid"])).reshape(*sizes, -1)
    for place in range(3):
        layer = p[f"steps_{place}"]
        if model.variant == "C" or place == 2:
            part //= 2
            x = _doubled(x, layer)[: -(-height // part), : -(-width // part)]
        else:
            x = _convolved(x, layer)
        x = _relu(x)
    return _convolved(x, p["last"])


@pytest.mark.parametrize("model", [MODEL, COLOUR])
def test_both_variants_are_those_of_a_naive_stack(float64, rng, model):
    model, params, images, keys = _drawn(rng, model)
    found, _ = every(model, params, images, keys, noise=0.0)
    assert found.shape == (COUNT, SAMPLES, CLASSES, *model.shape)
    assert found.dtype == jnp.float64
    for i, label in np.ndindex(2, CLASSES):
        wanted = 255 * special.expit(_naive(model, params, images[i], label))
        assert np.ptp(wanted) > 1
        for sample in range(SAMPLES):
            np.testing.assert_allclose(found[i, sample, label], wanted, atol=1e-9)


def test_the_sizes_are_those_of_table_6():
    def count(layers):
        return sum(leaf.size for leaf in jax.tree.leaves(layers))

    found = _shapes(puvae.PuVAE())["params"]
    conv = 49 * 32 * 32 + 32
    deconvs = {f"steps_{i}": conv for i in range(3)}
    assert {name: count(layers) for name, layers in found.items()} == deconvs | {
        "convolutions_0": 49 * 32 + 32,
        "convolutions_1": conv,
        "convolutions_2": conv,
        "of_image": 28 * 28 * 32 * 1024 + 1024,
        "of_label": 10 * 1024,
        "hidden_0": 1024 * 1024 + 1024,
        "mean": 1024 * 32 + 32,
        "deviation": 1024 * 32 + 32,
        "grid": (32 + 10) * 512 + 512,
        "last": 9 * 32 + 1,
    }
    found = _shapes(puvae.PuVAE("D", shape=(32, 32, 3), latents=1024))["params"]
    conv = 4 * 32 * 32 + 32
    assert {name: count(layers) for name, layers in found.items()} == {
        "convolutions_0": 4 * 3 * 3 + 3,
        "convolutions_1": 4 * 3 * 32 + 32,
        "convolutions_2": conv,
        "convolutions_3": conv,
        "of_image": 32 * 32 * 32 * 1024 + 1024,
        "of_label": 10 * 1024,
        "mean": 1024 * 1024 + 1024,
        "deviation": 1024 * 1024 + 1024,
        "dense_0": (1024 + 10) * 1024 + 1024,
        "grid": 1024 * 8192 + 8192,
        "steps_0": conv,
        "steps_1": conv,
        "steps_2": 9 * 32 * 32 + 32,
        "last": 4 * 32 * 3 + 3,
    }


@pytest.mark.parametrize("variant", ["C", "D"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (8, 9, 1), (13, 31, 3)])
def test_decoding_gives_the_size_of_an_image(variant, shape):
    model = puvae.PuVAE(variant, shape=shape, latents=4, divisor=32)
    apply = functools.partial(model.apply, method="decode")
    latents = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    found = jax.eval_shape(apply, _shapes(model), latents, labels)
    assert found.shape == (2, *shape)
    whole = jax.ShapeDtypeStruct((2, *shape), jnp.uint8)
    assert jax.eval_shape(model.apply, _shapes(model), whole, labels).shape == (
        found.shape
    )


NUMBERS = st.floats(-3, 3), st.floats(0.05, 3)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(*NUMBERS), min_size=2, max_size=2))
def test_the_divergence_is_a_sum_of_integrals(laws):
    def density(x, mean, deviation):
        own = stats.norm.logpdf(x, mean, deviation)
        return np.exp(own) * (own - stats.norm.logpdf(x))

    wanted = sum(
        integrate.quad(density, m - 12 * s, m + 12 * s, (m, s), epsabs=1e-10)[0]
        for m, s in laws
    )
    with jax.enable_x64(True):
        found = puvae.divergence(*map(jnp.asarray, zip(*laws, strict=True)))
    assert float(found) == pytest.approx(wanted, abs=1e-7)
    assert float(found) > -1e-12


def test_the_divergence_is_taken_of_each_image_and_nothing_of_the_prior(rng):
    mean, deviation = rng.normal(size=(4, 6)), rng.uniform(0.1, 2, (4, 6))
    found = puvae.divergence(jnp.float32(mean), jnp.float32(deviation))
    assert found.shape == (4,)
    one = puvae.divergence(jnp.float32(mean[2]), jnp.float32(deviation[2]))
    np.testing.assert_allclose(found[2], one, rtol=1e-6)
    assert not np.asarray(puvae.divergence(jnp.zeros((3, 6)), jnp.ones((3, 6)))).any()


def test_reconstructions_are_those_of_a_loop_over_labels(float64, rng):
    model, params, images, keys = _drawn(rng)
    found, rmse = every(model, params, images, keys, noise=0.5)
    draws = _draws(keys, model)
    for label in range(CLASSES):
        labels = jnp.full(COUNT, label)
        mean, deviation = map(np.asarray, posterior(model, params, images, labels))
        for sample in range(SAMPLES):
            latents = mean + deviation * 0.5 * draws[:, sample]
            log_odds = np.asarray(decode(model, params, latents, labels))
            wanted = 255 * special.expit(log_odds)
            np.testing.assert_allclose(found[:, sample, label], wanted, atol=1e-9)
            distances = np.sqrt(((wanted - images) ** 2).mean((1, 2, 3)))
            np.testing.assert_allclose(rmse[:, sample, label], distances, rtol=1e-9)


def _draws(keys, model):
    """Of each image: `[B, S, Z]`."""
    size = SAMPLES, model.latents
    return np.stack([jax.random.normal(key, size, "float64") for key in keys])


def test_reconstructions_differ_by_label_and_by_draw(float64, rng):
    found = np.asarray(every(*_drawn(rng))[0])
    for one, other in itertools.combinations(range(CLASSES), 2):
        assert np.abs(found[:, :, one] - found[:, :, other]).max() > 1
    for one, other in itertools.combinations(range(SAMPLES), 2):
        assert np.abs(found[:, one] - found[:, other]).max() > 1


@pytest.mark.slow
def test_the_nearest_of_all_candidates_is_taken(float64, rng):
    model, params, images, keys = _drawn(rng)
    candidates, distances = every(model, params, images, keys)
    found, _, _ = nearest(model, params, images, keys)
    distances = np.asarray(distances)
    chosen = set()
    for i in range(COUNT):
        sample, label = np.unravel_index(np.argmin(distances[i]), distances[i].shape)
        chosen.add((sample, label))
        wanted = candidates[i, sample, label]
        np.testing.assert_allclose(found.images[i], wanted, atol=1e-9)
        assert float(found.rmse[i]) == pytest.approx(distances[i].min(), rel=1e-9)
        assert int(found.labels[i]) == label
    # Or the test would say little.
    assert len({s for s, _ in chosen}) > 1 and len({n for _, n in chosen}) > 1


@pytest.mark.slow
def test_only_so_many_labels_and_samples_are_tried(float64, rng):
    """The first ones; and draws stay what they are when there are more."""
    model, params, images, keys = _drawn(rng)
    candidates, distances = every(model, params, images, keys)
    few = jax.jit(
        functools.partial(puvae.reconstruct, model, labels=2, samples=1, noise=1.0)
    )
    found = few(params, images, keys)
    wanted = np.argmin(distances[:, 0, :2], -1)
    np.testing.assert_array_equal(found.labels, wanted)
    own = np.asarray(candidates)[np.arange(COUNT), 0, wanted]
    np.testing.assert_allclose(found.images, own, atol=1e-9)
    assert len(set(wanted.tolist())) > 1
    # So that more of them never lie farther.
    more = np.asarray(nearest(model, params, images, keys)[0].rmse)
    least = np.asarray(found.rmse)
    assert np.all(more <= least + 1e-9) and np.any(more < least - 0.01)
    shapes = functools.partial(puvae.reconstructions, model, labels=2)
    shapes = jax.eval_shape(shapes, params, images, keys)
    assert [s.shape for s in shapes] == [(COUNT, 1, 2, *SHAPE), (COUNT, 1, 2)]


@pytest.mark.parametrize("order", [[2, 0, 3, 1, 7, 6, 5, 4], [3] * 7 + [2]])
def test_an_image_is_rebuilt_alike_in_any_company(float64, rng, order):
    model, params, images, keys = _drawn(rng)
    order = np.array(order)
    together, _, _ = nearest(model, params, images, keys)
    again, _, _ = nearest(model, params, images[order], keys[order])
    for name in ("images", "rmse", "labels"):
        wanted = np.asarray(getattr(together, name))[order]
        np.testing.assert_allclose(getattr(again, name), wanted, atol=1e-9)


def test_without_noise_a_key_says_nothing_and_with_it_it_does(float64, rng):
    model, params, images, keys = _drawn(rng)
    others = jax.random.split(jax.random.key(5), COUNT)
    for noise, alike in ((0.0, True), (1.0, False)):
        one, other = (
            np.asarray(every(model, params, images, k, noise=noise)[0])
            for k in (keys, others)
        )
        assert np.array_equal(one, other) is alike


def test_purified_is_the_nearest_rounded_in_single_precision_too(float64, rng):
    model, params, images, keys = _drawn(rng)
    whole = images.astype(jnp.uint8)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    purify = jax.jit(functools.partial(puvae.purify, model, samples=2, noise=0.0))
    found = purify(narrow, whole, keys)
    assert found.dtype == jnp.uint8 and found.shape == images.shape
    wanted = np.asarray(nearest(model, params, images, keys, noise=0.0)[0].images)
    assert np.abs(np.asarray(found, float) - wanted).max() < 0.501
    assert len(np.unique(found)) > 20
    for bias, level in ((1e4, 255), (-1e4, 0)):  # levels reach both ends
        end = jax.tree.map(jnp.zeros_like, narrow)
        end["params"]["last"]["bias"] += bias
        np.testing.assert_array_equal(purify(end, whole, keys), level)


@pytest.mark.slow
def test_slopes_are_those_of_the_chosen_reconstruction_alone(float64, rng):
    model, params, images, keys = _drawn(rng)
    towards, far = rng.normal(size=images.shape), rng.normal(size=COUNT)
    given = {"towards": towards, "far": far}
    found, *slopes = nearest(model, params, images, keys, **given)
    flat = np.asarray(every(model, params, images, keys)[1]).reshape(COUNT, -1)
    sample = np.argmin(flat, -1) // CLASSES
    draws = jnp.asarray(_draws(keys, model)[np.arange(COUNT), sample])

    def alone(images):
        mean, deviation = posterior(model, params, images, found.labels)
        log_odds = decode(model, params, mean + deviation * draws, found.labels)
        return 255 / (1 + jnp.exp(-log_odds))

    @jax.jit
    def looked(images):
        rebuilt, back = jax.vjp(alone, images)
        return rebuilt, back(jnp.asarray(towards))[0]

    rebuilt, wanted = looked(images)
    np.testing.assert_allclose(rebuilt, found.images, atol=1e-9)
    np.testing.assert_allclose(slopes[0], wanted, rtol=1e-9, atol=1e-12)
    assert np.abs(slopes[0]).reshape(COUNT, -1).max(1).min() > 0
    # Differences: so small a step that no other comes to be the nearest.
    falling = np.sort(flat)
    assert np.min(falling[:, 1] - falling[:, 0]) > 1e-3
    for direction in rng.normal(size=(3, *images.shape)):
        after, before = (
            nearest(model, params, images + step, keys, **given)[0]
            for step in (1e-5 * direction, -1e-5 * direction)
        )
        differences = (
            float(np.sum(towards * (after.images - before.images))) / 2e-5,
            float(np.sum(far * (after.rmse - before.rmse))) / 2e-5,
        )
        for slope, wanted in zip(slopes, differences, strict=True):
            assert float(np.sum(slope * direction)) == pytest.approx(wanted, rel=1e-4)


def test_slopes_are_of_each_image_alone(float64, rng):
    model, params, images, keys = _drawn(rng)
    only = np.arange(COUNT) == 1
    given = {
        "towards": only[:, None, None, None] * rng.normal(size=SHAPE),
        "far": only.astype(float),
    }
    for slope in nearest(model, params, images, keys, **given)[1:]:
        slope = np.asarray(slope)
        assert np.isfinite(slope).all() and np.abs(slope[1]).max() > 0
        assert not slope[~only].any()


def test_an_image_that_is_met_exactly_has_a_slope(float64, rng):
    model, params, images, keys = _drawn(rng)
    params = jax.tree.map(jnp.zeros_like, params)
    given = {"towards": np.ones(images.shape), "far": np.ones(COUNT)}
    grey = jnp.full_like(images, 127.5)
    found, *slopes = nearest(model, params, grey, keys, **given)
    assert np.max(found.rmse) < 1e-6
    assert not any(np.asarray(slope).any() for slope in slopes)


LABELS = np.array([0, 2, 1, 2, 0, 1, 1, 2])
PARTS = "reconstruction", "divergence", "classification"


@jax.jit
def _loss(params, images, labels, key, classifier, sizes):
    def parts(params):
        total, parts = puvae.loss(
            MODEL,
            params,
            images,
            labels,
            key,
            logits_fn=linear,
            variables=classifier,
            weights=WEIGHTS,
        )
        own = sum(size * parts[n] for size, n in zip(sizes, PARTS, strict=True))
        return own, (total, parts)

    return jax.grad(parts, has_aux=True)(params)


def loss(params, images, key, classifier, sizes=(1.0, 1.0, 1.0), labels=LABELS):
    """With a linear classifier; slopes of the parts times `sizes`, total and parts."""
    sizes = jnp.asarray(sizes, images.dtype)
    return _loss(params, images, jnp.asarray(labels), key, classifier, sizes)


def _losing(rng):
    model, params, images, _ = _drawn(rng)
    weights = rng.normal(size=(np.prod(SHAPE), CLASSES)) / 500
    classifier = jnp.asarray(weights), jnp.asarray(rng.normal(size=CLASSES))
    return params, images, jax.random.key(3), classifier


@pytest.mark.slow
def test_the_loss_is_made_of_its_formulas(float64, rng):
    params, images, key, classifier = _losing(rng)
    _, (total, parts) = loss(params, images, key, classifier)
    mean, deviation = map(np.asarray, posterior(MODEL, params, images, LABELS))
    noise = np.asarray(jax.random.normal(key, mean.shape, "float64"))
    log_odds = decode(MODEL, params, mean + deviation * noise, LABELS)
    white = special.expit(np.asarray(log_odds))
    wanted = np.asarray(images) / 255
    crossed = -wanted * np.log(white) - (1 - wanted) * np.log(1 - white)
    divergences = (mean**2 + deviation**2 - 1) / 2 - np.log(deviation)
    weight, bias = map(np.asarray, classifier)
    logits = (255 * white).reshape(COUNT, -1) @ weight + bias
    right = special.log_softmax(logits, -1)[np.arange(COUNT), LABELS]
    by_hand = {
        "reconstruction": crossed.mean(),
        "divergence": divergences.sum(1).mean(),
        "classification": -right.mean(),
    }
    hits = np.mean(logits.argmax(-1) == LABELS)
    assert set(parts) == set(by_hand) | {"accuracy"}
    assert 0 < hits < 1 and float(parts["accuracy"]) == hits
    for name, value in by_hand.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-9), name
    whole = sum(getattr(WEIGHTS, name) * value for name, value in by_hand.items())
    assert float(total) == pytest.approx(whole, rel=1e-9)


def test_the_classifier_teaches_every_parameter(float64, rng):
    """Through the reconstruction: those of the encoder and of labels, too."""
    slopes, _ = loss(*_losing(rng), (0.0, 0.0, 1.0))
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.isfinite(slope).all() and np.any(np.asarray(slope)), path


def test_the_prior_teaches_the_encoder_alone(float64, rng):
    slopes, _ = loss(*_losing(rng), (0.0, 1.0, 0.0))
    taught = {
        name
        for name, layer in slopes["params"].items()
        if any(np.asarray(leaf).any() for leaf in jax.tree.leaves(layer))
    }
    convolutions = {f"convolutions_{i}" for i in range(3)}
    heads = {"of_image", "of_label", "hidden_0", "mean", "deviation"}
    assert taught == convolutions | heads


def test_the_latent_noise_is_that_of_the_key(float64, rng):
    params, images, key, classifier = _losing(rng)
    one, again, other = (
        float(loss(params, images, k, classifier)[1][0])
        for k in (key, key, jax.random.key(4))
    )
    assert one == again != other


def test_hopeless_reconstructions_leave_numbers_and_slopes(float64, rng):
    """Certain of white where there is black, and no deviation at all."""
    params, images, key, classifier = _losing(rng)
    params["params"]["last"]["bias"] += 1e4
    params["params"]["deviation"]["bias"] -= 1e4
    slopes, (total, _) = loss(params, images, key, classifier)
    assert np.isfinite(total)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.slow
def test_training_lowers_what_is_wrong(float64, rng):
    images, labels = data.sample("mnist")
    few = np.flatnonzero(labels < CLASSES)[:COUNT]
    images = jnp.asarray(images[few, 8:20, 9:19], float)
    params = _random(rng, MODEL, bias=0.0)
    *_, classifier = _losing(rng)
    means = squares = jax.tree.map(jnp.zeros_like, params)
    history = []
    for step, key in enumerate(jax.random.split(jax.random.key(0), 80), 1):
        slopes, (_, parts) = loss(
            params, images, key, classifier, (1.0, 1e-3, 0.1), labels[few].astype(int)
        )
        history.append([float(parts[name]) for name in PARTS])
        means = jax.tree.map(lambda m, s: 0.9 * m + 0.1 * s, means, slopes)
        squares = jax.tree.map(lambda v, s: 0.99 * v + 0.01 * s**2, squares, slopes)
        size = 0.01 * np.sqrt(1 - 0.99**step) / (1 - 0.9**step)
        params = jax.tree.map(
            lambda p, m, v, size=size: p - size * m / (jnp.sqrt(v) + 1e-8),
            params,
            means,
            squares,
        )
    first, last = np.mean(history[:5], 0), np.mean(history[-5:], 0)
    assert first[0] > 0.65 and last[0] < 0.5  # that of grey is 0.69
    assert last[1] < first[1] and last[2] < first[2] / 2


@pytest.mark.parametrize("model", [puvae.PuVAE(), MODEL, COLOUR])
def test_a_description_survives_json(model):
    written = json.loads(json.dumps(puvae.describe(model)))
    assert set(written) == {"variant", "shape", "latents", "divisor", "classes"}
    again = puvae.PuVAE(**written)
    assert again == model and hash(again) == hash(model)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"variant": "A"}, "variant 'A': one of C, D"),
        ({"shape": (28, 28)}, "shape"),
        ({"shape": (28, 28, 2)}, "shape"),
        ({"shape": (7, 28, 1)}, "shape"),
        ({"shape": (28, 7, 1)}, "shape"),
        ({"shape": (28.0, 28, 1)}, "shape"),
        ({"latents": 0}, "latents"),
        ({"latents": 4.0}, "latents"),
        ({"divisor": 0}, "divisor"),
        ({"divisor": 3}, "divisor"),
        ({"divisor": 64}, "divisor"),
        ({"divisor": True}, "divisor"),
        ({"classes": 1}, "classes"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        puvae.PuVAE(**options)


@pytest.mark.parametrize("name", ["reconstruction", "divergence", "classification"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_weights_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        puvae.Weights(**{name: value})


@pytest.mark.parametrize(
    "function", [puvae.reconstructions, puvae.reconstruct, puvae.purify]
)
def test_mistakes_are_named(rng, function):
    function = functools.partial(function, MODEL)
    params, images = _shapes(MODEL), jnp.zeros((2, *SHAPE), jnp.uint8)
    keys = jax.random.split(jax.random.key(0))
    for labels in (0, CLASSES + 1):
        with pytest.raises(ValueError, match="labels must be from 1 to 3"):
            function(params, images, keys, labels=labels)
    with pytest.raises(ValueError, match="samples must be"):
        function(params, images, keys, samples=0)
    with pytest.raises(ValueError, match=r"takes images \(12, 10, 1\)"):
        function(params, images[:, :8], keys)


def test_first_parameters_need_images_of_the_models_shape():
    with pytest.raises(ValueError, match=r"takes images \(12, 10, 1\), not"):
        puvae.init(MODEL, jax.random.key(0), jnp.zeros((2, 12, 8, 1), jnp.uint8))
