"""What training and releasing have to know of a kind of model."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import optax

from pixeldefend.experiment import data, parallel, train


@dataclasses.dataclass(frozen=True)
class Trainable:
    """All that differs between kinds of models when they are trained.

    Attributes:
      model: the description.
      loss_fn: see `train.make_step`.
      optimizer: likewise.
      init: `init(training)`, the first variables, drawn with the run's seed; the
        training set may have a say.
      evaluation: `evaluation(held_out, batch)`, the `evaluate` for `train.fit`.
      words: phrases for a line of metrics, with its figures in braces. One that has a
        figure which the line lacks is not said of it.
      split: variables into what is optimised and what the model has beside.
      averaged: see `train.make_step`.
      told: what the model's card tells of the training besides.
    """

    model: Any
    loss_fn: train.LossFn
    optimizer: optax.GradientTransformation
    init: Callable[[dict[str, np.ndarray]], Any]
    evaluation: Callable[[dict[str, np.ndarray], int], train.Evaluate]
    words: tuple[str, ...]
    split: Callable[[Any], tuple[Any, Any]] = lambda variables: (variables, {})
    averaged: train.Averaged = train.parameters
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def in_words(self, line: Mapping[str, Any]) -> str:
        """What a line of metrics says."""
        said = []
        for phrase in self.words:
            with contextlib.suppress(KeyError):
                said.append(phrase.format_map(line))
        return ", ".join(said)


class Releasable(NamedTuple):
    """A model, and what its card tells when it is released.

    Attributes:
      model: the description.
      params: of the model; for a classifier its variables.
      measure: `measure(split, given)`, the figures of a split, each with the command
        that gives it again, and scores of its images or None; the card keeps those of
        the training images as reference.
      splits: that are measured, and how many images of each at most, the first; 0: all.
    """

    model: Any
    params: Any
    measure: Callable[[str, data.Input], tuple[dict, np.ndarray | None]]
    splits: Mapping[str, int] = MappingProxyType({"test": 0, "sample": 0})


def init_by_shape(
    init: Callable[[Any, chex.PRNGKey, chex.Array], Any], model: Any, seed: int
) -> Callable[[dict[str, np.ndarray]], Any]:
    """`Trainable.init` of a model to whose `init` only the shape of images matters."""

    def drawn(training: dict[str, np.ndarray]) -> Any:
        _, key = jax.random.split(jax.random.key(seed))
        with parallel.on_host():
            return jax.jit(init, static_argnums=0)(model, key, training["images"][:2])

    return drawn


def evaluation_of(
    measure: Callable[..., dict[str, chex.Array]],
    batch: int,
    *arrays: np.ndarray,
    variables: Callable[[train.TrainState], Any] = lambda state: state.average,
    reduce: Callable[[np.ndarray], Any] = np.mean,
) -> train.Evaluate:
    """Figures of a state on images that are held out, under names `validation_*`.

    Args:
      measure: `measure(variables, *arrays)`, by name a value `[B]` for every image.
      batch: images at a time, per device.
      *arrays: `[N, ...]` each.
      variables: of a state, those to evaluate with.
      reduce: the values `[N]` to a figure.
    """
    mapped = parallel.BatchMap(measure, batch)

    def evaluate(state: train.TrainState) -> dict[str, float]:
        found = mapped(variables(state), *arrays)
        return {
            f"validation_{name}": float(reduce(values))
            for name, values in found.items()
        }

    return evaluate
