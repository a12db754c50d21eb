"""What does purification cost, in forward passes?

Times, in turn and in one process, on the same batch:

* one teacher-forced forward pass (`pixelcnn.apply`, without the likelihood),
* purification by the scan,
* one step of the naive loop, which runs the network before every position. The whole
  loop is that times the number of positions: extrapolated, not run.

Ratios are medians over the repeats of ratios within a repeat, so that what slows the
whole machine cancels. The last line is JSON. Random weights by default, since the
arithmetic does not depend on them; `--weights` takes a released model and bundled
images instead.

  python -m benchmarks.purify --features=24 --depth=1 --batch=128
  python -m benchmarks.purify --weights=fashion_mnist/pixelcnn --batch=1
  python -m benchmarks.purify --features=160 --depth=5 --height=32 --width=32 \
    --channels=3 --batch=2048 --dtype=bfloat16 --repeats=0    # memory only
"""

import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import common
from pixeldefend.defences import purification
from pixeldefend.density import conditionals, pixelcnn
from pixeldefend.experiment import parallel, zoo

_FEATURES = flags.DEFINE_integer("features", 24, "channels of the streams")
_DEPTH = flags.DEFINE_integer("depth", 1, "gated blocks per stream and resolution")
_HEIGHT = flags.DEFINE_integer("height", 28, "of the images, pixels")
_WIDTH = flags.DEFINE_integer("width", 28, "of the images, pixels")
_CHANNELS = flags.DEFINE_integer("channels", 1, "of the images, 1 or 3")
_CONDITIONALS = flags.DEFINE_string("conditionals", "independent", "kind of head")
_WEIGHTS = flags.DEFINE_string("weights", "", "a released model instead of all these")
_BATCH = flags.DEFINE_integer("batch", 128, "images", lower_bound=1)
_DTYPE = flags.DEFINE_string("dtype", "float32", "of the streams")
_EPS = flags.DEFINE_integer("eps", 16, "levels")
_PROGRAMS = flags.DEFINE_multi_enum(
    "programs",
    ["naive_step"],
    ["scan", "naive_step"],
    "timed beside the forward pass and the scan; give it once for each",
)
_REPEATS = flags.DEFINE_integer("repeats", 7, "timed turns; 0: compile only", 0)
_TRACE = flags.DEFINE_string("trace", "", "folder for a profile of one purification")

Arguments = tuple[Any, ...]


def _released(name: str) -> tuple[pixelcnn.PixelCNN, dict, np.ndarray]:
    """A released model and its bundled images `[B, H, W, C]`, with noise."""
    model, params, card = zoo.load_released(name)
    return model, params, common.noisy(card["dataset"], _BATCH.value)


def _random() -> tuple[pixelcnn.PixelCNN, dict, np.ndarray]:
    """The model of the flags with random weights, and random images."""
    model = pixelcnn.PixelCNN(
        features=_FEATURES.value,
        depth=_DEPTH.value,
        conditionals=_CONDITIONALS.value,
        channels=_CHANNELS.value,
    )
    shape = (_BATCH.value, _HEIGHT.value, _WIDTH.value, _CHANNELS.value)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    init = jax.jit(pixelcnn.init, static_argnums=0)
    with parallel.on_host():
        params = jax.device_get(init(model, jax.random.key(0), images[:8]))
    return model, params, images


def _naive_step(
    model: pixelcnn.PixelCNN, params: dict, images: chex.Array, eps: chex.Array
) -> chex.Array:
    """What the naive loop does at one position: all of the network, 256 levels."""
    row, column = images.shape[1] // 2, images.shape[2] // 2
    outputs = pixelcnn.apply(model, params, images)[:, row, column]
    pixel = images[:, row, column]
    scores = conditionals.level_log_probs(model.family, params["head"], outputs, pixel)
    distance = jnp.abs(jnp.arange(256)[None, None] - pixel.astype(jnp.int32)[..., None])
    level = jnp.argmax(jnp.where(distance <= eps, scores, -jnp.inf), axis=-1)
    return images.at[:, row, column].set(level.astype(jnp.uint8))


def _compiled(function: Callable, arguments: Arguments) -> tuple[Any, float]:
    """The program, and the seconds to trace and compile it."""
    begun = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.perf_counter() - begun


def _ratios(seconds: dict[str, np.ndarray], positions: int) -> dict:
    """Medians, and lowest and highest, of what the timed programs allow."""
    compared = {
        "ratio_to_forward": ("scan", "forward", 1),
        "ratio_naive": ("naive_step", "scan", positions),
    }
    result = {}
    for name, (above, below, factor) in compared.items():
        if {above, below} <= set(seconds):
            middle, ends = common.spread(factor * seconds[above] / seconds[below])
            result |= {name: middle, f"{name}_range": ends}
    for name, values in seconds.items():
        result[f"seconds_{name}"] = float(f"{np.median(values):.4g}")
    return result


def main(_: list[str]) -> None:
    """Runs the benchmark, with a compilation cache of its own."""
    logging.set_verbosity(logging.ERROR)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        # Before anything is compiled: JAX looks for the folder once.
        jax.config.update("jax_compilation_cache_dir", folder)
        _benchmark()


def _benchmark() -> None:
    model, params, images = _released(_WEIGHTS.value) if _WEIGHTS.value else _random()
    model = dataclasses.replace(model, dtype=_DTYPE.value)
    eps = jnp.int32(_EPS.value)
    arguments = (params, jnp.asarray(images), eps)
    # As the main job does it: one program for each of five windows.
    window = purification.window_for(_EPS.value)

    def purify(params: dict, images: Any, eps: Any) -> Any:
        return purification.purify(model, params, images, eps=eps, window=window)

    functions = {
        "forward": lambda params, images, eps: pixelcnn.apply(model, params, images),
        "scan": purify,
        "naive_step": functools.partial(_naive_step, model),
    }
    wanted = {"scan"}
    if _REPEATS.value:
        wanted |= {"forward", *_PROGRAMS.value}
    functions = {name: f for name, f in functions.items() if name in wanted}
    programs, compile_seconds = {}, {}
    for name, function in functions.items():
        programs[name], compile_seconds[name] = _compiled(function, arguments)
    jax.clear_caches()  # all but the folder's
    _, cached_seconds = _compiled(functions["scan"], arguments)
    memory = programs["scan"].memory_analysis()
    result = {
        "model": dataclasses.asdict(model) | {"weights": _WEIGHTS.value or "random"},
        "images": list(images.shape),
        "eps": _EPS.value,
        "repeats": _REPEATS.value,
    }
    if _REPEATS.value:
        given = {name: (program, arguments) for name, program in programs.items()}
        seconds = common.in_turn(given, _REPEATS.value)
        positions = images.shape[1] * images.shape[2]
        result |= _ratios(seconds, positions)
        rate = len(images) / np.median(seconds["scan"])
        result["images_per_second"] = float(f"{rate:.4g}")
    result |= {
        "compile_seconds": round(compile_seconds["scan"], 1),
        "compile_seconds_cached": round(cached_seconds, 1),
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
        "device": str(jax.devices()[0].device_kind),
    }
    if _TRACE.value:
        with jax.profiler.trace(_TRACE.value):
            jax.block_until_ready(programs["scan"](*arguments))
    for name, value in result.items():
        print(f"{name:>24}  {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
