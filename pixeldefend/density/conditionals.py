"""Families of conditionals: what the head's outputs say about the 256 levels.

At each position the network's head gives a vector of P outputs; a family turns it into
one distribution over 256 levels per channel, in the order red, green, blue, each given
the channels before it. Each sums to one exactly, its outermost bins being open:

* `LogisticMixture(shared=False)`, `"independent"`: what PixelDefend's authors trained
  and purified with. A mixture of logistics per channel with the *prior* component
  weights, on 256 bins whose edges divide -1..1 evenly. Green's means shift by red,
  blue's by red and green.
* `LogisticMixture(shared=True)`, `"joint"`: PixelCNN++'s own likelihood. One component
  explains all channels, so the weights of the later ones are reweighted by how well
  each explained the earlier; bins reach 1/255 around each level. Published bits/dim
  mean this.
* `Softmax`, `"softmax"`: 256 free logits per channel, plus tables indexed by the
  earlier channels of the pixel.

Everything here works with positions last: outputs `[P, N]`, candidates `[S, N]`. With
the long axis innermost one exponential per bin edge runs at full vector width, and the
raster scan (N = batch) and whole images (N = batch x positions) share this code. A
window of candidates is `first [N]`, the lowest level, and a static count S: scoring
asks for one candidate, purifying for the 2 eps + 1 allowed ones, sampling for all.

Bins: PixelCNN++ (Salimans et al. 2017) section 2.1 for "joint". The mass of a bin
(a, b) of a logistic is written sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which neither
cancels nor needs the released codes' approximations.
"""

import dataclasses
from typing import Any, Protocol

import chex
import flax.struct
import jax
import jax.numpy as jnp

from pixeldefend import pixels

CONDITIONALS = ("independent", "joint", "softmax")
# Of the log-scales: the floor is PixelCNN++'s, 1/1100 of the range of units; e^40 times
# the range is flat already, and soon after it float32 has no mass left for a bin.
MIN_LOG_SCALE, MAX_LOG_SCALE = -7.0, 40.0

State = Any  # a pytree, of a family's own: `MixtureState`, `SoftmaxState`


class Family(Protocol):
    """One way to read a head; hashable, so static under `jax.jit`.

    A state is what is known about N positions, some channels of which may be decided.
    """

    @property
    def channels(self) -> int:
        """C, of the images."""

    @property
    def dtype(self) -> jnp.dtype:
        """Of all log-probabilities."""

    @property
    def num_outputs(self) -> int:
        """P, the number of head outputs per position."""

    def head_parameters(self) -> dict:
        """What the head has beside its last layer, as training begins."""

    def read(self, head: dict, outputs: chex.Array) -> State:
        """Reads head outputs `[P, N]`; no channel is decided yet.

        `head` is the head's parameters, `params["head"]`.
        """

    def log_mass(
        self, state: State, channel: int, first: chex.Array, count: int
    ) -> chex.Array:
        """Log-mass of a window of levels, up to a constant per position.

        The constant depends neither on the candidate nor on `first`; subtract
        `normaliser` where it matters, not for an argmax or a softmax of all levels.

        Args:
          state: with all earlier channels decided.
          channel: 0 to C - 1.
          first: the lowest candidate `[N]`, integer or floating levels.
          count: S, static.

        Returns:
          `[S, N]` nats. Candidates above 255 have no meaning; the caller masks them.
        """

    def normaliser(self, state: State, channel: int) -> chex.Array:
        """Log of the total mass over all levels, `[N]`, to subtract from `log_mass`."""

    def condition(self, state: State, channel: int, level: chex.Array) -> State:
        """Conditions the later channels on this one's `level [N]`."""


def named(name: str, *, mixtures: int, channels: int, dtype: jnp.dtype) -> Family:
    """The family that a model's description names, one of `CONDITIONALS`."""
    if name == "softmax":
        return Softmax(channels, dtype)
    return LogisticMixture(mixtures, channels, name == "joint", dtype)


