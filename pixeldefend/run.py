"""The modes of `main.py`: each composes the library from a config.

Only this file reads configs. Every mode checks all that the user gave before it
touches a file; what is wrong by then is a `UserError`.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

import pixeldefend
from pixeldefend import (
    checkpoint,
    data,
    defence,
    density,
    density_training,
    detection,
    evaluate,
    figures,
    parallel,
    pixelcnn,
    purification,
    report,
    train,
)
from pixeldefend.workdir import (
    UserError,
    Workdir,
    command_line,
    config_hash,
    user_errors,
)

Config = ml_collections.ConfigDict


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
    if config.seed < 0:
        raise UserError(f"seed must not be negative: {config.seed}")
    if config.compilation_cache:
        folder = epath.Path(config.compilation_cache).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    sections = _sections(mode, config)
    short = config_hash(sections)
    with user_errors():
        folder = workdir or f"runs/{config.dataset}/{mode}-{short}"
        place = Workdir(folder, sections)
    MODES[mode](config, place)


def _sections(mode: str, config: Config) -> dict:
    """The part of a config that a mode's results depend on."""
    whole = json.loads(config.to_json_best_effort())
    kept = {"mode": mode, "dataset": config.dataset, "seed": config.seed}
    if mode == "train_pixelcnn":
        kept["pixelcnn"] = {
            k: v for k, v in whole["pixelcnn"].items() if k != "weights"
        }
    else:
        kept["pixelcnn"] = {"weights": whole["pixelcnn"]["weights"]}
        kept[mode] = whole[mode]
    return kept


def describe_modes() -> str:
    """One line for every mode."""
    wide = max(map(len, MODES))
    return "\n".join(
        f"{name.ljust(wide)}  {function.__doc__.splitlines()[0]}"
        for name, function in MODES.items()
    )


# ----------------------------------------------------------------------------------
# What several modes need


def _input(config: Config, mode: str, shape: Sequence[int]) -> data.Input:
    """What `purify` and `score` work on."""
    settings = config[mode]
    count = settings.count
    if count == -1:
        count = 128 if settings.input in ("sample", *data.SPLITS) else 0
    chosen = data.read_input(
        config.dataset, settings.input, count, tuple(shape), config.data_dir
    )
    if settings.input == "sample" and not config.data_dir:
        print(
            "using the bundled first 256 test images; for the whole set: "
            f"launch/prepare_data.sh DATA_DIR {config.dataset}, then "
            "--config.data_dir=DATA_DIR"
        )
    return chosen


def _arrays(config: Config, split: str) -> dict[str, np.ndarray]:
    images, labels = data.load(config.dataset, split, config.data_dir)
    return {"images": images, "labels": labels}


def _density_model(config: Config) -> tuple[pixelcnn.PixelCNN, dict, dict]:
    model, params, card = checkpoint.load_released(config.pixelcnn.weights)
    if not isinstance(model, pixelcnn.PixelCNN):
        raise ValueError(f"{config.pixelcnn.weights} is no PixelCNN++")
    if model.classes:
        raise ValueError("class-conditional weights can only be sampled from here")
    return model, params, card


# ----------------------------------------------------------------------------------
# Modes


def train_pixelcnn(config: Config, workdir: Workdir) -> None:
    """Trains a PixelCNN++ on the training split; continues where it was stopped."""
    settings = config.pixelcnn.train
    with user_errors():
        model = pixelcnn.PixelCNN(**config.pixelcnn.model)
        options = set(train.Plan.__dataclass_fields__) & set(settings)
        plan = train.Plan(seed=config.seed, **{k: settings[k] for k in options})
        parallel.check_batch(plan.batch, "train.batch")
        data.check_name(config.dataset)
        if settings.on_sample:
            images, labels = data.sample(config.dataset)
            training = validation = {"images": images, "labels": labels}
        else:
            training, validation = (
                _arrays(config, split) for split in ("train", "validation")
            )
        data.Batches(len(training["images"]), plan.batch, plan.seed)
        for name in ("init_images", "eval_images"):
            if settings[name] < 1:
                raise ValueError(f"{name} must be at least 1: {settings[name]}")
        if model.classes and training["labels"].max() >= model.classes:
            raise ValueError(
                f"classes is {model.classes}, but there are labels up to "
                f"{training['labels'].max()}"
            )
        shape = training["images"].shape[1:]
        abstract = checkpoint.abstract_params("pixelcnn", model, shape)
        params = None
        if settings.start:
            weights = checkpoint.find_released(settings.start) / "weights"
            params = checkpoint.load_weights(weights, abstract)
    folder = workdir.open()
    if params is None:
        params = density_training.initial_params(
            model, config.seed, training, settings.init_images
        )
    step = train.make_step(
        density_training.loss_fn(model), train.adam(plan), plan.polyak
    )
    held_out = {name: rows[: settings.eval_images] for name, rows in validation.items()}
    scores = density_training.evaluation(model, held_out, plan.batch)
    progress = report.Progress("training")

    def show(line: dict) -> None:
        bits = line.get("validation_bits_per_dim")
        found = "" if bits is None else f", {bits:.3f} on validation images"
        rate = line["images_per_second"]
        progress.update(
            line["progress"], f"{line['loss']:.3f} bits/dim{found}, {rate:.1f} images/s"
        )

    first = train.start(params, {}, train.adam(plan))
    try:
        state, line = train.fit(first, step, training, plan, folder, scores, show)
    except (train.NonFiniteLossError, checkpoint.UnreadableError) as error:
        raise UserError(str(error)) from error
    progress.close()
    card = {
        "kind": "pixelcnn",
        "dataset": config.dataset,
        "image_shape": list(shape),
        "training": {
            "command": command_line(),
            "config": json.loads(settings.to_json_best_effort()),
            "device": parallel.devices(),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.average)),
            **line,
        },
    }
    checkpoint.save_released(folder / "model", model, state.average, card)
    print(f"model written to {folder / 'model'}")


