import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pixeldefend.models import classifiers

CIFAR, FASHION = (32, 32, 3), (28, 28, 1)


def _abstract(model, shape):
    images = jax.ShapeDtypeStruct((2, *shape), jnp.uint8)
    init = functools.partial(classifiers.init, model)
    return jax.eval_shape(init, jax.random.key(0), images)


def _kernels(variables):
    flat = traverse_util.flatten_dict(variables["params"])
    return [leaf.shape for path, leaf in flat.items() if path[-1] == "kernel"]


def _count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _resnet_parameters(channels, widths, units, classes=10):
    """By hand from Appendix C.1: no bias in convolutions, two numbers per norm."""
    total, before = 9 * channels * widths[0], widths[0]
    for width in widths:
        for _ in range(units):
            total += 9 * before * width + 9 * width * width + 2 * before + 2 * width
            before = width
    return total + 2 * before + (before + 1) * classes


def _vgg_parameters(channels, blocks, dense, flat, classes=10):
    """By hand from Appendix C.2, convolutions without bias."""
    total, before = 0, channels
    for width, convolutions in blocks:
        for _ in range(convolutions):
            total += 9 * before * width + 2 * width
            before = width
    return total + (flat * before + 1) * dense + (dense + 1) * classes


VGG_BLOCKS = ((16, 2), (128, 2), (512, 3), (512, 3))
VGG_QUARTER = ((4, 2), (32, 2), (128, 3), (128, 3))
TABLES = [
    ("resnet", {}, CIFAR, 62, 950_234, _resnet_parameters(3, (16, 32, 64), 10)),
    (
        "resnet",
        {"divisor": 4},
        FASHION,
        62,
        60_374,
        _resnet_parameters(1, (4, 8, 16), 10),
    ),
    ("vgg", {}, CIFAR, 12, 13_615_866, _vgg_parameters(3, VGG_BLOCKS, 512, 4)),
    (
        "vgg",
        {"divisor": 4},
        FASHION,
        12,
        853_326,
        _vgg_parameters(1, VGG_QUARTER, 128, 4),
    ),
    (
        "resnet",
        {"variant": "code"},
        CIFAR,
        32,
        464_154,
        _resnet_parameters(3, (16, 32, 64), 5),
    ),
]


@pytest.mark.parametrize(
    "architecture, options, shape, layers, number, by_hand", TABLES
)
def test_layers_and_parameters_are_those_of_the_papers_tables(
    architecture, options, shape, layers, number, by_hand
):
    variables = _abstract(classifiers.make(architecture, **options), shape)
    assert len(_kernels(variables)) == layers
    assert _count(variables["params"]) == by_hand == number