def _pairs(channels: int) -> int:
    """How many pairs of an earlier and a later channel there are."""
    return channels * (channels - 1) // 2


def _later(channel: int, channels: int) -> list[tuple[int, int]]:
    """Each later channel, and the place of its pair with `channel` among all pairs."""
    return [(c, _pairs(c) + channel) for c in range(channel + 1, channels)]


def _candidates(first: chex.Array, count: int) -> chex.Array:
    """The levels `[count, N]` of a window."""
    return jnp.arange(count, dtype=first.dtype)[:, None] + first[None]


# ----------------------------------------------------------------------------------
# Mixtures of logistics


@flax.struct.dataclass
class MixtureState:
    """The mixtures of N positions.

    Attributes:
      log_weights: `[M, N]` component weights, up to a constant per position; where
        components are shared, reweighted by the decided channels.
      means: `[C, M, N]` in units; shifted by the decided channels.
      inverse_scales: `[C, M, N]`.
      coefficients: `[C (C - 1) / 2, M, N]`: green from red, blue from red, from green.
    """

    log_weights: chex.Array
    means: chex.Array
    inverse_scales: chex.Array
    coefficients: chex.Array


@dataclasses.dataclass(frozen=True)
class LogisticMixture:
    """Mixtures of discretised logistics, a `Family`.

    Attributes:
      mixtures: components M.
      channels: C, of the images.
      shared: whether one component explains all channels of a pixel ("joint",
        PixelCNN++'s) or each channel draws its own ("independent", PixelDefend's).
      dtype: of all log-probabilities.
    """

    mixtures: int
    channels: int
    shared: bool
    dtype: jnp.dtype

    @property
    def num_outputs(self) -> int:
        """M weights, then means and log-scales by channel, coefficients by pair."""
        return self.mixtures * (1 + 2 * self.channels + _pairs(self.channels))

    def head_parameters(self) -> dict:
        """None: the outputs say all."""
        return {}

    def read(self, head: dict, outputs: chex.Array) -> MixtureState:
        """See `Family.read`."""
        del head
        chex.assert_shape(outputs, (self.num_outputs, None))
        channels = self.channels
        split = outputs.reshape(-1, self.mixtures, outputs.shape[-1])
        log_scales = split[1 + channels : 1 + 2 * channels]
        log_scales = jnp.minimum(jnp.maximum(log_scales, MIN_LOG_SCALE), MAX_LOG_SCALE)
        return MixtureState(
            log_weights=jax.nn.log_softmax(split[0], axis=0),
            means=split[1 : 1 + channels],
            inverse_scales=jnp.exp(-log_scales),
            coefficients=jnp.tanh(split[1 + 2 * channels :]),
        )

    def log_mass(
        self, state: MixtureState, channel: int, first: chex.Array, count: int
    ) -> chex.Array:
        """See `Family.log_mass`."""
        exponent, factor = self._component_mass(state, channel, first, count)
        exponent += state.log_weights[None]
        largest = jax.lax.stop_gradient(jnp.max(exponent, axis=1, keepdims=True))
        total = jnp.sum(jnp.exp(exponent - largest) * factor, axis=1)
        return jnp.log(total) + largest[:, 0]

    def normaliser(self, state: MixtureState, channel: int) -> chex.Array:
        """See `Family.normaliser`; that of the weights, for every channel."""
        del channel
        return jax.nn.logsumexp(state.log_weights, axis=0)

    def condition(
        self, state: MixtureState, channel: int, level: chex.Array
    ) -> MixtureState:
        """See `Family.condition`: shifts means and reweights shared components."""
        if not (later := _later(channel, self.channels)):
            return state
        log_weights, means = state.log_weights, state.means
        if self.shared:
            exponent, factor = self._component_mass(state, channel, level, 1)
            log_weights = log_weights + exponent[0] + jnp.log(factor[0])
        units = pixels.to_units(level, self.dtype)
        for c, pair in later:
            means = means.at[c].add(state.coefficients[pair] * units[None])
        return dataclasses.replace(state, log_weights=log_weights, means=means)

    def _component_mass(
        self, state: MixtureState, channel: int, first: chex.Array, count: int
    ) -> tuple[chex.Array, chex.Array]:
        """By component: an exponent `[S, M, N]` and a factor `[S, M, N]` (<= 1).

        The mass of a bin is exp(exponent) * factor. The exponent is linear in the level
        and carries the whole dynamic range; the factor costs one exponential per edge.
        """
        inverse = state.inverse_scales[channel]
        edges = self._edges(first, count)
        scaled = (edges[:, None] - state.means[channel][None]) * inverse[None]
        low, high = scaled[:-1], scaled[1:]
        decays = jnp.exp(-jnp.abs(scaled))
        levels = _candidates(first.astype(edges.dtype), count)[:, None]
        at_bottom, at_top = levels < 0.5, levels > pixels.LEVELS - 1.5
        inside = -jnp.expm1(-inverse * self._bin_width)[None]
        # sigmoid(-low) and sigmoid(high), one for a bin open on that side.
        exponent = jnp.where(at_bottom, 0.0, -jnp.maximum(low, 0.0))
        exponent += jnp.where(at_top, 0.0, -jnp.maximum(-high, 0.0))
        divisor = 1.0 + jnp.where(at_bottom, 0.0, decays[:-1])
        divisor *= 1.0 + jnp.where(at_top, 0.0, decays[1:])
        factor = jnp.where(at_bottom | at_top, 1.0, inside) / divisor
        return exponent, factor

    def _edges(self, first: chex.Array, count: int) -> chex.Array:
        """Edges `[count + 1, N]`, in units, of the bins of levels `first [N]` on."""
        steps = _candidates(first.astype(self.dtype), count + 1)
        if self.shared:
            return (steps - 0.5 - pixels.HALF_RANGE) / pixels.HALF_RANGE
        return steps / 128.0 - 1.0

    @property
    def _bin_width(self) -> float:
        return 1 / pixels.HALF_RANGE if self.shared else 1 / 128


