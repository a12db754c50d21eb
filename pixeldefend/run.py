"""The modes of `main.py`: each composes the library from a config.

Only this file reads configs. Every mode checks all that the user gave before it
touches a file; what is wrong by then is a `UserError`.
"""

import contextlib
import hashlib
import io
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from pixeldefend import (
    attacks,
    checkpoint,
    data,
    density,
    detection,
    figures,
    parallel,
    pixelcnn,
    purification,
    report,
    train,
)

Config = ml_collections.ConfigDict
ATTACKS = ("auto", "none", "rand")


class UserError(Exception):
    """A mistake of the user; the message is one line and says how to mend it."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns what checks of the user's input raise into a `UserError`.

    Around preparation only: the same types raised later are faults of ours.
    """
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error


# ----------------------------------------------------------------------------------
# Starting a mode


def start(mode: str, config: Config, workdir: str = "") -> None:
    """Runs a mode.

    Args:
      mode: a key of `MODES`.
      config: see `configs/default.py`.
      workdir: folder for results, "" for the default.

    Raises:
      UserError: something that the user gave is wrong.
    """
    if config.compilation_cache:
        folder = epath.Path(config.compilation_cache).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    sections = _sections(mode, config)
    text = json.dumps(sections, sort_keys=True)
    short = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder = epath.Path(workdir or f"runs/{config.dataset}/{mode}-{short}")
    with user_errors():
        _check_workdir(folder, sections)
    MODES[mode](config, _Workdir(folder, sections))


def _sections(mode: str, config: Config) -> dict:
    """The part of a config that a mode's results depend on."""
    whole = json.loads(config.to_json_best_effort())
    kept = {"mode": mode, "dataset": config.dataset, "seed": config.seed}
    if mode == "train_pixelcnn":
        kept["pixelcnn"] = {k: v for k, v in whole["pixelcnn"].items() if k != "weights"}
    else:
        kept["pixelcnn"] = {"weights": whole["pixelcnn"]["weights"]}
        kept[mode] = whole[mode]
    return kept


def _check_workdir(folder: epath.Path, sections: dict) -> None:
    path = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"workdir {folder} is a file; name a folder")
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged; name another --workdir") from error
    if old != sections:
        changed = sorted(_differences(old, sections))
        raise ValueError(
            f"workdir {folder} belongs to another config ({', '.join(changed)}); name "
            "another --workdir or remove that folder"
        )


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            inner = f"{name}.{key}" if name else key
            yield from _differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield f"{name}: {old} there, {new} here"


class _Workdir:
    """The folder of a run; made only when a mode asks for its path."""

    def __init__(self, folder: epath.Path, sections: dict):
        self._folder = folder
        self._sections = sections

    def open(self) -> epath.Path:
        """Makes the folder with its `config.json`; only after all checks."""
        with user_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write_json(self._folder / "config.json", self._sections)
        return self._folder


def describe_modes() -> str:
    """One line for every mode."""
    wide = max(map(len, MODES))
    return "\n".join(
        f"{name.ljust(wide)}  {function.__doc__.splitlines()[0]}"
        for name, function in MODES.items()
    )


# ----------------------------------------------------------------------------------
# What several modes need


def _split(config: Config, split: str) -> dict[str, np.ndarray]:
    if not config.data_dir:
        raise ValueError(
            f"the {split} split needs --config.data_dir; prepare one with "
            f"launch/prepare_data.sh DATA_DIR {config.dataset}, or use the sample"
        )
    images, labels = data.load(config.dataset, split, config.data_dir)
    return {"images": images, "labels": labels}


def _input(
    config: Config, source: str, count: int, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray | None, list[str], str]:
    """Images to work on: (images, labels or None, a name for each, name of all)."""
    if count < 0:
        raise ValueError(f"count must not be negative: {count}")
    if source == "sample":
        images, labels = data.sample(config.dataset)
        if not config.data_dir:
            print(
                f"using the {len(images)} bundled test images; for the whole set: "
                f"launch/prepare_data.sh DATA_DIR {config.dataset}, then "
                "--config.data_dir=DATA_DIR"
            )
    elif source in data.SPLITS:
        images, labels = _split(config, source).values()
    else:
        images, labels, names = data.read_images(source, shape)
        stop = count or len(images)
        kept = labels if labels is None else labels[:stop]
        return images[:stop], kept, names[:stop], epath.Path(source).stem
    if images.shape[1:] != tuple(shape):
        raise ValueError(
            f"the model takes images {shape}, {config.dataset} has {images.shape[1:]}"
        )
    stop = min(count or len(images), len(images))
    names = [f"{source}_{i:05d}" for i in range(stop)]
    return images[:stop], labels[:stop], names, source


