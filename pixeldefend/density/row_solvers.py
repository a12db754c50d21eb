"""How the `ul` stream is solved along one row: column by column, or by sweeping.

Both take what the row gets from above (`stepwise.row_terms`) and let a visitor
choose the levels at each position, given the pixels to its left, and both end with the
same levels:

* `columns`: a `lax.scan`, one position after the other, no layer evaluated twice.
* `sweeps`: a `lax.while_loop`. Evaluates the next S columns at once for a guess of
  their pixels and takes the chosen levels for the next guess. All columns up to the
  first whose guess was wrong are then right and need no further sweep. Where guesses
  are mostly right, a row takes a handful of larger steps instead of W small ones.
  (Jacobi iteration behind a moving front; Song et al., Accelerating Feedforward
  Computation via Parallel Nonlinear Equation Solving, ICML 2021.)

A visitor is `visit(heads [P, N], inputs) -> (levels [C, N], out)` with the batch last:
`inputs` and `out` are pytrees of `[..., N]`, N the batch or a sweep's columns of it.
"""

from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp

from pixeldefend.density import pixelcnn, stepwise

# Columns of a sweep. Wider ones need hardly fewer rounds, and every round costs more.
SPAN = 16

Visit = Callable[[chex.Array, Any], tuple[chex.Array, Any]]


@flax.struct.dataclass
class Problem:
    """One row of `ul`, with what it takes from above.

    Attributes:
      weights: from `stepwise.layout`.
      given: from `stepwise.row_terms`.
      memory: of `ul`, of the row above.
      inputs: of the visitor, a pytree of `[W, ..., B]` with "image" `[W, C, B]`.
    """

    weights: dict
    given: tuple[dict, ...]
    memory: stepwise.Memory
    inputs: dict


@flax.struct.dataclass
class Solved:
    """What a row leaves behind.

    Attributes:
      memory: of `ul`, of this row.
      units: of its pixels, `[W, B, C + 1]`.
      out: what the visitor gave, `[W, ..., B]`.
      rounds: int32, how many steps came one after the other.
    """

    memory: stepwise.Memory
    units: chex.Array
    out: Any
    rounds: chex.Array


Solve = Callable[[pixelcnn.PixelCNN, Visit, Problem], Solved]


def columns(model: pixelcnn.PixelCNN, visit: Visit, row: Problem) -> Solved:
    """Solves a row column by column; the visitor's N is the batch."""
    row_active = len(row.given)
    group = 2 ** (row_active - 1)
    width, batch = row.given[0]["input"].shape[:2]

    def step(carry: tuple, xs: tuple) -> tuple[tuple, tuple]:
        left, units = carry
        given, inputs = xs
        saved: list[tuple[dict, ...]] = []
        seen, outs = [], []
        for k in range(group):
            active = min(row_active, stepwise.active_levels(model.levels, k))
            at = tuple(_column(terms, k, group) for terms in given[:active])
            pixel = stepwise.Pixel(row.weights["ul"], at, left, active, row_active)
            x = pixelcnn.stream(pixel, model, 0, pixel.input(units))
            here = jax.tree.map(lambda a, k=k: a[k], inputs)
            heads = pixelcnn.head_outputs(row.weights["head"], x, model.head_dtype).T
            levels, out = visit(heads, here)
            left, units = pixel.left, pixelcnn.with_ones(model, levels.T)
            saved.append(pixel.saved)
            seen.append(units)
            outs.append(out)
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *outs)
        return (left, units), (_stack_levels(saved), jnp.stack(seen), stacked)

    dark = jnp.zeros((batch, model.channels + 1), jnp.dtype(model.dtype))
    terms = tuple(
        {name: _split_rows(term, width // group) for name, term in terms.items()}
        for terms in row.given
    )
    _, ys = jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False),  # as for rows in `raster`
        (stepwise.empty_left(row.given, doubled=True), dark),
        (terms, grouped(row.inputs, group)),
    )
    saved, units, out = ungrouped(ys)
    memory = tuple(
        old | (saved[level] if level < len(saved) else {})
        for level, old in enumerate(row.memory)
    )
    return Solved(memory, units, out, jnp.int32(width))


