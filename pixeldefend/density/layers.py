"""Weight-normed causal convolutions and the gated block, in each of their faces.

PixelCNN++ runs two streams over an image. `u` sees only the rows above a pixel; `ul`
sees the rows above and the pixels to the left. A *face* is one way of evaluating a
stream's layers; the wiring in `pixelcnn.py` is written once against this interface:

* `Image` evaluates whole images `[B, H, W, .]`: training and scoring.
* `Init` is an `Image` that makes the parameters while the data flows through.
* `Row` and `Pixel`, in `stepwise.py`, evaluate a row of `u` and a position of `ul`
  from what was kept of the rows above: the raster scan.

A stream's parameters are a dict: the input layers by name, and `levels`, a tuple with
one dict of layers for each resolution, the full one first. A layer is `direction`,
`scale`, `bias` (weight norm); `fold` turns it into `kernel`, `bias`.

Layers follow Salimans et al., PixelCNN++ (ICLR 2017) and its released code.
"""

from collections.abc import Callable
from typing import Protocol

import chex
import jax
import jax.numpy as jnp

Weights = dict
Linear = Callable[[chex.Array], chex.Array]


def concat_elu(x: chex.Array) -> chex.Array:
    """ELU of `x` and `-x`, concatenated: `[..., F]` to `[..., 2F]`.

    One exponential serves both halves, since only one of them is negative.
    """
    positive = x > 0
    magnitude = jnp.where(positive, x, -x)
    negative_side = jnp.expm1(-magnitude)
    return jnp.concatenate(
        [
            jnp.where(positive, x, negative_side),
            jnp.where(positive, negative_side, magnitude),
        ],
        axis=-1,
    )


class Face(Protocol):
    """One way of evaluating the layers of a stream.

    Layers are called by their resolution, 0 the full one, and the name of their block
    within it.
    """

    def first(
        self, resolution: int, block: str, x: chex.Array, skip: chex.Array | None
    ) -> chex.Array:
        """First convolution of a block and, added, the 1x1 layer over its side inputs.

        Side inputs are the `u` stream (for `ul`) and the skip; biases are added.
        """

    def drop(self, x: chex.Array) -> chex.Array:
        """Element-wise dropout, while training."""

    def second(self, resolution: int, block: str, x: chex.Array) -> chex.Array:
        """Second convolution of a block, `[..., 2F]`: value and gate; bias added."""

    def keep(self, resolution: int, block: str, x: chex.Array) -> chex.Array:
        """Keeps a block's output where the other stream needs it, and returns it."""

    def halved(self, resolution: int, x: chex.Array, inner: Linear) -> chex.Array:
        """Runs `inner` at half the resolution of `x` and comes back."""


def gated(
    face: Face,
    resolution: int,
    block: str,
    x: chex.Array,
    skip: chex.Array | None = None,
) -> chex.Array:
    """The gated residual block, the only building block of both streams.

    Args:
      face: evaluates the layers.
      resolution: 0 the full one.
      block: its name within the resolution.
      x: `[..., F]`.
      skip: `[..., F]`, from the block of the same resolution on the way down.

    Returns:
      `[..., F]`.
    """
    y = face.first(resolution, block, concat_elu(x), skip)
    # The second nonlinearity applies whether or not there was a side input.
    y = face.drop(concat_elu(y))
    value, gate = jnp.split(face.second(resolution, block, y), 2, axis=-1)
    return face.keep(resolution, block, x + value * jax.nn.sigmoid(gate))


# ----------------------------------------------------------------------------------
# Weight norm


def normalise(direction: chex.Array) -> chex.Array:
    """Scales each output channel of `[..., in, out]` to unit Euclidean norm."""
    axes = tuple(range(direction.ndim - 1))
    return direction / jnp.sqrt(jnp.sum(jnp.square(direction), axes, keepdims=True))


def _fold_layer(layer: Weights, dtype: jnp.dtype) -> Weights:
    kernel = normalise(layer["direction"])
    scale = layer["scale"].reshape((1,) * (kernel.ndim - 1) + (-1,))
    return {"kernel": (kernel * scale).astype(dtype), "bias": layer["bias"]}


def _as_input(layer: Weights, row: int, column: int) -> chex.Array:
    """Moves a bias onto the channel of ones of one tap.

    The input layers are shifted by a row or a pixel and the vacated places are zero,
    without bias. With the bias on the channel of ones, which is absent there, that
    needs no special case: feeding zeros is the padding.
    """
    return layer["kernel"].at[row, column, -1].add(layer["bias"])


