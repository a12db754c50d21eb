"""The conditionals: log-mass of candidate levels, for all three kinds.

At each position the network's head gives a vector of P outputs; the conditionals turn
it into one distribution over 256 levels per channel, in the order red, green, blue,
each given the channels before it. All three kinds sum to one exactly:

* `"independent"`: what PixelDefend's authors trained and purified with. A mixture of
  logistics per channel with the *prior* component weights, on 256 bins whose edges
  divide -1..1 evenly. Green's means shift by red, blue's by red and green.
* `"joint"`: PixelCNN++'s own likelihood. One component explains all channels, so the
  weights of the later channels are reweighted by how well each component explained the
  earlier ones; bins reach 1/255 around each level. Published bits/dim mean this.
* `"softmax"`: 256 free logits per channel, plus tables indexed by the earlier channels
  of the pixel.

The outermost bins are open towards infinity, which is what makes the sums exact.

Everything here works with positions last: outputs `[P, N]`, candidates `[S, N]`. With
the long axis innermost one exponential per bin edge runs at full vector width, and the
raster scan (N = batch) and whole images (N = batch x positions) share this code. A
window of candidates is `first [N]`, the lowest level, and a static count S: scoring
asks for one candidate, purifying for the 2 eps + 1 allowed ones, sampling for all.

Bins: PixelCNN++ (Salimans et al. 2017) section 2.1 for "joint". The mass of a bin
(a, b) of a logistic is written sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which neither
cancels nor needs the approximations of the released codes.
"""

from typing import Protocol

import chex
import flax.struct
import jax
import jax.numpy as jnp

from pixeldefend import pixels

CONDITIONALS = ("independent", "joint", "softmax")
# Floor of the log-scales, as in PixelCNN++: 1/1100 of the range of units.
MIN_LOG_SCALE = -7.0


class Described(Protocol):
    """What is read here of a model's description."""

    conditionals: str
    mixtures: int
    channels: int
    head_dtype: jnp.dtype


@flax.struct.dataclass
class Conditionals:
    """What is known about N positions, some channels of which may be decided.

    For the mixtures:
      log_weights: `[M, N]` component weights, up to a constant per position; for
        "joint" already reweighted by the decided channels.
      means: `[C, M, N]` in units; shifted by the decided channels.
      inverse_scales: `[C, M, N]`.
      coefficients: `[C (C - 1) / 2, M, N]`: green from red, blue from red, from green.
    For "softmax":
      logits: `[C, 256, N]`, up to a constant per position and channel; the decided
        channels' tables are already added.
      tables: `[C (C - 1) / 2, 256, 256]`, rows indexed by the earlier channel's level.
    """

    log_weights: chex.Array | None = None
    means: chex.Array | None = None
    inverse_scales: chex.Array | None = None
    coefficients: chex.Array | None = None
    logits: chex.Array | None = None
    tables: chex.Array | None = None


def outputs(model: Described) -> int:
    """P, the number of head outputs per position."""
    if model.conditionals == "softmax":
        return pixels.LEVELS * model.channels
    pairs = model.channels * (model.channels - 1) // 2
    return model.mixtures * (1 + 2 * model.channels + pairs)


def init_tables(model: Described) -> dict:
    """Further head parameters: "softmax" begins without dependence on channels."""
    pairs = model.channels * (model.channels - 1) // 2
    if model.conditionals != "softmax" or not pairs:
        return {}
    shape = (pairs, pixels.LEVELS, pixels.LEVELS)
    return {"tables": jnp.zeros(shape, model.head_dtype)}


def begin(model: Described, head: dict, heads: chex.Array) -> Conditionals:
    """Reads head outputs `[P, N]`; no channel is decided yet.

    Args:
      model: the description.
      head: the head's parameters (for the tables of "softmax").
      heads: `[P, N]`.
    """
    chex.assert_shape(heads, (outputs(model), None))
    channels, mixtures = model.channels, model.mixtures
    if model.conditionals == "softmax":
        logits = heads.reshape(channels, pixels.LEVELS, -1)
        return Conditionals(logits=logits, tables=head.get("tables"))
    split = heads.reshape(-1, mixtures, heads.shape[-1])
    scales = jnp.maximum(split[1 + channels : 1 + 2 * channels], MIN_LOG_SCALE)
    return Conditionals(
        log_weights=jax.nn.log_softmax(split[0], axis=0),
        means=split[1 : 1 + channels],
        inverse_scales=jnp.exp(-scales),
        coefficients=jnp.tanh(split[1 + 2 * channels :]),
    )


