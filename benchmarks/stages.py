"""What can be measured on one accelerator; each stage yields rows."""

import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from benchmarks import common, trainings
from benchmarks.trainings import SMOKE, left

_TIE = 1e-3  # nats between two levels either of which float32 may take

PREPARED = flags.DEFINE_string("prepared", "", "folder that --prepare wrote")


def _device() -> Iterator[dict]:
    """Versions, memory and ceilings."""
    import flax
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import orbax.checkpoint as ocp

    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    yield {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "memory_bytes": memory,
        "python": platform.python_version(),
        **{m.__name__: m.__version__ for m in (jax, flax, optax, np)},
        "orbax": ocp.__version__,
    }
    size = 2**20 if SMOKE.value else 2**28
    array = jnp.zeros(size, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    seconds = _fastest(copy, array)
    yield {"ceiling": "copy", "gigabytes_per_second": 8 * size / seconds / 1e9}
    side = 256 if SMOKE.value else 8192
    matrix = jnp.ones((side, side), jnp.bfloat16)
    seconds = _fastest(jax.jit(lambda x: x @ x), matrix)
    yield {"ceiling": "bfloat16 product", "teraflops": 2 * side**3 / seconds / 1e12}


def _fastest(function: Any, *arguments: Any) -> float:
    """Seconds of a call, the least of ten after two."""
    import jax

    taken = []
    for _ in range(12):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        taken.append(time.perf_counter() - begun)
    return min(taken[2:])


def _prepared() -> pathlib.Path:
    """The folder of `--prepare`; made here and now for `--smoke`.

    Raises:
      SystemExit: there is none.
    """
    if PREPARED.value:
        if not (pathlib.Path(PREPARED.value) / "expected.npz").exists():
            raise SystemExit(f"--prepared: nothing in {PREPARED.value}; see --prepare")
        return pathlib.Path(PREPARED.value)
    if not SMOKE.value:
        raise SystemExit("this stage wants --prepared, a folder that --prepare wrote")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="prepared-"))
    prepare(folder)
    return folder


def prepare(folder: pathlib.Path) -> None:
    """Writes a released model, and images with what this machine makes of them."""
    import jax
    import numpy as np

    from pixeldefend.density import pixelcnn
    from pixeldefend.experiment import zoo

    images = common.noisy("cifar10", 64)
    if SMOKE.value:
        images = images[:4, 8:16, 8:16]
        model = pixelcnn.PixelCNN(features=4, depth=1, mixtures=2)
        params = pixelcnn.init(model, jax.random.key(0), images)
        card = {"kind": "pixelcnn", "dataset": "cifar10"}
    else:
        model, params, card = zoo.load_released("cifar10/pixelcnn")
    card |= {"image_shape": images.shape[1:]}
    zoo.save_released(folder / "pixelcnn", model, params, card)
    with jax.default_matmul_precision("highest"):
        purified = np.asarray(_purify(model)(params, images))
    np.savez_compressed(folder / "expected.npz", images=images, purified=purified)
    print(f"a model and {len(images)} purified images in {folder}")


def _purify(model: Any) -> Any:
    """Purification with eps 16 as the main job has it, jitted."""
    import jax

    from pixeldefend.defences import purification

    window = purification.window_for(16)
    return jax.jit(
        lambda params, images: purification.purify(
            model, params, images, eps=16, window=window
        )
    )


def _correct() -> Iterator[dict]:
    """The scan against the teacher-forced pass, and purified bytes against a CPU's."""
    import jax
    import numpy as np

    from pixeldefend.density import decode, pixelcnn
    from pixeldefend.experiment import zoo

    folder = _prepared()
    model, params, _ = zoo.load_released(str(folder / "pixelcnn"))
    with np.load(folder / "expected.npz") as file:
        images, expected = file["images"], file["purified"]
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(lambda p, x: pixelcnn.apply(model, p, x))
        scan = jax.jit(lambda p, x: decode.teacher_forced(model, p, x))
        heads = np.asarray(forward(params, images))
        apart = np.abs(heads - scan(params, images)) / np.maximum(1, np.abs(heads))
        yield {
            "what": "scan and teacher-forced pass, float32",
            "images": len(images),
            "largest_difference": float(apart.max()),
            "ok": bool(apart.max() <= 1e-5),
        }
        purified = np.asarray(_purify(model)(params, images))
        equal = (purified == expected).all((1, 2, 3))
        gaps = common.ties(model, params, purified[~equal], expected[~equal])
        yield {
            "what": "purified bytes and those of a CPU, float32",
            "images": len(images),
            "equal": int(equal.sum()),
            "largest_gap_nats": float(max(gaps, default=0.0)),
            "ok": bool(max(gaps, default=0.0) <= _TIE),
        }


