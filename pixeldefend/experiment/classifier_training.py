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

from pixeldefend import attacks
from pixeldefend.experiment import augmentation, parallel, train
from pixeldefend.experiment.kinds import evaluation_of
from pixeldefend.models import classifiers

TRAININGS = ("normal", "label_smoothing", "adversarial_fgsm", "adversarial_bim")
PRESETS = ("paper", "code")
SMOOTHED = 0.9  # of the right class under label smoothing; the others share the rest
LAMBDA = 0.3  # weight of an attacked image in adversarial training, clean ones have 1
# Training wants every attacked image, successful or not, and unrounded.
_AS_MADE: dict[str, Any] = {"quantise": False, "keep_failed": True}
_GROUPS = 4  # of images that BIM training attacks together


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a classifier learns from.

    Attributes:
      training: one of `TRAININGS`.
      delta: scale of the eps of adversarial training, in levels.
      preset: "paper"; or "code", where the authors' code differs: its BIM training
        takes the true labels and forgets the ball.
      flip: mirror every image left to right with probability 1/2.
      crop: move every image by up to so many pixels (the paper: 0).
      weight_decay: times half the sum of the squares of all parameters.
    """

    training: str = "normal"
    delta: float = 8.0
    preset: str = "paper"
    flip: bool = True
    crop: int = 0
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        """Checks the recipe.

        Raises:
          ValueError: unknown or out of range; the message names the field.
        """
        for name, known in (("training", TRAININGS), ("preset", PRESETS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}: {getattr(self, name)!r}"
                )
        if not 0 < self.delta <= 127:
            raise ValueError(f"delta must be above 0, at most 127 levels: {self.delta}")
        if type(self.crop) is not int or not 0 <= self.crop <= 16:
            raise ValueError(f"crop must be from 0 to 16 whole pixels: {self.crop}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay must be finite and not negative: {self.weight_decay}"
            )

    @property
    def adversarial(self) -> bool:
        """Whether half of each batch is attacked."""
        return self.training.startswith("adversarial")


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


def variables(params: dict, model_state: dict) -> dict:
    """All that a classifier is evaluated with, batch statistics included.

    What the average of a training run is of: averaged weights want the statistics that
    belong to them.
    """
    return {"params": params, **model_state}


def split(variables: dict) -> tuple[dict, dict]:
    """Parameters and batch statistics of `variables`."""
    state = {name: tree for name, tree in variables.items() if name != "params"}
    return variables["params"], state


def drawn_eps(key: chex.PRNGKey, count: int, delta: float) -> chex.Array:
    """Sizes `[count]` of attacks, levels: |N(0, delta)| cut at 2 delta, ascending.

    PixelDefend, Appendix B. Sorted, since images that stand together are attacked
    together (`attacked`); which image gets which size is as random as their order.
    """
    return jnp.sort(jnp.abs(jax.random.truncated_normal(key, -2, 2, (count,)))) * delta


def attacked(
    model: classifiers.Classifier,
    recipe: Recipe,
    variables: dict,
    images: chex.Array,
    labels: chex.Array,
    key: chex.PRNGKey,
) -> chex.Array:
    """The attacked images of adversarial training, floating `[B, H, W, C]`.

    The gradient sees the model in inference mode, and by default the predicted labels,
    so that nothing about the true ones leaks into the image (PixelDefend, Appendix B).

    Args:
      model: the description.
      recipe: says which attack.
      variables: of the model.
      images: levels `[B, H, W, C]`.
      labels: the true ones `[B]`.
      key: of the sizes.
    """
    logits_fn = classifiers.logits_fn(model)
    eps = drawn_eps(key, len(images), recipe.delta)
    if recipe.training == "adversarial_fgsm":
        return attacks.fgsm(logits_fn, variables, images, None, eps=eps, **_AS_MADE)[0]
    true = recipe.preset == "code"

    def group(rows: tuple) -> chex.Array:
        images, labels, eps = rows
        shown = labels if true else None
        return attacks.bim(
            logits_fn, variables, images, shown, eps=eps, ball=not true, **_AS_MADE
        )[0]

    # In groups of like eps, each of which stops after the steps that it needs.
    groups = math.gcd(len(images), _GROUPS)
    rows = jax.tree.map(
        lambda a: a.reshape(groups, -1, *a.shape[1:]), (images, labels, eps)
    )
    return jax.lax.map(group, rows).reshape(images.shape)


def loss_fn(model: classifiers.Classifier, recipe: Recipe) -> train.LossFn:
    """The loss for `train.make_step`; the model state holds the batch statistics.

    Cross-entropy and weight decay, whose gradients sum; batch norm takes its statistics
    over all devices. In adversarial training the second half of each device's images
    is attacked and counts `LAMBDA` times as much as the first (Kurakin et al., 2017).

    Args:
      model: the description.
      recipe: what to learn from.
    """
    assert not isinstance(model, classifiers.Own)  # which has nothing to learn
    synchronised = model.clone(axis_name=parallel.AXIS)

    def loss(
        params: dict, state: Any, batch: dict, key: chex.PRNGKey
    ) -> tuple[chex.Array, tuple[Any, dict]]:
        flip_key, eps_key, dropout_key = jax.random.split(key, 3)
        images, labels = batch["images"], batch["labels"]
        if recipe.flip:
            images = augmentation.mirrored(images, flip_key)
        if recipe.crop:
            crop_key = jax.random.fold_in(flip_key, 1)
            images = augmentation.cropped(images, crop_key, recipe.crop)
        clean = len(images)
        if recipe.adversarial:
            clean //= 2
            fixed = jax.lax.stop_gradient({"params": params, **state})
            second = images[clean:], labels[clean:]
            moved = attacked(model, recipe, fixed, *second, eps_key)
            images = jnp.concatenate([images[:clean].astype(moved.dtype), moved])
        logits, state = synchronised.apply(
            {"params": params, **state},
            images,
            train=True,
            mutable=list(state),
            rngs={"dropout": dropout_key},
        )
        wanted = targets(recipe, labels, model.classes)
        losses = optax.softmax_cross_entropy(logits, wanted)
        correct = jnp.argmax(logits, -1) == labels
        entropy = jnp.mean(losses[:clean])
        metrics = {"accuracy": jnp.mean(correct[:clean])}
        if recipe.adversarial:
            entropy = (entropy + LAMBDA * jnp.mean(losses[clean:])) / (1 + LAMBDA)
            metrics["accuracy_attacked"] = jnp.mean(correct[clean:])
        metrics["cross_entropy"] = entropy
        decay = recipe.weight_decay / 2 * optax.tree.norm(params, squared=True)
        return entropy + decay, (state, metrics)

    return loss


def evaluation(
    model: classifiers.Classifier,
    recipe: Recipe,
    held_out: dict[str, np.ndarray],
    batch: int,
) -> train.Evaluate:
    """Accuracy of a state on held-out images, clean and under the training attack.

    The attack is that of `recipe` with eps at delta, and with the true labels: were
    they to leak into attacked images, it would be above the clean accuracy.

    Args:
      model: the description.
      recipe: as for `loss_fn`.
      held_out: `images [N, H, W, C]` uint8 and `labels [N]`.
      batch: images at a time, per device.
    """
    logits_fn = classifiers.logits_fn(model)
    known: dict[str, Callable[..., tuple[chex.Array, Any]]] = {
        "adversarial_fgsm": attacks.fgsm,
        "adversarial_bim": attacks.bim,
    }
    attack = known.get(recipe.training)

    def measure(variables: dict, images: chex.Array, labels: chex.Array) -> dict:
        found = {"accuracy": images}
        if attack:
            found["accuracy_attacked"], _ = attack(
                logits_fn, variables, images, labels, eps=recipe.delta, keep_failed=True
            )
        return {
            name: jnp.argmax(logits_fn(variables, shown), -1) == labels
            for name, shown in found.items()
        }

    return evaluation_of(measure, batch, held_out["images"], held_out["labels"])