def _bins(model: Described, first: chex.Array, count: int) -> chex.Array:
    """Edges `[count + 1, N]`, in units, of the bins of levels `first [N]` onwards."""
    steps = _window(first.astype(model.head_dtype), count + 1)
    if model.conditionals == "independent":
        return steps / 128.0 - 1.0
    return (steps - 0.5 - pixels.HALF_RANGE) / pixels.HALF_RANGE


def _window(first: chex.Array, count: int) -> chex.Array:
    """The candidates `[count, N]` of a window."""
    return jnp.arange(count, dtype=first.dtype)[:, None] + first[None]


def _component_log_mass(
    model: Described,
    state: Conditionals,
    channel: int,
    first: chex.Array,
    count: int,
) -> tuple[chex.Array, chex.Array]:
    """Per component, as exponent `[S, M, N]` and remaining factor `[S, M, N]` (<= 1).

    The mass of a bin is exp(exponent) * factor. The exponent is linear in the level and
    carries the whole dynamic range; the factor costs one exponential per bin edge.
    """
    inverse = state.inverse_scales[channel]
    edges = _bins(model, first, count)
    scaled = (edges[:, None] - state.means[channel][None]) * inverse[None]
    low, high = scaled[:-1], scaled[1:]
    decays = jnp.exp(-jnp.abs(scaled))
    levels = _window(first.astype(edges.dtype), count)[:, None]
    at_bottom, at_top = levels < 0.5, levels > pixels.LEVELS - 1.5
    inside = -jnp.expm1(-inverse * _bin_width(model))[None]
    # sigmoid(-low) and sigmoid(high), one for a bin open on that side.
    exponent = jnp.where(at_bottom, 0.0, -jnp.maximum(low, 0.0))
    exponent += jnp.where(at_top, 0.0, -jnp.maximum(-high, 0.0))
    divisor = 1.0 + jnp.where(at_bottom, 0.0, decays[:-1])
    divisor *= 1.0 + jnp.where(at_top, 0.0, decays[1:])
    factor = jnp.where(at_bottom | at_top, 1.0, inside) / divisor
    return exponent, factor


def _bin_width(model: Described) -> float:
    return 1 / 128 if model.conditionals == "independent" else 1 / pixels.HALF_RANGE


def score(
    model: Described,
    state: Conditionals,
    channel: int,
    first: chex.Array,
    count: int,
) -> chex.Array:
    """Log-mass of a window of levels, up to a constant per position.

    The constant depends neither on the candidate nor on `first`; subtract `normaliser`
    where it matters. An argmax, or a softmax over all levels, needs none.

    Args:
      model: the description.
      state: with all earlier channels decided.
      channel: 0 to C - 1.
      first: the lowest candidate `[N]`, integer or floating levels.
      count: S, static.

    Returns:
      `[S, N]` nats. Candidates above 255 have no meaning; the caller masks them.
    """
    if model.conditionals == "softmax":
        return _gather(state.logits[channel], first, count)
    exponent, factor = _component_log_mass(model, state, channel, first, count)
    exponent += state.log_weights[None]
    largest = jax.lax.stop_gradient(jnp.max(exponent, axis=1, keepdims=True))
    total = jnp.sum(jnp.exp(exponent - largest) * factor, axis=1)
    return jnp.log(total) + largest[:, 0]


def normaliser(model: Described, state: Conditionals, channel: int) -> chex.Array:
    """Log of the total mass over all 256 levels, `[N]`, to subtract from `score`."""
    if model.conditionals == "softmax":
        return jax.nn.logsumexp(state.logits[channel], axis=0)
    return jax.nn.logsumexp(state.log_weights, axis=0)