@pytest.mark.parametrize("divisor, shape", [(1, CIFAR), (4, FASHION)])
def test_resnet_has_the_papers_widths_and_sizes_in_order(divisor, shape):
    model = classifiers.ResNet(divisor=divisor)
    found = _convolutions(model, shape)
    size = shape[0]
    expected = [(size, 16)] * 21 + [(size // 2, 32)] * 20 + [(size // 4, 64)] * 20
    assert found == [(side, width // divisor) for side, width in expected]


@pytest.mark.parametrize("divisor, shape", [(1, CIFAR), (4, FASHION)])
def test_vgg_has_the_papers_widths_and_sizes_in_order(divisor, shape):
    found = _convolutions(classifiers.VGG(divisor=divisor), shape)
    sizes = (32, 16, 8, 4) if shape == CIFAR else (28, 14, 7, 4)
    assert found == [
        (side, width // divisor)
        for side, (width, times) in zip(sizes, VGG_BLOCKS, strict=True)
        for _ in range(times)
    ]


def _convolutions(model, shape):
    """Side and feature maps of what each convolution gives, in order."""

    def run(variables, images):
        return model.apply(
            variables, images, train=False, capture_intermediates=True, mutable=True
        )

    images = jax.ShapeDtypeStruct((2, *shape), jnp.uint8)
    _, seen = jax.eval_shape(run, _abstract(model, shape), images)
    layers = {
        int(name.removeprefix("Conv_")): layer["__call__"][0].shape
        for name, layer in seen["intermediates"].items()
        if name.startswith("Conv_")
    }
    return [(layers[i][1], layers[i][3]) for i in range(len(layers))]


def test_the_authors_vgg_is_vgg_16_with_one_dense_layer_less():
    model = classifiers.VGG(variant="code")
    widths = [width for _, width in _convolutions(model, CIFAR)]
    assert widths == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert _kernels(_abstract(model, CIFAR))[-2:] == [(512, 512), (512, 10)]
    assert len(_convolutions(classifiers.VGG(variant="code", divisor=4), FASHION)) == 13


@pytest.mark.parametrize(
    "variant, shape, layers, number",
    [("A", FASHION, 4, 924_746), ("B", CIFAR, 6, 22_656_394)],
)
def test_the_thesis_has_these_cnns(variant, shape, layers, number):
    variables = _abstract(classifiers.CNN(variant=variant), shape)
    assert len(_kernels(variables)) == layers
    assert _count(variables["params"]) == number
    assert "batch_stats" not in variables


def test_a_description_makes_the_same_model_and_leaves_devices_out():
    for architecture in classifiers.ARCHITECTURES:
        model = classifiers.make(architecture, divisor=2)
        again = classifiers.make(**classifiers.describe(model.clone(axis_name="x")))
        assert again == model and hash(again) == hash(model)
        assert again.axis_name is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"architecture": "alexnet"}, "unknown architecture"),
        ({"architecture": "resnet", "variant": "A"}, "unknown variant"),
        ({"architecture": "cnn", "variant": "paper"}, "one of A, B"),
        ({"architecture": "vgg", "divisor": 3}, "divisor"),
        ({"architecture": "vgg", "dropout": 1.0}, "dropout"),
        ({"architecture": "resnet", "classes": 1}, "classes"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        classifiers.make(**options)


def test_standardised_images_have_mean_zero_and_deviation_one(rng):
    images = rng.integers(0, 256, (3, *CIFAR), dtype=np.uint8)
    images[1] = 7  # constant
    images[2] = 0
    images[2, 0, 0, 0] = 1  # its deviation, 1/sqrt(3072), is just at the floor
    found = np.asarray(classifiers.standardise(jnp.asarray(images)))
    centred = images - images.mean((1, 2, 3), keepdims=True)
    floor = 1 / np.sqrt(32 * 32 * 3)
    deviation = np.maximum(images.std((1, 2, 3), keepdims=True), floor)
    np.testing.assert_allclose(found, centred / deviation, atol=1e-4)
    assert not found[1].any()


def test_grey_images_have_the_floor_of_three_channels():
    images = np.zeros((1, 28, 28, 1), np.float32)
    images[0, 0, 0] = 0.1
    found = classifiers.standardise(jnp.asarray(images))
    assert float(found.max()) == pytest.approx(0.1 * (1 - 1 / 784) * 28 * 3**0.5)


def test_a_constant_image_has_a_finite_slope():
    images = jnp.full((1, *FASHION), 9.0)
    slope = jax.grad(lambda x: jnp.sum(classifiers.standardise(x)[:, 3, 3]))(images)
    assert np.isfinite(slope).all()


def test_levels_of_any_type_are_standardised_alike(rng):
    images = jnp.asarray(rng.integers(0, 256, (4, 16, 16, 1), dtype=np.uint8))
    floating = images.astype(jnp.float32)
    found = classifiers.standardise(images)
    np.testing.assert_array_equal(found, classifiers.standardise(floating))
    # Neither brightness nor contrast matters.
    np.testing.assert_allclose(
        found, classifiers.standardise(floating * 0.5 + 20), atol=1e-4
    )


@pytest.mark.parametrize("architecture", list(classifiers.ARCHITECTURES))
@pytest.mark.slow
def test_logits_are_those_of_each_image_for_itself(architecture, rng):
    options = {"variant": "code"} if architecture == "resnet" else {}
    model = classifiers.make(architecture, divisor=4, **options)
    images = jnp.asarray(rng.integers(0, 256, (3, 16, 16, 1), dtype=np.uint8))
    init = jax.jit(functools.partial(classifiers.init, model))
    variables = init(jax.random.key(0), images)
    logits = jax.jit(functools.partial(classifiers.logits, model))
    found = logits(variables, images)
    assert found.shape == (3, 10)
    other = logits(variables, images.at[1:].set(0))
    np.testing.assert_allclose(found[0], other[0], atol=1e-5)
    assert np.abs(found[1] - other[1]).max() > 1e-3


def test_the_shortcut_pools_and_pads_with_zeros_on_both_sides(rng):
    x = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)
    found = np.asarray(classifiers._shortcut(jnp.asarray(x), 6, 2))
    pooled = x.reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(found[..., 1:4], pooled, atol=1e-6)
    assert not found[..., :1].any() and not found[..., 4:].any()