def _density_model(config: Config) -> tuple[pixelcnn.PixelCNN, dict, dict]:
    model, params, card = checkpoint.load_released(config.pixelcnn.weights)
    if not isinstance(model, pixelcnn.PixelCNN):
        raise ValueError(f"{config.pixelcnn.weights} is no PixelCNN++")
    if model.classes:
        raise ValueError("class-conditional weights can only be sampled from here")
    return model, params, card


def _interval(values: np.ndarray) -> str:
    """Mean with the half-width of its 95 % interval."""
    half = 1.96 * np.std(values) / max(len(values), 1) ** 0.5
    return f"{np.mean(values):.3f} ± {half:.3f}"


def _device() -> str:
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"


def _run_batches(
    mapped: parallel.BatchMap, what: str, variables: Any, *arrays: np.ndarray
) -> tuple[Any, float]:
    """Runs a batch map with progress; returns the results and the seconds taken."""
    mapped.compile(variables, *arrays)
    progress = report.Progress(what)
    parts, done, begun = [], 0, time.perf_counter()
    for part in mapped.batches(variables, *arrays):
        parts.append(part)
        done += len(jax.tree.leaves(part)[0])
        seconds = time.perf_counter() - begun
        progress.update(done / len(arrays[0]), f"{done / seconds:.1f} images/s")
    progress.close()
    joined = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    return joined, time.perf_counter() - begun


# ----------------------------------------------------------------------------------
# Modes


def train_pixelcnn(config: Config, workdir: _Workdir) -> None:
    """Trains a PixelCNN++ on the training split; continues where it was stopped."""
    settings = config.pixelcnn.train
    with user_errors():
        model = pixelcnn.PixelCNN(**config.pixelcnn.model)
        options = set(train.Plan.__dataclass_fields__) & set(settings)
        plan = train.Plan(seed=config.seed, **{k: settings[k] for k in options})
        parallel.check_batch(plan.batch)
        data.check_name(config.dataset)
        if settings.on_sample:
            images, labels = data.sample(config.dataset)
            training = validation = {"images": images, "labels": labels}
        else:
            training, validation = (_split(config, s) for s in ("train", "validation"))
        data.Batches(len(training["images"]), plan.batch, plan.seed)
        shape = training["images"].shape[1:]
        abstract = checkpoint.abstract_params("pixelcnn", model, shape)
        params = None
        if settings.start:
            weights = checkpoint.find_released(settings.start) / "weights"
            params = checkpoint.load_weights(weights, abstract)
    folder = workdir.open()
    if params is None:
        params = _init_pixelcnn(model, config.seed, training, settings.init_images)
    step = train.make_step(_pixelcnn_loss(model), train.adam(plan), plan.polyak)
    evaluate = _pixelcnn_evaluation(model, validation, settings.eval_images, plan.batch)
    progress = report.Progress("training")

    def show(line: dict) -> None:
        bits = line.get("validation_bits_per_dim")
        found = "" if bits is None else f", {bits:.3f} on validation images"
        rate = line["images_per_second"]
        progress.update(
            line["progress"], f"{line['loss']:.3f} bits/dim{found}, {rate:.1f} images/s"
        )

    with user_errors():
        first = train.start(params, {}, train.adam(plan))
        try:
            state, line = train.fit(
                first, step, training, plan, folder, evaluate, show
            )
        except train.NonFiniteLossError as error:
            raise UserError(str(error)) from error
    progress.close()
    card = {
        "kind": "pixelcnn",
        "dataset": config.dataset,
        "image_shape": list(shape),
        "training": {
            "command": shlex.join(["python", *sys.argv]),
            "config": json.loads(settings.to_json_best_effort()),
            "device": _device(),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.average)),
            **line,
        },
    }
    checkpoint.save_released(folder / "model", model, state.average, card)
    print(f"model written to {folder / 'model'}")


