"""What the benchmarks share: batches, programs timed in turn, runs, rows of files."""

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pixeldefend import data

ROOT = pathlib.Path(__file__).parent.parent


def noisy(dataset: str, batch: int) -> np.ndarray:
    """Bundled images `[batch, H, W, C]` uint8 with noise of up to 8 levels."""
    clean = data.sample(dataset)[0]
    images = np.resize(clean, (batch, *clean.shape[1:])).astype(np.int16)
    noise = np.random.default_rng(0).integers(-8, 9, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def in_turn(
    functions: dict[str, tuple[Callable, Any]], images: np.ndarray, repeats: int
) -> dict[str, np.ndarray]:
    """Seconds `[repeats]` of each function, taken in turn in this process.

    Args:
      functions: by name, a function of parameters and images, and the parameters.
      images: `[B, H, W, C]` uint8.
      repeats: timed turns, after one that warms up.
    """
    programs = {
        name: (jax.jit(function).lower(params, images).compile(), params)
        for name, (function, params) in functions.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, (program, params) in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(params, images))
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return {name: np.array(taken) for name, taken in seconds.items()}


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


def rows_of(path: pathlib.Path) -> list[dict]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