# ----------------------------------------------------------------------------------
# Softmax


@flax.struct.dataclass
class SoftmaxState:
    """The logits of N positions.

    Attributes:
      logits: `[C, 256, N]`, up to a constant per position and channel; the decided
        channels' tables are already added.
      tables: `[C (C - 1) / 2, 256, 256]`, by the earlier level; None for one channel.
    """

    logits: chex.Array
    tables: chex.Array | None


@dataclasses.dataclass(frozen=True)
class Softmax:
    """A logit for each level of each channel, a `Family`.

    Attributes:
      channels: C, of the images.
      dtype: of all log-probabilities.
    """

    channels: int
    dtype: jnp.dtype

    @property
    def num_outputs(self) -> int:
        """256 logits a channel."""
        return pixels.LEVELS * self.channels

    def head_parameters(self) -> dict:
        """The tables, zero: training begins without dependence on channels."""
        shape = (_pairs(self.channels), pixels.LEVELS, pixels.LEVELS)
        return {"tables": jnp.zeros(shape, self.dtype)} if shape[0] else {}

    def read(self, head: dict, outputs: chex.Array) -> SoftmaxState:
        """See `Family.read`."""
        chex.assert_shape(outputs, (self.num_outputs, None))
        logits = outputs.reshape(self.channels, pixels.LEVELS, -1)
        return SoftmaxState(logits=logits, tables=head.get("tables"))

    def log_mass(
        self, state: SoftmaxState, channel: int, first: chex.Array, count: int
    ) -> chex.Array:
        """See `Family.log_mass`; between whole levels, interpolated logits."""
        return _take_window(state.logits[channel], first, count)

    def normaliser(self, state: SoftmaxState, channel: int) -> chex.Array:
        """See `Family.normaliser`."""
        return jax.nn.logsumexp(state.logits[channel], axis=0)

    def condition(
        self, state: SoftmaxState, channel: int, level: chex.Array
    ) -> SoftmaxState:
        """See `Family.condition`: adds this channel's tables to the later logits."""
        logits = state.logits
        for c, pair in _later(channel, self.channels):
            assert state.tables is not None  # of several channels
            logits = logits.at[c].add(_table_rows(state.tables[pair], level).T)
        return dataclasses.replace(state, logits=logits)


