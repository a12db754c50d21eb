"""What the raster scan keeps, layer by layer: weights laid out for it, and memory.

Folded weights (`layers.fold`) are named by layer. `lay_out` reads the names, once, and
arranges each kernel so that a layer is one matrix product over a row or a position.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from pixeldefend.density.layers import Weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Resolution:
    """One entry for each layer of a stream at one resolution; faces fill it in.

    Attributes:
      first: of the blocks' first convolutions, by block.
      second: of their second ones.
      side: of their 1x1 layers; among weights only.
      halve: of the way to half the resolution; None where there is nothing.
      double: of the way back, likewise.
    """

    first: dict[str, Any] = dataclasses.field(default_factory=dict)
    second: dict[str, Any] = dataclasses.field(default_factory=dict)
    side: dict[str, Any] = dataclasses.field(default_factory=dict)
    halve: Any = None
    double: Any = None


Resolutions = tuple[Resolution, ...]
LayOut = Callable[[Weights], Any]


class Stream(NamedTuple):
    """One entry for each layer of a stream, weights or terms."""

    input: Any
    resolutions: Resolutions


class Network(NamedTuple):
    """Weights of both streams, laid out for `Row` and `Pixel`, and of the head."""

    u: Stream
    ul: Stream
    head: dict


class Layer(NamedTuple):
    """A product `[K, N]` and its bias; for `double` the whole `[2, 3 or 2, K, N]`."""

    kernel: chex.Array
    bias: chex.Array


class InputTaps(NamedTuple):
    """The input layer of `ul`: `[C + 1, 3 F]` and `[C + 1, F]`."""

    above: chex.Array
    left: chex.Array


class Taps(NamedTuple):
    """A convolution of `ul`: taps of the row above and of the row itself, `[K, 2 N]`.

    Of the row itself those of the column come first, then those for the next one.
    """

    above: chex.Array
    here: chex.Array
    bias: chex.Array


class SideTaps(NamedTuple):
    """A 1x1 layer of `ul`: the share of `u`, and of the skip where there is one."""

    u: chex.Array
    skip: chex.Array | None
    bias: chex.Array


class HalveTaps(NamedTuple):
    """Halving in `ul`: the row above `[2 K, N]`, and two neighbours `[K, N]`."""

    above: chex.Array
    left: chex.Array
    right: chex.Array
    bias: chex.Array


def lay_out(weights: dict) -> Network:
    """Lays folded weights out for `Row` and `Pixel`: one matrix product a layer.

    Args:
      weights: from `layers.fold`.
    """
    u, ul = weights["u"], weights["ul"]

    def row_taps(layer: Weights) -> Layer:
        return Layer(_row_kernel(layer["kernel"]), layer["bias"][None])

    def row_product(layer: Weights) -> Layer:
        kernel = layer["kernel"]
        return Layer(kernel.reshape(-1, kernel.shape[-1]), layer["bias"][None])

    def row_layer(layer: Weights) -> Layer:
        return Layer(layer["kernel"], layer["bias"][None])

    def pixel_layer(layer: Weights) -> Layer:
        return Layer(layer["kernel"], layer["bias"])

    return Network(
        u=Stream(
            _row_kernel(u["input"]),
            tuple(
                _by_layer(layers, row_taps, row_layer, row_product, row_layer)
                for layers in u["levels"]
            ),
        ),
        ul=Stream(
            InputTaps(_side_by_side(ul["input"][0]), ul["input"][1, 0]),
            tuple(
                _by_layer(layers, _taps, _side_taps, _halve_taps, pixel_layer)
                for layers in ul["levels"]
            ),
        ),
        head=weights["head"],
    )


def _by_layer(
    layers: dict, taps: LayOut, side: LayOut, halve: LayOut, double: LayOut
) -> Resolution:
    """The named layers of one resolution, each kind laid out in its own way."""

    def blocks(kind: str, lay_out: LayOut) -> dict[str, Any]:
        return {
            name.removesuffix(kind): lay_out(layer)
            for name, layer in layers.items()
            if name.endswith(kind)
        }

    return Resolution(
        first=blocks(".conv1", taps),
        second=blocks(".conv2", taps),
        side=blocks(".side", side),
        halve=halve(layers["halve"]) if "halve" in layers else None,
        double=double(layers["double"]) if "double" in layers else None,
    )


def _side_by_side(taps: chex.Array) -> chex.Array:
    """`[T, K, N]` to `[K, T N]`: one product for all taps."""
    return jnp.concatenate(list(taps), axis=-1)


def _row_kernel(kernel: chex.Array) -> chex.Array:
    """`[2, 3, K, N]` to `[2 K, 3 N]`: input is the row above beside the present row."""
    return jnp.concatenate([_side_by_side(taps) for taps in kernel], axis=0)


def _taps(layer: Weights) -> Taps:
    above, here = layer["kernel"]
    return Taps(_side_by_side(above), _side_by_side(here[::-1]), layer["bias"])


def _side_taps(layer: Weights) -> SideTaps:
    kernel = layer["kernel"]
    u, *skip = jnp.split(kernel, kernel.shape[0] // (2 * kernel.shape[1]))
    return SideTaps(u, skip[0] if skip else None, layer["bias"])


def _halve_taps(layer: Weights) -> HalveTaps:
    above, (left, right) = layer["kernel"]
    return HalveTaps(above.reshape(-1, above.shape[-1]), left, right, layer["bias"])


def empty_memory(stream: dict, width: int, batch: int) -> Resolutions:
    """Zeros for the row above the first one, `width` columns wide.

    Args:
      stream: weights of one stream from `layers.fold`.
      width: W of the full resolution.
      batch: B.
    """

    def zeros(columns: int) -> LayOut:
        """Of a layer's input."""

        def like_input(layer: Weights) -> chex.Array:
            kernel = layer["kernel"]
            return jnp.zeros((columns, batch, kernel.shape[-2]), kernel.dtype)

        return like_input

    found = []
    for k, layers in enumerate(stream["levels"]):
        own = {name: w for name, w in layers.items() if not name.endswith(".side")}
        whole, half = zeros(width >> k), zeros(width >> (k + 1))
        found.append(_by_layer(own, whole, whole, whole, half))
    return tuple(found)
