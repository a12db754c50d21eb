"""Rows: one accuracy each, who attacked what behind which defence, and how it was made.

A row is a line of JSON. Tables, figures and pages are made from rows, never by hand.
"""

import dataclasses
import json
import types
from typing import Any, get_args

import numpy as np
from etils import epath
from scipy import stats

from pixeldefend.experiment import files, foreign

NO_DEFENCE = "none"
WORST = "worst_per_image"  # in place of an attack: all of a table, image by image
DETECTOR = "detector"  # by likelihood, as an attack sees it beside the classifier
_CLASSIFIER = "classifier"
# A mode's own figures, beside those that every row has.
FIGURES = {
    # of the classifier and the table
    "network": str | None,
    "input": str,
    "own": bool,
    "table_eps": float,
    "table_seconds": float,
    # of the attack
    "slope": str | None,
    "levels": str,
    "success": float,
    "fooled_by": dict,
    "doubts": dict,
    # of a random defence
    "draws": int,
    "accuracy_of_draws": float,
    "accuracy_of_votes": float,
    # of the images that reach the classifier
    "distance": float,
    "distance_max": int,
    "bits_per_dim": float,
    "half_width_95": float | None,
    "rmse": float,
    # of a defence
    "grades": str,
    # of detectors
    "p_value": float,
    "p_below_0.05": float,
    "p_above_0.95": float,
    "auc": float,
    "auc_two_sided": float,
    "distance_from_uniform": float,
    "rejected": float | dict,
    "right": float,
    "wrong": float,
    "passed": dict,
    "random_label_accuracy": dict,
    "calibration": str,
    "calibrated_on": int,
    "reference_images": int,
    "false_positive_rate": float,
    "thresholds": dict,
    # of the models of defences
    "puvae": str,
    "puvae_sha256": str,
    "magnet": str,
    "magnet_sha256": str,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One accuracy.

    Attributes:
      dataset: its name.
      classifier: the name of its weights; None for none.
      training: how it was trained.
      density_model: the name of its weights; None where none takes part.
      defence: all that stands in front of the classifier, joined by "+", or "none".
      attack: its name, "none" for clean images, or `WORST`.
      preset: of its arguments.
      eps_attack: in its norm; None for no bound.
      eps_defend: levels; 0 where nothing is purified.
      threshold: bits/dim below which the adaptive defence leaves an image alone.
      threat: see `threat`.
      source: the classifier that the attack looked at; None where it looked at none.
      through: what its gradient saw, from the outside inwards, joined by "+".
      classifier_sha256: the first digits of its weights' hash.
      density_model_sha256: likewise.
      images: likewise, of the clean images.
      n: how many images.
      correct: for how many the outcome is right.
      accuracy: their share.
      low: end of its 95 % interval.
      high: the other end.
      seconds: that the images took to make.
      device: that made them.
      config: a hash of all settings.
      version: of this package.
      figures: further ones, of `FIGURES`.
    """

    dataset: str
    classifier: str | None
    training: str | None
    density_model: str | None
    defence: str
    attack: str
    preset: str | None
    eps_attack: float | None
    eps_defend: int
    threshold: float
    threat: str | None
    source: str | None
    through: str | None
    classifier_sha256: str | None
    density_model_sha256: str | None
    images: str
    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    seconds: float
    device: str
    config: str
    version: str
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks types, and that the fields agree with each other.

        Raises:
          ValueError: they do not.
        """
        for name, kind in _TYPES.items():
            _check(name, getattr(self, name), kind)
        for name, value in self.figures.items():
            if name not in FIGURES:
                raise ValueError(f"a row has no field {name!r}")
            _check(name, value, FIGURES[name])
        if not 0 <= self.correct <= self.n or not self.n:
            raise ValueError(f"{self.correct} of {self.n} images cannot be right")
        if abs(self.accuracy - self.correct / self.n) > 1e-4:
            raise ValueError(
                f"accuracy {self.accuracy} is not {self.correct} of {self.n}"
            )
        if not self.low <= self.accuracy <= self.high:
            raise ValueError(f"accuracy {self.accuracy} is outside its interval")
        if self.threat not in self._threats():
            raise ValueError(
                f"{self.attack} through {self.through} on {self.source}, against "
                f"{self.classifier} behind {self.defence}: not {self.threat}"
            )

    def _threats(self) -> set[str | None]:
        """What the label may be; one, but for the worst of several attacks."""
        if self.attack == WORST:
            return {None, "grey-box", "white-box"}
        defence = self.defence
        if "auc" in self.figures:  # judged by likelihood, in front of everything
            defence = "+".join((DETECTOR, *_words(defence)))
        return {threat(self.classifier, self.source, defence, self.through)}

    @classmethod
    def read(cls, line: dict[str, Any]) -> "Row":
        """A row from its JSON.

        Raises:
          ValueError: a field is missing, unknown, or of another type or meaning.
        """
        own = {name: line[name] for name in _TYPES if name in line}
        missing = sorted(set(_TYPES) - set(own))
        if missing:
            raise ValueError(f"a row lacks the field {missing[0]!r}")
        rest = {name: value for name, value in line.items() if name not in own}
        return cls(**own, figures=rest)


_TYPES = {
    field.name: field.type
    for field in dataclasses.fields(Row)
    if field.name != "figures"
}


def _check(name: str, value: Any, kind: Any) -> None:
    """Raises ValueError for a value of another type."""
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    # JSON has 8 for 8.0, and bool is an int to Python.
    fits = isinstance(value, kinds) or (float in kinds and type(value) is int)
    if not fits or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{name} of a row must be {kind}: {value!r}")


def _words(defence: str) -> tuple[str, ...]:
    return () if defence == NO_DEFENCE else (defence,)


def threat(
    classifier: str | None, source: str | None, defence: str, through: str | None
) -> str | None:
    """Who attacks: the label on every row.

    Args:
      classifier: that is attacked.
      source: the classifier that the attack looked at; None where it looked at none, as
        noise does, which is no attacker.
      defence: all that stands in front of the classifier, as in a row.
      through: what the attack's gradient saw, as in a row. A median filter alone is not
        all of a squeezed classifier.

    Returns:
      "white-box" if the attack saw all that there is, "grey-box" (the paper's
      "white-box") if it saw the classifier and not all that is in front of it,
      "transfer" if it saw another classifier; None for noise and for nobody.
    """
    if source is None:
        return None
    if source != classifier:
        return "transfer"
    whole = "+".join((*_words(defence), _CLASSIFIER))
    return "white-box" if through == whole else "grey-box"


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, from so many of a count."""
    ends = stats.binomtest(right, count).proportion_ci(method="wilson")
    return float(ends.low), float(ends.high)


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


def write_rows(path: epath.PathLike, rows: list[dict]) -> None:
    """Writes rows, or lines of other results, as JSON lines, whole.

    Raises:
      ValueError: what has an accuracy under an attack is no `Row`.
    """
    for row in rows:
        if "accuracy" in row and "attack" in row:
            Row.read(row)
    with files.whole_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: epath.PathLike) -> list[dict]:
    """Reads what `write_rows` wrote.

    Raises:
      ValueError: it cannot be read; the message names it.
    """
    path = files.expanded(path)
    try:
        lines = foreign.read_bytes(path).splitlines()
        rows = [foreign.parse_json(line) for line in lines]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("not every line is a JSON object")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return rows
