"""Everything that a quarter of an hour on one accelerator is good for, in one command.

Each stage runs in a process of its own within a time box, needs no other stage to have
worked, prints its rows as it finds them and a short table last; `--to` gets all rows in
one file, rewritten whole with each, and the trained weights in pieces. A stage that
fails or runs out of time costs its own rows only.

* `device`: versions, memory, and two ceilings: copying, and a product in bfloat16.
* `correct`: in float32 at the highest precision, the scan against the teacher-forced
  pass, and purified bytes against those of a CPU (`--prepare`).
* `purify`: images/s of purification and of a forward pass, for models, batches, types,
  and XLA's command buffers; the most telling ones first, until time is up.
* `train=NAME`: a time-boxed training, one of `TRAININGS`.
* `profile`: which kernels a batch of purification spends its time in.

Before, where there is no accelerator, and after, to get a model of the pieces:

  python -m benchmarks.accelerator --prepare=PREPARED
  python -m benchmarks.accelerator --to=OUT --prepared=PREPARED --data_dir=DATA_DIR \
    --stages=device:20,correct:60,purify:150,train=cifar10-pixelcnn:400
  python -m benchmarks.accelerator --assemble=OUT/cifar10-pixelcnn --release=FOLDER

Needs neither TFDS nor matplotlib; training wants ml_collections, whose wheel is small.
`--smoke` tries all of it in minutes on a CPU.
"""

import importlib
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

from absl import app, flags, logging

from benchmarks import common, pieces
from pixeldefend.experiment.rows import read_rows

# JAX takes an accelerator's memory when it is imported and used, so the process that
# watches over the others does not touch it: what needs it is imported where it is used.


def _classifier(training: str = "normal", **model: str) -> common.Training:
    fields = {f"model.{name}": value for name, value in model.items()}
    return common.Training("cifar10", "classifier", {"training": training, **fields})


# By the configurations' variant "gpu".
TRAININGS = {
    "cifar10-pixelcnn": common.Training("cifar10", "pixelcnn", {}),
    "cifar10-pixelcnn-96x3": common.Training(
        "cifar10", "pixelcnn", {"model.features": 96, "model.depth": 3}
    ),
    "cifar10-resnet": _classifier(),
    "cifar10-vgg": _classifier(architecture="vgg", variant="paper"),
    "cifar10-resnet-label_smoothing": _classifier("label_smoothing"),
    "cifar10-resnet-adversarial_fgsm8": _classifier("adversarial_fgsm"),
    "cifar10-resnet-adversarial_bim8": _classifier("adversarial_bim"),
    "fashion_mnist-pixelcnn": common.Training("fashion_mnist", "pixelcnn", {}),
}
STAGES = ("device", "correct", "purify", "train", "profile")
# Usual seconds of a stage. A training takes all of its own, the others what they need.
SECONDS = {"device": 20, "correct": 60, "purify": 150, "train": 240, "profile": 50}
_SMOKE_SECONDS = SECONDS | {"correct": 200, "train": 90, "profile": 200}
_TINY = {  # of a training that is to be tried on a CPU
    "pixelcnn": {
        "model.features": 4,
        "model.mixtures": 2,
        "model.depth": 1,
        "train.init_images": 8,
        "train.warmup": 1,
    },
    "classifier": {"model.divisor": 16, "train.warmup": 1},
}
_TINY_TRAIN = {"train.batch": 4, "train.eval_images": 16, "train.steps_per_call": 2}
_GRACE = 10.0  # seconds in which a stage whose time is up may end by itself
_PACKING = 6.0  # seconds of a training's box for writing its pieces
_TIE = 1e-3  # nats between two levels either of which float32 may take

