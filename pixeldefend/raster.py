"""The one scan over raster positions: everything sequential in this project.

`decode` visits the positions of an image row by row, left to right, and at each one
lets a policy choose the levels of the channels, one after the other, given all that was
chosen before. Sampling, purification and its soft version differ in the policy alone.

The scan is nested. The outer `lax.scan` runs over groups of `2 ** (levels - 1)` rows,
its body unrolled over the rows of a group, so that each resolution is evaluated on
exactly its own grid. At the start of a row everything that looks upwards is computed
for the whole row (`incremental.Row`, `incremental.row_terms`). The inner `lax.scan`
runs over groups of columns, unrolled in the same way, and adds what looks to the left.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from pixeldefend import causal, incremental, mixture, pixelcnn, pixels

# Static window widths; at run time the narrowest that holds every bound is used.
WIDTHS = (17, 33, 65, 129, 256)

Choose = Callable[[chex.Array, chex.Array, chex.Array, chex.PRNGKey | None], chex.Array]
Visit = Callable[[chex.Array, Any], tuple[chex.Array, Any]]


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
    width: int | None = None,
) -> chex.Array:
    """Decodes images in raster order, each level chosen by a policy within bounds.

    Args:
      model: the description.
      params: from `pixelcnn.init` or a released model.
      images: levels `[B, H, W, C]`, handed to the policy; `uint8`, or floating for a
        policy that returns expectations.
      choose: `choose(candidates, log_mass, level, keys) -> level [B]`, with integer
        candidates `[S, B]`, their log-mass `[S, B]` (nats up to a constant per column,
        minus infinity out of bounds), the image's own level `[B]` and keys `[B]`.
      key: keys `[B]`, one per image, folded with the position before `choose` sees
        them; None for a deterministic policy.
      lower: lowest allowed levels, integer `[B, H, W, C]`.
      upper: highest allowed levels, inclusive, integer `[B, H, W, C]`.
      labels: integers `[B]` for a class-conditional model.
      width: S, static: at least the widest `upper - lower + 1`. None chooses among
        `WIDTHS` at run time, so that one program serves all bounds.

    Returns:
      The chosen levels `[B, H, W, C]`: `uint8`, or floating where `images` is.

    Raises:
      ValueError: shapes or labels that the model cannot take.
    """
    pixelcnn.check_images(model, images, labels)
    for name, bound in (("lower", lower), ("upper", upper)):
        if bound.shape != images.shape or not jnp.issubdtype(bound.dtype, jnp.integer):
            raise ValueError(
                f"{name} must be integers {list(images.shape)}: "
                f"{bound.dtype} {list(bound.shape)}"
            )
    if width is not None and not 1 <= width <= pixels.LEVELS:
        raise ValueError(f"width must be between 1 and {pixels.LEVELS}: {width}")
    whole = jnp.issubdtype(images.dtype, jnp.integer)
    lower, upper = lower.astype(jnp.int32), upper.astype(jnp.int32)
    widths = WIDTHS if width is None else (width,)
    needed = jnp.max(upper - lower) + 1
    branch = sum((needed > narrower).astype(jnp.int32) for narrower in widths[:-1])
    height, columns = images.shape[1:3]
    inputs = {
        "image": _rows_first(images.astype(jnp.int32) if whole else images),
        "lower": _rows_first(lower),
        "upper": _rows_first(upper),
        "position": jnp.arange(height * columns).reshape(height, columns),
    }
    visit = _choosing(model, params["head"], choose, key, widths, branch)
    levels = _scan(model, params, visit, inputs, images.shape, labels)
    levels = levels.transpose(3, 0, 1, 2)
    return levels.astype(jnp.uint8) if whole else levels


def _choosing(
    model: pixelcnn.PixelCNN,
    head: dict,
    choose: Choose,
    key: chex.PRNGKey | None,
    widths: tuple[int, ...],
    branch: chex.Array | int,
) -> Visit:
    """What `decode` does at a position: the channels, one after the other.

    `branch` is the index of the width to use, known at run time.
    """

    def pick(
        size: int, state: mixture.Conditionals, channel: int, here: dict
    ) -> chex.Array:
        level, low, high = (here[name][channel] for name in ("image", "lower", "upper"))
        keys = None
        if key is not None:
            order = here["position"] * model.channels + channel
            keys = jax.vmap(jax.random.fold_in, (0, None))(key, order)
        candidates = low[None] + jnp.arange(size, dtype=jnp.int32)[:, None]
        log_mass = mixture.score(model, state, channel, low, size)
        log_mass = jnp.where(candidates <= high[None], log_mass, -jnp.inf)
        return choose(candidates, log_mass, level, keys).astype(level.dtype)

    def visit(heads: chex.Array, here: dict) -> tuple[chex.Array, chex.Array]:
        state = mixture.begin(model, head, heads)
        chosen = []
        for channel in range(model.channels):
            picks = [
                functools.partial(pick, size, state, channel, here) for size in widths
            ]
            level = picks[0]() if len(picks) == 1 else jax.lax.switch(branch, picks)
            chosen.append(level)
            state = mixture.decide(model, state, channel, level)
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

    def visit(heads: chex.Array, here: chex.Array) -> tuple[chex.Array, chex.Array]:
        return here, heads

    inputs = _rows_first(images)
    heads = _scan(model, params, visit, inputs, images.shape, labels)
    return heads.transpose(3, 0, 1, 2)


def _rows_first(images: chex.Array) -> chex.Array:
    """`[B, H, W, C]` to the scan's order `[H, W, C, B]`."""
    return images.transpose(1, 2, 3, 0)


