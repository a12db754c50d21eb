"""The one scan over raster positions: rows, and within a row columns.

`decode` visits the positions of an image row by row, left to right, and at each one
lets a policy choose the levels of the channels, one after the other, given all that was
chosen before. Sampling, purification and its soft version differ in the policy alone.

The scan is nested. The outer `lax.scan` runs over groups of `2 ** (resolutions - 1)`
rows, its body unrolled over the rows of a group, so that each resolution is evaluated
on exactly its own grid. At the start of a row everything that looks upwards is computed
for the whole row (`stepwise.Row`, `stepwise.row_terms`). What looks to the left is
added by an inner `lax.scan` over groups of columns, unrolled in the same way
(`stepwise.Pixel`).

Layouts: outside the batch is first, inside rows are first and the batch is last but for
features, which matrix products want last:

| what | where | layout |
|---|---|---|
| images, bounds, chosen levels | outside | `[B, H, W, C]` |
| the same | scanned over | `[H, W, C, B]` |
| units of a row, of a pixel | `Row`, `Pixel` | `[W, B, C + 1]`, `[B, C + 1]` |
| features, terms, memory of a row | `Row`, `row_terms` | `[W, B, .]` |
| features of a position | `Pixel` | `[B, .]` |
| head outputs | `visit`, the family | `[P, B]` |
| candidates, their log-mass | the policy | `[S, B]` |
| levels of a channel | the policy | `[B]` |
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp

from pixeldefend import pixels
from pixeldefend.density import layers, layout, pixelcnn, stepwise

# Static sizes of windows; at run time the narrowest that holds every bound is used.
WINDOWS = (17, 33, 65, 129, 256)

Choose = Callable[[chex.Array, chex.Array, chex.Array, chex.PRNGKey | None], chex.Array]


@flax.struct.dataclass
class Place:
    """What a visitor is given at each position, beside the head's outputs.

    Attributes:
      image: its levels, `[C, B]` at a position.
      lower: lowest allowed levels, likewise; None for a visitor that chooses nothing.
      upper: highest allowed ones, likewise.
      index: of the position in raster order, a number; None without keys.
    """

    image: chex.Array
    lower: chex.Array | None = None
    upper: chex.Array | None = None
    index: chex.Array | None = None


# `visit(outputs [P, B], place) -> (levels [C, B], found)`; `found` is a pytree of
# `[..., B]`, and of all positions together what the scan returns.
Visit = Callable[[chex.Array, Place], tuple[chex.Array, Any]]


def decode(
    model: pixelcnn.PixelCNN,
    params: dict,
    images: chex.Array,
    choose: Choose,
    key: chex.PRNGKey | None = None,
    *,
    lower: chex.Array,
    upper: chex.Array,
    labels: chex.Array | None = None,
    window: int | None = None,
) -> chex.Array:
    """Decodes images in raster order, each level chosen by a policy within bounds.

    Args:
      model: the description.
      params: from `pixelcnn.init` or a released model.
      images: levels `[B, H, W, C]`, handed to the policy; `uint8`, or floating for a
        policy that returns expectations.
      choose: `choose(candidates, log_mass, level, keys) -> level [B]`, with
        candidates `[S, B]`, their log-mass `[S, B]` (nats up to a constant per column,
        minus infinity out of bounds), the image's own level `[B]` and keys `[B]`.
        Candidates are floating where the bounds are: the lowest level and whole steps
        upwards from there.
      key: keys `[B]`, one per image, folded with the position before `choose` sees
        them; None for a deterministic policy.
      lower: lowest allowed levels `[B, H, W, C]`, integer; or floating, of the type of
        floating images. What lies beyond 0..255 is never chosen.
      upper: highest allowed levels, inclusive, likewise.
      labels: integers `[B]` for a class-conditional model.
      window: S, static: at least the largest `upper - lower + 1`. None chooses among
        `WINDOWS` at run time by the bounds as they are given, so that one program
        serves them all. Too narrow a window cuts the upper levels off, which nobody
        notices.

    Returns:
      The chosen levels `[B, H, W, C]`: `uint8`, or floating where `images` is.

    Raises:
      ValueError: shapes or labels that the model cannot take, or no such window.
    """
    pixelcnn.check_images(model, images, labels)
    pixels.check_some(images)
    for name, bound in (("lower", lower), ("upper", upper)):
        fits = jnp.issubdtype(bound.dtype, jnp.integer) or bound.dtype == images.dtype
        if bound.shape != images.shape or not fits:
            raise ValueError(
                f"{name} must be integers {list(images.shape)}, or like floating "
                f"images: {bound.dtype} {list(bound.shape)}"
            )
    fits = isinstance(window, int) and 1 <= window <= pixels.LEVELS
    if window is not None and not fits:
        raise ValueError(
            f"window must be a whole number from 1 to {pixels.LEVELS}: {window!r}"
        )
    return _decode(model, choose, window, params, images, key, (lower, upper), labels)


# Compiled as a whole for a caller too who does not, or each call would compile anew.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(
    model: pixelcnn.PixelCNN,
    choose: Choose,
    window: int | None,
    params: dict,
    images: chex.Array,
    key: chex.PRNGKey | None,
    bounds: tuple[chex.Array, chex.Array],
    labels: chex.Array | None,
) -> chex.Array:
    """`decode`, after its checks."""
    lower, upper = bounds
    whole = jnp.issubdtype(images.dtype, jnp.integer)
    if jnp.issubdtype(lower.dtype, jnp.integer):
        lower, upper = lower.astype(jnp.int32), upper.astype(jnp.int32)
    windows = WINDOWS if window is None else (window,)
    needed = jnp.max(upper - lower) + 1
    if not jnp.issubdtype(lower.dtype, jnp.integer):
        needed = jnp.floor(needed + 1e-3)  # candidates; the difference is rounded
    branch = sum((needed > narrower).astype(jnp.int32) for narrower in windows[:-1])
    lower, upper = jnp.maximum(lower, 0), jnp.minimum(upper, pixels.LEVELS - 1)
    _, height, width, _ = images.shape
    places = Place(
        image=_rows_first(images.astype(jnp.int32) if whole else images),
        lower=_rows_first(lower),
        upper=_rows_first(upper),
        index=None if key is None else jnp.arange(height * width).reshape(height, -1),
    )
    visit = _choosing(model, params["head"], choose, key, windows, branch)
    levels = _scan(model, params, visit, places, labels).transpose(3, 0, 1, 2)
    return levels.astype(jnp.uint8) if whole else levels


def _choosing(
    model: pixelcnn.PixelCNN,
    head: dict,
    choose: Choose,
    key: chex.PRNGKey | None,
    windows: tuple[int, ...],
    branch: chex.Array | int,
) -> Visit:
    """What `decode` does at a position: the channels, one after the other.

    `branch` says which of the windows to use, known at run time.
    """
    family = model.family

    def pick(window: int, state: Any, channel: int, place: Place) -> chex.Array:
        level = place.image[channel]
        assert place.lower is not None and place.upper is not None
        low, high = place.lower[channel], place.upper[channel]
        keys = None
        if key is not None:
            assert place.index is not None
            order = place.index * model.channels + channel
            keys = jax.vmap(jax.random.fold_in, (0, None))(key, order)
        candidates = low[None] + jnp.arange(window, dtype=low.dtype)[:, None]
        log_mass = family.log_mass(state, channel, low, window)
        log_mass = jnp.where(candidates <= high[None], log_mass, -jnp.inf)
        return choose(candidates, log_mass, level, keys).astype(level.dtype)

    def visit(outputs: chex.Array, place: Place) -> tuple[chex.Array, chex.Array]:
        state = family.read(head, outputs)
        chosen = []
        for channel in range(model.channels):
            picks = [
                functools.partial(pick, window, state, channel, place)
                for window in windows
            ]
            level = picks[0]() if len(picks) == 1 else jax.lax.switch(branch, picks)
            chosen.append(level)
            state = family.condition(state, channel, level)
        levels = jnp.stack(chosen)
        return levels, levels

    return visit


def teacher_forced(
    model: pixelcnn.PixelCNN,
    params: dict,
    images: chex.Array,
    *,
    labels: chex.Array | None = None,
) -> chex.Array:
    """`pixelcnn.apply` by way of the scan: the same outputs `[B, H, W, P]`, slowly.

    For checking one against the other, and for timing the scan without its policy.
    """
    pixelcnn.check_images(model, images, labels)

    def visit(outputs: chex.Array, place: Place) -> tuple[chex.Array, chex.Array]:
        return place.image, outputs

    outputs = _scan(model, params, visit, Place(_rows_first(images)), labels)
    return outputs.transpose(3, 0, 1, 2)


def _rows_first(images: chex.Array) -> chex.Array:
    """`[B, H, W, C]` to the scan's order `[H, W, C, B]`."""
    return images.transpose(1, 2, 3, 0)