_STAGES = flags.DEFINE_list("stages", "", "names, each with :seconds if wanted")
_SECONDS = flags.DEFINE_float("seconds", 0.0, "of all stages that do not say; 0: usual")
_TO = flags.DEFINE_string("to", "", "folder for rows and weights")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "as for main.py; training needs it")
_PREPARED = flags.DEFINE_string("prepared", "", "folder that --prepare wrote")
_SET = flags.DEFINE_multi_string("set", [], "field=value of a training's section")
_SMOKE = flags.DEFINE_bool("smoke", False, "small, on the bundled sample")
_PREPARE = flags.DEFINE_string("prepare", "", "folder for a model and what a CPU makes")
_ASSEMBLE = flags.DEFINE_string("assemble", "", "the pieces OUT/NAME of a training")
_RELEASE = flags.DEFINE_string("release", "", "folder for the model of --assemble")
_STAGE = flags.DEFINE_string("stage", "", "for this program's own use")
_DEADLINE = flags.DEFINE_float("deadline", 0.0, "for this program's own use")


# ----------------------------------------------------------------------------------
# The process that watches over the stages


def _chosen() -> list[tuple[str, float]]:
    """Stages and their seconds.

    Raises:
      SystemExit: a name or a number that is none.
    """
    wanted = _STAGES.value or STAGES
    found = []
    for text in wanted:
        name, _, seconds = text.partition(":")
        if name == "train":
            name = "train=cifar10-pixelcnn"
        kind, _, training = name.partition("=")
        if kind not in STAGES or (kind == "train") != (training in TRAININGS):
            raise SystemExit(
                f"--stages: {name} is none of {', '.join(STAGES)}, with a training of "
                f"{', '.join(TRAININGS)}"
            )
        try:
            found.append((name, float(seconds or 0)))
        except ValueError:
            raise SystemExit(
                f"--stages: {seconds!r} is not a number of seconds"
            ) from None
    usual = _SMOKE_SECONDS if _SMOKE.value else SECONDS
    shares = [0.0 if given else usual[name.partition("=")[0]] for name, given in found]
    left = _SECONDS.value - sum(given for _, given in found)
    if _SECONDS.value and any(shares) and left <= 0:
        raise SystemExit(f"--seconds={_SECONDS.value:g} leaves nothing for some stages")
    scale = left / sum(shares) if _SECONDS.value and any(shares) else 1.0
    return [
        (name, given or scale * share)
        for (name, given), share in zip(found, shares, strict=True)
    ]


def _watch(stages: list[tuple[str, float]]) -> int:
    """Runs the stages; returns 0 if all of them ended well."""
    to = pathlib.Path(_TO.value)
    to.mkdir(parents=True, exist_ok=True)
    path = to / "rows.jsonl"
    # Of earlier commands too: a machine is used in several calls.
    rows = read_rows(path) if path.exists() else []
    failed = []
    for name, seconds in stages:
        print(f"== {name}, {seconds:.0f} s", flush=True)
        begun = time.monotonic()
        code, found = _run(name, begun + seconds, rows, path)
        taken = time.monotonic() - begun
        if code:
            failed.append(name)
        _table(found)
        print(f"== {name}: exit code {code} after {taken:.1f} s", flush=True)
    print(f"rows in {path}" + "".join(f"; {n} FAILED" for n in failed))
    return 1 if failed else 0


