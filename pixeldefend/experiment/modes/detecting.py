"""The mode `detect`: attacks told from training images by their likelihood."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pixeldefend import detection
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
from pixeldefend.experiment.modes import evaluating, inputs
from pixeldefend.experiment.rows import DETECTOR, accuracy, write_rows
from pixeldefend.experiment.tools import Tools
from pixeldefend.experiment.workbench import Workbench
from pixeldefend.experiment.workdir import Workdir, user_errors

_DETECTOR = "reject_p_value"


class _Set(NamedTuple):
    """Images before and after purification, with what was found out about them."""

    adversary: grid.Adversary
    log_probs: dict[str, np.ndarray]
    correct: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Detector:
    """What rejects images.

    Attributes:
      reference: log-probabilities of training images, sorted, nats.
      least: by name ("5%"), the log-probability below which it rejects.
      source: of the images on which it was calibrated.
      n: of these.
      log_probs: of these.
    """

    reference: np.ndarray
    least: dict[str, float]
    source: str
    log_probs: np.ndarray

    @property
    def n(self) -> int:
        """Images of the calibration."""
        return len(self.log_probs)


def detect(config: inputs.Config, workdir: Workdir) -> None:
    """Detects attacked images by their likelihood, before and after purification."""
    settings = config.detect
    with user_errors():
        layout = _layout(config)
        tools, given = evaluating.prepared(
            config,
            layout,
            0.0,
            inputs.source(config, config.evaluate.input),
            config.evaluate.images,
        )
        reference = zoo.load_reference(config.pixelcnn.weights)
        if reference is None:
            raise ValueError(
                f"{config.pixelcnn.weights} has no scores of training images: make a "
                "released model of it with --mode=release"
            )
        calibration = _calibration(config, given)
    folder = workdir.open()
    inputs.tell_source(config, given)
    detector = _calibrated(settings, tools, calibration, reference)
    bar = detector.least[_rate(settings.evading_rate)]
    tools = dataclasses.replace(
        tools, thresholds={_DETECTOR: np.asarray([-bar], np.float32)}
    )
    bench = Workbench(folder, given, tools)
    measure.make(bench, layout)
    rows: list[dict] = []
    arrays: dict[str, Any] = {"reference": reference}
    arrays["calibration"] = detector.log_probs
    for eps in layout.eps:
        sets = list(_sets(layout, bench, eps))
        for one in sets:
            its = _rows(config, bench, detector, one, eps)
            if one.adversary.attack != grid.CLEAN or eps == layout.eps[0]:
                rows += its
            arrays |= _arrays(settings, bench, one, eps)
        if settings.evading_images:
            rows.append(_evading(config, bench, detector, eps))
    whole = {"table_seconds": round(bench.seconds, 1), "config": workdir.hash}
    rows = [row | whole for row in rows]
    arrays["eps_defend"] = np.int32(config.purify.eps)
    arrays["examples/labels"] = bench.labels[: settings.examples]
    arrays["examples/clean"] = given.images[: settings.examples]
    files.write_arrays(folder / "detection.npz", **arrays)
    write_rows(folder / "rows.jsonl", rows)
    bench.tidy()
    for eps in layout.eps:
        _tell(rows, eps, detector)
    print(f"results in {folder}")


def _layout(config: inputs.Config) -> grid.Grid:
    classifier = config.detect.classifier
    if " + " in classifier:
        raise ValueError(f"detect.classifier takes no defences: {classifier}")
    if "{" in classifier or classifier != classifier.strip():
        raise ValueError(f"detect.classifier must be one network: {classifier!r}")
    layout = grid.read(
        (classifier, f"{classifier} + purify"),
        config.evaluate.attacks,
        config.evaluate.eps_attack,
    )
    names = [column.attack for column in layout.columns]
    for column in layout.columns:
        if names.count(column.attack) > 1:
            raise ValueError(f"evaluate.attacks has {column.attack} twice")
        if column.gradient:
            raise ValueError(f"attack {column}: detect takes no through=")
    for rate in config.detect.false_positive_rates:
        if not 0 < rate < 1:
            raise ValueError(
                f"detect.false_positive_rates must be between 0 and 1: {rate}"
            )
    if config.detect.evading_rate not in config.detect.false_positive_rates:
        raise ValueError(
            "detect.evading_rate must be one of the false_positive_rates: "
            f"{config.detect.evading_rate}"
        )
    for field in ("evading_images", "examples", "calibration_images"):
        if config.detect[field] < 0:
            raise ValueError(f"detect.{field} must not be negative")
    return layout


def _calibration(config: inputs.Config, given: data.Input) -> data.Input:
    """The images on which thresholds are chosen."""
    source = inputs.source(
        config, config.detect.calibration, "detect.calibration", "validation"
    )
    count = config.detect.calibration_images
    return inputs.read(config, source, count, given.images.shape[1:])


def _rate(rate: float) -> str:
    """A false-positive rate as rows name it."""
    return f"{rate:.4g}"


def _calibrated(
    settings: Any, tools: Tools, calibration: data.Input, reference: np.ndarray
) -> _Detector:
    model, params, _ = tools.models["density_model"]
    batch = parallel.batch_for(tools.batch, len(calibration.images))
    log_probs, _ = report.run_batches(
        inputs.score_map(model, batch),
        f"scoring {calibration.source} images",
        params,
        calibration.images,
    )
    least = {
        _rate(rate): float(detection.threshold_for(log_probs, false_positive_rate=rate))
        for rate in settings.false_positive_rates
    }
    return _Detector(reference, least, calibration.source, log_probs)


def _sets(layout: grid.Grid, bench: Workbench, eps: float) -> Iterator[_Set]:
    """Clean images and those of every attack."""
    bare, behind = (grid.pipeline(text, eps) for text in layout.rows)
    clean = grid.adversary_for(bare, grid.Column(grid.CLEAN), eps)
    for adversary in (clean, *layout.attacks_on(bare, eps)):
        shown = bench.shown(adversary, behind.defences)
        purified = shown.passed.log_prob
        assert purified is not None  # `purify` tells it
        yield _Set(
            adversary,
            {"none": bench.log_probs(adversary), "purify": purified},
            {
                "none": bench.correct(bare, adversary),
                "purify": bench.correct(behind, adversary, shown.passed.images),
            },
        )


def _rows(
    config: inputs.Config, bench: Workbench, detector: _Detector, one: _Set, eps: float
) -> Iterator[dict]:
    """Two rows: before purification and after."""
    classes = bench.tools.classifiers[config.detect.classifier].model.classes
    for defence, log_probs in one.log_probs.items():
        right = one.correct[defence]
        defences = () if defence == "none" else (defence,)
        row = grid.Pipeline(config.detect.classifier, defences)
        # Of the classifier with a random label for what is rejected (Appendix A).
        drawn = np.random.default_rng(config.seed).integers(classes, size=len(right))
        lucky = drawn == bench.labels[: len(right)]
        guessed = {
            name: np.mean(np.where(log_probs < bar, lucky, right))
            for name, bar in detector.least.items()
        }
        yield (
            measure.identity(bench.tools, row, one.adversary)
            | {"threat": grid.threat(_behind_detector(row), one.adversary)}
            | {"table_eps": eps}
            | measure.images(bench.given, len(right))
            | accuracy(right)
            | summaries.detection(log_probs, detector.reference, detector.least)
            | _passed(detector, log_probs, right)
            | {
                "random_label_accuracy": {
                    name: round(float(share), 4) for name, share in guessed.items()
                }
            }
            | measure.provenance("", bench.shown(one.adversary, defences).seconds)
        )


def _behind_detector(row: grid.Pipeline) -> grid.Pipeline:
    """The row as who attacks it must see it: the detector stands in front."""
    return dataclasses.replace(row, defences=(DETECTOR, *row.defences))


def _passed(detector: _Detector, log_probs: np.ndarray, right: np.ndarray) -> dict:
    """What is misclassified and not rejected; how the detector was made."""
    passed = {
        name: round(float(np.mean(~right & (log_probs >= bar))), 4)
        for name, bar in detector.least.items()
    }
    return {
        "passed": passed,
        "calibration": detector.source,
        "calibrated_on": detector.n,
        "reference_images": len(detector.reference),
    }


def _evading(
    config: inputs.Config, bench: Workbench, detector: _Detector, eps: float
) -> dict:
    """A row for images that are made to get past the detector (white-box)."""
    source = config.detect.classifier
    name = _rate(config.detect.evading_rate)
    adversary = grid.Adversary(
        grid.EVADE,
        "selective",
        eps,
        source=source,
        through=(_DETECTOR,),
        images=config.detect.evading_images,
    )
    bar = detector.least[name]
    found = bench.attacked(adversary)
    log_probs = -bench.suspicion(adversary, _DETECTOR)[:, 0]
    right = bench.correct(grid.Pipeline(source), adversary, found["images"])
    adversary = dataclasses.replace(adversary, through=(DETECTOR,))  # as rows name it
    only = dataclasses.replace(detector, least={name: bar})
    return (
        measure.identity(bench.tools, grid.Pipeline(source), adversary)
        | {"threat": grid.threat(_behind_detector(grid.Pipeline(source)), adversary)}
        | {"table_eps": eps}
        | {"images": measure.images(bench.given, len(right))["images"]}
        | accuracy(right)
        | summaries.detection(log_probs, detector.reference, only.least)
        | _passed(only, log_probs, right)
        | measure.provenance("", float(found["seconds"]))
    )


def _arrays(
    settings: Any, bench: Workbench, one: _Set, eps: float
) -> dict[str, np.ndarray]:
    """What figures are drawn from, by "EPS/ATTACK/STAGE/WHAT"."""
    found = {}
    count = settings.examples
    for defence, log_probs in one.log_probs.items():
        defences = () if defence == "none" else (defence,)
        key = f"{eps:g}/{one.adversary.attack}/{defence}"
        found[f"{key}/log_probs"] = log_probs
        found[f"{key}/correct"] = one.correct[defence]
        if count:
            images = bench.shown(one.adversary, defences).passed.images[:count]
            found[f"{key}/images"] = images
            found[f"{key}/probabilities"] = bench.probabilities(
                settings.classifier, images
            )
    return found


def _tell(rows: list[dict], eps: float, detector: _Detector) -> None:
    print(
        f"\nattacks at eps {eps:g}; training images are the negatives; below each "
        "number its 95 % interval"
    )
    form = summaries.TEXT
    print(report.table(*summaries.detection_table(rows, eps, form), together=2))
    print(
        f"\nthresholds for false-positive rates, from {detector.n} "
        f"{detector.source} images; passed: misclassified and not rejected"
    )
    print(report.table(*summaries.rejection_table(rows, eps, form), together=2))
    if rows[0]["input"] == detector.source:
        print("thresholds were chosen on the images they are tested on (no data_dir)")
    print(
        f"{grid.EVADE} sees the detector (white-box); the others see the "
        "classifier alone (grey-box)"
    )