def _scan(
    model: pixelcnn.PixelCNN,
    params: dict,
    visit: Visit,
    places: Place,
    labels: chex.Array | None,
) -> Any:
    """Runs `visit` at every position in raster order.

    Args:
      model: the description.
      params: of the network.
      visit: see `Visit`.
      places: `[H, W, ...]`.
      labels: integers `[B]` or None.

    Returns:
      What the visitor found, `[H, W, ..., B]`.
    """
    _, width, channels, batch = places.image.shape
    # The weights are folded in the same way whatever else is in the program: a kernel
    # that differs in its last bit decides near-ties of float32 differently, and the
    # rest of the image follows.
    params, places, labels = jax.lax.optimization_barrier((params, places, labels))
    folded = layers.fold(params, jnp.dtype(model.dtype), labels)
    weights = jax.lax.optimization_barrier(layout.lay_out(folded))
    group = 2 ** (model.resolutions - 1)
    dark = jnp.zeros((width, batch, channels + 1), jnp.dtype(model.dtype))
    empty = [layout.empty_memory(folded[name], width, batch) for name in ("u", "ul")]

    def rows(carry: tuple, places: Place) -> tuple[tuple, Any]:
        (u_memory, ul_memory), before, above = carry
        found = []
        for k in range(group):
            active = stepwise.active_resolutions(model.resolutions, k)
            u = stepwise.Row(weights.u, u_memory, active)
            pixelcnn.stream(u, model, 0, u.input(before, above))
            terms = stepwise.row_terms(weights.ul, ul_memory, u, above)
            here = jax.tree.map(lambda a, k=k: a[k], places)
            seen, units, of_row = _scan_row(model, weights, visit, terms, here)
            u_memory, ul_memory = u.memory, _remembered(ul_memory, seen)
            before, above = above, units
            found.append(of_row)
        return ((u_memory, ul_memory), before, above), _stacked(found)

    # Derivatives compute each row again and keep what rows hand on, nothing else.
    body = jax.checkpoint(rows, prevent_cse=False)
    first = (tuple(empty), dark, dark)
    _, found = jax.lax.scan(body, first, _grouped(places, group))
    return _ungrouped(found)