def _run(
    name: str, deadline: float, rows: list[dict], path: pathlib.Path
) -> tuple[int, list[dict]]:
    """A stage in a process of its own; its exit code and its rows."""
    command = [sys.executable, "-m", "benchmarks.accelerator", f"--stage={name}"]
    command += [f"--deadline={deadline}", f"--{'' if _SMOKE.value else 'no'}smoke"]
    command += [f"--{f.name}={f.value}" for f in (_TO, _DATA_DIR, _PREPARED)]
    command += [f"--set={field}" for field in _SET.value]
    process = subprocess.Popen(
        command,
        cwd=common.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )

    def end(how: int) -> None:
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            pass

    left = deadline - time.monotonic()
    timers = [
        threading.Timer(left, end, [signal.SIGTERM]),
        threading.Timer(left + _GRACE, end, [signal.SIGKILL]),
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    found = []
    try:
        for line in process.stdout:
            if line.startswith("ROW "):
                found.append(json.loads(line[4:]))
                rows.append(found[-1])
                # `write_rows` asks JAX for this process's number, and JAX
                # would take the device.
                temporary = path.with_suffix(".new")
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
                temporary.replace(path)
            else:
                print(line, end="", flush=True)
        return process.wait(), found
    finally:  # also where this process is asked to stop
        for timer in timers:
            timer.cancel()
        end(signal.SIGKILL)


def _table(rows: list[dict]) -> None:
    """A line for every row, what has a place in it first."""
    for row in rows:
        cells = [
            f"{name}={value:.5g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in row.items()
            if not isinstance(value, dict | list) and name != "stage"
        ]
        print("  " + "  ".join(cells), flush=True)


# ----------------------------------------------------------------------------------
# Stages, each in a process of its own; they yield rows


def _left() -> float:
    """Seconds until this stage's time is up."""
    return _DEADLINE.value - time.monotonic()


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
    size = 2**20 if _SMOKE.value else 2**28
    array = jnp.zeros(size, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    seconds = _fastest(copy, array)
    yield {"ceiling": "copy", "gigabytes_per_second": 8 * size / seconds / 1e9}
    side = 256 if _SMOKE.value else 8192
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
    if _PREPARED.value:
        if not (pathlib.Path(_PREPARED.value) / "expected.npz").exists():
            raise SystemExit(f"--prepared: nothing in {_PREPARED.value}; see --prepare")
        return pathlib.Path(_PREPARED.value)
    if not _SMOKE.value:
        raise SystemExit("this stage wants --prepared, a folder that --prepare wrote")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="prepared-"))
    _prepare(folder)
    return folder


def _prepare(folder: pathlib.Path) -> None:
    """Writes a released model, and images with what this machine makes of them."""
    import jax
    import numpy as np

    from pixeldefend.density import pixelcnn
    from pixeldefend.experiment import zoo

    images = common.noisy("cifar10", 64)
    if _SMOKE.value:
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
    sizes = [(4, 1)] if _SMOKE.value else [(64, 2), (24, 1), (160, 5)]
    batches = [2] if _SMOKE.value else [512, 128, 2048]
    runs = [
        (size, batch, dtype, buffers)
        for buffers in ("default", "off")
        for batch in batches
        for dtype in ("bfloat16", "float32")
        for size in sizes
    ]
    if _SMOKE.value:
        runs = runs[-1:]
    for (features, depth), batch, dtype, buffers in runs:
        if _left() < 5:
            break
        command = [sys.executable, "-m", "benchmarks.purify", f"--features={features}"]
        command += [f"--depth={depth}", f"--batch={batch}", f"--dtype={dtype}"]
        command += ["--height=32", "--width=32", "--channels=3"]
        command += ["--conditionals=joint"]
        if _SMOKE.value:
            command += ["--height=8", "--width=8", "--programs=naive_step"]
        else:
            command += ["--programs=scan", "--repeats=3"]
        if (features, depth) == (24, 1) and _PREPARED.value:
            command += [f"--weights={pathlib.Path(_PREPARED.value) / 'pixelcnn'}"]
        options = os.environ.get("XLA_FLAGS", "")
        if buffers == "off" and not _SMOKE.value:  # a CPU's XLA may not know the name
            options += " --xla_gpu_enable_command_buffer="
        identity = {"features": features, "depth": depth, "batch": batch}
        identity |= {"dtype": dtype, "command_buffers": buffers}
        try:
            done = subprocess.run(
                command,
                env=os.environ | {"XLA_FLAGS": options},
                stdout=subprocess.PIPE,
                text=True,
                timeout=_left() - 3,
            )
        except subprocess.TimeoutExpired:
            yield identity | {"failed": "out of time"}
            break  # as is usual: there are more runs than time
        if done.returncode:
            yield identity | {"failed": f"exit code {done.returncode}"}
            continue
        yield identity | json.loads(done.stdout.splitlines()[-1])


def _fields(training: common.Training) -> dict[str, Any]:
    """Fields of a training's section, with those of the command line."""
    fields = dict(training.fields)
    if _SMOKE.value:
        fields |= _TINY[training.kind] | _TINY_TRAIN
        fields["train.on_sample"] = not _DATA_DIR.value
    for text in _SET.value:
        field, equals, value = text.partition("=")
        if not equals:
            raise SystemExit(f"--set={text} wants field=value")
        fields[field] = value
    return fields