def sample(config: Config, workdir: Workdir) -> None:
    """Draws images from the density model and writes them as a grid and arrays."""
    settings = config.sample
    with user_errors():
        model, params, card = checkpoint.load_released(config.pixelcnn.weights)
        if settings.count < 1:
            raise ValueError(f"sample.count must be at least 1: {settings.count}")
        parallel.check_batch(settings.batch, "sample.batch")
        if settings.label >= model.classes and settings.label >= 0:
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
    images, seconds = report.run_batches(
        mapped, "sampling", params, indices, labels.astype(np.int32)
    )
    columns = int(np.ceil(len(images) ** 0.5))
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    figures.save(figures.grid(rows), folder / "samples.png")
    drawn = {"labels": labels.astype(np.int32)} if model.classes else {}
    checkpoint.write_arrays(folder / "samples.npz", images=images, **drawn)
    print(
        f"{len(images)} samples at {len(images) / seconds:.1f} images/s after "
        f"{mapped.compile_seconds:.1f} s of compilation: {folder / 'samples.png'}"
    )


def score(config: Config, workdir: Workdir) -> None:
    """Scores images: bits/dim, and p-values among the training images."""
    settings = config.score
    with user_errors():
        model, params, card = _density_model(config)
        reference = checkpoint.load_reference(config.pixelcnn.weights)
        given = _input(config, "score", card["image_shape"])
        parallel.check_batch(settings.batch, "score.batch")
        mapped = _score_map(model, settings.batch)
    folder = workdir.open()
    log_probs, seconds = report.run_batches(mapped, "scoring", params, given.images)
    bits = density.to_bits_per_dim(log_probs, given.images.shape[1:])
    arrays = {"log_probs": log_probs, "bits_per_dim": bits}
    arrays["names"] = np.array(given.names)
    if reference is not None:
        arrays["p_values"] = np.asarray(detection.p_values(log_probs, reference))
    checkpoint.write_arrays(folder / "scores.npz", **arrays)
    checkpoint.write_json(
        folder / "figures.json",
        {"input": given.source, **evaluate.summary(bits)},
    )
    print(
        f"{config.pixelcnn.weights} on {len(bits)} images ({given.source}): "
        f"{evaluate.interval(bits)} bits/dim (mean, 95 %), "
        f"{len(bits) / seconds:.0f} images/s"
    )


def _score_map(model: pixelcnn.PixelCNN, batch: int) -> parallel.BatchMap:
    return parallel.BatchMap(
        lambda params, images: density.log_prob(model, params, images), batch
    )


def release(config: Config, workdir: Workdir) -> None:
    """Makes a released model of a training run: test figures, references, card."""
    with user_errors():
        if not config.release.to:
            raise ValueError("release.to is missing: the folder for the released model")
        if epath.Path(config.release.to).is_file():
            raise ValueError(f"release.to {config.release.to} is a file; name a folder")
        model, params, card = _density_model(config)
        if card["dataset"] != config.dataset:
            raise ValueError(
                f"{config.pixelcnn.weights} was trained on {card['dataset']}; use the "
                f"config of that data set, not of {config.dataset}"
            )
        parallel.check_batch(config.release.batch, "release.batch")
        mapped = _score_map(model, config.release.batch)
        bundled = data.sample(config.dataset)[0]
        splits = {"train": bundled, "test": bundled, "sample": bundled}
        if not config.release.on_sample:
            splits["train"] = _arrays(config, "train")["images"]
            splits["test"] = _arrays(config, "test")["images"]
    del workdir  # all that is written goes to release.to
    scores = {
        name: report.run_batches(mapped, f"scoring {name}", params, images)[0]
        for name, images in splits.items()
    }
    bits = {
        split: density.to_bits_per_dim(values, tuple(card["image_shape"]))
        for split, values in scores.items()
    }
    folder = epath.Path(config.release.to)
    card["note"] = config.release.note
    card["name"] = f"{folder.parent.name}/{folder.name}"
    command = (
        f"python main.py --config=configs/{config.dataset}.py --mode=score "
        f"--config.pixelcnn.weights={card['name']}"
    )
    given = {
        "train": "train --config.data_dir=DATA_DIR",
        "test": "test --config.data_dir=DATA_DIR",
        "sample": "sample",
    }
    card["figures"] = {
        split: evaluate.summary(bits[split])
        | {"command": f"{command} --config.score.input={given[split]}"}
        for split in scores
    }
    first = [round(float(value), 5) for value in bits["sample"][:4]]
    card["figures"]["sample"]["first_bits_per_dim"] = first
    del card["model"]
    checkpoint.save_released(
        config.release.to, model, params, card, reference=scores["train"]
    )
    print(json.dumps(card["figures"], indent=1))