def _scan_row(
    model: pixelcnn.PixelCNN,
    weights: layout.Network,
    visit: Visit,
    terms: layout.Stream,
    places: Place,
) -> tuple[layout.Resolutions, chex.Array, Any]:
    """Runs `visit` along one row, column by column.

    Args:
      model: the description.
      weights: from `layout.lay_out`.
      visit: see `Visit`.
      terms: of this row, from `stepwise.row_terms`.
      places: `[W, ...]`.

    Returns:
      What the rows below need of this one's `ul`, its units `[W, B, C + 1]` and what
      the visitor found, `[W, ..., B]`.
    """
    row_active = len(terms.resolutions)
    group = 2 ** (row_active - 1)
    batch = terms.input.shape[1]

    def columns(carry: tuple, xs: tuple) -> tuple[tuple, tuple]:
        left, units = carry
        terms, places = xs
        seen: list[layout.Resolutions] = []
        all_units, found = [], []
        for k in range(group):
            active = min(row_active, stepwise.active_resolutions(model.resolutions, k))
            at = _column(terms, k, group)
            pixel = stepwise.Pixel(weights.ul, at, left, active, row_active)
            x = pixelcnn.stream(pixel, model, 0, pixel.input(units))
            outputs = pixelcnn.head_outputs(weights.head, x, model.head_dtype).T
            here = jax.tree.map(lambda a, k=k: a[k], places)
            levels, of_position = visit(outputs, here)
            left, units = pixel.handed, pixelcnn.with_ones(model, levels.T)
            seen.append(pixel.memory)
            all_units.append(units)
            found.append(of_position)
        # Of each resolution, from the columns on its grid.
        memory = tuple(
            _stacked([one[k] for one in seen if k < len(one)])
            for k in range(row_active)
        )
        return (left, units), (memory, jnp.stack(all_units), _stacked(found))

    dark = jnp.zeros((batch, model.channels + 1), jnp.dtype(model.dtype))
    groups = len(terms.input) // group
    _, ys = jax.lax.scan(
        jax.checkpoint(columns, prevent_cse=False),  # as for rows
        (stepwise.nothing_handed_on(terms.resolutions), dark),
        (_split(terms, groups), _grouped(places, group)),
    )
    return _ungrouped(ys)


def _column(terms: layout.Stream, k: int, group: int) -> layout.Stream:
    """Terms at column `k` of a group; None for those whose grid does not contain it.

    How many entries a term has in a group tells its resolution.
    """

    def at(term: chex.Array) -> chex.Array | None:
        stride = group // len(term)
        return None if k % stride else term[k // stride]

    return jax.tree.map(at, terms)


def _remembered(
    memory: layout.Resolutions, seen: layout.Resolutions
) -> layout.Resolutions:
    """The memory of `ul` after a row that belongs to as many resolutions as `seen`.

    At the deepest of these nothing was halved, so there is nothing new to double.
    """
    deepest = dataclasses.replace(seen[-1], double=memory[len(seen) - 1].double)
    return (*seen[:-1], deepest, *memory[len(seen) :])


def _stacked(trees: list) -> Any:
    """Stacks trees, leaf by leaf, leaving out what all but the first may lack."""
    return jax.tree.map(
        lambda *leaves: jnp.stack([leaf for leaf in leaves if leaf is not None]), *trees
    )


def _split(tree: Any, groups: int) -> Any:
    """`[N, ...]` to `[groups, N / groups, ...]`, leaf by leaf."""
    return jax.tree.map(lambda a: a.reshape(groups, -1, *a.shape[1:]), tree)


def _grouped(tree: Any, size: int) -> Any:
    """`[N, ...]` to `[N / size, size, ...]`, leaf by leaf."""
    return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), tree)


def _ungrouped(tree: Any) -> Any:
    """The inverse of `_grouped`."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)
