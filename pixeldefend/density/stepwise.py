"""The faces of the raster scan: a row of `u` at a time, then what is left of `ul`.

When row i begins, all rows above it are final. `Row` then evaluates `u`, which sees
nothing else, for the whole row; `row_terms` does the same for every part of `ul` that
looks at the row above. What is left are the same-row taps of `ul`, a fifth of all
arithmetic: `Pixel` adds them position by position, and no layer is evaluated twice.

Rows are `[W, B, .]` and positions `[B, .]`, W the columns of the resolution. What goes
from one place to the next has an entry for each layer, a `layout.Resolution` for each
resolution:

* the *memory* of a row, for the one below: the input of each convolution, what is
  halved, what is doubled. Zeros are the padding.
* the *terms* of a row: what each layer of `ul` takes from above, biases included.
* what a column *hands on* to the one on its right: what each layer adds there.
"""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp

from pixeldefend.density.layers import Linear, concat_elu, double_columns, shift
from pixeldefend.density.layout import Resolution, Resolutions, Stream, Taps


def _add_taps(products: chex.Array, taps: int) -> chex.Array:
    """Sums `[W, B, T N]`, products of each column with T taps, where they belong.

    Taps are ordered left to right and end at the present column (T = 2) or one to its
    right (T = 3).
    """
    parts = jnp.split(products, taps, axis=-1)
    total = shift(parts[0], 0, 1) + parts[1]
    return total + shift(parts[2], 0, -1) if taps == 3 else total


class Row:
    """The `u` stream over one row, `[W, B, .]`.

    Attributes:
      memory: of this row: of the row above where this one has nothing to remember.
      outputs: of the blocks, by resolution and block.
    """

    def __init__(self, weights: Stream, above: Resolutions, active: int):
        """Sets up a row.

        Args:
          weights: of `u`, from `layout.lay_out`.
          above: memory of the row above.
          active: resolutions to which this row belongs, counted from the full.
        """
        self.weights = weights
        self.above = above
        self.active = active
        self.memory = jax.tree.map(lambda a: a, above)  # a copy, to be filled in
        self.outputs: dict = {}

    def input(self, before: chex.Array, above: chex.Array) -> chex.Array:
        """First layer from the units of rows i - 2 and i - 1, `[W, B, C + 1]`."""
        rows = jnp.concatenate([before, above], axis=-1)
        return _add_taps(rows @ self.weights.input, 3)

    def first(
        self, resolution: int, block: str, x: chex.Array, skip: chex.Array | None
    ) -> chex.Array:
        weights = self.weights.resolutions[resolution]
        self.memory[resolution].first[block] = x
        rows = jnp.concatenate([self.above[resolution].first[block], x], axis=-1)
        layer = weights.first[block]
        y = _add_taps(rows @ layer.kernel, 3) + layer.bias
        if skip is None:
            return y
        side = weights.side[block]
        return y + concat_elu(skip) @ side.kernel + side.bias

    def drop(self, x: chex.Array) -> chex.Array:
        return x

    def second(self, resolution: int, block: str, x: chex.Array) -> chex.Array:
        layer = self.weights.resolutions[resolution].second[block]
        self.memory[resolution].second[block] = x
        rows = jnp.concatenate([self.above[resolution].second[block], x], axis=-1)
        return _add_taps(rows @ layer.kernel, 3) + layer.bias

    def keep(self, resolution: int, block: str, x: chex.Array) -> chex.Array:
        self.outputs[resolution, block] = x
        return x

    def halved(self, resolution: int, x: chex.Array, inner: Linear) -> chex.Array:
        weights = self.weights.resolutions[resolution]
        above, memory = self.above[resolution], self.memory[resolution]
        kernel, bias = weights.double
        memory.halve = x
        if resolution + 1 < self.active:
            taps = [
                t
                for row in (above.halve, x)
                for t in (shift(row, 0, 1)[::2], row[::2], row[1::2])
            ]
            halve = weights.halve
            y = inner(jnp.concatenate(taps, axis=-1) @ halve.kernel + halve.bias)
            memory.double = y
            return double_columns(y, kernel[0], 0) + bias
        return double_columns(above.double, kernel[1], 0) + bias


