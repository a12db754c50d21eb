"""The faces of the raster scan: a row of `u` at a time, then what is left of `ul`.

When row i begins, all rows above it are final. `Row` then evaluates `u`, which sees
nothing else, for the whole row; `row_terms` does the same for every part of `ul` that
looks at the row above. What is left are the same-row taps of `ul`, a fifth of all
arithmetic: position by position with `Pixel`, where no layer is evaluated twice, or for
some columns at once whose pixels are guessed, with `Sweep`.

Rows are `[W, B, .]` and positions `[B, .]`. What a row must remember of the one above,
the *memory*, is a tuple with a dict for each resolution: the input of each convolution,
`halve` (what is halved) and `double` (what is doubled). Zeros are the padding.
"""

import math

import chex
import jax.numpy as jnp

from pixeldefend.density.layers import (
    Linear,
    Weights,
    concat_elu,
    double_columns,
    shift,
)

Memory = tuple[dict, ...]


def layout(weights: dict) -> dict:
    """Lays folded weights out for `Row` and `Pixel`: one matrix product a layer.

    Args:
      weights: from `layers.fold`.

    Returns:
      `{"u": ..., "ul": ..., "head": ...}` for this module.
    """
    u, ul = weights["u"], weights["ul"]
    return {
        "u": {
            "input": _row_kernel(u["input"]),
            "levels": tuple(
                {name: _row_layer(name, w) for name, w in layers.items()}
                for layers in u["levels"]
            ),
        },
        "ul": {
            "input_above": _side_by_side(ul["input"][0]),
            "input_left": ul["input"][1, 0],
            "levels": tuple(
                {name: _pixel_layer(name, w) for name, w in layers.items()}
                for layers in ul["levels"]
            ),
        },
        "head": weights["head"],
    }


def _side_by_side(taps: chex.Array) -> chex.Array:
    """`[T, K, N]` to `[K, T N]`: one product for all taps."""
    return jnp.concatenate(list(taps), axis=-1)


def _row_kernel(kernel: chex.Array) -> chex.Array:
    """`[2, 3, K, N]` to `[2 K, 3 N]`: input is the row above beside the present row."""
    return jnp.concatenate([_side_by_side(taps) for taps in kernel], axis=0)


def _row_layer(name: str, layer: Weights) -> Weights:
    kernel, bias = layer["kernel"], layer["bias"][None]
    if ".conv" in name:
        kernel = _row_kernel(kernel)
    elif name == "halve":
        kernel = kernel.reshape(-1, kernel.shape[-1])
    return {"kernel": kernel, "bias": bias}


