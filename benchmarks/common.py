"""What the benchmarks share: batches, programs timed in turn, runs of `main.py`."""

import dataclasses
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pixeldefend.density import conditionals, pixelcnn
from pixeldefend.experiment import data

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Training:
    """A training by `main.py`.

    Attributes:
      dataset: of its configuration.
      kind: "pixelcnn" or "classifier".
      fields: of that section of the configuration, and their values.
    """

    dataset: str
    kind: str
    fields: dict[str, Any]


def noisy(dataset: str, batch: int) -> np.ndarray:
    """Bundled images `[batch, H, W, C]` uint8 with noise of up to 8 levels."""
    clean = data.sample(dataset)[0]
    images = np.resize(clean, (batch, *clean.shape[1:])).astype(np.int16)
    noise = np.random.default_rng(0).integers(-8, 9, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def in_turn(
    programs: dict[str, tuple[Callable, tuple]], repeats: int
) -> dict[str, np.ndarray]:
    """Seconds `[repeats]` of each program, taken in turn in this process.

    Args:
      programs: by name, what is called, compiled already, and its arguments.
      repeats: timed turns, after one that warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, (program, arguments) in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return {name: np.array(taken) for name, taken in seconds.items()}


def compiled(
    functions: dict[str, tuple[Callable, Any]], images: np.ndarray
) -> dict[str, tuple[Callable, tuple]]:
    """Programs for `in_turn`, of functions of parameters and images.

    Args:
      functions: by name, with their parameters.
      images: `[B, H, W, C]` uint8.
    """
    return {
        name: (jax.jit(function).lower(params, images).compile(), (params, images))
        for name, (function, params) in functions.items()
    }


def spread(values: np.ndarray) -> tuple[float, list[float]]:
    """Median, and lowest and highest, in three digits."""
    low, middle, high = map(three_digits, np.quantile(values, [0, 0.5, 1]))
    return middle, [low, high]


def three_digits(value: float) -> float:
    """As exact as these machines repeat a time."""
    return float(f"{value:.3g}")


def run_main(config: str, mode: str, workdir: pathlib.Path, fields: dict) -> None:
    """Runs `main.py` in a process of its own.

    Args:
      config: file below configs/ and variant, "cifar10.py:smoke".
      mode: of `main.py`.
      workdir: of the run.
      fields: of the configuration, and their values.

    Raises:
      SystemExit: it failed.
    """
    command = [sys.executable, "main.py", f"--config=configs/{config}"]
    command += [f"--mode={mode}", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{mode} in {workdir} ended with {done.returncode}")


def ties(model: Any, params: dict, one: Any, other: Any) -> list[float]:
    """Between two decodings of an image, what their first difference costs, nats.

    Up to there they have the same context, in which both levels are scored.
    """
    gaps = []
    forward = jax.jit(lambda p, x: pixelcnn.apply(model, p, x))
    for found, expected in zip(one, other, strict=True):
        row, column, channel = np.argwhere(found != expected)[0]
        outputs = forward(params, expected[None])[:, row, column]
        levels = conditionals.level_log_probs(
            model.family, params["head"], outputs, expected[None, row, column]
        )
        both = [int(image[row, column, channel]) for image in (found, expected)]
        scores = np.asarray(levels)[0, channel, both]
        gaps.append(float(abs(scores[0] - scores[1])))
    return gaps
