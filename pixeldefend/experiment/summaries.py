"""From per-image outcomes to rows and tables."""

import dataclasses
from typing import Any

import numpy as np
from scipy import optimize, stats

from pixeldefend import detection as detection_
from pixeldefend.density import likelihood
from pixeldefend.experiment import report
from pixeldefend.experiment.grid import CLEAN, EVADE
from pixeldefend.experiment.rows import accuracy, wilson

# A number and the ends of its interval, on a page and in a terminal.
MARKDOWN, TEXT = "{} ({} to {})", "{}\n{}-{}"


@dataclasses.dataclass(frozen=True)
class Stage:
    """Images at one point of the defence.

    Attributes:
      name: one of `pipeline.STAGES`.
      title: for a table.
      bits_per_dim: `[N]`.
      distance: L-infinity to the clean image, `[N]` levels.
      p_values: `[N]`, or None without reference scores.
      correct: `[N]` bool, whether the classifier is right; None without a classifier or
        labels.
    """

    name: str
    title: str
    bits_per_dim: np.ndarray
    distance: np.ndarray
    p_values: np.ndarray | None
    correct: np.ndarray | None


def stages(
    titles: dict[str, str],
    clean: np.ndarray,
    result: dict[str, np.ndarray],
    *,
    reference: np.ndarray | None,
    labels: np.ndarray | None,
) -> list[Stage]:
    """Gathers what happened to some images.

    Args:
      titles: of the stages to gather, by name, in order.
      clean: `[N, H, W, C]` uint8.
      result: of `pipeline.perturb_and_defend`.
      reference: sorted log-probabilities of the training images, or None.
      labels: the true ones `[N]`, or None.
    """
    return [
        _stage(name, title, clean, result, reference, labels)
        for name, title in titles.items()
    ]


def _stage(
    name: str,
    title: str,
    clean: np.ndarray,
    result: dict[str, np.ndarray],
    reference: np.ndarray | None,
    labels: np.ndarray | None,
) -> Stage:
    images = clean if name == "clean" else result[name]
    log_probs = result[f"{name}_log_prob"]
    guesses = result.get(f"{name}_prediction")
    correct: np.ndarray | None = None
    if labels is not None and guesses is not None:
        correct = guesses == labels
    ranked = reference is not None
    return Stage(
        name,
        title,
        bits_per_dim=np.asarray(likelihood.to_bits_per_dim(log_probs, clean.shape[1:])),
        distance=_distance(images, clean),
        p_values=np.asarray(detection_.p_values(log_probs, reference))
        if ranked
        else None,
        correct=correct,
    )


