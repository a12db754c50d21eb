"""From per-image outcomes to rows and tables."""

import dataclasses
import json
import math

import numpy as np
from etils import epath

from pixeldefend import checkpoint, density, detection, report


@dataclasses.dataclass(frozen=True)
class Stage:
    """Images at one point of the defence.

    Attributes:
      name: "clean", "perturbed" or "purified".
      title: for a table.
      bits_per_dim: `[N]`.
      distance: L-infinity to the clean image, `[N]` levels.
      p_values: `[N]`, or None without reference scores.
    """

    name: str
    title: str
    bits_per_dim: np.ndarray
    distance: np.ndarray
    p_values: np.ndarray | None


def stages(
    titles: dict[str, str],
    clean: np.ndarray,
    result: dict[str, np.ndarray],
    reference: np.ndarray | None,
) -> list[Stage]:
    """Gathers what happened to some images.

    Args:
      titles: of the stages to gather, by name, in order.
      clean: `[N, H, W, C]` uint8.
      result: for each stage but "clean" the images by its name, and for all of them
        `<name>_log_prob [N]` nats.
      reference: sorted log-probabilities of the training images, or None.
    """
    found = []
    for name, title in titles.items():
        images = clean if name == "clean" else result[name]
        log_probs = result[f"{name}_log_prob"]
        ranks = None
        if reference is not None:
            ranks = np.asarray(detection.p_values(log_probs, reference))
        found.append(
            Stage(
                name,
                title,
                np.asarray(density.to_bits_per_dim(log_probs, clean.shape[1:])),
                np.abs(images.astype(int) - clean).max((1, 2, 3)),
                ranks,
            )
        )
    return found


def summary(bits: np.ndarray) -> dict:
    """Mean bits/dim of `[N]` with the half-width of its 95 % interval, and N."""
    half = None  # one image tells nothing about the spread
    if len(bits) > 1:
        half = round(1.96 * float(np.std(bits, ddof=1)) / len(bits) ** 0.5, 4)
    mean = round(float(np.mean(bits)), 4)
    return {"n": len(bits), "bits_per_dim": mean, "half_width_95": half}


def interval(bits: np.ndarray) -> str:
    """`summary` for a person."""
    found = summary(bits)
    half = found["half_width_95"]
    return f"{found['bits_per_dim']:.3f} ± {'?' if half is None else f'{half:.3f}'}"


def purification_table(found: list[Stage]) -> str:
    """What purifying did, a line for each stage."""
    header = ["", "bits/dim (mean, 95 %)", "p-value (median)", "p < 0.05"]
    header.append("L-inf to clean (mean, max)")
    rows = []
    for stage in found:
        ranks = ["no reference"] * 2
        if stage.p_values is not None:
            median, rare = np.median(stage.p_values), np.mean(stage.p_values < 0.05)
            ranks = [f"{median:.4f}", f"{rare:.0%}"]
        distance = f"{stage.distance.mean():.1f}, {stage.distance.max()} levels"
        rows.append([stage.title, interval(stage.bits_per_dim), *ranks, distance])
    return report.table(header, rows)


def purification_row(identity: dict, found: list[Stage]) -> dict:
    """A row: what was done, and the means (medians of p-values) at each stage."""
    # No classifier takes part yet.
    nothing = dict.fromkeys(("classifier", "training", "preset", "source", "through"))
    row = identity | nothing | {"n": len(found[0].bits_per_dim)}
    for stage in found:
        row[f"bits_per_dim_{stage.name}"] = float(np.mean(stage.bits_per_dim))
        row[f"distance_{stage.name}"] = float(np.mean(stage.distance))
        if stage.p_values is not None:
            row[f"p_value_{stage.name}"] = float(np.median(stage.p_values))
    return row


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The 95 % interval of Wilson for a share of `correct` among `count`."""
    share, z = correct / count, 1.959964
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def accuracy(correct: np.ndarray) -> dict:
    """Outcomes `[N]` as n, correct, accuracy (a fraction) and its 95 % interval."""
    count, right = len(correct), int(np.sum(correct))
    low, high = (round(bound, 4) for bound in wilson(right, count))
    fraction = round(right / count, 4)
    return {
        "n": count,
        "correct": right,
        "accuracy": fraction,
        "low": low,
        "high": high,
    }


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


def write_rows(path: epath.PathLike, rows: list[dict]) -> None:
    """Writes rows as JSON lines, whole."""
    with checkpoint.whole_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
