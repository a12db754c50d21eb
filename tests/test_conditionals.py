import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from pixeldefend.density import conditionals, pixelcnn


def _family(kind, channels, dtype="float64", mixtures=3):
    return conditionals.named(
        kind, mixtures=mixtures, channels=channels, dtype=jnp.dtype(dtype)
    )


def _random(family, rng, count=5, spread=1.0):
    """Head outputs `[count, P]`, head parameters, and levels `[count, C]`."""
    dtype = family.dtype
    outputs = jnp.asarray(spread * rng.normal(size=(count, family.num_outputs)), dtype)
    head = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), dtype), family.head_parameters()
    )
    images = jnp.asarray(rng.integers(0, 256, (count, family.channels), dtype=np.uint8))
    return outputs, head, images


def _textbook(kind, outputs, image):
    """Log-probability of one pixel by differences of logistic functions."""
    channels, mixtures = len(image), 3
    split = np.asarray(outputs, np.longdouble).reshape(-1, mixtures)
    weights = split[0] - special.logsumexp(np.asarray(split[0], float))
    means = split[1 : 1 + channels].copy()
    scales = np.exp(np.maximum(split[1 + channels : 1 + 2 * channels], -7))
    coefficients = np.tanh(split[1 + 2 * channels :])
    units = (image.astype(np.longdouble) - 127.5) / 127.5
    if channels == 3:
        means[1] += coefficients[0] * units[0]
        means[2] += coefficients[1] * units[0] + coefficients[2] * units[1]
    masses = []
    for c, level in enumerate(image):
        if kind == "independent":
            low, high = -1 + 2 * int(level) / 256, -1 + 2 * (int(level) + 1) / 256
        else:
            low, high = units[c] - 1 / 255, units[c] + 1 / 255
        above = 1 / (1 + np.exp(-(high - means[c]) / scales[c]))
        below = 1 / (1 + np.exp(-(low - means[c]) / scales[c]))
        above = np.ones_like(above) if level == 255 else above
        below = np.zeros_like(below) if level == 0 else below
        masses.append(above - below)
    if kind == "joint":
        return np.log(np.sum(np.exp(weights) * np.prod(masses, axis=0)))
    return np.sum([np.log(np.sum(np.exp(weights) * mass)) for mass in masses])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", conditionals.CONDITIONALS)
def test_conditionals_sum_to_one(kind, channels, float64, rng):
    family = _family(kind, channels)
    outputs, head, images = _random(family, rng)
    log_probs = conditionals.level_log_probs(family, head, outputs, images)
    assert log_probs.shape == (5, channels, 256)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", conditionals.CONDITIONALS)
def test_log_prob_is_the_sum_of_level_log_probs(kind, channels, float64, rng):
    family = _family(kind, channels)
    outputs, head, images = _random(family, rng)
    rows = conditionals.level_log_probs(family, head, outputs, images)
    taken = np.take_along_axis(np.asarray(rows), np.asarray(images)[..., None], -1)
    found = conditionals.log_prob(family, head, outputs, images)
    np.testing.assert_allclose(found, taken.sum((1, 2)), rtol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["independent", "joint"])
def test_mixtures_agree_with_the_textbook(kind, channels, float64, rng):
    family = _family(kind, channels)
    outputs, head, images = _random(family, rng, count=40)
    images = images.at[0].set(0).at[1].set(255)
    expected = [
        _textbook(kind, o, i) for o, i in zip(outputs, np.asarray(images), strict=True)
    ]
    found = conditionals.log_prob(family, head, outputs, images)
    np.testing.assert_allclose(found, np.array(expected, float), rtol=1e-9)


def test_joint_couples_the_channels_and_independent_does_not(float64, rng):
    outputs, head, images = _random(_family("joint", 3), rng)
    # Without coefficients only the components' weights can carry red to green.
    outputs = outputs.at[:, -9:].set(0.0)
    changed = images.at[:, 0].set(255 - images[:, 0])
    for kind, moves in (("joint", True), ("independent", False)):
        family = _family(kind, 3)
        green = [
            np.asarray(conditionals.level_log_probs(family, head, outputs, x))[:, 1]
            for x in (images, changed)
        ]
        assert (np.abs(green[0] - green[1]).max() > 1e-6) == moves


