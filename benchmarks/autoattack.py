"""Do the attacks of AutoAttack find what the public AutoAttack finds, and how fast?

Runs each component of both, apart and in turn, on the same test images of the same
released ResNet or VGG: ours in JAX, the public one (the packages torch and
pyautoattack, which nothing else needs) on a torch twin of the network, whose logits are
compared first. What either finds is rounded to whole levels and judged by our network;
what the public one finds also as it is, since ours knows that it will be rounded.
Seconds are wall time of one run: ours after compilation, which is told apart. Each
component is a line of JSON.

  python -m benchmarks.autoattack --weights=fashion_mnist/vgg --eps=8 --images=200 \\
    --data_dir=DATA_DIR >> results/autoattack.jsonl
"""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyautoattack
import torch
from absl import app, flags, logging

from pixeldefend import attacks
from pixeldefend.experiment import data, zoo
from pixeldefend.models import classifiers
from reproduction.torch_networks import of_variables, to_torch

_WEIGHTS = flags.DEFINE_string("weights", "fashion_mnist/vgg", "a ResNet or VGG")
_IMAGES = flags.DEFINE_integer("images", 200, "the first of the test set", 1)
_EPS = flags.DEFINE_float("eps", 8.0, "levels")
_NORM = flags.DEFINE_enum("norm", "linf", ("linf", "l2"), "of the ball")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "as for main.py", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "of both")
OURS: dict[str, tuple[Callable, dict[str, Any]]] = {
    "apgd-ce": (attacks.apgd, {"loss": "ce"}),
    "apgd-dlr": (attacks.apgd, {"loss": "dlr"}),
    "apgd-t": (attacks.apgd, {"loss": "targeted_dlr", "targets": 9}),
    "fab-t": (attacks.fab, {"targets": 9}),
    "square": (attacks.square, {}),
    "standard": (attacks.auto_attack, {}),
}
_COMPONENTS = flags.DEFINE_multi_enum(
    "component", list(OURS), list(OURS), "give it once for each"
)


def theirs(
    component: str, network: torch.nn.Module, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, float]:
    """What the public attack finds, in levels, and its seconds."""
    norm = {"linf": "Linf", "l2": "L2"}[_NORM.value]
    options: dict[str, Any] = {"version": "standard"}
    if component != "standard":
        options = {"version": "custom", "attacks": [component]}
    attack = pyautoattack.AutoAttack(
        lambda x: network(255 * x),
        norm=norm,
        eps=_EPS.value / 255,
        seed=_SEED.value,
        **options,
    )
    if component != "standard":  # what it sets for its standard version
        attack.apgd.n_restarts = attack.fab.n_restarts = 1
    begun = time.perf_counter()
    found, _ = attack.run_standard_evaluation(
        to_torch(images).contiguous(),  # it takes `view` of gradients
        torch.tensor(labels.astype(np.int64)),
        batch_size=len(images),
    )
    seconds = time.perf_counter() - begun
    return 255 * found.numpy().transpose(0, 2, 3, 1), seconds


def ours(
    component: str, logits_fn: Callable, variables: Any, *arrays: np.ndarray
) -> tuple[np.ndarray, float, float, np.ndarray]:
    """What ours finds, its seconds, those of compiling it, and its queries."""
    attack, options = OURS[component]
    keys = jax.random.split(jax.random.key(_SEED.value), len(arrays[0]))

    def run(variables: Any, images: Any, labels: Any, eps: Any) -> tuple:
        norm = {"norm": _NORM.value} | options
        return attack(logits_fn, variables, images, labels, keys, eps=eps, **norm)

    task = (variables, *map(jnp.asarray, arrays), jnp.float32(_EPS.value))
    begun = time.perf_counter()
    program = jax.jit(run).lower(*task).compile()
    compiled = time.perf_counter()
    found, info = jax.block_until_ready(program(*task))
    seconds = time.perf_counter() - compiled
    return np.asarray(found), seconds, compiled - begun, np.asarray(info.queries)


def main(_: list[str]) -> None:
    """Runs the components in turn."""
    logging.set_verbosity(logging.ERROR)
    model, variables, card = zoo.load_released(_WEIGHTS.value)
    images, labels = data.load(card["dataset"], "test", _DATA_DIR.value)
    images, labels = images[: _IMAGES.value], labels[: _IMAGES.value]
    network = of_variables(model, variables)
    logits_fn = jax.jit(classifiers.logits_fn(model))
    logits = np.asarray(logits_fn(variables, images.astype(np.float32)))
    apart = np.abs(network(255 * to_torch(images)).numpy() - logits).max()

    def right(found: np.ndarray) -> np.ndarray:
        logits = logits_fn(variables, jnp.asarray(found, jnp.float32))
        return np.asarray(jnp.argmax(logits, -1)) == labels

    for component in _COMPONENTS.value:
        mine, my_seconds, compiling, queries = ours(
            component, classifiers.logits_fn(model), variables, images, labels
        )
        other, other_seconds = theirs(component, network, images, labels)
        robust, other_robust = right(mine), right(np.rint(other))
        line = {
            "classifier": _WEIGHTS.value,
            "classifier_sha256": card["sha256"][:8],
            "component": component,
            "norm": _NORM.value,
            "eps": _EPS.value,
            "n": len(images),
            "clean": float(right(images).mean()),
            "ours": float(robust.mean()),
            "public": float(other_robust.mean()),
            "public_unrounded": float(right(other).mean()),
            "only_ours_fooled": int(np.sum(other_robust & ~robust)),
            "only_public_fooled": int(np.sum(robust & ~other_robust)),
            "seconds": round(my_seconds, 2),
            "public_seconds": round(other_seconds, 2),
            "compile_seconds": round(compiling, 2),
            "queries": float(queries.mean()),
            "largest_logits_difference": float(f"{apart:.2g}"),
            "device": str(jax.devices()[0].device_kind),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app.run(main)