def row_terms(
    weights: Stream, memory: Resolutions, u: Row, above: chex.Array
) -> Stream:
    """Everything that a row of `ul` takes from above it, biases included.

    Args:
      weights: of `ul`, from `layout.lay_out`.
      memory: of `ul`, of the row above.
      u: the finished `u` stream of this row.
      above: units of the row above, `[W, B, C + 1]`.

    Returns:
      `[W, B, N]` for each layer of the resolutions to which the row belongs; of half
      as many columns for `halve`, and `double` only where the row above did all.
    """

    def taken(x: chex.Array, layer: Taps) -> chex.Array:
        return _add_taps(x @ layer.above, 2) + layer.bias[None]

    def terms(resolution: int) -> Resolution:
        layers, rows = weights.resolutions[resolution], memory[resolution]
        found = Resolution()
        for block, layer in layers.first.items():
            side = layers.side[block]
            outputs = concat_elu(u.outputs[resolution, block])
            term = taken(rows.first[block], layer)
            found.first[block] = term + outputs @ side.u + side.bias[None]
        for block, layer in layers.second.items():
            found.second[block] = taken(rows.second[block], layer)
        if layers.halve is not None and resolution + 1 < u.active:
            x = rows.halve
            taps = jnp.concatenate([shift(x, 0, 1)[::2], x[::2]], axis=-1)
            found.halve = taps @ layers.halve.above + layers.halve.bias[None]
        elif layers.double is not None:
            double = layers.double
            found.double = double_columns(rows.double, double.kernel[1], 0)
            found.double += double.bias[None]
        return found

    return Stream(
        _add_taps(above @ weights.input.above, 3),
        tuple(terms(resolution) for resolution in range(u.active)),
    )


def nothing_handed_on(terms: Resolutions) -> Resolutions:
    """Zeros for what the column left of the first hands on; `terms` of the row."""

    def nothing(own: Resolution) -> Resolution:
        # Where the row reaches further down, doubling yields the next column too.
        like = dataclasses.replace(own, double=own.halve)
        return jax.tree.map(lambda term: jnp.zeros_like(term[0]), like)

    return tuple(nothing(own) for own in terms)


class Pixel:
    """The `ul` stream at one position, `[B, .]`, the row above and `u` side given.

    Attributes:
      memory: what the rows below need of this position, by resolution.
      handed: what it hands on to the next column.
    """

    def __init__(
        self,
        weights: Stream,
        terms: Stream,
        left: Resolutions,
        active: int,
        row_active: int,
    ):
        """Sets up one position.

        Args:
          weights: of `ul`, from `layout.lay_out`.
          terms: `row_terms` at this column, for the resolutions that it belongs to.
          left: what the column to the left handed on.
          active: resolutions to which this position belongs.
          row_active: resolutions to which its row belongs.
        """
        self.weights = weights
        self.terms = terms
        self.active = active
        self.row_active = row_active
        self.memory: Resolutions = tuple(Resolution() for _ in range(active))
        self.handed = jax.tree.map(lambda a: a, left)  # a copy, to be changed

    def input(self, left: chex.Array) -> chex.Array:
        """First layer; `left` is the units `[B, C + 1]` of the pixel to the left."""
        return self.terms.input + left @ self.weights.input.left

    def first(
        self, resolution: int, block: str, x: chex.Array, skip: chex.Array | None
    ) -> chex.Array:
        weights, terms = self._at(resolution)
        self.memory[resolution].first[block] = x
        here, right = jnp.split(x @ weights.first[block].here, 2, axis=-1)
        left = self.handed[resolution].first[block]
        self.handed[resolution].first[block] = right
        y = terms.first[block] + left + here
        # The `u` side and the bias came with the row's terms.
        return y if skip is None else y + concat_elu(skip) @ weights.side[block].skip

    def drop(self, x: chex.Array) -> chex.Array:
        return x

    def second(self, resolution: int, block: str, x: chex.Array) -> chex.Array:
        weights, terms = self._at(resolution)
        self.memory[resolution].second[block] = x
        here, right = jnp.split(x @ weights.second[block].here, 2, axis=-1)
        left = self.handed[resolution].second[block]
        self.handed[resolution].second[block] = right
        return terms.second[block] + left + here

    def keep(self, resolution: int, block: str, x: chex.Array) -> chex.Array:
        return x

    def halved(self, resolution: int, x: chex.Array, inner: Linear) -> chex.Array:
        weights, terms = self._at(resolution)
        memory, handed = self.memory[resolution], self.handed[resolution]
        memory.halve = x
        if resolution + 1 < self.active:
            y = inner(terms.halve + handed.halve + x @ weights.halve.right)
            memory.double = y
            kernel, bias = weights.double
            handed.double = y @ kernel[0, 1] + bias
            return y @ kernel[0, 0] + bias
        if resolution + 1 == self.row_active:  # an odd row: all from the row above
            return terms.double
        handed.halve = x @ weights.halve.left
        return handed.double

    def _at(self, resolution: int) -> tuple[Resolution, Resolution]:
        return self.weights.resolutions[resolution], self.terms.resolutions[resolution]


def active_resolutions(resolutions: int, index: int) -> int:
    """Resolutions, from the full one, whose grid contains a row or column `index`."""
    if index == 0:
        return resolutions
    return min(resolutions, int(math.log2(index & -index)) + 1)
