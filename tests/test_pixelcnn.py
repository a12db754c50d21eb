import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import apply, tiny

from pixeldefend.density import layers, pixelcnn


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resolutions", [1, 2, 3])
def test_causal_under_perturbation_of_every_position(resolutions, channels, float64):
    model, params, images, _ = tiny((8, 8, channels), resolutions=resolutions)
    outputs = jax.jit(lambda x: pixelcnn.apply(model, params, x))
    before = np.asarray(outputs(images))
    seen = np.zeros((64, 64), bool)
    for position in range(64):
        changed = images.at[:, position // 8, position % 8].add(jnp.uint8(101))
        moved = np.abs(np.asarray(outputs(changed)) - before).max((0, 3)) > 0
        seen[position] = moved.reshape(-1)
    assert not np.tril(seen).any(), "a position sees itself or a later one"
    # The next in the row, and everything in the row above within reach.
    assert all(seen[p, p + 1] for p in range(63) if p % 8 != 7)
    assert all(seen[p, p + 8] for p in range(56))
    if resolutions == 3:
        assert np.triu(seen, 1).sum() > 0.99 * 64 * 63 / 2


def test_the_papers_model_has_its_number_of_parameters():
    # Counted by hand from the released wiring with F = 160. Kernels, in units of F^2:
    # 32 blocks a stream, u 12 + 24, ul 8 + 16; 1x1 layers 34 (u) and 98 (ul); four
    # changes of resolution of 6 (u) and of 4 (ul). Then inputs, head, scales, biases.
    f = 160
    kernels = (32 * (36 + 24) + 34 + 98 + 4 * (6 + 4)) * f**2
    inputs = (6 + 3 + 2) * 4 * f + f * 100
    scales_and_biases = 2 * (32 * 2 * 3 * f + (17 + 32) * f + 8 * f + 3 * f + 100)
    model = pixelcnn.PixelCNN()
    shape = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    params = jax.eval_shape(
        lambda key, x: pixelcnn.init(model, key, x), jax.random.key(0), shape
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == kernels + inputs + scales_and_biases == 53_659_080


@pytest.mark.slow
def test_initialisation_normalises_the_head_on_its_images(rng):
    model = pixelcnn.PixelCNN(
        features=6, depth=1, resolutions=2, mixtures=2, channels=1, dropout=0.0
    )
    images = jnp.asarray(rng.integers(0, 256, (16, 8, 8, 1), dtype=np.uint8))
    params = pixelcnn.init(model, jax.random.key(1), images)
    heads = np.asarray(apply(model, params, images))
    np.testing.assert_allclose(heads.mean((0, 1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose(heads.std((0, 1, 2)), 1.0, rtol=1e-3)


def test_scale_of_a_direction_does_not_matter():
    model, params, images, _ = tiny((8, 8, 1))
    doubled = jax.tree_util.tree_map_with_path(
        lambda path, a: 2 * a if path[-1].key == "direction" else a, params
    )
    np.testing.assert_allclose(
        apply(model, params, images), apply(model, doubled, images), rtol=1e-4
    )


@pytest.mark.slow
def test_dropout_only_with_a_key_and_element_wise():
    model, params, images, _ = tiny((8, 8, 1), dropout=0.5)
    without = dataclasses.replace(model, dropout=0.0)
    np.testing.assert_array_equal(
        apply(model, params, images), apply(without, params, images)
    )
    first, second = (
        apply(model, params, images, key=jax.random.key(i)) for i in range(2)
    )
    assert np.abs(np.asarray(first) - np.asarray(second)).max() > 1e-3
    face = layers.Image({}, dropout=0.5, key=jax.random.key(0))
    dropped = np.asarray(face.drop(jnp.ones((4, 8, 8, 6))))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert len(np.unique(dropped.mean((1, 2)))) > 2, "whole channels drop together"


def test_labels_condition_every_image_on_its_own_class():
    model, params, images, _ = tiny((8, 8, 1), classes=3)
    same = jnp.concatenate([images[:1], images[:1]])
    outputs = apply(model, params, same, labels=jnp.array([0, 2]))
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    swapped = apply(model, params, same, labels=jnp.array([2, 0]))
    np.testing.assert_allclose(outputs[0], swapped[1], rtol=1e-5, atol=1e-5)


def test_bfloat16_streams_keep_the_head_in_float32():
    model, params, images, _ = tiny((8, 8, 1))
    rough = dataclasses.replace(model, dtype="bfloat16")
    outputs = apply(rough, params, images)
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, apply(model, params, images), atol=0.5)


def test_concat_elu_is_two_elus_with_their_gradients():
    x = jnp.linspace(-3.0, 3.0, 13)
    both = lambda x: jnp.concatenate([jax.nn.elu(x), jax.nn.elu(-x)])  # noqa: E731
    np.testing.assert_allclose(layers.concat_elu(x), both(x), rtol=1e-6)
    np.testing.assert_allclose(
        jax.jacobian(layers.concat_elu)(x), jax.jacobian(both)(x), rtol=1e-6
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"conditionals": "logistic"}, "independent, joint, softmax"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"depth": 0}, "depth must be a whole number from 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"dtype": "int32"}, "floating"),
        ({"classes": -1}, "classes"),
        ({"depth": 17}, "depth must be a whole number from 1 to 16: 17"),
        ({"resolutions": 7}, "resolutions must be a whole number from 1 to 6"),
        ({"features": 4097}, "from 1 to 4096"),
        ({"mixtures": 257}, "from 1 to 256"),
        ({"classes": 2**16 + 1}, "from 0 to 65536"),
        ({"classes": 1.0}, "classes must be a whole number"),
        ({"channels": True}, "channels must be 1 or 3"),
    ],
)
def test_a_wrong_description_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pixelcnn.PixelCNN(**options)


@pytest.mark.parametrize(
    "shape, labels, message",
    [
        ((2, 8, 8, 3), None, r"\[B, H, W, 1\]"),
        ((8, 8, 1), None, r"\[B, H, W, 1\]"),
        ((2, 8, 6, 1), None, "divisible by 4"),
        ((2, 8, 8, 1), [0, 1], "not class-conditional"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, labels, message):
    model, params, _, _ = tiny((8, 8, 1))
    labels = labels if labels is None else jnp.asarray(labels)
    with pytest.raises(ValueError, match=message):
        pixelcnn.apply(model, params, jnp.zeros(shape, jnp.uint8), labels=labels)


@pytest.mark.parametrize("labels", [[0], [[0], [1]], [0.0, 1.0]])
def test_labels_that_do_not_fit_are_refused(labels):
    model, params, images, _ = tiny((8, 8, 1), classes=2)
    with pytest.raises(ValueError, match=r"labels must be integers \[2\]"):
        pixelcnn.apply(model, params, images, labels=jnp.asarray(labels))
    with pytest.raises(ValueError, match="class-conditional: give labels"):
        pixelcnn.apply(model, params, images)


def test_descriptions_are_static_arguments():
    assert hash(pixelcnn.PixelCNN()) == hash(pixelcnn.PixelCNN())
    assert pixelcnn.PixelCNN().family.num_outputs == 100
