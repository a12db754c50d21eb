"""What is particular to training a PuVAE and MagNet's autoencoders."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import attacks, keys
from pixeldefend.defences import magnet, puvae
from pixeldefend.experiment import parallel, train
from pixeldefend.models import classifiers


def puvae_loss(
    model: puvae.PuVAE,
    classifier: classifiers.Classifier,
    weights: puvae.Weights,
) -> train.LossFn:
    """The loss for `train.make_step`; the model state holds the fixed classifier.

    Args:
      model: the description.
      classifier: whose variables the model state is.
      weights: of the parts of the loss.
    """
    logits_fn = classifiers.logits_fn(classifier)

    def loss(
        params: dict, state: Any, batch: dict, key: chex.PRNGKey
    ) -> tuple[chex.Array, tuple[Any, dict]]:
        total, parts = puvae.loss(
            model,
            params,
            batch["images"],
            batch["labels"],
            key,
            logits_fn=logits_fn,
            variables=state,
            weights=weights,
        )
        return total, (state, parts)

    return loss


def puvae_evaluation(
    model: puvae.PuVAE,
    classifier: classifiers.Classifier,
    held_out: dict[str, np.ndarray],
    batch: int,
    seed: int,
) -> Callable[[train.TrainState], dict[str, float]]:
    """What purifying does to held-out images: accuracy, and distance in levels.

    Args:
      model: the description.
      classifier: whose variables the model state is.
      held_out: `images [N, H, W, C]` uint8 and `labels [N]`.
      batch: images at a time, per device.
      seed: of the latent noise.
    """
    logits_fn = classifiers.logits_fn(classifier)
    indices = np.arange(len(held_out["images"]), dtype=np.uint32)

    def purified(variables: dict, images: chex.Array, indices: chex.Array) -> dict:
        key = keys.for_images(jax.random.key(seed), indices)
        found = puvae.reconstruct(model, variables["params"], images, key)
        shown = jnp.round(found.images)
        classes = attacks.predicted(logits_fn, variables["classifier"], shown)
        return {"classes": classes, "rmse": found.rmse}

    mapped = parallel.BatchMap(purified, batch)

    def evaluate(state: train.TrainState) -> dict[str, float]:
        variables = {"params": state.average, "classifier": state.model_state}
        found = mapped(variables, held_out["images"], indices)
        right = found["classes"] == held_out["labels"]
        return {
            "validation_accuracy": float(np.mean(right)),
            "validation_rmse": float(np.mean(found["rmse"])),
        }

    return evaluate


def magnet_loss(
    model: magnet.MagNet, *, noise: float, diversity: float
) -> train.LossFn:
    """The loss for `train.make_step`; no model state.

    Args:
      model: the description.
      noise: see `magnet.loss`.
      diversity: likewise.
    """

    def loss(
        params: dict, state: Any, batch: dict, key: chex.PRNGKey
    ) -> tuple[chex.Array, tuple[Any, dict]]:
        total, parts = magnet.loss(
            model, params, batch["images"], key, noise=noise, diversity=diversity
        )
        return total, (state, parts)

    return loss


def magnet_evaluation(
    model: magnet.MagNet, held_out: dict[str, np.ndarray], batch: int
) -> Callable[[train.TrainState], dict[str, float]]:
    """Distance of held-out images from their reconstructions, levels.

    Args:
      model: the description.
      held_out: `images [N, H, W, C]` uint8.
      batch: images at a time, per device.
    """

    def distances(params: dict, images: chex.Array) -> chex.Array:
        found = magnet.reconstructions(model, params, images)
        moved = found - images.astype(found.dtype)[None, None]
        squares = jnp.mean(moved**2, (-3, -2, -1))
        return jnp.moveaxis(squares, -1, 0)

    mapped = parallel.BatchMap(distances, batch)

    def evaluate(state: train.TrainState) -> dict[str, float]:
        squares = mapped(state.average, held_out["images"])
        return {"validation_rmse": float(np.sqrt(np.mean(squares)))}

    return evaluate