def fold(
    params: dict,
    dtype: jnp.dtype = jnp.float32,
    labels: chex.Array | None = None,
) -> dict:
    """Folds weight norm, label projections and input biases into plain kernels.

    Args:
      params: of a PixelCNN++, as made by `pixelcnn.init`.
      dtype: of the kernels and biases that the streams compute in.
      labels: `[B]` integers for a class-conditional model.

    Returns:
      `{"u": ..., "ul": ..., "head": ...}`; a stream is `{"input", "levels"}`, its
      layers `{"kernel", "bias"}` with `bias` `[1, N]`, or `[B, N]` where labels enter.
    """

    def block(layers: Weights) -> Weights:
        folded = {}
        for name, layer in layers.items():
            if name.endswith(".label"):
                continue
            folded[name] = _fold_layer(layer, dtype)
            bias = folded[name]["bias"][None]
            table = layers.get(name.replace(".conv2", ".label"), {}).get("table")
            if table is not None and labels is not None:
                bias = bias + table[labels]
            folded[name]["bias"] = bias.astype(dtype)
        return folded

    u, ul = params["u"], params["ul"]
    wide = u["input"]["direction"].dtype
    above, left = (_fold_layer(ul[k], wide) for k in ("input_above", "input_left"))
    # Both input layers of `ul` as one 2x3 kernel: row above, then the pixel itself.
    taps = jnp.pad(_as_input(above, 0, 1), ((0, 1), (0, 0), (0, 0), (0, 0)))
    taps = taps + jnp.pad(_as_input(left, 1, 0), ((0, 0), (0, 2), (0, 0), (0, 0)))
    first = _as_input(_fold_layer(u["input"], wide), 1, 1)
    head = dict(params["head"])
    head["output"] = _fold_layer(head["output"], wide)
    return {
        "u": {
            "input": first.astype(dtype),
            "levels": tuple(block(layers) for layers in u["levels"]),
        },
        "ul": {
            "input": taps.astype(dtype),
            "levels": tuple(block(layers) for layers in ul["levels"]),
        },
        "head": head,
    }


# ----------------------------------------------------------------------------------
# Whole images


def _convolve(x: chex.Array, kernel: chex.Array, stride: int = 1) -> chex.Array:
    """Causal convolution: the last kernel row is the present row.

    A kernel three wide is centred (the row above, or a row already complete), one two
    wide ends at the present column.
    """
    rows, columns = kernel.shape[:2]
    padding = ((rows - 1, 0), (1, 1) if columns == 3 else (columns - 1, 0))
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def double_columns(x: chex.Array, taps: chex.Array, axis: int) -> chex.Array:
    """Doubles `axis` (columns): `taps` `[2 or 3, K, N]` of one row of the kernel."""
    if taps.shape[0] == 2:
        even, odd = x @ taps[0], x @ taps[1]
    else:
        after = shift(x, axis, -1)
        even, odd = x @ taps[1], after @ taps[0] + x @ taps[2]
    pair = jnp.stack([even, odd], axis=axis + 1)
    shape = pair.shape[:axis] + (2 * x.shape[axis],) + pair.shape[axis + 2 :]
    return pair.reshape(shape)


