"""The one scan over raster positions, row by row.

`decode` visits the positions of an image row by row, left to right, and at each one
lets a policy choose the levels of the channels, one after the other, given all that was
chosen before. Sampling, purification and its soft version differ in the policy alone.

The scan is nested. The outer `lax.scan` runs over groups of `2 ** (levels - 1)` rows,
its body unrolled over the rows of a group, so that each resolution is evaluated on
exactly its own grid. At the start of a row everything that looks upwards is computed
for the whole row (`stepwise.Row`, `stepwise.row_terms`). What looks to the left
is added in one of two ways, see `row_solvers`: an inner `lax.scan` over groups of
columns, unrolled in the same way, or sweeps over the row.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from pixeldefend import pixels
from pixeldefend.density import layers, pixelcnn, row_solvers, stepwise

# Static window widths; at run time the narrowest that holds every bound is used.
WIDTHS = (17, 33, 65, 129, 256)

Choose = Callable[[chex.Array, chex.Array, chex.Array, chex.PRNGKey | None], chex.Array]
SOLVERS = {"scan": row_solvers.columns, "fixed_point": row_solvers.sweeps}


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
    solver: str = "scan",
) -> chex.Array:
    """Decodes images in raster order, each level chosen by a policy within bounds.

    Args:
      model: the description.
      params: from `pixelcnn.init` or a released model.
      images: levels `[B, H, W, C]`, handed to the policy; `uint8`, or floating for a
        policy that returns expectations.
      choose: `choose(candidates, log_mass, level, keys) -> level [N]`, with
        candidates `[S, N]`, their log-mass `[S, N]` (nats up to a constant per column,
        minus infinity out of bounds), the image's own level `[N]` and keys `[N]`.
        Candidates are floating where the bounds are: the lowest level and whole steps
        upwards from there.
      key: keys `[B]`, one per image, folded with the position before `choose` sees
        them; None for a deterministic policy.
      lower: lowest allowed levels `[B, H, W, C]`, integer; or floating, of the type of
        floating images.
      upper: highest allowed levels, inclusive, likewise.
      labels: integers `[B]` for a class-conditional model.
      width: S, static: at least the widest `upper - lower + 1`. None chooses among
        `WIDTHS` at run time, so that one program serves all bounds. Too narrow a width
        cuts the upper levels off, which nobody notices.
      solver: how a row is solved: "scan", column by column, or "fixed_point", by
        sweeping over some columns at once until their guesses are right. Same levels
        (but for ties in floating point); see `row_solvers`. Derivatives only by "scan".

    Returns:
      The chosen levels `[B, H, W, C]`: `uint8`, or floating where `images` is.

    Raises:
      ValueError: shapes or labels that the model cannot take, an unknown solver.
    """
    return decode_with_rounds(
        model,
        params,
        images,
        choose,
        key,
        lower=lower,
        upper=upper,
        labels=labels,
        width=width,
        solver=solver,
    )[0]


def decode_with_rounds(
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
    solver: str = "scan",
) -> tuple[chex.Array, chex.Array]:
    """`decode`, and how many steps came one after the other.

    Returns:
      The levels as from `decode`, and int32 `[H]`: the rounds that each row took, W
      for "scan"; for "fixed_point" at least those of the image that needs most, since
      all images move on together.
    """
    pixelcnn.check_images(model, images, labels)
    for name, bound in (("lower", lower), ("upper", upper)):
        fits = jnp.issubdtype(bound.dtype, jnp.integer) or bound.dtype == images.dtype
        if bound.shape != images.shape or not fits:
            raise ValueError(
                f"{name} must be integers {list(images.shape)}, or like floating "
                f"images: {bound.dtype} {list(bound.shape)}"
            )
    fits = isinstance(width, int) and 1 <= width <= pixels.LEVELS
    if width is not None and not fits:
        raise ValueError(
            f"width must be a whole number from 1 to {pixels.LEVELS}: {width!r}"
        )
    whole = jnp.issubdtype(images.dtype, jnp.integer)
    if jnp.issubdtype(lower.dtype, jnp.integer):
        lower, upper = lower.astype(jnp.int32), upper.astype(jnp.int32)
    widths = WIDTHS if width is None else (width,)
    needed = jnp.max(upper - lower) + 1
    branch = sum((needed > narrower).astype(jnp.int32) for narrower in widths[:-1])
    inputs = {
        "image": _rows_first(images.astype(jnp.int32) if whole else images),
        "lower": _rows_first(lower),
        "upper": _rows_first(upper),
    }
    if key is not None:
        batch, height, columns, _ = images.shape
        grid = (height, columns, batch)
        inputs["index"] = jnp.broadcast_to(jnp.arange(batch), grid)
        position = jnp.arange(height * columns).reshape(height, columns, 1)
        inputs["position"] = jnp.broadcast_to(position, grid)
    visit = _choosing(model, params["head"], choose, key, widths, branch)
    levels, rounds = _scan(model, params, visit, inputs, labels, solver)
    levels = levels.transpose(3, 0, 1, 2)
    return (levels.astype(jnp.uint8) if whole else levels), rounds


def _choosing(
    model: pixelcnn.PixelCNN,
    head: dict,
    choose: Choose,
    key: chex.PRNGKey | None,
    widths: tuple[int, ...],
    branch: chex.Array | int,
) -> row_solvers.Visit:
    """What `decode` does at a position: the channels, one after the other.

    `branch` is the index of the width to use, known at run time.
    """

    family = model.family

    def pick(size: int, state: Any, channel: int, here: dict) -> chex.Array:
        level, low, high = (here[name][channel] for name in ("image", "lower", "upper"))
        keys = None
        if key is not None:
            order = here["position"] * model.channels + channel
            keys = jax.vmap(jax.random.fold_in)(key[here["index"]], order)
        candidates = low[None] + jnp.arange(size, dtype=low.dtype)[:, None]
        log_mass = family.log_mass(state, channel, low, size)
        log_mass = jnp.where(candidates <= high[None], log_mass, -jnp.inf)
        return choose(candidates, log_mass, level, keys).astype(level.dtype)

    def visit(heads: chex.Array, here: dict) -> tuple[chex.Array, chex.Array]:
        state = family.read(head, heads)
        chosen = []
        for channel in range(model.channels):
            picks = [
                functools.partial(pick, size, state, channel, here) for size in widths
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
    solver: str = "scan",
) -> chex.Array:
    """`pixelcnn.apply` by way of the scan: the same outputs `[B, H, W, P]`, slowly.

    For checking one against the other, and for timing the scan without its policy.
    `solver` as for `decode`.
    """
    pixelcnn.check_images(model, images, labels)

    def visit(heads: chex.Array, here: dict) -> tuple[chex.Array, chex.Array]:
        return here["image"], heads

    inputs = {"image": _rows_first(images)}
    heads, _ = _scan(model, params, visit, inputs, labels, solver)
    return heads.transpose(3, 0, 1, 2)


def _rows_first(images: chex.Array) -> chex.Array:
    """`[B, H, W, C]` to the scan's order `[H, W, C, B]`."""
    return images.transpose(1, 2, 3, 0)


