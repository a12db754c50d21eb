"""What does purification cost, in forward passes?

Times one teacher-forced forward pass (`pixelcnn.apply`, without the likelihood) and the
purifying scan on the same batch, in turn in one process, and prints the median of the
paired ratios, `ratio_to_forward`. The last line is JSON. Random weights: the arithmetic
does not depend on them.

  python -m benchmarks.purify --features=24 --depth=1 --batch=128
"""

import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from pixeldefend import pixelcnn, purification

_FEATURES = flags.DEFINE_integer("features", 24, "channels of the streams")
_DEPTH = flags.DEFINE_integer("depth", 1, "gated blocks per stream and resolution")
_HEIGHT = flags.DEFINE_integer("height", 28, "of the images, pixels")
_WIDTH = flags.DEFINE_integer("width", 28, "of the images, pixels")
_CHANNELS = flags.DEFINE_integer("channels", 1, "of the images, 1 or 3")
_CONDITIONALS = flags.DEFINE_string("conditionals", "independent", "kind of head")
_BATCH = flags.DEFINE_integer("batch", 128, "images")
_DTYPE = flags.DEFINE_string("dtype", "float32", "of the streams")
_EPS = flags.DEFINE_integer("eps", 16, "levels")
_REPEATS = flags.DEFINE_integer("repeats", 7, "timed pairs")


def _seconds(function: Callable[[], jax.Array]) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begun


def main(_: list[str]) -> None:
    """Runs the benchmark."""
    model = pixelcnn.PixelCNN(
        features=_FEATURES.value,
        depth=_DEPTH.value,
        dropout=0.0,
        conditionals=_CONDITIONALS.value,
        channels=_CHANNELS.value,
        dtype=_DTYPE.value,
    )
    shape = (_BATCH.value, _HEIGHT.value, _WIDTH.value, _CHANNELS.value)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = jnp.asarray(images)
    init = jax.jit(pixelcnn.init, static_argnums=0)
    params = init(model, jax.random.key(0), images[:8])
    begun = time.perf_counter()
    forward = jax.jit(lambda p, x: pixelcnn.apply(model, p, x))
    forward = forward.lower(params, images).compile()
    compiled_forward = time.perf_counter()
    scan = jax.jit(lambda p, x, e: purification.purify(model, p, x, eps=e))
    eps = jnp.int32(_EPS.value)
    scan = scan.lower(params, images, eps).compile()
    compiled_scan = time.perf_counter()
    _seconds(lambda: forward(params, images))
    _seconds(lambda: scan(params, images, eps))
    pairs = []
    for _ in range(_REPEATS.value):
        pairs.append(
            (
                _seconds(lambda: forward(params, images)),
                _seconds(lambda: scan(params, images, eps)),
            )
        )
    ratios = [scanned / once for once, scanned in pairs]
    memory = scan.memory_analysis()
    result = {
        "shape": list(shape),
        "features": model.features,
        "depth": model.depth,
        "pairs": len(pairs),
        "dtype": model.dtype,
        "ratio_to_forward": round(float(np.median(ratios)), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
        "seconds_forward": round(float(np.median([p[0] for p in pairs])), 4),
        "seconds_scan": round(float(np.median([p[1] for p in pairs])), 4),
        "images_per_second": round(
            shape[0] / float(np.median([p[1] for p in pairs])), 2
        ),
        "compile_seconds_forward": round(compiled_forward - begun, 1),
        "compile_seconds": round(compiled_scan - compiled_forward, 1),
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
        "device": str(jax.devices()[0].device_kind),
    }
    for name, value in result.items():
        print(f"{name:>24}  {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