def decide(
    model: Described, state: Conditionals, channel: int, level: chex.Array
) -> Conditionals:
    """Conditions the later channels on this one's `level [N]`."""
    # Row of the pair (earlier, later) among the coefficients or tables.
    later = {c: c * (c - 1) // 2 + channel for c in range(channel + 1, model.channels)}
    if not later:
        return state
    if model.conditionals == "softmax":
        logits = state.logits
        for c, pair in later.items():
            logits = logits.at[c].add(_table_rows(state.tables[pair], level).T)
        return state.replace(logits=logits)
    log_weights, means = state.log_weights, state.means
    if model.conditionals == "joint":
        exponent, factor = _component_log_mass(model, state, channel, level, 1)
        log_weights = log_weights + exponent[0] + jnp.log(factor[0])
    units = pixels.to_units(level, model.head_dtype)
    for c, pair in later.items():
        means = means.at[c].add(state.coefficients[pair] * units[None])
    return state.replace(log_weights=log_weights, means=means)


def _table_rows(table: chex.Array, level: chex.Array) -> chex.Array:
    """Rows `[N, 256]` of a table; between levels, linear interpolation."""
    if jnp.issubdtype(level.dtype, jnp.integer):
        return table[level.astype(jnp.int32)]
    below = jnp.clip(jnp.floor(level), 0, pixels.LEVELS - 2).astype(jnp.int32)
    part = (level - below.astype(level.dtype))[:, None].astype(table.dtype)
    return table[below] * (1 - part) + table[below + 1] * part


def _gather(logits: chex.Array, first: chex.Array, count: int) -> chex.Array:
    """`[S, N]` of logits `[256, N]`; floating levels are interpolated."""
    if jnp.issubdtype(first.dtype, jnp.integer):
        rows = jnp.clip(_window(first.astype(jnp.int32), count), 0, pixels.LEVELS - 1)
        return jnp.take_along_axis(logits, rows, axis=0)
    below = jnp.clip(jnp.floor(first), 0, pixels.LEVELS - 2).astype(jnp.int32)
    part = (first - below.astype(first.dtype)).astype(logits.dtype)
    whole = _gather(logits, below, count + 1)
    return whole[:-1] * (1 - part)[None] + whole[1:] * part[None]


def _columns(images: chex.Array) -> chex.Array:
    """Levels `[..., C]` as `[C, N]`; integers wide enough to count beyond 255."""
    levels = images.reshape(-1, images.shape[-1]).T
    return levels.astype(jnp.int32) if images.dtype == jnp.uint8 else levels


def level_log_probs(
    model: Described, head: dict, heads: chex.Array, images: chex.Array
) -> chex.Array:
    """The conditionals of every position and channel over all levels.

    Args:
      model: the description.
      head: the head's parameters, `params["head"]`.
      heads: head outputs `[..., P]` from `pixelcnn.apply`.
      images: levels `[..., C]`: the earlier channels that the later are given.

    Returns:
      Log-probabilities `[..., C, 256]` in nats, each row summing to one.
    """
    shape = heads.shape[:-1]
    levels = _columns(images)
    state = begin(model, head, heads.reshape(-1, heads.shape[-1]).T)
    first = jnp.zeros(levels.shape[1], jnp.int32)
    rows = []
    for channel in range(model.channels):
        row = score(model, state, channel, first, pixels.LEVELS)
        rows.append((row - normaliser(model, state, channel)[None]).T)
        state = decide(model, state, channel, levels[channel])
    return jnp.stack(rows, axis=-2).reshape(*shape, model.channels, pixels.LEVELS)


def log_prob(
    model: Described, head: dict, heads: chex.Array, images: chex.Array
) -> chex.Array:
    """Log-probability of each position's pixel, without forming 256 candidates.

    Args:
      model: the description.
      head: the head's parameters, `params["head"]`.
      heads: head outputs `[..., P]`.
      images: levels `[..., C]`, `uint8` or floating 0..255.

    Returns:
      `[...]` nats, the sum over channels of `level_log_probs` at the image's levels.
    """
    shape = heads.shape[:-1]
    levels = _columns(images)
    state = begin(model, head, heads.reshape(-1, heads.shape[-1]).T)
    total = jnp.zeros(levels.shape[1], model.head_dtype)
    for channel in range(model.channels):
        total += score(model, state, channel, levels[channel], 1)[0]
        total -= normaliser(model, state, channel)
        state = decide(model, state, channel, levels[channel])
    return total.reshape(shape)
