"""Published weights compute here what they compute in the codes that published them."""

import functools

import jax
import numpy as np
import pytest
from models import apply, tiny
from published import as_tensorflow, as_torch

import pixeldefend
from pixeldefend.experiment import checkpoints

COLOUR, GREY = (8, 8, 3), (8, 8, 1)


def _model(shape, **options):
    return tiny(shape, conditionals="joint", dropout=0.5, **options)


def _exports(model, params, rng):
    """The same weights under all kinds of names."""
    yield as_tensorflow(model, params)
    yield as_tensorflow(model, params, average=True)
    if not model.classes:
        yield as_torch(model, params, rng)
        yield as_torch(model, params, rng, new=True, prefix="module.")


def test_outputs_are_those_of_the_weights_that_were_exported(rng, float64):
    model, params, images, _ = _model(COLOUR)
    expected = np.asarray(apply(model, params, images))
    for arrays in _exports(model, params, rng):
        found, imported = pixeldefend.import_pixelcnn(arrays, dtype="float64")
        assert found == model
        outputs = np.asarray(apply(found, imported, images))
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-12)


def _kernels(params):
    """What weight norm makes of the parameters, and the rest, by place."""
    found = {}
    for name, leaf in checkpoints.flat(params).items():
        place, _, part = name.rpartition("/")
        found.setdefault(place, {})[part] = np.asarray(leaf)
    for layer in found.values():
        if "direction" in layer:
            direction = layer.pop("direction")
            length = np.sqrt(np.sum(direction**2, tuple(range(direction.ndim - 1))))
            layer["kernel"] = direction * (layer.pop("scale") / length)
    return found


@pytest.mark.parametrize(
    "shape, options",
    [
        (COLOUR, {"depth": 2, "features": 8, "mixtures": 5}),
        (GREY, {"mixtures": 10}),
        (COLOUR, {"classes": 3}),
    ],
)
def test_kernels_are_those_of_the_weights_that_were_exported(
    rng, float64, shape, options
):
    model, params, _, _ = _model(shape, **options)
    expected = _kernels(params)
    for arrays in _exports(model, params, rng):
        found, imported = pixeldefend.import_pixelcnn(arrays, dtype="float64")
        assert found == model
        for place, layer in _kernels(imported).items():
            assert layer.keys() == expected[place].keys()
            for part, values in layer.items():
                np.testing.assert_allclose(values, expected[place][part], atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_parameters_are_of_single_precision_whatever_the_arrays_are(dtype):
    arrays = {name: a.astype(dtype) for name, a in _arrays(as_tensorflow).items()}
    model, params = pixeldefend.import_pixelcnn(arrays)
    assert model.dtype == "float32"
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("f4")}


@functools.cache
def _arrays(export):
    """Of a small model of grey images."""
    model, params, _, _ = _model(GREY)
    options = (np.random.default_rng(0),) if export is as_torch else ()
    return export(model, params, *options)


def _without(name):
    return lambda arrays: {n: a for n, a in arrays.items() if n != name}


def _with(name, change):
    return lambda arrays: arrays | {name: change(arrays[name])}


def _not_finite(array):
    array = np.array(array)
    array.flat[-1] = np.inf
    return array


