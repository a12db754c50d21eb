"""The mode `calibrate` of purify_adaptive: from which bits/dim on to purify."""

import numpy as np

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
from pixeldefend.experiment.tools import Tools
from pixeldefend.experiment.workbench import Workbench
from pixeldefend.experiment.workdir import Workdir, command_line, user_errors

_STEP = 0.05  # bits/dim between the thresholds that are tried


def choose(config: inputs.Config, workdir: Workdir) -> None:
    """Chooses the threshold of purify_adaptive on validation images."""
    settings, classifier = config.calibrate, config.classifier.weights
    with user_errors():
        layout, tools, given = prepared(config, "purify_adaptive")
        place = zoo.find_released(config.pixelcnn.weights)
        if settings.keep:
            zoo.check_writable(place)
    folder = workdir.open()
    tell_test_images(given)
    bench = Workbench(folder, given, tools)
    measure.make(bench, layout)
    curve = _curve(layout, bench)
    chosen = summaries.highest_safe(
        np.array(curve["threshold"]), [np.array(c) for c in curve["strongest"].values()]
    )
    found = {
        "threshold": chosen,
        "rule": "the highest up to which no strongest-attack accuracy falls",
        "classifier": classifier,
        "attacks": list(config.evaluate.attacks),
        "eps_defend": config.purify.eps,
        "input": given.source,
        "n": len(given.images),
        "device": parallel.devices(),
        "command": command_line(),
        "curve": curve,
    }
    files.write_json(folder / "threshold.json", found)
    bench.tidy()
    if settings.keep:
        zoo.keep_on_card(place, adaptive=found)
    print(report.table(*summaries.threshold_lines(curve, chosen)))
    if chosen == curve["threshold"][-1]:
        print("accuracy fell at no threshold: the one chosen purifies nothing")
    print(
        f"threshold {chosen:.2f} bits/dim, chosen on {found['n']} images "
        f"({given.source}) in front of {classifier} (grey-box attacks)"
    )
    print(f"results in {folder / 'threshold.json'}")


def prepared(
    config: inputs.Config, defence: str
) -> tuple[grid.Grid, Tools, data.Input]:
    """What a defence is calibrated with: the classifier by itself and purified, under
    the attacks of `evaluate`, the models for that, and images.

    Args:
      config: whose settings are taken.
      defence: which, alone, `calibrate.defences` must name.

    Raises:
      ValueError, TypeError, OSError: as for `evaluating.prepared`.
    """
    settings, classifier = config.calibrate, config.classifier.weights
    if len(settings.defences) > 1:
        raise ValueError(f"calibrate.defences: {defence} must be the only one")
    if " + " in classifier:
        raise ValueError(f"classifier.weights takes no defences: {classifier}")
    layout = grid.read(
        (classifier, f"{classifier} + purify"),
        config.evaluate.attacks,
        config.evaluate.eps_attack,
    )
    if not layout.columns:
        raise ValueError("evaluate.attacks is empty: calibrate needs an attack")
    for column in layout.columns:
        if column.gradient:
            raise ValueError(
                f"evaluate.attacks: {column} sees a purifier; calibrate attacks the "
                "classifier alone: leave through= out"
            )
    tools, given = evaluating.prepared(
        config, layout, 0.0, settings.input, settings.images
    )
    return layout, tools, given


def tell_test_images(given: data.Input) -> None:
    """Says so where images are not for choosing."""
    if given.source in ("test", "sample"):
        print("these are test images: choose on them only to try the code out")


def _curve(layout: grid.Grid, bench: Workbench) -> dict:
    """Accuracy against the threshold: clean, and under the strongest attack."""
    found: dict[tuple, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for eps in layout.eps:
        bare, behind = (grid.pipeline(text, eps) for text in layout.rows)
        clean = grid.adversary_for(bare, grid.Column(grid.CLEAN), eps)
        for adversary in (clean, *layout.attacks_on(bare, eps)):
            found[eps, adversary] = (
                bench.bits_per_dim(bench.log_probs(adversary)),
                bench.correct(bare, adversary),
                bench.correct(behind, adversary),
            )
    highest = max(bits.max() for bits, _, _ in found.values())
    thresholds = np.arange(0, highest + 2 * _STEP, _STEP).round(2)
    shares = {
        key: summaries.adaptive_accuracy(*arrays, thresholds)
        for key, arrays in found.items()
    }
    curve: dict = {"threshold": thresholds.tolist(), "clean": {}, "strongest": {}}
    for eps in layout.eps:
        for kind in ("clean", "strongest"):
            of_kind = [
                share
                for (own, adversary), share in shares.items()
                if own == eps and (adversary.attack == grid.CLEAN) == (kind == "clean")
            ]
            curve[kind][f"{eps:g}"] = np.min(of_kind, 0).round(4).tolist()
    return curve
