"""How many images a second do PixelDefend, PuVAE and MagNet's reformer purify?

Times them in turn and in one process, on the same batch of bundled images with noise,
with the released weights of a data set. Ratios are medians over the repeats of ratios
within a repeat, so that what slows the whole machine cancels. The last line is JSON.

  python -m benchmarks.purifiers --dataset=fashion_mnist --batch=128
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks import common
from pixeldefend import keys
from pixeldefend.defences import magnet, purification, puvae
from pixeldefend.experiment import zoo

_DATASET = flags.DEFINE_string("dataset", "fashion_mnist", "whose models")
_BATCH = flags.DEFINE_integer("batch", 128, "images", lower_bound=1)
_EPS = flags.DEFINE_integer("eps", 32, "levels, PixelDefend's")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed turns", lower_bound=1)


def _programs(dataset: str, key: jax.Array) -> dict[str, tuple[Callable, Any]]:
    """By name: a function of parameters and images, and the parameters."""
    density, params, _ = zoo.load_released(f"{dataset}/pixelcnn")
    autoencoder, its, _ = zoo.load_released(f"{dataset}/puvae")
    reformer, of_reformer, _ = zoo.load_released(f"{dataset}/magnet")
    eps = _EPS.value
    window = purification.window_for(eps)

    def pixeldefend(params: Any, images: jax.Array) -> jax.Array:
        return purification.purify(density, params, images, eps=eps, window=window)

    def nearest(params: Any, images: jax.Array) -> jax.Array:
        return puvae.purify(autoencoder, params, images, key)

    def reformed(params: Any, images: jax.Array) -> jax.Array:
        return magnet.reform(reformer, params, images, key)

    return {
        "pixeldefend": (pixeldefend, params),
        "puvae": (nearest, its),
        "magnet": (reformed, of_reformer),
    }


def measured(dataset: str, batch: int, repeats: int) -> dict:
    """Images per second of each, and how often faster than PixelDefend."""
    key = keys.for_images(jax.random.key(0), np.arange(batch, dtype=np.uint32))
    programs = common.compiled(_programs(dataset, key), common.noisy(dataset, batch))
    seconds = common.in_turn(programs, repeats)
    slow = seconds["pixeldefend"]
    found: dict[str, Any] = {
        "dataset": dataset,
        "batch": batch,
        "repeats": repeats,
        "device": jax.devices()[0].device_kind,
    }
    for name, taken in seconds.items():
        times, times_range = common.spread(slow / taken)
        found[name] = {
            "images_per_second": common.three_digits(batch / np.median(taken)),
            "times_pixeldefend": times,
            "range": times_range,
        }
    return found


def main(_: list[str]) -> None:
    """Prints the table and the JSON."""
    logging.set_verbosity(logging.ERROR)
    found = measured(_DATASET.value, _BATCH.value, _REPEATS.value)
    for name in ("pixeldefend", "puvae", "magnet"):
        one = found[name]
        print(
            f"{name:>12}  {one['images_per_second']:>9g} images/s, "
            f"{one['times_pixeldefend']:g} times PixelDefend"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    app.run(main)