def purify(config: Config, workdir: Workdir) -> None:
    """Perturbs images if asked, purifies them, and shows what that did."""
    settings = config.purify
    with user_errors():
        model, params, card = _density_model(config)
        reference = checkpoint.load_reference(config.pixelcnn.weights)
        if settings.attack not in ("auto", *defence.ATTACKS):
            raise ValueError(
                f"unknown attack {settings.attack!r}: one of auto, "
                f"{', '.join(defence.ATTACKS)}"
            )
        if not 0 <= settings.eps_attack <= 255:
            raise ValueError(
                f"eps_attack must be between 0 and 255 levels: {settings.eps_attack}"
            )
        if not 0 <= settings.threshold < float("inf"):
            raise ValueError(
                f"threshold must be finite, in bits/dim from 0: {settings.threshold}"
            )
        parallel.check_batch(settings.batch, "purify.batch")
        purification.check_eps(settings.eps)
        given = _input(config, "purify", card["image_shape"])
        attack = settings.attack
        if attack == "auto":
            attack = "none" if given.own else "rand"
        mapped = parallel.BatchMap(
            defence.perturb_and_purify(model, attack, config.seed), settings.batch
        )
    folder = workdir.open()
    variables = {
        "params": params,
        "eps": jnp.int32(settings.eps),
        "threshold": jnp.float32(settings.threshold),
        "eps_attack": jnp.float32(settings.eps_attack),
    }
    clean = given.images
    indices = np.arange(len(clean), dtype=np.uint32)
    result, seconds = report.run_batches(mapped, "purifying", variables, clean, indices)
    _write_purified(folder, given, result)
    titles = {"clean": "as given" if given.own else "clean"}
    if attack != "none":
        titles["perturbed"] = f"{attack.upper()}, eps {settings.eps_attack:g}"
    titles["purified"] = f"purified, eps {settings.eps}"
    if settings.threshold:
        titles["purified"] += f" from {settings.threshold:g} bits/dim"
    stages = evaluate.stages(titles, clean, result, reference)
    identity = {
        "dataset": config.dataset,
        "density_model": config.pixelcnn.weights,
        "defence": "purify_adaptive" if settings.threshold else "purify",
        "attack": attack,
        "eps_attack": settings.eps_attack if attack != "none" else 0.0,
        "eps_defend": settings.eps,
        "threshold": settings.threshold,
        "input": given.source,
        "own": given.own,
        # The noise looks at nothing.
        "threat": None if attack == "none" else "grey-box",
    }
    provenance = {
        "seconds": round(seconds, 3),
        "device": parallel.devices(),
        "config": config_hash(_sections("purify", config)),
        "version": pixeldefend.__version__,
    }
    row = evaluate.purification_row(identity, stages) | provenance
    evaluate.write_rows(folder / "rows.jsonl", [row])
    print(evaluate.purification_table(stages))
    print(
        f"{len(clean)} images, {len(clean) / seconds:.1f} images/s (three scorings and "
        f"the purification) on {parallel.devices()}, compiled in "
        f"{mapped.compile_seconds:.1f} s"
    )
    print(f"results in {folder}")


def _write_purified(folder: epath.Path, given: data.Input, result: dict) -> None:
    """Arrays, a before/after picture and, for the user's own images, a PNG each."""
    for old in (folder / "purified").glob("*"):  # of an earlier, equal run
        old.unlink()
    perturbed, purified = result["perturbed"], result["purified"]
    labels = {} if given.labels is None else {"labels": given.labels.astype(np.uint8)}
    checkpoint.write_arrays(
        folder / "purified" / f"{given.source}.npz",
        clean=given.images,
        images=perturbed,
        purified=purified,
        **labels,
    )
    rows = {"clean": given.images, "perturbed": perturbed, "purified": purified}
    if np.array_equal(given.images, perturbed):
        del rows["perturbed"]
    shown = [images[:12] for images in rows.values()]
    figures.save(figures.grid(shown, list(rows)), folder / "figures/before_after.png")
    if given.own:
        for name, image in zip(given.names, purified, strict=True):
            figures.save(figures.picture(image), folder / "purified" / f"{name}.png")


MODES: dict[str, Callable[[Config, Workdir], None]] = {
    "purify": purify,
    "score": score,
    "sample": sample,
    "train_pixelcnn": train_pixelcnn,
    "release": release,
}
