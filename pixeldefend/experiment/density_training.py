"""What is particular to training a PixelCNN++: first parameters, loss, evaluation."""

from typing import Any

import chex
import jax
import numpy as np

from pixeldefend.density import likelihood, pixelcnn
from pixeldefend.experiment import augmentation, parallel, schedule, train
from pixeldefend.experiment.kinds import evaluation_of


def initial_params(
    model: pixelcnn.PixelCNN, seed: int, training: dict[str, np.ndarray], count: int
) -> dict:
    """Data-dependent initialisation on the first images of the first epoch.

    Args:
      model: the description.
      seed: of the run; the draw uses a key of its own.
      training: `images [N, H, W, C]` uint8 and `labels [N]`.
      count: images to initialise on; the original uses 100.
    """
    count = min(count, len(training["images"]))
    rows = next(schedule.Batches(len(training["images"]), count, seed).from_step(0))
    labels = training["labels"][rows] if model.classes else None
    _, key = jax.random.split(jax.random.key(seed))
    init = jax.jit(pixelcnn.init, static_argnums=0)
    with parallel.on_host():
        return init(model, key, training["images"][rows], labels=labels)


def loss_fn(
    model: pixelcnn.PixelCNN, *, flip: bool = False, noise: float = 0.0
) -> train.LossFn:
    """The loss for `train.make_step`: mean bits per dimension; no model state.

    Args:
      model: the description.
      flip: mirror every image left to right with probability 1/2.
      noise: levels, at most, of noise on the pixels that the model is given, not on
        those that it is to predict: a purifier's context is not clean either.

    Raises:
      ValueError: noise out of range.
    """
    if not 0 <= noise <= 127:
        raise ValueError(f"noise must be from 0 to 127 levels: {noise}")

    def mean_bits(
        params: dict, state: Any, batch: dict, key: chex.PRNGKey
    ) -> tuple[chex.Array, tuple[Any, dict]]:
        if flip:
            key, flip_key = jax.random.split(key)
            mirrored = augmentation.mirrored(batch["images"], flip_key)
            batch = batch | {"images": mirrored}
        if noise:
            key, noise_key = jax.random.split(key)
            context = augmentation.noisy(batch["images"], noise_key, noise)
            batch = batch | {"context": context}
        return likelihood.loss(model, params, batch, key), (state, {})

    return mean_bits


def evaluation(
    model: pixelcnn.PixelCNN, held_out: dict[str, np.ndarray], batch: int
) -> train.Evaluate:
    """Bits per dimension of the averaged parameters on held-out images.

    Args:
      model: the description.
      held_out: `images [N, H, W, C]` uint8 and `labels [N]`.
      batch: images at a time, per device.
    """

    def measure(params: dict, images: chex.Array, labels: chex.Array) -> dict:
        labels = labels if model.classes else None
        found = likelihood.bits_per_dim(model, params, images, labels=labels)
        return {"bits_per_dim": found}

    return evaluation_of(measure, batch, held_out["images"], held_out["labels"])
