"""Published weights of PixelCNN++, read into ours.

Two codes have published some: OpenAI's in TensorFlow 1, whose names count layers in the
order in which they are built, and pclucas14's in PyTorch, whose names are places in
modules. Both networks are ours of three resolutions and "joint" conditionals. What
differs is the order of axes, of what is concatenated and of the head's outputs, and the
axis along which weight norm has its scales.

github.com/openai/pixel-cnn (Salimans et al., PixelCNN++, ICLR 2017) and
github.com/pclucas14/pixel-cnn-pp.
"""

import collections
import dataclasses
import functools
import itertools
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend.density import pixelcnn

Arrays = Mapping[str, np.ndarray]
Place = tuple[str | int, ...]

TENSORFLOW, PYTORCH = "openai/pixel-cnn", "pclucas14/pixel-cnn-pp"
SCOPE = "model/"  # of the weights in TensorFlow; the optimizer's names are outside
_AVERAGE = "/ExponentialMovingAverage"
_WRAPPED = "module."  # what DataParallel puts in front
_RESOLUTIONS = 3
_STREAMS = ("u", "ul")


class _Layer(NamedTuple):
    """A layer of the network.

    Attributes:
      place: keys that lead to it in the parameters here.
      kind: as OpenAI's code calls it: conv2d, deconv2d, dense, conditional_weights.
      module: its place in pclucas14's network, which has no conditional_weights.
    """

    place: Place
    kind: str
    module: str = ""


class _Code(NamedTuple):
    """How a file calls its arrays and lays them out.

    Attributes:
      axes: for each kind of layer, what an axis of a kernel here is there.
      parts: for each part that a layer has here, what follows on the layer's name.
      prefix: what comes before it.
      depth: of the network.
      counted: whether layers are called by kind and number, and not by module; then
        scales are along outputs, else along the first axis.
    """

    axes: dict[str, tuple[int, ...]]
    parts: dict[str, str]
    prefix: str
    depth: int
    counted: bool

    def layers(self, conditional: bool) -> Iterator[tuple[_Layer, str]]:
        """All layers, in the order in which they are built, and their names."""
        built: collections.Counter[str] = collections.Counter()
        for layer in _layers(self.depth, conditional):
            number = f"{layer.kind}_{built[layer.kind]}"
            yield layer, self.prefix + (number if self.counted else layer.module)
            built[layer.kind] += 1


def averaged(names: Collection[str]) -> bool:
    """Whether there are moving averages of weights, which are then what is read."""
    return any(name.endswith(_AVERAGE) for name in names)


def code_of(names: Collection[str]) -> str:
    """Whose weights have such names, `TENSORFLOW` or `PYTORCH`.

    Raises:
      ValueError: neither.
    """
    if any(name.startswith(SCOPE) for name in names):
        return TENSORFLOW
    if any("u_init." in name or "u_stream." in name for name in names):
        return PYTORCH
    there = ", ".join(sorted(names)[:3]) or "nothing"
    raise ValueError(
        f"no weights of a PixelCNN++: neither {SCOPE}conv2d_0/V, as in {TENSORFLOW}, "
        f"nor u_init.conv.weight_v, as in {PYTORCH}, but {there}"
    )


def import_pixelcnn(
    arrays: Arrays, *, dtype: str = "float32"
) -> tuple[pixelcnn.PixelCNN, dict]:
    """Reads the weights of a published PixelCNN++.

    Features, depth, mixtures, channels and classes follow from the shapes. The head's
    outputs are the published network's at every position, in the order of ours.

    Args:
      arrays: by name. PyTorch's `state_dict()`, with weight norm as `weight_g` and
        `weight_v` or as `parametrizations.weight.original0` and `original1`, perhaps
        with `module.` in front; or what a TensorFlow checkpoint holds, such as
        `model/conv2d_0/V`: the moving averages, where there are any. What is outside
        of `model/` is left alone.
      dtype: see `PixelCNN`.

    Returns:
      The description and the parameters.

    Raises:
      ValueError: no such weights; the message names the first array that is missing, of
        another shape, not of finite numbers, or one too many.
    """
    known = {TENSORFLOW: _tensorflow, PYTORCH: _pytorch}
    code, left = known[code_of(arrays)](arrays)
    model = _described(left, code, dtype)
    images = jax.ShapeDtypeStruct((2, 4, 4, model.channels), jnp.uint8)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32) if model.classes else None
    init = functools.partial(pixelcnn.init, model)
    params = jax.eval_shape(init, jax.random.key(0), images, labels=labels)
    for layer, name in code.layers(model.classes > 0):
        *above, last = layer.place
        inner = functools.reduce(operator.getitem, above, params)
        inner[last] = _read(left, code, layer, name, inner[last], model.channels)
    if left:
        name = min(left)
        raise ValueError(
            f"{name} {np.shape(left[name])} is one too many for {model.features} "
            f"features and depth {model.depth}"
        )
    return model, jax.tree.map(lambda a: jnp.asarray(a, model.head_dtype), params)