def _pixel_layer(name: str, layer: Weights) -> Weights:
    kernel, bias = layer["kernel"], layer["bias"]
    if ".conv" in name:
        return {
            "above": _side_by_side(kernel[0]),
            "here": _side_by_side(kernel[1, ::-1]),
            "bias": bias,
        }
    if name == "halve":
        above = kernel[0].reshape(-1, kernel.shape[-1])
        return {
            "above": above,
            "left": kernel[1, 0],
            "right": kernel[1, 1],
            "bias": bias,
        }
    if name.endswith(".side"):
        u, *skip = jnp.split(kernel, kernel.shape[0] // (2 * kernel.shape[1]))
        return {"u": u, "bias": bias} | ({"skip": skip[0]} if skip else {})
    return {"kernel": kernel, "bias": bias}


def empty_memory(weights: dict, width: int, batch: int) -> Memory:
    """Zeros for the row above the first one; `weights` of one stream from `fold`."""
    return tuple(
        {
            name: jnp.zeros(
                (
                    width >> level >> (name == "double"),
                    batch,
                    layer["kernel"].shape[-2],
                ),
                layer["kernel"].dtype,
            )
            for name, layer in layers.items()
            if not name.endswith(".side")
        }
        for level, layers in enumerate(weights["levels"])
    )


def _add_taps(products: chex.Array, taps: int) -> chex.Array:
    """Sums `[W, B, T N]`, products of each column with T taps, where they belong.

    Taps are ordered left to right and end at the present column (T = 2) or one to its
    right (T = 3).
    """
    parts = jnp.split(products, taps, axis=-1)
    total = shift(parts[0], 0, 1) + parts[1]
    return total + shift(parts[2], 0, -1) if taps == 3 else total


class Row:
    """The `u` stream over one row, `[W, B, .]`."""

    def __init__(self, weights: dict, memory: Memory, active: int):
        """`active`: resolutions to which this row belongs, counted from the full."""
        self.weights = weights
        self.memory = memory
        self.active = active
        self.saved = tuple(dict(rows) for rows in memory)
        self.outputs: dict = {}

    def input(self, before: chex.Array, above: chex.Array) -> chex.Array:
        """First layer from the units of rows i - 2 and i - 1, `[W, B, C + 1]`."""
        rows = jnp.concatenate([before, above], axis=-1)
        return _add_taps(rows @ self.weights["input"], 3)

    def _remember(self, level: int, name: str, x: chex.Array) -> chex.Array:
        """Saves `x` for the row below and returns what the row above saved."""
        self.saved[level][name] = x
        return self.memory[level][name]

    def conv(self, level: int, name: str, x: chex.Array) -> chex.Array:
        layer = self.weights["levels"][level][name]
        rows = jnp.concatenate([self._remember(level, name, x), x], axis=-1)
        return _add_taps(rows @ layer["kernel"], 3) + layer["bias"]

    def add_sides(
        self, level: int, name: str, y: chex.Array, skip: chex.Array | None
    ) -> chex.Array:
        if skip is None:
            return y
        layer = self.weights["levels"][level][f"{name}.side"]
        return y + concat_elu(skip) @ layer["kernel"] + layer["bias"]

    def drop(self, x: chex.Array) -> chex.Array:
        return x

    def keep(self, level: int, name: str, x: chex.Array) -> chex.Array:
        self.outputs[level, name] = x
        return x

    def halved(self, level: int, x: chex.Array, inner: Linear) -> chex.Array:
        halve = self.weights["levels"][level]["halve"]
        double = self.weights["levels"][level]["double"]
        above = self._remember(level, "halve", x)
        if level + 1 < self.active:
            taps = [
                t
                for row in (above, x)
                for t in (shift(row, 0, 1)[::2], row[::2], row[1::2])
            ]
            y = inner(jnp.concatenate(taps, axis=-1) @ halve["kernel"] + halve["bias"])
            self._remember(level, "double", y)
            return double_columns(y, double["kernel"][0], 0) + double["bias"]
        y = self.memory[level]["double"]
        return double_columns(y, double["kernel"][1], 0) + double["bias"]


def row_terms(
    weights: dict, memory: Memory, u: Row, above: chex.Array
) -> tuple[dict, ...]:
    """Everything that a row of `ul` takes from above it, biases included.

    Args:
      weights: of `ul`, from `layout`.
      memory: of the row above.
      u: the finished `u` stream of this row.
      above: units of the row above, `[W, B, C + 1]`.

    Returns:
      For each resolution a dict of `[W, B, N]` by layer; `input` is with the first.
    """

    def terms(level: int) -> dict:
        layers, rows, given = weights["levels"][level], memory[level], {}
        for name, layer in layers.items():
            if ".conv" in name:
                term = _add_taps(rows[name] @ layer["above"], 2) + layer["bias"][None]
                block, convolution = name.split(".")
                if convolution == "conv1":
                    side = layers[f"{block}.side"]
                    outputs = concat_elu(u.outputs[level, block])
                    term = term + outputs @ side["u"] + side["bias"][None]
                given[name] = term
            elif name == "halve" and level + 1 < u.active:
                x = rows[name]
                taps = jnp.concatenate([shift(x, 0, 1)[::2], x[::2]], axis=-1)
                given[name] = taps @ layer["above"] + layer["bias"][None]
            elif name == "double" and level + 1 == u.active:
                given[name] = double_columns(rows[name], layer["kernel"][1], 0)
                given[name] += layer["bias"][None]
        return given

    given = tuple(terms(level) for level in range(u.active))
    given[0]["input"] = _add_taps(above @ weights["input_above"], 3)
    return given


def empty_left(given: tuple[dict, ...], doubled: bool) -> tuple[dict, ...]:
    """Zeros for what the column left of the first hands on.

    Args:
      given: from `row_terms`.
      doubled: whether doubled columns are among it, as for `Pixel`.
    """

    def sites(level: int, rows: dict) -> dict:
        like = {k: v[0] for k, v in rows.items() if k not in ("input", "double")}
        if doubled and level + 1 < len(given):
            # Where the row reaches further down, doubling yields the next column too.
            like["double"] = rows["up0.conv1"][0]
        return {name: jnp.zeros_like(term) for name, term in like.items()}

    return tuple(sites(level, rows) for level, rows in enumerate(given))


class _SameRow:
    """What `Pixel` and `Sweep` share: the `ul` stream, row above and `u` side given."""

    def __init__(self, weights: dict, given: tuple[dict, ...], active: int):
        self.weights = weights
        self.given = given
        self.active = active
        self.saved: tuple[dict, ...] = tuple({} for _ in range(active))

    def input(self, left: chex.Array) -> chex.Array:
        """First layer; `left` is the units `[..., C + 1]` of the pixels to the left."""
        return self.given[0]["input"] + left @ self.weights["input_left"]

    def from_left(self, level: int, name: str, handed: chex.Array) -> chex.Array:
        """Takes what is handed to the right, returns what comes from the left."""
        raise NotImplementedError

    def conv(self, level: int, name: str, x: chex.Array) -> chex.Array:
        self.saved[level][name] = x
        here, right = jnp.split(
            x @ self.weights["levels"][level][name]["here"], 2, axis=-1
        )
        return self.given[level][name] + self.from_left(level, name, right) + here

    def add_sides(
        self, level: int, name: str, y: chex.Array, skip: chex.Array | None
    ) -> chex.Array:
        # The `u` side and the bias came with the row terms.
        if skip is None:
            return y
        layer = self.weights["levels"][level][f"{name}.side"]
        return y + concat_elu(skip) @ layer["skip"]

    def drop(self, x: chex.Array) -> chex.Array:
        return x

    def keep(self, level: int, name: str, x: chex.Array) -> chex.Array:
        return x


class Pixel(_SameRow):
    """The `ul` stream at one position, `[B, .]`."""

    def __init__(
        self,
        weights: dict,
        given: tuple[dict, ...],
        left: tuple[dict, ...],
        active: int,
        row_active: int,
    ):
        """Sets up one position.

        Args:
          weights: of `ul`, from `layout`.
          given: `row_terms` at this column, for the resolutions that it belongs to.
          left: what the column to the left handed on.
          active: resolutions to which this position belongs.
          row_active: resolutions to which its row belongs.
        """
        super().__init__(weights, given, active)
        self.left = tuple(dict(sites) for sites in left)
        self.row_active = row_active

    def from_left(self, level: int, name: str, handed: chex.Array) -> chex.Array:
        taken = self.left[level][name]
        self.left[level][name] = handed
        return taken

    def halved(self, level: int, x: chex.Array, inner: Linear) -> chex.Array:
        halve = self.weights["levels"][level]["halve"]
        double = self.weights["levels"][level]["double"]
        self.saved[level]["halve"] = x
        if level + 1 < self.active:
            left = self.left[level]
            y = inner(self.given[level]["halve"] + left["halve"] + x @ halve["right"])
            self.saved[level]["double"] = y
            left["double"] = y @ double["kernel"][0, 1] + double["bias"]
            return y @ double["kernel"][0, 0] + double["bias"]
        if level + 1 == self.row_active:  # an odd row: all from the row above
            return self.given[level]["double"]
        self.left[level]["halve"] = x @ halve["left"]
        return self.left[level]["double"]


class Sweep(_SameRow):
    """The `ul` stream over neighbouring columns whose pixels are guessed, `[S, B, .]`.

    `handed` holds, for each resolution and layer, what each column takes from its left:
    entry k is for column k of the layer's own grid, and the last entry is for the first
    column after the sweep.
    """

    def __init__(self, weights: dict, given: tuple[dict, ...], left: tuple[dict, ...]):
        """Sets up a sweep.

        Args:
          weights: of `ul`, from `layout`.
          given: `row_terms` of the columns.
          left: what the column to their left handed on.
        """
        super().__init__(weights, given, len(given))
        self.left = left
        self.handed: tuple[dict, ...] = tuple({} for _ in given)

    def from_left(self, level: int, name: str, handed: chex.Array) -> chex.Array:
        entries = jnp.concatenate([self.left[level][name][None], handed])
        self.handed[level][name] = entries
        return entries[:-1]

    def halved(self, level: int, x: chex.Array, inner: Linear) -> chex.Array:
        halve = self.weights["levels"][level]["halve"]
        double = self.weights["levels"][level]["double"]
        self.saved[level]["halve"] = x
        if level + 1 == self.active:  # an odd row: all from the row above
            return self.given[level]["double"]
        y = self.given[level]["halve"] + x[::2] @ halve["right"]
        y = inner(y + self.from_left(level, "halve", x[1::2] @ halve["left"]))
        self.saved[level]["double"] = y
        return double_columns(y, double["kernel"][0], 0) + double["bias"][None]


def active_levels(levels: int, index: int) -> int:
    """Resolutions, from the full one, whose grid contains a row or column `index`."""
    if index == 0:
        return levels
    return min(levels, int(math.log2(index & -index)) + 1)