def _distance(images: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """L-infinity between images `[N, H, W, C]` uint8, `[N]` levels.

    In bytes all along: in integers that can be negative, millions of images would be
    eight times as large.
    """
    difference = np.maximum(images, clean)
    difference -= np.minimum(images, clean)
    return difference.max((1, 2, 3))


def summary(bits: np.ndarray) -> dict:
    """Mean bits/dim of `[N]` with the half-width of its 95 % interval, and N."""
    half = None  # one image tells nothing about the spread
    if len(bits) > 1:
        half = round(1.96 * float(np.std(bits, ddof=1)) / len(bits) ** 0.5, 4)
    mean = round(float(np.mean(bits)), 4)
    return {"n": len(bits), "bits_per_dim": mean, "half_width_95": half}


def interval(bits: np.ndarray) -> str:
    """`summary` for a person."""
    return _with_interval(summary(bits))


def _with_interval(found: dict) -> str:
    half = found["half_width_95"]
    return f"{found['bits_per_dim']:.3f} ± {'?' if half is None else f'{half:.3f}'}"


def stage_figures(stage: Stage) -> dict:
    """What a row tells of a stage: accuracy, bits/dim, distances and p-values.

    `bits_per_dim` is a mean, `half_width_95` half of its interval, `distance` a mean,
    `distance_max` the largest, `p_value` a median, `p_below_0.05` a share.
    """
    figures: dict[str, Any] = {"n": len(stage.bits_per_dim)}
    if stage.correct is not None:
        figures |= accuracy(stage.correct)
    figures |= summary(stage.bits_per_dim)
    figures["distance"] = round(float(np.mean(stage.distance)), 4)
    figures["distance_max"] = int(np.max(stage.distance))
    if stage.p_values is not None:
        figures["p_value"] = round(float(np.median(stage.p_values)), 4)
        figures["p_below_0.05"] = round(float(np.mean(stage.p_values < 0.05)), 4)
    return figures


def detection(
    log_probs: np.ndarray, reference: np.ndarray, least: dict[str, float]
) -> dict:
    """How well some images are told from training images by their likelihood.

    Args:
      log_probs: of the images, `[N]` nats.
      reference: of the training images, sorted, `[M]` nats; the negatives of the ROC.
      least: by name, the log-probability below which a detector rejects an image.

    Returns:
      For a row: `n`; `auc` of "unlikely is an attack", and `auc_two_sided` of "unlikely
      or too likely"; `p_value` (median), `p_below_0.05` and `p_above_0.95` (shares),
      `distance_from_uniform` of the p-values (Kolmogorov and Smirnov); and by name the
      share that is `rejected`.
    """
    log_probs, reference = np.asarray(log_probs), np.asarray(reference)
    ranks = np.asarray(detection_.p_values(log_probs, reference))
    sided = (
        detection_.two_sided_p_values(scores, reference)
        for scores in (reference, log_probs)
    )
    found = {
        "auc": detection_.auc(reference, log_probs),
        "auc_two_sided": detection_.auc(*sided),
        "p_value": np.median(ranks),
        "p_below_0.05": np.mean(ranks < 0.05),
        "p_above_0.95": np.mean(ranks > 0.95),
        "distance_from_uniform": detection_.distance_from_uniform(ranks),
    }
    rounded = {name: round(float(value), 4) for name, value in found.items()}
    rejected = {
        name: round(float(np.mean(log_probs < bar)), 4) for name, bar in least.items()
    }
    return {"n": len(log_probs)} | rounded | {"rejected": rejected}


def _attacked_with(rows: list[dict], eps: float) -> list[dict]:
    """The rows of clean images, and of the attacks of a table's eps."""
    return [r for r in rows if r["attack"] == CLEAN or r["table_eps"] == eps]


def detection_table(
    rows: list[dict], eps: float, form: str = MARKDOWN
) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table of detection, before and after purification.

    With 95 % intervals, but for the distance from uniform: of shares Wilson's, of areas
    `area_interval`.

    Args:
      rows: of `--mode=detect`, two for each attack: `defence` "none" and "purify".
      eps: levels, of the attacks to show.
      form: of a number and the ends of its interval: `MARKDOWN` or `TEXT`.
    """
    header = ["", "AUC", "purified", "two-sided", "purified"]
    header += ["p < 0.05", "purified", "p > 0.95", "purified"]
    header += ["KS distance", "purified"]
    found: dict[str, dict[str, dict]] = {}
    for row in _attacked_with(rows, eps):
        if row["attack"] != EVADE:  # which is not purified
            found.setdefault(row["attack"], {})[row["defence"]] = row
    lines = []
    for attack, pair in found.items():
        stages = [pair[stage] for stage in ("none", "purify")]
        line = [_title(attack)]
        for name in ("auc", "auc_two_sided"):
            line += [_area(row, name, form) for row in stages]
        for name in ("p_below_0.05", "p_above_0.95"):
            line += [_share(row[name], row["n"], form) for row in stages]
        line += [f"{row['distance_from_uniform']:.3f}" for row in stages]
        lines.append(line)
    return header, lines


def _area(row: dict, name: str, form: str) -> str:
    ends = area_interval(row[name], row["n"], row["reference_images"])
    return form.format(*(f"{value:.3f}" for value in (row[name], *ends)))


def _share(share: float, n: int, form: str) -> str:
    """A share of n images, percent, with its interval."""
    ends = wilson(round(share * n), n)
    return form.format(f"{share:.1%}", *(f"{100 * end:.1f}" for end in ends))


def area_interval(area: float, positives: int, negatives: int) -> tuple[float, float]:
    """95 % interval of an area under a ROC curve.

    Its ends are the areas that would have been missed by so many of their own standard
    errors, those of Hanley and McNeil (1982); so it is one at 0 and 1 too (Newcombe
    2006, method 4).

    Args:
      area: measured.
      positives: attacked images.
      negatives: innocent ones.
    """

    def error(true: float) -> float:
        spread = 1 + (positives - 1) * (1 - true) / (2 - true)
        spread += (negatives - 1) * true / (1 + true)
        return (true * (1 - true) * spread / (positives * negatives)) ** 0.5

    def beyond(true: float) -> float:
        return abs(area - true) - stats.norm.ppf(0.975) * error(true)

    near = 1e-9  # at 0 and 1 itself the error is none
    low = optimize.brentq(beyond, 0, area - near) if area > near else 0.0
    high = optimize.brentq(beyond, area + near, 1) if area < 1 - near else 1.0
    return float(low), float(high)


def _title(attack: str) -> str:
    return "clean" if attack == CLEAN else attack.upper()


def rejection_table(
    rows: list[dict], eps: float, form: str = MARKDOWN
) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table of detectors with thresholds; Wilson's intervals.

    Args:
      rows: of `--mode=detect`, with `rejected`, `passed` (misclassified and not
        rejected) and `accuracy`.
      eps: levels, of the attacks to show.
      form: as for `detection_table`.
    """
    shown = [r for r in _attacked_with(rows, eps) if r["defence"] == "none"]
    names = list(shown[0]["rejected"])
    header = ["", "n", "misclassified"]
    header += [f"{what} at {name}" for name in names for what in ("rejected", "passed")]
    lines = []
    for row in shown:
        wrong = _share(1 - row["accuracy"], row["n"], form)
        line = [_title(row["attack"]), str(row["n"]), wrong]
        for name in names:
            for what in ("rejected", "passed"):
                share = row[what].get(name)
                line.append("" if share is None else _share(share, row["n"], form))
        lines.append(line)
    return header, lines


def purification_table(found: dict[str, dict]) -> str:
    """What purifying did: a line for each title with its `stage_figures` (or row).

    Accuracy with its 95 % interval, the mean of bits/dim with its own, the median
    p-value, and the mean and the largest distance from the clean image, levels.
    """
    lines = list(found.values())
    columns = [("", list(found))]
    if "accuracy" in lines[0]:
        shares = [
            f"{f['accuracy']:.1%} ({100 * f['low']:.1f} to {100 * f['high']:.1f})"
            for f in lines
        ]
        columns.append(("accuracy (95 %)", shares))
    columns.append(("bits/dim", [_with_interval(f) for f in lines]))
    if "p_value" in lines[0]:
        columns += [
            ("p-value", [f"{f['p_value']:.4f}" for f in lines]),
            ("p < 0.05", [f"{f['p_below_0.05']:.0%}" for f in lines]),
        ]
    moved = [f"{f['distance']:.1f}, {f['distance_max']}" for f in lines]
    columns.append(("L-inf (mean, max)", moved))
    header = [title for title, _ in columns]
    return report.table(
        header, list(zip(*(cells for _, cells in columns), strict=True))
    )


def adaptive_accuracy(
    bits: np.ndarray, alone: np.ndarray, purified: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """Accuracy of adaptive purification, for each of some thresholds.

    Args:
      bits: of the images as given, bits/dim `[N]`.
      alone: whether the classifier is right about them as they are, `[N]` bool.
      purified: likewise about the purified ones.
      thresholds: bits/dim `[T]`, below which an image is left alone.

    Returns:
      Fractions `[T]`.
    """
    kept = bits[None] < thresholds[:, None]
    return np.where(kept, alone[None], purified[None]).mean(1)


def highest_safe(thresholds: np.ndarray, shares: list[np.ndarray]) -> float:
    """The threshold by PixelDefend's rule, read as it must be meant.

    Section 4.2 and Appendix B speak of the lowest probability at which accuracy against
    the strongest attack has not dropped, which is the highest bits/dim.

    Args:
      thresholds: bits/dim `[T]`, rising, the first of them purifying every image.
      shares: accuracy under the strongest attack, `[T]` for each strength of attack.

    Returns:
      The highest threshold up to which none of them falls below its first value.
    """
    dropped = np.any([share < share[0] for share in shares], 0)
    first = np.argmax(dropped) if dropped.any() else len(thresholds)
    return float(thresholds[first - 1])


def threshold_lines(curve: dict, chosen: float) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table: every tenth threshold, and the chosen one.

    Args:
      curve: as `--mode=calibrate` keeps it: `threshold [T]`, and by eps the
        accuracies `clean` and `strongest`, `[T]` each.
      chosen: one of the thresholds.
    """
    sizes = list(curve["strongest"])
    header = ["threshold, bits/dim", *(f"clean (for eps {eps})" for eps in sizes)]
    header += [f"strongest attack, eps {eps}" for eps in sizes]
    lines = []
    for i, threshold in enumerate(curve["threshold"]):
        if i % 10 and threshold != chosen:
            continue
        shares = [curve[kind][e][i] for kind in ("clean", "strongest") for e in sizes]
        mark = " (chosen)" if threshold == chosen else ""
        lines.append([f"{threshold:.2f}{mark}", *(f"{s:.1%}" for s in shares)])
    return header, lines


def accuracy_table(found: dict[str, dict]) -> str:
    """Accuracies by title, a line each."""
    lines = [
        [
            title,
            f"{figures['accuracy']:.2%}",
            f"{figures['low']:.2%} to {figures['high']:.2%}",
            str(figures["n"]),
        ]
        for title, figures in found.items()
    ]
    return report.table(["", "accuracy", "95 % (Wilson)", "images"], lines)