# ----------------------------------------------------------------------------------
# What the two codes call what


def _tensorflow(arrays: Arrays) -> tuple[_Code, dict[str, np.ndarray]]:
    """OpenAI's code, and the arrays that count."""
    ending = _AVERAGE if averaged(arrays) else ""
    here = {name: array for name, array in arrays.items() if name.startswith(SCOPE)}
    names = {"direction": "V", "scale": "g", "bias": "b", "table": "hw"}
    code = _Code(
        axes={"conv2d": (0, 1, 2, 3), "deconv2d": (0, 1, 3, 2), "dense": (0, 1)},
        parts={part: f"/{name}{ending}" for part, name in names.items()},
        prefix=SCOPE,
        # Of 15 layers and 24 for each block, counted from 0.
        depth=max(1, round((_highest(here, rf"{SCOPE}conv2d_(\d+)/") - 14) / 24)),
        counted=True,
    )
    # Not those that there is an average of.
    return code, {name: a for name, a in here.items() if name + _AVERAGE not in here}


def _pytorch(arrays: Arrays) -> tuple[_Code, dict[str, np.ndarray]]:
    """pclucas14's code, and the arrays that count."""
    prefix = _WRAPPED if any(name.startswith(_WRAPPED) for name in arrays) else ""
    new = ".parametrizations.weight.original"
    is_new = any(new in name for name in arrays)
    inside = rf"{re.escape(prefix)}up_layers\.0\.u_stream\.(\d+)\."
    code = _Code(
        axes={"conv2d": (2, 3, 1, 0), "deconv2d": (2, 3, 0, 1), "dense": (1, 0)},
        parts={
            "direction": f"{new}1" if is_new else ".weight_v",
            "scale": f"{new}0" if is_new else ".weight_g",
            "bias": ".bias",
        },
        prefix=prefix,
        depth=_highest(arrays, inside) + 1,
        counted=False,
    )
    return code, dict(arrays)


def _highest(names: Iterable[str], pattern: str) -> int:
    """The highest number that names have at a place, 0 where there is none."""
    found = (re.match(pattern, name) for name in names)
    return max((int(match[1][:9]) for match in found if match), default=0)


def _layers(depth: int, conditional: bool) -> Iterator[_Layer]:
    """All layers, in the order in which OpenAI's code builds, and so counts, them."""
    yield _Layer(("u", "input"), "conv2d", "u_init.conv")
    yield _Layer(("ul", "input_above"), "conv2d", "ul_init.0.conv")
    yield _Layer(("ul", "input_left"), "conv2d", "ul_init.1.conv")
    for i in range(_RESOLUTIONS):
        for k, stream in itertools.product(range(depth), _STREAMS):
            place = (stream, "levels", i, f"down{k}")
            module = f"up_layers.{i}.{stream}_stream.{k}"
            yield from _block(place, module, stream == "ul", conditional)
        for stream in _STREAMS if i + 1 < _RESOLUTIONS else ():
            place = (stream, "levels", i, "halve")
            yield _Layer(place, "conv2d", f"downsize_{stream}_stream.{i}.conv")
    for i in range(_RESOLUTIONS):
        resolution = _RESOLUTIONS - 1 - i
        for k, stream in itertools.product(range(depth + (i > 0)), _STREAMS):
            place = (stream, "levels", resolution, f"up{k}")
            module = f"down_layers.{i}.{stream}_stream.{k}"
            yield from _block(place, module, True, conditional)
        for stream in _STREAMS if resolution else ():
            place = (stream, "levels", resolution - 1, "double")
            yield _Layer(place, "deconv2d", f"upsize_{stream}_stream.{i}.deconv")
    yield _Layer(("head", "output"), "dense", "nin_out.lin_a")


def _block(
    place: Place, module: str, with_side: bool, conditional: bool
) -> Iterator[_Layer]:
    """The layers of a gated block."""
    *above, name = place
    yield _Layer((*above, f"{name}.conv1"), "conv2d", f"{module}.conv_input.conv")
    if with_side:
        yield _Layer((*above, f"{name}.side"), "dense", f"{module}.nin_skip.lin_a")
    yield _Layer((*above, f"{name}.conv2"), "conv2d", f"{module}.conv_out.conv")
    if conditional:
        yield _Layer((*above, f"{name}.label"), "conditional_weights")


# ----------------------------------------------------------------------------------
# What arrays hold