@flax.struct.dataclass
class _Sweeping:
    """State between two sweeps; columns before `front` are settled.

    Attributes:
      rounds: int32, sweeps so far.
      front: int32, first column of the next sweep.
      tries: int32, sweeps that began there.
      units: of the pixel left of it, `[B, C + 1]`.
      left: what its column handed on.
      levels: `[W + S, C, B]`, guesses from `front` on.
      memory: of `ul`, of this row up to `front`; `W + S` columns.
      out: of the visitor, as `levels`.
    """

    rounds: chex.Array
    front: chex.Array
    tries: chex.Array
    units: chex.Array
    left: tuple[dict, ...]
    levels: chex.Array
    memory: stepwise.Memory
    out: Any


def sweeps(model: pixelcnn.PixelCNN, visit: Visit, row: Problem) -> Solved:
    """Solves a row by sweeping over some columns at once, from its image on.

    The visitor's N is S times B; called again with the same arguments it must return
    the same levels.
    """
    group = 2 ** (len(row.given) - 1)
    width, batch = row.given[0]["input"].shape[:2]
    span = min(-(-SPAN // group) * group, width)
    # Sweeps may reach over the right edge, where nothing matters.
    given, inputs, memory = (
        jax.tree.map(lambda a: _padded(a, a.shape[0] * span // width), tree)
        for tree in (row.given, row.inputs, row.memory)
    )

    def window(tree: Any, front: chex.Array) -> Any:
        return jax.tree.map(lambda a: _cut(a, front, span, width + span), tree)

    def sweep(state: _Sweeping) -> _Sweeping:
        guess, terms, here = (
            window(tree, state.front) for tree in (state.levels, given, inputs)
        )
        face = stepwise.Sweep(row.weights["ul"], terms, state.left)
        units = pixelcnn.with_ones(model, guess.transpose(0, 2, 1))
        x = face.input(jnp.concatenate([state.units[None], units[:-1]]))
        x = pixelcnn.stream(face, model, 0, x).reshape(span * batch, -1)
        heads = pixelcnn.head_outputs(row.weights["head"], x, model.head_dtype).T
        levels, out = visit(heads, jax.tree.map(_flat, here))
        levels, out = (
            _unflat(levels, span),
            jax.tree.map(lambda a: _unflat(a, span), out),
        )
        advance = _settled(levels, guess, state.tries + 1) // group * group
        last = jax.lax.dynamic_index_in_dim(levels, advance - 1, keepdims=False)
        moved = advance > 0
        return _Sweeping(
            rounds=state.rounds + 1,
            front=state.front + advance,
            tries=jnp.where(moved, 0, state.tries + 1),
            units=jnp.where(moved, pixelcnn.with_ones(model, last.T), state.units),
            left=_entries(face.handed, advance, span),
            levels=_paste(state.levels, levels, state.front),
            memory=_paste_memory(state.memory, face.saved, state.front, span),
            out=jax.tree.map(lambda a, b: _paste(a, b, state.front), state.out, out),
        )

    zero = jnp.int32(0)
    heads = (model.family.num_outputs, span * batch)
    _, out = jax.eval_shape(
        visit,
        jax.ShapeDtypeStruct(heads, model.head_dtype),
        jax.tree.map(_flat, window(inputs, zero)),
    )
    state = _Sweeping(
        rounds=zero,
        front=zero,
        tries=zero,
        units=jnp.zeros((batch, model.channels + 1), jnp.dtype(model.dtype)),
        left=stepwise.empty_left(row.given, doubled=False),
        levels=inputs["image"],
        memory=memory,
        out=jax.tree.map(
            lambda a: jnp.zeros((width + span, *a.shape[:-1], batch), a.dtype), out
        ),
    )
    state = jax.lax.while_loop(lambda state: state.front < width, sweep, state)
    levels, out = jax.tree.map(lambda a: a[:width], (state.levels, state.out))
    memory = jax.tree.map(lambda a, old: a[: len(old)], state.memory, row.memory)
    units = pixelcnn.with_ones(model, levels.transpose(0, 2, 1))
    return Solved(memory, units, out, state.rounds)


def _settled(levels: chex.Array, guess: chex.Array, tries: chex.Array) -> chex.Array:
    """How many columns of a sweep are right, from the levels `[S, C, B]` it chose.

    All up to the first whose guess was wrong, that one included, since it saw only
    right ones; and after `tries` sweeps from the same front as many.
    """
    same = jnp.cumprod(jnp.all(levels == guess, axis=(1, 2)).astype(jnp.int32))
    return jnp.maximum(jnp.sum(same[:-1], dtype=jnp.int32) + 1, tries)


def _padded(x: chex.Array, more: int) -> chex.Array:
    """`more` columns of zeros to the right of `[W, ...]`."""
    return jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1))


def _cut(x: chex.Array, front: chex.Array, span: int, width: int) -> chex.Array:
    """`span` columns from `front`, both at full resolution, of `width` in all."""
    stride = width // x.shape[0]
    return jax.lax.dynamic_slice_in_dim(x, front // stride, span // stride)


def _paste(x: chex.Array, part: chex.Array, start: chex.Array) -> chex.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part, start, 0)


def _paste_memory(
    memory: stepwise.Memory, saved: tuple[dict, ...], front: chex.Array, span: int
) -> stepwise.Memory:
    """Writes what a sweep saved to its columns; the rest stays."""
    return tuple(
        rows
        | {
            name: _paste(rows[name], part, front // (span // part.shape[0]))
            for name, part in (saved[level] if level < len(saved) else {}).items()
        }
        for level, rows in enumerate(memory)
    )


def _entries(
    handed: tuple[dict, ...], advance: chex.Array, span: int
) -> tuple[dict, ...]:
    """What is handed to the column `advance` of a sweep, layer by layer."""
    return jax.tree.map(
        lambda a: jax.lax.dynamic_index_in_dim(
            a, advance // (span // (a.shape[0] - 1)), keepdims=False
        ),
        handed,
    )


def _flat(x: chex.Array) -> chex.Array:
    """`[S, ..., B]` to `[..., S B]`."""
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], -1)


def _unflat(x: chex.Array, span: int) -> chex.Array:
    """The inverse of `_flat`."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], span, -1), -2, 0)


def _column(terms: dict, k: int, group: int) -> dict:
    """Terms at column `k` of a group, for those whose grid contains it.

    How many entries a term has in a group tells its resolution.
    """
    at = {}
    for name, term in terms.items():
        stride = group // term.shape[0]
        if k % stride == 0:
            at[name] = term[k // stride]
    return at


def _stack_levels(saved: list[tuple[dict, ...]]) -> tuple[dict, ...]:
    """Stacks what the columns of a group saved, per resolution."""
    deepest = max(len(levels) for levels in saved)
    stacked = []
    for level in range(deepest):
        columns = [levels[level] for levels in saved if len(levels) > level]
        names = {name for column in columns for name in column}
        stacked.append(
            {
                name: jnp.stack([c[name] for c in columns if name in c])
                for name in sorted(names)
            }
        )
    return tuple(stacked)


def _split_rows(x: chex.Array, groups: int) -> chex.Array:
    return x.reshape(groups, -1, *x.shape[1:])


def grouped(tree: Any, size: int) -> Any:
    """`[N, ...]` to `[N / size, size, ...]`, leaf by leaf."""
    return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), tree)


def ungrouped(tree: Any) -> Any:
    """The inverse of `grouped`."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)