def _below(level: chex.Array, dtype: jnp.dtype) -> tuple[chex.Array, chex.Array]:
    """The whole level below each floating one, and how far above it that is, 0..1."""
    below = jnp.clip(jnp.floor(level), 0, pixels.LEVELS - 2).astype(jnp.int32)
    return below, (level - below.astype(level.dtype)).astype(dtype)


def _table_rows(table: chex.Array, level: chex.Array) -> chex.Array:
    """Rows `[N, 256]` of a table; between levels, linear interpolation."""
    if jnp.issubdtype(level.dtype, jnp.integer):
        return table[level.astype(jnp.int32)]
    below, part = _below(level, table.dtype)
    return table[below] * (1 - part[:, None]) + table[below + 1] * part[:, None]


def _take_window(logits: chex.Array, first: chex.Array, count: int) -> chex.Array:
    """`[S, N]` of logits `[256, N]`; between levels, linear interpolation."""
    if jnp.issubdtype(first.dtype, jnp.integer):
        levels = _candidates(first.astype(jnp.int32), count)
        levels = jnp.clip(levels, 0, pixels.LEVELS - 1)
        return jnp.take_along_axis(logits, levels, axis=0)
    below, part = _below(first, logits.dtype)
    whole = _take_window(logits, below, count + 1)
    return whole[:-1] * (1 - part)[None] + whole[1:] * part[None]


def _positions_last(images: chex.Array) -> chex.Array:
    """Levels `[..., C]` as `[C, N]`; integers wide enough to count beyond 255."""
    levels = images.reshape(-1, images.shape[-1]).T
    return levels.astype(jnp.int32) if images.dtype == jnp.uint8 else levels


def level_log_probs(
    family: Family, head: dict, outputs: chex.Array, images: chex.Array
) -> chex.Array:
    """The conditionals of every position and channel over all levels.

    Args:
      family: of the model, `model.family`.
      head: the head's parameters, `params["head"]`.
      outputs: head outputs `[..., P]` from `pixelcnn.apply`.
      images: levels `[..., C]`: the earlier channels that the later are given.

    Returns:
      Log-probabilities `[..., C, 256]` in nats, each row summing to one.
    """
    shape = outputs.shape[:-1]
    levels = _positions_last(images)
    state = family.read(head, outputs.reshape(-1, outputs.shape[-1]).T)
    first = jnp.zeros(levels.shape[1], jnp.int32)
    found = []
    for channel in range(family.channels):
        log_mass = family.log_mass(state, channel, first, pixels.LEVELS)
        found.append((log_mass - family.normaliser(state, channel)[None]).T)
        state = family.condition(state, channel, levels[channel])
    return jnp.stack(found, axis=-2).reshape(*shape, family.channels, pixels.LEVELS)


def log_prob(
    family: Family,
    head: dict,
    outputs: chex.Array,
    images: chex.Array,
    context: chex.Array | None = None,
) -> chex.Array:
    """Log-probability of each position's pixel, without forming 256 candidates.

    Args:
      family, head, outputs: as for `level_log_probs`.
      images: levels `[..., C]`, `uint8` or floating 0..255.
      context: levels `[..., C]`, earlier channels for the later; None: `images`.

    Returns:
      `[...]` nats, the sum over channels of `level_log_probs` at the image's levels.
    """
    shape = outputs.shape[:-1]
    levels = _positions_last(images)
    state = family.read(head, outputs.reshape(-1, outputs.shape[-1]).T)
    seen = levels if context is None else _positions_last(context)
    total = jnp.zeros(levels.shape[1], family.dtype)
    for channel in range(family.channels):
        total += family.log_mass(state, channel, levels[channel], 1)[0]
        total -= family.normaliser(state, channel)
        state = family.condition(state, channel, seen[channel])
    return total.reshape(shape)