def _init_pixelcnn(
    model: pixelcnn.PixelCNN, seed: int, training: dict, count: int
) -> dict:
    """Data-dependent initialisation on the first batch of the shuffled images."""
    count = min(count, len(training["images"]))
    rows = next(data.Batches(len(training["images"]), count, seed).from_step(0))
    labels = training["labels"][rows] if model.classes else None
    _, key = jax.random.split(jax.random.key(seed))
    init = jax.jit(pixelcnn.init, static_argnums=0)
    return init(model, key, training["images"][rows], labels=labels)


def _pixelcnn_loss(model: pixelcnn.PixelCNN) -> train.LossFn:
    def loss_fn(params: Any, state: Any, batch: dict, key: Any) -> Any:
        return density.loss(model, params, batch, key), (state, {})

    return loss_fn


def _pixelcnn_evaluation(
    model: pixelcnn.PixelCNN, validation: dict, count: int, batch: int
) -> Callable[[train.TrainState], dict[str, float]]:
    def bits(params: Any, images: Any, labels: Any) -> Any:
        labels = labels if model.classes else None
        return density.bits_per_dim(model, params, images, labels=labels)

    scores = parallel.BatchMap(bits, batch)
    images, labels = validation["images"][:count], validation["labels"][:count]

    def evaluate(state: train.TrainState) -> dict[str, float]:
        found = scores(state.average, images, labels)
        return {"validation_bits_per_dim": float(np.mean(found))}

    return evaluate


def sample(config: Config, workdir: _Workdir) -> None:
    """Draws images from the density model and writes them as a grid and arrays."""
    settings = config.sample
    with user_errors():
        model, params, card = checkpoint.load_released(config.pixelcnn.weights)
        if settings.count < 1:
            raise ValueError(f"sample.count must be at least 1: {settings.count}")
        parallel.check_batch(settings.batch)
        if settings.label >= max(model.classes, 0) and settings.label >= 0:
            raise ValueError(
                f"sample.label {settings.label}: this model has {model.classes} classes"
            )
    height, width, _ = card["image_shape"]
    indices = np.arange(settings.count, dtype=np.uint32)
    fixed = np.full(settings.count, settings.label, np.int32)
    labels = fixed if settings.label >= 0 else indices % max(model.classes, 1)

    def draw(params: Any, indices: Any, labels: Any) -> Any:
        key = jax.random.key(config.seed)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
        return density.sample(
            model,
            params,
            keys,
            height=height,
            width=width,
            labels=labels if model.classes else None,
        )

    folder = workdir.open()
    mapped = parallel.BatchMap(draw, settings.batch)
    images, seconds = _run_batches(
        mapped, "sampling", params, indices, labels.astype(np.int32)
    )
    columns = int(np.ceil(len(images) ** 0.5))
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    figures.save(figures.grid(rows), folder / "samples.png")
    _write_arrays(folder / "samples.npz", images=images)
    print(
        f"{len(images)} samples at {len(images) / seconds:.1f} images/s after "
        f"{mapped.compile_seconds:.1f} s of compilation: {folder / 'samples.png'}"
    )