def configured(name: str) -> tuple[common.Training, Any]:
    """A training and its configuration, with the fields of the command line."""
    training = TRAININGS[name]
    config = importlib.import_module(f"configs.{training.dataset}").get_config("gpu")
    section = config[training.kind]
    for field, value in _fields(training).items():
        section.update_from_flattened_dict({field: _typed(section, field, value)})
    config.data_dir = _DATA_DIR.value or None
    config.compilation_cache = ""
    section.train.steps = 0
    config.train.model = training.kind
    return training, config


def _as_command(training: common.Training, hours: float) -> list[str]:
    """The arguments with which `main.py` trains the same, for the model's card."""
    section = f"--config.{training.kind}"
    given = [f"{section}.{field}={value}" for field, value in _fields(training).items()]
    return [
        f"--config=configs/{training.dataset}.py:gpu",
        "--mode=train",
        f"--config.train.model={training.kind}",
        "--config.data_dir=DATA_DIR",
        *given,
        f"{section}.train.hours={hours:.4f}",
    ]


def _train(name: str) -> Iterator[dict]:
    """A training by `main.py`'s own mode, and its weights in pieces."""
    from pixeldefend.experiment import modes

    training, config = configured(name)
    if not (_DATA_DIR.value or _SMOKE.value):
        raise SystemExit("this stage wants --data_dir, see main.py's")
    # What ends it is its own deadline; a little late is better than without weights.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with tempfile.TemporaryDirectory() as folder:
        seconds = max(_left() - _PACKING, 1.0)
        hours = config[training.kind].train.hours = seconds / 3600
        sys.argv[1:] = _as_command(training, hours)
        try:
            modes.start("train", config, folder)
        except modes.UserError as error:
            raise SystemExit(str(error)) from error
        files = pieces.pack(pathlib.Path(folder), pathlib.Path(_TO.value) / name)
        lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    yield {"training": name, **json.loads(lines[-1]), "files": files}


def _typed(section: Any, field: str, value: Any) -> Any:
    """A value from the command line, of its field's type.

    Raises:
      SystemExit: there is no such field, or it is of another type.
    """
    there = section.to_dict()
    try:
        for part in field.split("."):
            there = there[part]
    except (KeyError, TypeError):
        raise SystemExit(f"--set: the section has no field {field}") from None
    if not isinstance(value, str) or isinstance(there, str):
        return value
    try:
        if isinstance(there, bool):
            return {"true": True, "false": False}[value.lower()]
        return type(there)(value)
    except (KeyError, ValueError):
        kind = type(there).__name__
        raise SystemExit(f"--set: {field} wants {kind}, not {value!r}") from None


def _profile() -> Iterator[dict]:
    """Kernels of one batch of purification, by their time."""
    import gzip

    import jax
    import numpy as np

    from pixeldefend.density import pixelcnn
    from pixeldefend.experiment import parallel

    features, depth, batch, side = (4, 1, 2, 8) if _SMOKE.value else (64, 2, 512, 32)
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


def _stage(name: str) -> None:
    """Runs a stage here, and prints its rows for the process that watches."""
    kind, _, training = name.partition("=")
    if kind == "train":
        rows = _train(training)
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


def main(_: list[str]) -> None:
    """Runs the stages, or what comes before and after them."""
    logging.set_verbosity(logging.ERROR)
    if _STAGE.value:
        _stage(_STAGE.value)
    elif _PREPARE.value:
        _prepare(pathlib.Path(_PREPARE.value))
    elif _ASSEMBLE.value:
        if not _RELEASE.value:
            raise SystemExit("--assemble wants --release, a folder for the model")
        pieces.assemble(pathlib.Path(_ASSEMBLE.value), pathlib.Path(_RELEASE.value))
    elif _TO.value:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        sys.exit(_watch(_chosen()))
    elif _SMOKE.value:
        with tempfile.TemporaryDirectory() as folder:
            flags.FLAGS.to = folder
            sys.exit(_watch(_chosen()))
    else:
        raise SystemExit("--to is missing: the folder for rows and weights")


if __name__ == "__main__":
    app.run(main)