def test_softmax_reads_the_tables_of_the_earlier_channels(float64, rng):
    family = _family("softmax", 3)
    outputs, head, images = _random(family, rng)
    found = conditionals.level_log_probs(family, head, outputs, images)
    red, green = np.asarray(images)[:, 0], np.asarray(images)[:, 1]
    table = np.asarray(head["tables"])
    logits = np.asarray(outputs).reshape(-1, 3, 256)
    logits = logits + np.stack(
        [0 * table[0][red], table[0][red], table[1][red] + table[2][green]], axis=1
    )
    expected = logits - special.logsumexp(logits, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@settings(deadline=None, max_examples=30)
@given(
    level=st.integers(0, 255),
    mean=st.floats(-1.5, 1.5),
    log_scale=st.floats(-9, 39),
    kind=st.sampled_from(["independent", "joint"]),
)
def test_float32_is_exact_far_out_in_the_tails(level, mean, log_scale, kind):
    outputs = np.array([0.0, mean, log_scale])
    found = {}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            rows = conditionals.level_log_probs(
                _family(kind, 1, dtype, mixtures=1),
                {},
                jnp.asarray(outputs[None], dtype),
                jnp.zeros((1, 1), jnp.uint8),
            )
            found[dtype] = np.asarray(rows)[0, 0, level]
    assert np.isfinite(found["float32"])
    np.testing.assert_allclose(found["float32"], found["float64"], rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("log_scale", [30.0, 40.0, 90.0, 1e6])
@pytest.mark.parametrize("kind", ["independent", "joint"])
def test_no_log_scale_is_so_large_that_nothing_is_left(kind, log_scale):
    """The inner bins share next to nothing, the open ones half of all each."""
    family = _family(kind, 3, "float32", mixtures=1)
    outputs = np.zeros((1, family.num_outputs), np.float32)
    outputs[:, 4:7] = log_scale
    images = jnp.array([[0, 255, 100]], jnp.uint8)
    rows = conditionals.level_log_probs(family, {}, jnp.asarray(outputs), images)
    np.testing.assert_allclose(rows[0, :, [0, 255]], np.log(0.5), rtol=1e-5)
    inner = np.log(1 / 127.5 if kind == "joint" else 1 / 128)
    inner += -min(log_scale, 40) - np.log(4)  # the density at its mean
    np.testing.assert_allclose(rows[0, :, 1:255], inner, rtol=1e-5)
    found = conditionals.log_prob(family, {}, jnp.asarray(outputs), images)
    np.testing.assert_allclose(found, [2 * np.log(0.5) + inner], rtol=1e-5)


@pytest.mark.parametrize("kind", conditionals.CONDITIONALS)
def test_floating_levels_agree_with_integers_and_have_gradients(kind, rng):
    family = _family(kind, 3, "float32")
    outputs, head, images = _random(family, rng, count=8)
    images = images.at[0].set(0).at[1].set(255)
    floating = images.astype(jnp.float32)
    total = lambda x: conditionals.log_prob(family, head, outputs, x)  # noqa: E731
    np.testing.assert_allclose(total(floating), total(images), rtol=1e-5)
    gradient = jax.grad(lambda x: total(x).sum())(floating)
    assert np.isfinite(gradient).all() and np.abs(gradient[2:]).max() > 0


def test_a_window_scores_as_the_whole_range_does(float64, rng):
    for kind in conditionals.CONDITIONALS:
        family = _family(kind, 1)
        outputs, head, _ = _random(family, rng)
        state = family.read(head, outputs.T)
        whole = family.log_mass(state, 0, jnp.zeros(5, jnp.int32), 256)
        first = jnp.array([0, 10, 100, 200, 239], jnp.int32)
        window = family.log_mass(state, 0, first, 17)
        rows = np.asarray(first)[None] + np.arange(17)[:, None]
        expected = np.take_along_axis(np.asarray(whole), rows, axis=0)
        np.testing.assert_allclose(window, expected, rtol=1e-9)


def test_outputs_are_counted_as_in_the_paper():
    count = lambda **kw: pixelcnn.PixelCNN(**kw).family.num_outputs  # noqa: E731
    assert count(channels=3, mixtures=10) == 100
    assert count(channels=1, mixtures=10) == 30
    assert count(channels=3, conditionals="softmax") == 768


def test_families_are_static_arguments():
    for kind in conditionals.CONDITIONALS:
        family = pixelcnn.PixelCNN(conditionals=kind).family
        assert family == pixelcnn.PixelCNN(conditionals=kind).family
        assert hash(family) == hash(pixelcnn.PixelCNN(conditionals=kind).family)
    kinds = {
        pixelcnn.PixelCNN(conditionals=k).family for k in conditionals.CONDITIONALS
    }
    assert len(kinds) == 3


@pytest.mark.parametrize("kind", conditionals.CONDITIONALS)
def test_the_last_channel_conditions_nothing(kind, rng):
    family = _family(kind, 3, "float32")
    outputs, head, images = _random(family, rng)
    state = family.read(head, outputs.T)
    after = family.condition(state, 2, images[:, 2])
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(one, other)
