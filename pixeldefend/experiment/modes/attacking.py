"""The mode `attack`: adversarial images of a classifier, and what they did to it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pixeldefend import attacks
from pixeldefend.defences import pipeline
from pixeldefend.experiment import (
    data,
    files,
    grid,
    measure,
    parallel,
    report,
    summaries,
    zoo,
)
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.rows import accuracy, write_rows
from pixeldefend.experiment.store import Store, Unfinished
from pixeldefend.experiment.tools import Tools, source_of
from pixeldefend.experiment.workdir import Workdir, remove_results, user_errors
from pixeldefend.models import classifiers


def attack(config: inputs.Config, workdir: Workdir) -> None:
    """Makes adversarial images for a classifier and measures its accuracy on them."""
    settings = config.attack
    weights = config.classifier.weights
    with user_errors():
        model, variables, card = loaded = inputs.classifier(config)
        inputs.attack(settings.name, settings.preset, settings.eps, "attack.eps")
        parallel.check_batch(settings.batch, "attack.batch")
        inputs.check_save_seconds(settings.save_seconds)
        given = inputs.chosen(config, "attack", card["image_shape"])
        if not given.own:
            inputs.check_dataset(config, weights, card)
        inputs.check_labels(given, weights, model.classes)
        batch = parallel.batch_for(settings.batch, len(given.images))
        outcomes = Outcomes(model, settings.name, settings.preset, config.seed, batch)
        logits_fn = classifiers.logits_fn(model)
        attacks.check_logits(logits_fn, variables, given.images[:2])
    folder = workdir.open()
    inputs.tell_source(config, given)
    images = f"adversarial/{given.source}.npz"
    remove_results(folder, [images, f"correct/{given.source}.npz", "rows.jsonl"])
    store = Store(folder)
    unfinished = inputs.unfinished(
        store,
        (workdir.hash, source_of((settings.name,))),
        given,
        variables,
        settings.save_seconds,
    )
    found = outcomes(variables, given, settings.eps, unfinished)
    kept: dict[str, Any] = {n: rows for n, rows in found.items() if n != "correct"}
    if given.labels is not None:
        kept["labels"] = given.labels.astype(np.uint8)
    files.write_arrays(
        folder / images, clean=given.images, names=np.array(given.names), **kept
    )
    _tell(config, loaded, given, found, outcomes.seconds, folder, workdir.hash)
    store.tidy()  # only now is everything elsewhere
    print(f"results in {folder}")


class Outcomes:
    """An attack on a classifier, mapped over images; one program for every eps."""

    def __init__(
        self,
        model: classifiers.Classifier,
        name: str,
        preset: str,
        seed: int,
        batch: int,
    ):
        """Prepares the map.

        Args:
          model: the description.
          name: of the attack.
          preset: its; "" for the usual one.
          seed: of its random draws.
          batch: images at a time, per device.

        Raises:
          ValueError: unknown attack or preset; the devices do not divide `batch`.
        """
        move = attacks.named(name, preset)
        logits_fn = classifiers.logits_fn(model)
        perturb = pipeline.perturbing(move, logits_fn)
        self._name, self._key = name, jax.random.key(seed)
        self.seconds = 0.0

        def outcome(
            variables: dict, images: jax.Array, labels: jax.Array, indices: jax.Array
        ) -> dict:
            made, info = perturb(variables, images, labels, indices)
            found = {"clean_prediction": images, "prediction": made}
            guesses = {
                name: attacks.predicted(logits_fn, variables["classifier"], shown)
                for name, shown in found.items()
            }
            return {"images": made, **guesses, **info.__dict__}

        self._mapped = parallel.BatchMap(outcome, batch)

    def __call__(
        self,
        variables: dict,
        given: data.Input,
        eps: float,
        unfinished: Unfinished | None = None,
    ) -> dict[str, np.ndarray]:
        """Attacks images.

        Args:
          variables: of the classifier.
          given: the images; without labels, their predicted classes are left.
          eps: levels.
          unfinished: what an earlier run left; added to as results come.

        Returns:
          By name: `images [N, H, W, C]`, the predicted classes `clean_prediction` and
          `prediction` `[N]`, the fields of `attacks.Info`, and with labels whether the
          attacked image is still classified rightly, `correct`.
        """
        run = report.run_batches if unfinished is None else unfinished.run
        found, self.seconds = run(
            self._mapped,
            f"{self._name}, eps {eps:g}",
            {
                "classifier": variables,
                "eps": jnp.float32(eps),
                "key": self._key,
            },
            given.images,
            inputs.labels_or_unknown(given),
            np.arange(len(given.images), dtype=np.uint32),
        )
        if given.labels is not None:
            found = found | {"correct": found["prediction"] == given.labels}
        return found


def _tell(
    config: inputs.Config,
    loaded: zoo.Loaded,
    given: data.Input,
    found: dict[str, np.ndarray],
    seconds: float,
    folder: epath.Path,
    of: str,
) -> None:
    """Prints what an attack did and, where there are labels, writes rows."""
    settings, count = config.attack, len(given.images)
    name = settings.name
    success = found["success"]
    print(
        f"{name.upper()} on {config.classifier.weights}: {count} images "
        f"({given.source}), {count / seconds:.1f} images/s"
    )
    norm = attacks.ATTACKS[name].norm
    unit = "values" if norm == "l0" else "levels"
    line = f"{success.mean():.1%} are misclassified"
    # Where there was something to do: not for images that were wrong to begin with.
    won = success & (found["distance"] > 0)
    if won.any():
        middle = np.median(found["distance"][won])
        line += f", at a median distance of {middle:.2f} {unit} ({norm})"
    print(f"{line}; {np.mean(found['queries']):.1f} queries per image")
    if given.labels is None:
        print("no labels, so no accuracy: the predicted classes were the labels")
        return
    correct = {
        "clean": found["clean_prediction"] == given.labels,
        name: found["correct"],
    }
    files.write_arrays(folder / "correct" / f"{given.source}.npz", **correct)
    figures = {key: accuracy(right) for key, right in correct.items()}
    provenance = measure.provenance(of, seconds)
    rows = [
        identity(config, loaded, None if key == "clean" else name)
        | measure.images(given)
        | cell
        | provenance
        for key, cell in figures.items()
    ]
    write_rows(folder / "rows.jsonl", rows)
    sees = "white-box" if attacks.ATTACKS[name].looks else "ignores the model"
    title = f"{name.upper()}, eps {settings.eps:g} ({sees})"
    print(
        summaries.accuracy_table({"clean": figures["clean"], title: figures[name]}),
    )


def identity(config: inputs.Config, loaded: zoo.Loaded, attack: str | None) -> dict:
    """The identity of a row; nothing stands between attacker and classifier."""
    weights = config.classifier.weights
    who = grid.Adversary(grid.CLEAN)
    if attack is not None:
        source = weights if attacks.ATTACKS[attack].looks else None
        preset = attacks.usual(attack, config.attack.preset)
        who = grid.Adversary(attack, preset, config.attack.eps, source)
    settings = {"dataset": loaded.card["dataset"]}
    tools = Tools({weights: loaded}, {}, settings, config.seed, config.attack.batch)
    return measure.identity(tools, grid.Pipeline(weights), who)