def _scan(
    model: pixelcnn.PixelCNN,
    params: dict,
    visit: row_solvers.Visit,
    inputs: dict,
    labels: chex.Array | None,
    solver: str,
) -> tuple[Any, chex.Array]:
    """Runs `visit` at every position in raster order.

    Args:
      model: the description.
      params: of the network.
      visit: see `row_solvers`.
      inputs: of the visitor, a pytree of `[H, W, ..., B]`.
      labels: integers `[B]` or None.
      solver: how a row is solved, a key of `SOLVERS`.

    Returns:
      The visitor's `out`, `[H, W, ..., B]`, and the rounds that each row took `[H]`.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}: {solver!r}")
    _, width, channels, batch = inputs["image"].shape
    folded = layers.fold(params, jnp.dtype(model.dtype), labels)
    weights = stepwise.layout(folded)
    group = 2 ** (model.levels - 1)
    dark = jnp.zeros((width, batch, channels + 1), jnp.dtype(model.dtype))
    memory = {
        name: stepwise.empty_memory(folded[name], width, batch) for name in ("u", "ul")
    }

    def rows(carry: tuple, inputs: dict) -> tuple[tuple, tuple]:
        memory, before, above = carry
        outs = []
        for k in range(group):
            active = stepwise.active_levels(model.levels, k)
            u = stepwise.Row(weights["u"], memory["u"], active)
            pixelcnn.stream(u, model, 0, u.input(before, above))
            given = stepwise.row_terms(weights["ul"], memory["ul"], u, above)
            here = jax.tree.map(lambda a, k=k: a[k], inputs)
            row = row_solvers.Problem(weights, given, memory["ul"], here)
            solved = SOLVERS[solver](model, visit, row)
            memory = {"u": u.saved, "ul": solved.memory}
            before, above = above, solved.units
            outs.append((solved.out, solved.rounds))
        return (memory, before, above), jax.tree.map(lambda *a: jnp.stack(a), *outs)

    first = (memory, dark, dark)
    # Derivatives compute each row again and keep what rows hand on, nothing else.
    remembered = jax.checkpoint(rows, prevent_cse=False)
    _, outs = jax.lax.scan(remembered, first, row_solvers.grouped(inputs, group))
    return row_solvers.ungrouped(outs)
