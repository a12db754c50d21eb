"""Do attacks of ART and foolbox, through the adapters, do what ours do?

The basic iterative method of each library (steps of one level from the image itself)
looks through the purifier by BPDA, on the same test images of the same released ResNet
or VGG, in torch a twin of it. What is found is rounded to whole levels and judged by
our defence. Needs the packages of requirements-adapters.txt; each library is a line of
JSON.

  python -m benchmarks.frameworks --weights=fashion_mnist/resnet --eps=8 \\
    --images=64 >> results/frameworks.jsonl
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from art.attacks.evasion import BasicIterativeMethod
from art.estimators.classification import PyTorchClassifier

from pixeldefend import attacks
from pixeldefend.adapters.art import PurifierPreprocessor
from pixeldefend.adapters.torch import Defended
from pixeldefend.defences import base
from pixeldefend.experiment import data, zoo
from pixeldefend.experiment.serving import Purifier
from pixeldefend.models import classifiers
from reproduction.torch_networks import from_torch, of_variables, to_torch

_WEIGHTS = flags.DEFINE_string("weights", "fashion_mnist/resnet", "a ResNet or VGG")
_IMAGES = flags.DEFINE_integer("images", 64, "the first of the bundled test images", 1)
_EPS = flags.DEFINE_integer("eps", 8, "of the attack, levels", 1)
_EPS_DEFEND = flags.DEFINE_integer("eps_defend", 32, "of the purifier, levels", 0)
_STEPS = flags.DEFINE_integer("steps", 20, "of one level", 1)


def _art(purifier: Purifier, network: torch.nn.Module, images: Any, labels: Any) -> Any:
    estimator = PyTorchClassifier(
        network,
        torch.nn.CrossEntropyLoss(),
        tuple(images.shape[1:]),
        10,
        clip_values=(0, 1),
        preprocessing_defences=PurifierPreprocessor(purifier),
    )
    attack = BasicIterativeMethod(
        estimator,
        eps=_EPS.value / 255,
        eps_step=1 / 255,
        max_iter=_STEPS.value,
        batch_size=len(images),
        verbose=False,
    )
    return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))


def _foolbox(
    purifier: Purifier, network: torch.nn.Module, images: Any, labels: Any
) -> Any:
    defended = Defended(purifier, network).eval()
    model = foolbox.PyTorchModel(defended, (0, 1), device="cpu")
    attack = foolbox.attacks.LinfBasicIterativeAttack(
        abs_stepsize=1 / 255, steps=_STEPS.value, random_start=False
    )
    return attack(model, images, labels, epsilons=_EPS.value / 255)[1]


def main(_: list[str]) -> None:
    """Attacks by each library in turn."""
    model, variables, card = zoo.load_released(_WEIGHTS.value)
    images, labels = data.sample(card["dataset"])
    images, labels = images[: _IMAGES.value], labels[: _IMAGES.value].astype(np.int64)
    purifier = Purifier(
        f"{card['dataset']}/pixelcnn",
        eps=_EPS_DEFEND.value,
        layout="NCHW",
        range=(0, 1),
        batch=_IMAGES.value,
    )
    twin = of_variables(model, variables)
    logits_fn = classifiers.logits_fn(model)
    behind = base.behind([purifier.defence], logits_fn)
    its = {"classifier": variables, "defences": [purifier.params]}

    def ours() -> np.ndarray:
        bim = functools.partial(
            attacks.bim, behind, eps=_EPS.value, steps=_STEPS.value, keep_failed=True
        )
        found, _ = jax.jit(bim)(its, jnp.asarray(images), jnp.asarray(labels, int))
        return np.asarray(found)

    def theirs(attack: Callable) -> np.ndarray:
        module = torch.nn.Sequential(_Levels(), twin)
        given = to_torch(images).contiguous()
        return from_torch(attack(purifier, module, given, torch.tensor(labels)))

    seen = jax.jit(lambda x: jnp.argmax(behind(its, x), -1))

    def right(levels: np.ndarray) -> np.ndarray:
        return np.asarray(seen(levels.astype(np.float32))) == labels

    first = None
    for library, run in (
        ("pixeldefend", ours),
        ("art", functools.partial(theirs, _art)),
        ("foolbox", functools.partial(theirs, _foolbox)),
    ):
        found = run()
        first = found if first is None else first
        far = np.abs(found.astype(int) - images.astype(int)).max()
        line = {
            "library": library,
            "classifier": _WEIGHTS.value,
            "classifier_sha256": card["sha256"][:8],
            "eps": _EPS.value,
            "eps_defend": _EPS_DEFEND.value,
            "steps": _STEPS.value,
            "n": len(images),
            "clean": float(right(images).mean()),
            "attacked": float(right(found).mean()),
            "same_guess_as_ours": float(np.mean(right(found) == right(first))),
            "same_levels_as_ours": float(np.mean(found == first)),
            "largest_change": int(far),
            "device": str(jax.devices()[0].device_kind),
        }
        print(json.dumps(line), flush=True)


class _Levels(torch.nn.Module):
    """What networks of ours take, of images from 0 to 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 255 * images


if __name__ == "__main__":
    app.run(main)