def shift(x: chex.Array, axis: int, by: int) -> chex.Array:
    """Shifts by one along `axis`, forwards (1) or backwards (-1), zeros entering."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (1, 0) if by > 0 else (0, 1)
    size = x.shape[axis]
    padded = jnp.pad(x, pad)
    return jax.lax.slice_in_dim(padded, 0 if by > 0 else 1, size + (by < 0), axis=axis)


class Image:
    """A stream over whole images `[B, H, W, .]`."""

    def __init__(
        self,
        weights: Weights,
        above: "Image | None" = None,
        *,
        dropout: float = 0.0,
        key: chex.PRNGKey | None = None,
    ):
        """`above` is the finished `u` face for `ul`; a key switches dropout on."""
        self.weights = weights
        self.above = above
        self.outputs: dict = {}
        self.dropout = dropout if key is not None else 0.0
        self.key = key

    def next_key(self) -> chex.PRNGKey:
        assert self.key is not None  # without one nothing is dropped
        self.key, key = jax.random.split(self.key)
        return key

    def layer(
        self,
        resolution: int,
        name: str,
        shape: tuple[int, ...],
        linear: Linear,
        gain: float = 1.0,
    ) -> chex.Array:
        """Applies `linear` with the layer's kernel, and adds its bias."""
        del shape, gain  # Only `Init` needs them.
        weights = self.weights["levels"][resolution][name]
        return linear(weights["kernel"]) + weights["bias"][:, None, None, :]

    def input(self, units: chex.Array, features: int) -> chex.Array:
        """The first layer; `units` `[B, H, W, C + 1]` ends in the channel of ones."""
        del features
        if self.above is None:
            units = shift(units, 1, 1)
        return _convolve(units, self.weights["input"])

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the stream's kernels."""
        return (2, 3) if self.above is None else (2, 2)

    def first(
        self, resolution: int, block: str, x: chex.Array, skip: chex.Array | None
    ) -> chex.Array:
        shape: tuple[int, ...] = (*self.extent, x.shape[-1], x.shape[-1] // 2)
        y = self.layer(resolution, f"{block}.conv1", shape, lambda w: _convolve(x, w))
        sides = [] if self.above is None else [self.above.outputs[resolution, block]]
        sides += [] if skip is None else [skip]
        if not sides:
            return y
        side = jnp.concatenate([concat_elu(side) for side in sides], axis=-1)
        shape = (side.shape[-1], y.shape[-1])
        return y + self.layer(resolution, f"{block}.side", shape, lambda w: side @ w)

    def drop(self, x: chex.Array) -> chex.Array:
        if not self.dropout:
            return x
        kept = jax.random.bernoulli(self.next_key(), 1 - self.dropout, x.shape)
        return jnp.where(kept, x / (1 - self.dropout), jnp.zeros_like(x))

    def second(self, resolution: int, block: str, x: chex.Array) -> chex.Array:
        shape = (*self.extent, x.shape[-1], x.shape[-1])
        name = f"{block}.conv2"
        return self.layer(resolution, name, shape, lambda w: _convolve(x, w), 0.1)

    def keep(self, resolution: int, block: str, x: chex.Array) -> chex.Array:
        if self.above is None:
            self.outputs[resolution, block] = x
        return x

    def halved(self, resolution: int, x: chex.Array, inner: Linear) -> chex.Array:
        features = x.shape[-1]
        shape = (*self.extent, features, features)
        y = self.layer(resolution, "halve", shape, lambda w: _convolve(x, w, stride=2))
        y = inner(y)

        def double(kernel: chex.Array) -> chex.Array:
            rows = [double_columns(y, taps, 2) for taps in kernel]
            pair = jnp.stack(rows, axis=2)
            return pair.reshape(x.shape)

        return self.layer(resolution, "double", shape, double)


class Init(Image):
    """An `Image` that makes a stream's parameters, scaled by the data (weight norm)."""

    def __init__(
        self,
        above: "Init | None" = None,
        *,
        resolutions: int,
        classes: int,
        dropout: float,
        dtype: jnp.dtype,
        key: chex.PRNGKey,
    ):
        key, dropout_key = jax.random.split(key)
        super().__init__({}, above, dropout=dropout, key=dropout_key)
        self.draw = key
        self.classes = classes
        self.dtype = dtype
        self.params: dict = {"levels": tuple({} for _ in range(resolutions))}

    def make(
        self, shape: tuple[int, ...], linear: Linear, gain: float
    ) -> tuple[chex.Array, Weights]:
        """Draws a direction; gives every output mean 0 and deviation `gain`."""
        self.draw, key = jax.random.split(self.draw)
        direction = 0.05 * jax.random.normal(key, shape, self.dtype)
        y = linear(normalise(direction))
        axes = tuple(range(y.ndim - 1))
        mean = jnp.mean(y, axes)
        scale = gain / jnp.sqrt(jnp.var(y, axes) + 1e-10)
        layer = {"direction": direction, "scale": scale, "bias": -mean * scale}
        broadcast = (1,) * (y.ndim - 1) + (-1,)
        y = y * scale.reshape(broadcast) + layer["bias"].reshape(broadcast)
        return y, layer

    def layer(
        self,
        resolution: int,
        name: str,
        shape: tuple[int, ...],
        linear: Linear,
        gain: float = 1.0,
    ) -> chex.Array:
        """Makes the layer, then applies it."""
        y, self.params["levels"][resolution][name] = self.make(shape, linear, gain)
        return y

    def second(self, resolution: int, block: str, x: chex.Array) -> chex.Array:
        """Makes the labels' table too; zero, the classes begin alike."""
        y = super().second(resolution, block, x)
        if self.classes:
            table = jnp.zeros((self.classes, y.shape[-1]), y.dtype)
            self.params["levels"][resolution][f"{block}.label"] = {"table": table}
        return y

    def input(self, units: chex.Array, features: int) -> chex.Array:
        """Makes the input layers: one for `u`, two for `ul`."""
        channels = units.shape[-1]

        def made(name: str, rows: int, columns: int) -> chex.Array:
            shape = (rows, columns, channels, features)
            y, self.params[name] = self.make(shape, lambda w: _convolve(units, w), 1.0)
            return y

        if self.above is None:
            return shift(made("input", 2, 3), 1, 1)
        down, right = made("input_above", 1, 3), made("input_left", 2, 1)
        return shift(down, 1, 1) + shift(right, 2, 1)
