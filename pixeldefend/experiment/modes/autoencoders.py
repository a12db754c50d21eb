"""PuVAE and MagNet: training and releasing them."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import attacks, keys
from pixeldefend.defences import magnet, puvae
from pixeldefend.experiment import data, grid, parallel, report, schedule
from pixeldefend.experiment.kinds import (
    Releasable,
    Trainable,
    evaluation_of,
    init_by_shape,
)
from pixeldefend.experiment.modes import evaluating, inputs
from pixeldefend.experiment.rows import accuracy
from pixeldefend.experiment.tools import compute
from pixeldefend.experiment.train import Evaluate, adam
from pixeldefend.models import classifiers


def trainable_puvae(config: inputs.Config, plan: schedule.Plan) -> Trainable:
    """A PuVAE to be trained; the model state is the classifier that it is for."""
    classifier, variables, card = inputs.classifier(config)
    inputs.check_dataset(config, config.classifier.weights, card)
    shape = tuple(card["image_shape"])
    model = puvae.PuVAE(**config.puvae.model, shape=shape, classes=classifier.classes)
    weights = puvae.Weights(**config.puvae.loss)
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

    def measure(
        variables: tuple, images: chex.Array, labels: chex.Array, indices: chex.Array
    ) -> dict:
        """What purifying does to images: accuracy, and distance in levels."""
        params, state = variables
        noise_keys = keys.for_images(jax.random.key(config.seed), indices)
        found = puvae.reconstruct(model, params, images, noise_keys)
        classes = attacks.predicted(logits_fn, state, jnp.round(found.images))
        return {"accuracy": classes == labels, "rmse": found.rmse}

    def evaluation(held_out: dict[str, np.ndarray], batch: int) -> Evaluate:
        images, labels = held_out["images"], held_out["labels"]
        indices = np.arange(len(images), dtype=np.uint32)
        return evaluation_of(
            measure,
            batch,
            *(images, labels, indices),
            variables=lambda state: (state.average, state.model_state),
        )

    return Trainable(
        model,
        loss,
        adam(plan, usual=True),
        init=init_by_shape(puvae.init, model, config.seed),
        evaluation=evaluation,
        words=(
            "loss {loss:.3f}",
            "{accuracy:.1%} right",
            "purified validation images {validation_accuracy:.1%} right, RMSE "
            "{validation_rmse:.1f} levels",
        ),
        split=lambda params: (params, variables),
        told={
            "classifier": config.classifier.weights,
            "classifier_sha256": card["sha256"],
            "loss_weights": config.puvae.loss.to_dict(),
        },
    )


def trainable_magnet(config: inputs.Config, plan: schedule.Plan) -> Trainable:
    """MagNet's autoencoders to be trained."""
    model = magnet.make(**config.magnet.model)
    told = {name: config.magnet[name] for name in ("noise", "diversity")}
    for name, value in told.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"magnet.{name} must be finite and not negative: {value}")

    def loss(
        params: dict, state: Any, batch: dict, key: chex.PRNGKey
    ) -> tuple[chex.Array, tuple[Any, dict]]:
        total, parts = magnet.loss(model, params, batch["images"], key, **told)
        return total, (state, parts)

    def measure(params: dict, images: chex.Array) -> dict:
        """Distance of images from their reconstructions, squared levels."""
        found = magnet.reconstructions(model, params, images)
        moved = found - images.astype(found.dtype)[None, None]
        squares = jnp.mean(moved**2, (-3, -2, -1))
        return {"rmse": jnp.moveaxis(squares, -1, 0)}

    def evaluation(held_out: dict[str, np.ndarray], batch: int) -> Evaluate:
        return evaluation_of(
            measure,
            batch,
            held_out["images"],
            reduce=lambda squares: np.sqrt(np.mean(squares)),
        )

    return Trainable(
        model,
        loss,
        adam(plan, usual=True),
        init=init_by_shape(magnet.init, model, config.seed),
        evaluation=evaluation,
        words=(
            "squared error {reconstruction:.5f}",
            "validation images RMSE {validation_rmse:.1f} levels",
        ),
        told=told,
    )


def releasable(config: inputs.Config, card: dict) -> Releasable:
    """What rebuilding by a PuVAE or a MagNet does to clean images."""
    kind, classifier = card["kind"], config.classifier.weights
    tools = evaluating.tools_for(config, [grid.Pipeline(classifier, (kind,))])
    model, params, _ = tools.models[kind]
    defence, its = tools.defence(kind)
    rebuild = functools.partial(compute, defence, (), config.seed)

    def measure(split: str, given: data.Input) -> tuple[dict, None]:
        found, _ = report.run_batches(
            parallel.BatchMap(rebuild, config.release.batch),
            f"rebuilding {given.source}",
            its,
            given.images,
            np.arange(len(given.images), dtype=np.uint32),
        )
        network, variables, _ = tools.classifiers[classifier]
        guesses, _ = report.run_batches(
            inputs.prediction_map(network, config.release.batch),
            f"classifying {given.source}",
            variables,
            found["images"],
        )
        moved = found["images"].astype(np.float64) - given.images
        return accuracy(guesses == given.labels) | {
            "rmse": round(float(np.sqrt(np.mean(moved**2, (1, 2, 3))).mean()), 3),
            "classifier": classifier,
            "command": (
                f"{inputs.program(config, kind, card)} --mode=evaluate"
                f" --config.evaluate.attacks='()'"
                f" --config.evaluate.rows=\"('{classifier} + {kind}',)\""
                f" --config.evaluate.input={given.source} --config.evaluate.images=0"
                f"{inputs.data_dir(config, given)}"
            ),
        }, None

    return Releasable(model, params, measure)
