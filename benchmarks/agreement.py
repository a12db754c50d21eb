"""How often do batch sizes and number types purify an image differently?

Purifies the bundled images of a released model, with noise, in float32, and compares
with: another batch size, a bfloat16 trunk. For each: the share of images that are equal
to the last level, the difference of the purified images' bits/dim, and how much
likelier, in nats, the better of the two levels is where an image first differs (in
float64, where all before it is still equal): next to nothing is a tie. The last line is
JSON.

  python -m benchmarks.agreement --weights=fashion_mnist/pixelcnn --eps=32
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import common
from pixeldefend.defences import purification as purifiers
from pixeldefend.density import conditionals, likelihood, pixelcnn
from pixeldefend.experiment import parallel, zoo

_WEIGHTS = flags.DEFINE_string("weights", "fashion_mnist/pixelcnn", "released model")
_COUNT = flags.DEFINE_integer("count", 256, "images; beyond 256 they repeat")
_BATCH = flags.DEFINE_integer("batch", 64, "images at a time")
_OTHER = flags.DEFINE_integer("other_batch", 16, "the batch size compared with")
_EPS = flags.DEFINE_integer("eps", 16, "levels")


def _purified(
    model: pixelcnn.PixelCNN, params: dict, images: np.ndarray, batch: int
) -> np.ndarray:
    options = {"eps": _EPS.value, "window": purifiers.window_for(_EPS.value)}
    mapped = parallel.BatchMap(
        lambda params, images: purifiers.purify(model, params, images, **options), batch
    )
    return mapped(params, images)


def _bits(model: pixelcnn.PixelCNN, params: dict, images: np.ndarray) -> np.ndarray:
    mapped = parallel.BatchMap(
        lambda params, images: likelihood.bits_per_dim(model, params, images),
        _BATCH.value,
    )
    return mapped(params, images)


def _gaps(
    model: pixelcnn.PixelCNN, params: dict, one: np.ndarray, other: np.ndarray
) -> Iterator[float]:
    """Nats between the two levels where each pair of images first differs."""
    exact = dataclasses.replace(model, dtype="float64")
    wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)

    @jax.jit
    def scores(image: Any) -> Any:
        outputs = pixelcnn.apply(exact, wide, image)
        return conditionals.level_log_probs(exact.family, wide["head"], outputs, image)

    for a, b in zip(one, other, strict=True):
        if np.array_equal(a, b):
            continue
        place = np.unravel_index(np.argmax(a.ravel() != b.ravel()), a.shape)
        row = np.asarray(scores(a[None]))[0][place]
        yield abs(float(row[a[place]] - row[b[place]]))


def main(_: list[str]) -> None:
    """Runs the comparison."""
    logging.set_verbosity(logging.ERROR)
    jax.config.update("jax_enable_x64", True)
    model, params, card = zoo.load_released(_WEIGHTS.value)
    images = common.noisy(card["dataset"], _COUNT.value)
    rough = dataclasses.replace(model, dtype="bfloat16")
    expected = _purified(model, params, images, _BATCH.value)
    bits = _bits(model, params, expected)
    variants = {
        f"batch {_OTHER.value}": (model, _OTHER.value),
        "bfloat16": (rough, _BATCH.value),
    }
    result = {"weights": _WEIGHTS.value, "n": len(images), "eps": _EPS.value}
    result |= {"batch": _BATCH.value, "bits_per_dim": round(float(bits.mean()), 4)}
    for name, (variant, batch) in variants.items():
        found = _purified(variant, params, images, batch)
        gaps = list(_gaps(model, params, expected, found))
        difference = _bits(model, params, found) - bits
        result[name] = {
            "images_equal": float(np.mean((found == expected).all((1, 2, 3)))),
            "levels_equal": round(float(np.mean(found == expected)), 7),
            "bits_per_dim_difference": round(float(difference.mean()), 5),
            "first_difference_nats_median": float(np.median(gaps)) if gaps else None,
            "first_difference_nats_largest": max(gaps, default=None),
        }
        print(name, result[name], flush=True)
    result["device"] = parallel.devices()
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
