"""What is particular to training a classifier: recipes, loss, evaluation."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pixeldefend import classifiers, parallel, train

TRAININGS = ("normal", "label_smoothing")
SMOOTHED = 0.9  # of the right class under label smoothing; the others share the rest


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a classifier learns from.

    Attributes:
      training: one of `TRAININGS`.
      flip: mirror every image left to right with probability 1/2.
      weight_decay: times half the sum of the squares of all parameters.
    """

    training: str = "normal"
    flip: bool = True
    weight_decay: float = 5e-4

    def __post_init__(self):
        """Checks the recipe.

        Raises:
          ValueError: unknown or out of range; the message names the field.
        """
        if self.training not in TRAININGS:
            raise ValueError(
                f"training must be one of {', '.join(TRAININGS)}: {self.training!r}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay must be finite and not negative: {self.weight_decay}"
            )


def targets(recipe: Recipe, labels: chex.Array, classes: int) -> chex.Array:
    """Probabilities `[B, K]` to learn for labels `[B]`.

    Label smoothing gives the right class 0.9 and each other 0.1 / (K - 1): PixelDefend,
    section 2.2.
    """
    one_hot = jax.nn.one_hot(labels, classes)
    if recipe.training != "label_smoothing":
        return one_hot
    rest = (1 - SMOOTHED) / (classes - 1)
    return one_hot * (SMOOTHED - rest) + rest


def mirrored(images: chex.Array, key: chex.PRNGKey) -> chex.Array:
    """Images `[B, H, W, C]`, each flipped left to right with probability 1/2."""
    flips = jax.random.bernoulli(key, shape=images.shape[:1])
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def loss_fn(model: classifiers.Classifier, recipe: Recipe) -> train.LossFn:
    """The loss for `train.make_step`; the model state holds the batch statistics.

    Cross-entropy and weight decay, whose gradients sum; batch norm takes its statistics
    over all devices.

    Args:
      model: the description.
      recipe: what to learn from.
    """
    synchronised = model.clone(axis_name=parallel.AXIS)

    def loss(
        params: dict, state: Any, batch: dict, key: chex.PRNGKey
    ) -> tuple[chex.Array, tuple[Any, dict]]:
        flip_key, dropout_key = jax.random.split(key)
        images = batch["images"]
        if recipe.flip:
            images = mirrored(images, flip_key)
        logits, state = synchronised.apply(
            {"params": params, **state},
            images,
            train=True,
            mutable=list(state),
            rngs={"dropout": dropout_key},
        )
        wanted = targets(recipe, batch["labels"], model.classes)
        entropy = jnp.mean(optax.softmax_cross_entropy(logits, wanted))
        decay = recipe.weight_decay / 2 * optax.tree.norm(params, squared=True)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["labels"])
        metrics = {"cross_entropy": entropy, "accuracy": accuracy}
        return entropy + decay, (state, metrics)

    return loss


def evaluation(
    model: classifiers.Classifier, held_out: dict[str, np.ndarray], batch: int
) -> Callable[[train.TrainState], dict[str, float]]:
    """Accuracy of a state on held-out images.

    Args:
      model: the description.
      held_out: `images [N, H, W, C]` uint8 and `labels [N]`.
      batch: images at a time, over all devices.
    """

    def correct(variables: dict, images: chex.Array, labels: chex.Array) -> chex.Array:
        return jnp.argmax(classifiers.logits(model, variables, images), -1) == labels

    outcomes = parallel.BatchMap(correct, batch)

    def evaluate(state: train.TrainState) -> dict[str, float]:
        variables = {"params": state.params, **state.model_state}
        found = outcomes(variables, held_out["images"], held_out["labels"])
        return {"validation_accuracy": float(np.mean(found))}

    return evaluate