def _scan(
    model: pixelcnn.PixelCNN,
    params: dict,
    visit: Visit,
    inputs: Any,
    shape: tuple[int, ...],
    labels: chex.Array | None,
) -> Any:
    """Runs `visit` at every position in raster order.

    Args:
      model: the description.
      params: of the network.
      visit: `visit(heads [P, B], inputs at the position) -> (levels [C, B], out)`.
      inputs: pytree of `[H, W, ...]`.
      shape: `(B, H, W, C)`.
      labels: integers `[B]` or None.

    Returns:
      The pytree of `out`, `[H, W, ...]`.
    """
    batch, _, columns, channels = shape
    folded = causal.fold(params, jnp.dtype(model.dtype), labels)
    weights = incremental.layout(folded)
    group = 2 ** (model.levels - 1)
    dark = jnp.zeros((columns, batch, channels + 1), jnp.dtype(model.dtype))
    memory = {
        name: incremental.empty_memory(folded[name], columns, batch)
        for name in ("u", "ul")
    }

    def rows(carry: tuple, inputs: Any) -> tuple[tuple, Any]:
        memory, before, above = carry
        outs = []
        for k in range(group):
            active = incremental.active_levels(model.levels, k)
            u = incremental.Row(weights["u"], memory["u"], active)
            pixelcnn.stream(u, model, 0, u.input(before, above))
            given = incremental.row_terms(weights["ul"], memory["ul"], u, above)
            here = jax.tree.map(lambda a, k=k: a[k], inputs)
            saved, units, out = _columns(model, weights, visit, given, here, dark[0])
            kept = tuple(old | new for old, new in _zip_levels(memory["ul"], saved))
            memory = {"u": u.saved, "ul": kept}
            before, above = above, units
            outs.append(out)
        return (memory, before, above), jax.tree.map(lambda *a: jnp.stack(a), *outs)

    _, outs = jax.lax.scan(rows, (memory, dark, dark), _grouped(inputs, group))
    return _ungrouped(outs)


def _columns(
    model: pixelcnn.PixelCNN,
    weights: dict,
    visit: Visit,
    given: tuple[dict, ...],
    inputs: Any,
    dark: chex.Array,
) -> tuple[tuple[dict, ...], chex.Array, Any]:
    """The inner scan, over one row.

    Returns:
      The row's memory for the resolutions that it belongs to, its units
      `[W, B, C + 1]`, and what `visit` gave, `[W, ...]`.
    """
    row_active = len(given)
    group = 2 ** (row_active - 1)
    columns = given[0]["input"].shape[0]

    def step(carry: tuple, xs: tuple) -> tuple[tuple, tuple]:
        left, units = carry
        given, inputs = xs
        saved: list[tuple[dict, ...]] = []
        row, outs = [], []
        for k in range(group):
            active = min(row_active, incremental.active_levels(model.levels, k))
            at = tuple(_column(terms, k, group) for terms in given[:active])
            pixel = incremental.Pixel(weights["ul"], at, left, active, row_active)
            x = pixelcnn.stream(pixel, model, 0, pixel.input(units))
            here = jax.tree.map(lambda a, k=k: a[k], inputs)
            heads = pixelcnn.head(weights["head"], x, model.head_dtype).T
            levels, out = visit(heads, here)
            left, units = pixel.left, pixelcnn.with_ones(model, levels.T)
            saved.append(pixel.saved)
            row.append(units)
            outs.append(out)
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *outs)
        return (left, units), (_stack_levels(saved), jnp.stack(row), stacked)

    carry = (incremental.empty_left(given), dark)
    grouped = tuple(
        {name: _split_rows(term, columns // group) for name, term in terms.items()}
        for terms in given
    )
    _, (saved, units, out) = jax.lax.scan(
        step, carry, (grouped, _grouped(inputs, group))
    )
    return _ungrouped(saved), _ungrouped(units), _ungrouped(out)


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


def _zip_levels(
    old: tuple[dict, ...], new: tuple[dict, ...]
) -> list[tuple[dict, dict]]:
    """Pairs resolutions; those that the row does not belong to keep what they had."""
    return [(o, new[i] if i < len(new) else {}) for i, o in enumerate(old)]


def _split_rows(x: chex.Array, groups: int) -> chex.Array:
    return x.reshape(groups, -1, *x.shape[1:])


def _grouped(tree: Any, size: int) -> Any:
    """`[N, ...]` to `[N / size, size, ...]`, leaf by leaf."""
    return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), tree)


def _ungrouped(tree: Any) -> Any:
    """The inverse of `_grouped`."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)