def _write_arrays(path: epath.Path, **arrays: np.ndarray) -> None:
    """An `.npz`, whole."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    with checkpoint.whole_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def score(config: Config, workdir: _Workdir) -> None:
    """Scores images: bits/dim, and p-values among the training images."""
    settings = config.score
    with user_errors():
        model, params, card = _density_model(config)
        reference = checkpoint.load_reference(config.pixelcnn.weights)
        images, labels, names, source = _input(
            config, settings.input, settings.count, tuple(card["image_shape"])
        )
        mapped = _score_map(model, settings.batch)
    folder = workdir.open()
    log_probs, seconds = _run_batches(mapped, "scoring", params, images)
    bits = density.to_bits_per_dim(log_probs, images.shape[1:])
    arrays = {"log_probs": log_probs, "bits_per_dim": bits, "names": np.array(names)}
    if reference is not None:
        arrays["p_values"] = np.asarray(detection.p_values(log_probs, reference))
    _write_arrays(folder / "scores.npz", **arrays)
    checkpoint.write_json(
        folder / "figures.json",
        {"input": source, "n": len(bits), "bits_per_dim": float(np.mean(bits))},
    )
    print(
        f"{config.pixelcnn.weights} on {len(bits)} images ({source}): "
        f"{_interval(bits)} bits/dim (mean, 95 %), {len(bits) / seconds:.0f} images/s"
    )


def _score_map(model: pixelcnn.PixelCNN, batch: int) -> parallel.BatchMap:
    return parallel.BatchMap(
        lambda params, images: density.log_prob(model, params, images), batch
    )


def release(config: Config, workdir: _Workdir) -> None:
    """Makes a released model of a training run: test figures, references, card."""
    with user_errors():
        if not config.release.to:
            raise ValueError("release.to is missing: the folder for the released model")
        model, params, card = _density_model(config)
        mapped = _score_map(model, config.release.batch)
        splits = {
            "train": _split(config, "train")["images"],
            "test": _split(config, "test")["images"],
            "sample": data.sample(config.dataset)[0],
        }
    del workdir  # all that is written goes to release.to
    scores = {
        name: _run_batches(mapped, f"scoring {name}", params, images)[0]
        for name, images in splits.items()
    }
    shape = tuple(card["image_shape"])
    name = f"{epath.Path(config.release.to).parent.name}/{epath.Path(config.release.to).name}"
    bits = {k: density.to_bits_per_dim(v, shape) for k, v in scores.items()}
    command = f"python main.py --config=configs/{config.dataset}.py --mode=score"
    card["name"] = name
    card["figures"] = {
        split: {
            "n": len(bits[split]),
            "bits_per_dim": round(float(np.mean(bits[split])), 4),
            "half_width_95": round(
                1.96 * float(np.std(bits[split])) / len(bits[split]) ** 0.5, 4
            ),
            "command": f"{command} --config.score.input={split}"
            + (" --config.data_dir=DATA_DIR" if split == "test" else ""),
        }
        for split in ("test", "sample")
    }
    del card["model"]
    checkpoint.save_released(
        config.release.to, model, params, card, reference=scores["train"]
    )
    print(json.dumps(card["figures"], indent=1))


def purify(config: Config, workdir: _Workdir) -> None:
    """Perturbs images if asked, purifies them, and shows what that did."""
    settings = config.purify
    with user_errors():
        model, params, card = _density_model(config)
        reference = checkpoint.load_reference(config.pixelcnn.weights)
        if settings.attack not in ATTACKS:
            raise ValueError(
                f"unknown attack {settings.attack!r}: one of {', '.join(ATTACKS)}"
            )
        if settings.eps_attack < 0:
            raise ValueError(f"eps_attack must not be negative: {settings.eps_attack}")
        purification.check_eps(settings.eps)
        clean, labels, names, source = _input(
            config, settings.input, settings.count, tuple(card["image_shape"])
        )
        own = source not in ("sample", *data.SPLITS)
        attack = settings.attack
        if attack == "auto":
            attack = "none" if own else "rand"
        mapped = parallel.BatchMap(_defence(model, attack, config.seed), settings.batch)
    folder = workdir.open()
    variables = {
        "params": params,
        "eps": jnp.int32(settings.eps),
        "threshold": jnp.float32(settings.threshold),
        "eps_attack": jnp.float32(settings.eps_attack),
    }
    indices = np.arange(len(clean), dtype=np.uint32)
    result, seconds = _run_batches(mapped, "purifying", variables, clean, indices)
    _write_purified(folder, source, own, names, clean, labels, result)
    stages = _stages(settings, attack, clean, result, reference)
    _write_rows(folder, config, attack, stages, len(clean), seconds)
    print(_purification_table(stages))
    print(
        f"{len(clean)} images, {len(clean) / seconds:.1f} images/s (three scorings and "
        f"the purification) on {_device()}, compiled in {mapped.compile_seconds:.1f} s"
    )
    print(f"results in {folder}")


def _defence(model: pixelcnn.PixelCNN, attack: str, seed: int) -> Callable[..., dict]:
    """The whole defence as one program: attack, score, adapt, purify, score."""

    def defend(variables: dict, clean: Any, indices: Any) -> dict:
        params = variables["params"]
        perturbed = clean
        if attack == "rand":
            key = jax.random.key(seed)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
            perturbed = attacks.uniform_noise(clean, keys, eps=variables["eps_attack"])
        before = density.log_prob(model, params, perturbed)
        eps = purification.adaptive_eps(
            density.to_bits_per_dim(before, clean.shape[1:]),
            eps=variables["eps"],
            threshold=variables["threshold"],
        )
        purified = purification.purify(model, params, perturbed, eps=eps)
        return {
            "perturbed": perturbed,
            "purified": purified,
            "clean_log_prob": density.log_prob(model, params, clean),
            "perturbed_log_prob": before,
            "purified_log_prob": density.log_prob(model, params, purified),
            "eps": eps,
        }

    return defend


def _stages(
    settings: Config,
    attack: str,
    clean: np.ndarray,
    result: dict,
    reference: np.ndarray | None,
) -> list[dict]:
    """Figures of the images clean, perturbed and purified."""
    adaptive = f", adaptive below {settings.threshold:g}" if settings.threshold else ""
    stages = [("clean", clean)]
    if attack != "none":
        title = f"{attack.upper()}, eps {settings.eps_attack:g}"
        stages.append(("perturbed", result["perturbed"], title))
    stages.append(
        ("purified", result["purified"], f"purified, eps {settings.eps}{adaptive}")
    )
    found = []
    for name, images, *title in stages:
        log_probs = result[f"{name}_log_prob"]
        distance = np.abs(images.astype(int) - clean).max((1, 2, 3))
        figures_ = {
            "stage": name,
            "title": title[0] if title else name,
            "bits_per_dim": density.to_bits_per_dim(log_probs, clean.shape[1:]),
            "distance": distance,
        }
        if reference is not None:
            figures_["p"] = np.asarray(detection.p_values(log_probs, reference))
        found.append(figures_)
    return found


def _purification_table(stages: list[dict]) -> str:
    header = ["", "bits/dim (mean, 95 %)", "p-value (median)", "p < 0.05"]
    header.append("L-inf to clean (mean, max)")
    rows = []
    for stage in stages:
        p = stage.get("p")
        distance = stage["distance"]
        rows.append(
            [
                stage["title"],
                _interval(stage["bits_per_dim"]),
                "?" if p is None else f"{np.median(p):.4f}",
                "?" if p is None else f"{np.mean(p < 0.05):.0%}",
                f"{distance.mean():.1f}, {distance.max()} levels",
            ]
        )
    return report.table(header, rows)


def _write_purified(
    folder: epath.Path,
    source: str,
    own: bool,
    names: list[str],
    clean: np.ndarray,
    labels: np.ndarray | None,
    result: dict,
) -> None:
    """Arrays, a before/after picture and, for the user's own images, a PNG each."""
    arrays = {"images": result["perturbed"], "purified": result["purified"]}
    if labels is not None:
        arrays["labels"] = labels.astype(np.uint8)
    _write_arrays(folder / "purified" / f"{source}.npz", clean=clean, **arrays)
    rows = {"clean": clean, "perturbed": result["perturbed"]}
    if np.array_equal(clean, result["perturbed"]):
        del rows["perturbed"]
    rows["purified"] = result["purified"]
    shown = [images[:12] for images in rows.values()]
    figures.save(figures.grid(shown, list(rows)), folder / "figures/before_after.png")
    if own:
        for name, image in zip(names, result["purified"], strict=True):
            figures.save(figures.picture(image), folder / "purified" / f"{name}.png")