def _purification() -> Iterator[dict]:
    """Runs of `benchmarks.purify`, the most telling ones first."""
    sizes = [(4, 1)] if SMOKE.value else [(64, 2), (24, 1), (160, 5)]
    batches = [2] if SMOKE.value else [512, 128, 2048]
    runs = [
        (size, batch, dtype, buffers)
        for buffers in ("default", "off")
        for batch in batches
        for dtype in ("bfloat16", "float32")
        for size in sizes
    ]
    if SMOKE.value:
        runs = runs[-1:]
    for (features, depth), batch, dtype, buffers in runs:
        if left() < 5:
            break
        command = [sys.executable, "-m", "benchmarks.purify", f"--features={features}"]
        command += [f"--depth={depth}", f"--batch={batch}", f"--dtype={dtype}"]
        command += ["--height=32", "--width=32", "--channels=3"]
        command += ["--conditionals=joint"]
        if SMOKE.value:
            command += ["--height=8", "--width=8", "--programs=naive_step"]
        else:
            command += ["--programs=scan", "--repeats=3"]
        if (features, depth) == (24, 1) and PREPARED.value:
            command += [f"--weights={pathlib.Path(PREPARED.value) / 'pixelcnn'}"]
        options = os.environ.get("XLA_FLAGS", "")
        if buffers == "off" and not SMOKE.value:  # a CPU's XLA may not know the name
            options += " --xla_gpu_enable_command_buffer="
        identity = {"features": features, "depth": depth, "batch": batch}
        identity |= {"dtype": dtype, "command_buffers": buffers}
        try:
            done = subprocess.run(
                command,
                env=os.environ | {"XLA_FLAGS": options},
                stdout=subprocess.PIPE,
                text=True,
                timeout=left() - 3,
            )
        except subprocess.TimeoutExpired:
            yield identity | {"failed": "out of time"}
            break  # as is usual: there are more runs than time
        if done.returncode:
            yield identity | {"failed": f"exit code {done.returncode}"}
            continue
        yield identity | json.loads(done.stdout.splitlines()[-1])


def _profile() -> Iterator[dict]:
    """Kernels of one batch of purification, by their time."""
    import gzip

    import jax
    import numpy as np

    from pixeldefend.density import pixelcnn
    from pixeldefend.experiment import parallel

    features, depth, batch, side = (4, 1, 2, 8) if SMOKE.value else (64, 2, 512, 32)
    model = pixelcnn.PixelCNN(
        features=features, depth=depth, conditionals="joint", dtype="bfloat16"
    )
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    with parallel.on_host():
        init = jax.jit(pixelcnn.init, static_argnums=0)
        params = jax.device_get(init(model, jax.random.key(0), images[:8]))
    purify = _purify(model)
    jax.block_until_ready(purify(params, images))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            begun = time.perf_counter()
            jax.block_until_ready(purify(params, images))
            seconds = time.perf_counter() - begun
        (trace,) = pathlib.Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    yield {
        "features": features,
        "depth": depth,
        "batch": batch,
        "seconds": seconds,
        "images_per_second": batch / seconds,
    }
    yield from _kernels(events, side * side)


def _kernels(events: list[dict], positions: int) -> Iterator[dict]:
    """The twelve names that take longest on the device, of a trace's events."""
    names = {
        event["pid"]: event["args"]["name"]
        for event in events
        if event.get("name") == "process_name"
    }
    on_device = {pid for pid, name in names.items() if "GPU" in name or "TPU" in name}
    on_device = on_device or set(names)
    totals: dict[str, list[float]] = {}
    for event in events:
        if event.get("ph") == "X" and event.get("pid") in on_device:
            total = totals.setdefault(event["name"], [0.0, 0])
            total[0] += event.get("dur", 0.0)
            total[1] += 1
    whole = sum(seconds for seconds, _ in totals.values())
    yield {
        "kernels": sum(count for _, count in totals.values()),
        "kernels_per_position": sum(c for _, c in totals.values()) / positions,
        "busy_seconds": whole / 1e6,
    }
    longest = sorted(totals.items(), key=lambda item: -item[1][0])[:12]
    for name, (microseconds, count) in longest:
        yield {
            "kernel": name[:60],
            "calls": count,
            "seconds": microseconds / 1e6,
            "share": microseconds / max(whole, 1e-9),
        }


def _end_with_the_parent() -> None:
    """Has this process group killed when the process that watches it is gone.

    It would hold the device's memory, and time itself by nobody's clock.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def run(name: str) -> None:
    """Runs a stage here, and prints its rows for the process that watches."""
    kind, _, training = name.partition("=")
    if kind == "train":
        rows = trainings.train(training)
    else:
        rows = {
            "device": _device,
            "correct": _correct,
            "purify": _purification,
            "profile": _profile,
        }[kind]()
    _end_with_the_parent()
    ok = True
    for row in rows:
        print("ROW " + json.dumps({"stage": kind, **row}), flush=True)
        ok &= row.get("ok", True)
    if not ok:
        sys.exit(1)