BLOCK = "up_layers.1.ul_stream.0"
V = f"{BLOCK}.conv_out.conv.weight_v"
MISTAKES = [
    (as_torch, _without(V), rf"{V} \(6, 6, 2, 2\) is missing"),
    (
        as_torch,
        _with(V, lambda a: a[:, :, :, :1]),
        rf"{V} is \(6, 6, 2, 1\), not \(6, 6, 2, 2\)",
    ),
    (as_torch, _with(V, _not_finite), f"{V} .* not finite"),
    (as_torch, _with(V, lambda a: a.astype(int)), f"{V} .* holds int64, not floating"),
    (as_torch, _with(V, lambda a: 0 * a), f"{V} is zero in places"),
    (
        as_torch,
        lambda arrays: arrays | {f"{BLOCK}.bn.bias": np.zeros(3)},
        rf"{BLOCK}.bn.bias \(3,\) is one too many for 3 features and depth 1",
    ),
    (
        as_torch,
        _with("upsize_u_stream.0.deconv.weight_g", lambda a: a.reshape(1, -1, 1, 1)),
        r"deconv.weight_g is \(1, 3, 1, 1\), not \(3, 1, 1, 1\)",
    ),
    # Two blocks of a stream begin, and that is all there is of a second depth.
    (
        as_torch,
        lambda arrays: (
            arrays | {"up_layers.0.u_stream.1.conv_input.conv.bias": np.zeros(3)}
        ),
        r"up_layers.0.u_stream.1.conv_input.conv.weight_v \(3, 6, 2, 3\) is missing",
    ),
    (as_torch, _without("u_init.conv.weight_v"), "u_init.conv.weight_v is missing"),
    (
        as_torch,
        _with("u_init.conv.weight_v", lambda a: a[0]),
        r"u_init.conv.weight_v is \(2, 2, 3\), not of 4 axes",
    ),
    (
        as_torch,
        _with("u_init.conv.weight_v", lambda a: np.concatenate([a, a[:, 1:]], 1)),
        "u_init.conv.weight_v: channels must be 1 or 3: 2",
    ),
    (
        as_torch,
        lambda arrays: (
            arrays | {"up_layers.0.u_stream.99999999999.conv_input.conv": np.zeros(3)}
        ),
        "depth must be a whole number from 1 to 16: 1000000000",
    ),
    (
        as_torch,
        _with("nin_out.lin_a.weight_v", lambda a: a[:5]),
        "nin_out.lin_a.weight_v has 5 outputs; a mixture has 3 for each component",
    ),
    (
        as_tensorflow,
        _without("model/conv2d_20/g"),
        r"model/conv2d_20/g \(6,\) is missing",
    ),
    (
        as_tensorflow,
        _without("model/conv2d_38/V"),
        r"model/conv2d_38/V \(2, 2, 6, 6\) is missing",
    ),
    (
        as_tensorflow,
        _with("model/deconv2d_3/V", lambda a: a[..., :2]),
        r"model/deconv2d_3/V is \(2, 2, 3, 2\), not \(2, 2, 3, 3\)",
    ),
    (
        as_tensorflow,
        _with("model/dense_13/b", _not_finite),
        r"model/dense_13/b \(6,\) has values that are not finite",
    ),
    # The network of `energy_distance` goes on after 64 outputs.
    (
        as_tensorflow,
        lambda arrays: arrays | {"model/dense_14/V": np.zeros((4, 64))},
        r"model/dense_14/V \(4, 64\) is one too many",
    ),
    # That of other nonlinearities does not double the channels.
    (
        as_tensorflow,
        _with("model/conv2d_3/V", lambda a: a[:, :, :3]),
        r"model/conv2d_3/V is \(2, 3, 3, 3\), not \(2, 3, 6, 3\)",
    ),
    (
        as_tensorflow,
        lambda arrays: arrays | {"model/conv2d_0/V/ExponentialMovingAverage": V},
        "model/conv2d_0/V/ExponentialMovingAverage is",
    ),
    (
        as_tensorflow,
        lambda arrays: arrays | {"model/conditional_weights_1/hw": np.zeros((2, 6))},
        r"conditional_weights_1/hw \(2, 6\) is one too many",
    ),
    (
        as_tensorflow,
        lambda arrays: arrays | {"model/conditional_weights_0/hw": np.zeros((2, 6))},
        r"conditional_weights_1/hw \(2, 6\) is missing",
    ),
    (
        as_tensorflow,
        lambda _: {"layer1.weight": np.zeros(3)},
        "no weights of a PixelCNN.*, but layer1.weight",
    ),
    (as_tensorflow, lambda _: {}, "but nothing"),
]


@pytest.mark.parametrize("export, change, message", MISTAKES)
def test_weights_of_another_network_are_refused(export, change, message):
    with pytest.raises(ValueError, match=message) as told:
        pixeldefend.import_pixelcnn(change(_arrays(export)))
    assert "\n" not in str(told.value)