def _write_rows(
    folder: epath.Path,
    config: Config,
    attack: str,
    stages: list[dict],
    count: int,
    seconds: float,
) -> None:
    """One row of this run; see the design of rows in docs."""
    row = {
        "dataset": config.dataset,
        "classifier": None,
        "training": None,
        "defence": "purify_adaptive" if config.purify.threshold else "purify",
        "attack": attack,
        "preset": None,
        "eps_attack": config.purify.eps_attack if attack != "none" else 0.0,
        "eps_defend": config.purify.eps,
        "threat": "grey-box",
        "source": None,
        "through": None,
        "n": count,
        "density_model": config.pixelcnn.weights,
    }
    for stage in stages:
        row[f"bits_per_dim_{stage['stage']}"] = float(np.mean(stage["bits_per_dim"]))
        if "p" in stage:
            row[f"p_value_{stage['stage']}"] = float(np.median(stage["p"]))
    row |= {"seconds": round(seconds, 3), "device": _device()}
    with checkpoint.whole_file(folder / "rows.jsonl") as temporary:
        temporary.write_text(json.dumps(row) + "\n")


MODES: dict[str, Callable[[Config, _Workdir], None]] = {
    "purify": purify,
    "score": score,
    "sample": sample,
    "train_pixelcnn": train_pixelcnn,
    "release": release,
}