def _described(left: Arrays, code: _Code, dtype: str) -> pixelcnn.PixelCNN:
    """The network that the first and last layers and the number of blocks tell of."""
    layer, name = next(code.layers(False))
    *_, ones_too, features = _kernel_shape(left, code, layer, name)
    table = f"{code.prefix}conditional_weights_0{code.parts.get('table', '')}"
    labels = np.shape(left.get(table, ()))
    try:
        model = pixelcnn.PixelCNN(
            features=features,
            depth=code.depth,
            resolutions=_RESOLUTIONS,
            conditionals="joint",
            classes=labels[0] if labels else 0,
            channels=ones_too - 1,
            dtype=dtype,
        )
    except ValueError as error:
        raise ValueError(f"{name}{code.parts['direction']}: {error}") from error
    *_, (layer, name) = code.layers(model.classes > 0)
    _, outputs = _kernel_shape(left, code, layer, name)
    mixture = dataclasses.replace(model, mixtures=1).family.num_outputs
    if not outputs or outputs % mixture:
        raise ValueError(
            f"{name}{code.parts['direction']} has {outputs} outputs; a mixture has "
            f"{mixture} for each component"
        )
    return dataclasses.replace(model, mixtures=outputs // mixture)


def _kernel_shape(
    left: Arrays, code: _Code, layer: _Layer, name: str
) -> tuple[int, ...]:
    """Shape of a kernel that is not yet known, with the axes of ours."""
    name, axes = name + code.parts["direction"], code.axes[layer.kind]
    if name not in left:
        raise ValueError(f"{name} is missing")
    shape = np.shape(left[name])
    if len(shape) != len(axes):
        raise ValueError(f"{name} is {shape}, not of {len(axes)} axes")
    return tuple(shape[axis] for axis in axes)


def _read(
    left: dict[str, np.ndarray],
    code: _Code,
    layer: _Layer,
    name: str,
    like: dict,
    channels: int,
) -> dict[str, np.ndarray]:
    """Takes a layer from what is left, its parts in the order of ours."""
    take = functools.partial(_take, left)
    if layer.kind == "conditional_weights":
        return {"table": take(name + code.parts["table"], like["table"].shape)}
    axes, shape = code.axes[layer.kind], like["direction"].shape
    there = tuple(shape[axes.index(axis)] for axis in range(len(axes)))
    kernel = name + code.parts["direction"]
    direction = take(kernel, there).transpose(axes)
    # Along which of our axes the scales are.
    axis = len(axes) - 1 if code.counted else axes.index(0)
    ones = () if code.counted else (1,) * (len(axes) - 1)
    scale = take(name + code.parts["scale"], (shape[axis], *ones)).reshape(-1)
    bias = take(name + code.parts["bias"], like["bias"].shape)
    length = _length(kernel, direction, axis)
    if axis != len(axes) - 1:
        # Scales of inputs have no counterpart here: the same kernel, written anew.
        others = [i for i in range(len(axes)) if i != axis]
        direction = direction * np.expand_dims(scale / length, others)
        scale = _length(kernel, direction, len(axes) - 1)
    inputs, outputs = _order(layer, channels, direction)
    direction = direction[..., inputs, :][..., outputs]
    return {"direction": direction, "scale": scale[outputs], "bias": bias[outputs]}


def _take(left: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Takes an array from what is left, in float64."""
    if name not in left:
        raise ValueError(f"{name} {shape} is missing")
    array = np.asarray(left.pop(name))
    if array.shape != shape:
        raise ValueError(f"{name} is {array.shape}, not {shape}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} {shape} holds {array.dtype}, not floating numbers")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} {shape} has values that are not finite")
    return array.astype(np.float64)


def _length(name: str, kernel: np.ndarray, axis: int) -> np.ndarray:
    """Euclidean length along one axis of what a kernel has there."""
    others = tuple(i for i in range(kernel.ndim) if i != axis)
    length = np.sqrt(np.sum(np.square(kernel), others))
    if not np.all(length > 0):
        raise ValueError(f"{name} is zero in places, and weight norm divides by it")
    return length


def _order(layer: _Layer, channels: int, kernel: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where the inputs and outputs of a kernel here are there."""
    inputs, outputs = (np.arange(size) for size in kernel.shape[-2:])
    stream, *_, name = layer.place
    if stream == "ul" and re.fullmatch(r"up\d+\.side", str(name)):
        # There one concat_elu is of the two inputs together: [u, s, -u, -s].
        inputs = inputs.reshape(4, -1)[[0, 2, 1, 3]].reshape(-1)
    if stream == "head" and channels == 3:
        # There mean, scale and coefficient are side by side for each channel.
        parts = [1 + 3 * channel + part for part in range(3) for channel in range(3)]
        outputs = outputs.reshape(10, -1)[[0, *parts]].reshape(-1)
    return inputs, outputs
