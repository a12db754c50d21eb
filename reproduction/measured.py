"""What was measured, for pages: rows under `results/`, cards, and tables of both.

A table is rows and, by title of its columns, what stands in a cell: a template such as
"{seen:,} images, {hours:.1f} h", or a function of the row. A template names fields of
the row and what `_DERIVED` makes of them, also of rows within the row.
"""

import pathlib
import string
from collections.abc import Callable, Iterable
from typing import Any

from pixeldefend.experiment import grid, report, zoo
from pixeldefend.experiment.rows import read_rows

RESULTS = pathlib.Path(__file__).parent.parent / "results"

# By the field that names weights, the one with their hash.
_HASHES = {
    "classifier": "classifier_sha256",
    "density_model": "density_model_sha256",
    "puvae": "puvae_sha256",
    "magnet": "magnet_sha256",
    "weights": "sha256",
}
# Of a released classifier, by architecture and variant; the others are CNNs.
_NETWORKS = {
    ("resnet", "paper"): "ResNet-62",
    ("resnet", "code"): "ResNet-32",
    ("vgg", "paper"): "VGG",
    ("vgg", "code"): "VGG-16",
}


def read(name: str) -> list[dict]:
    """The rows of a file under `results/`."""
    return read_rows(RESULTS / f"{name}.jsonl")


def card(name: str) -> dict:
    """The card of a released model."""
    return zoo.load_card(zoo.find_released(name))


def rows(*names: str, **wanted: Any) -> list[dict]:
    """The rows of files that have these values.

    Raises:
      ValueError: they are of other weights than those released.
    """
    found = [row for name in names for row in read(name)]
    check_weights(found)
    return [row for row in found if wanted.items() <= row.items()]


def check_weights(rows: list[dict]) -> None:
    """Raises ValueError where rows are of other weights than those released."""
    for field, of in _HASHES.items():
        named = {(row[field], row[of]) for row in rows if of in row and row[field]}
        for name, sha in named:
            if sha != card(name)["sha256"][:8]:
                raise ValueError(f"{name} was released anew: measure again")


def table(rows: Iterable[dict], columns: dict[str, str | Callable]) -> str:
    """Markdown with a line for each row; see above."""
    lines = [
        [cell(row) if callable(cell) else told(cell, row) for cell in columns.values()]
        for row in rows
    ]
    return report.markdown_table(list(columns), lines)


def told(template: str, row: dict) -> str:
    """The template filled from a row and what is derived from it."""
    return _FORMATTER.vformat(template, (), _derivable(row))


def ratio(field: str, form: str) -> str:
    """A template: a ratio, and its lowest and highest in brackets."""
    ends = (f"{{{field}_range[{end}]:{form}}}" for end in (0, 1))
    return f"**{{{field}:{form}}}** ({' to '.join(ends)})"


def interval(row: dict, share: str = "accuracy", digits: int = 1) -> str:
    """A share with the ends of its 95 % interval, in percent."""
    middle, low, high = (
        f"{100 * row[name]:.{digits}f}" for name in (share, "low", "high")
    )
    return f"{middle} % ({low} to {high})"


class _Formatter(string.Formatter):
    """As pages have numbers: a space in thousands and before the percent sign."""

    def format_field(self, value: Any, spec: str) -> str:
        text = super().format_field(value, spec)
        return text.replace(",", " ").replace("%", " %") if spec else text


_FORMATTER = _Formatter()


class _Row(dict):
    """A row that also has what is derived from it."""

    def __missing__(self, name: str) -> Any:
        return _DERIVED[name](self)


def _derivable(value: Any) -> Any:
    """The same, every dictionary within it a `_Row`."""
    if isinstance(value, dict):
        return _Row({key: _derivable(inner) for key, inner in value.items()})
    return [*map(_derivable, value)] if isinstance(value, list) else value


def _runs(made: dict) -> list[dict]:
    """All the training runs that a card's weights come from; a row is its own."""
    last = made["training"] if "kind" in made else made
    return [*last.get("before", []), last]


def _pipeline(row: dict) -> str:
    """As in the config of a table: "cifar10/resnet + purify + mirror"."""
    names = row["defence"].split("+")
    defences = () if names == [grid.rows.NO_DEFENCE] else tuple(names)
    return str(grid.Pipeline(row["classifier"], defences))


def _network(card: dict) -> str:
    model = card["model"]
    name = _NETWORKS.get((model["architecture"], model["variant"]))
    divided = {1: "", 2: ", halved", 4: ", quartered"}[model["divisor"]]
    return (name or f"CNN {model['variant']}") + divided


def _training(card: dict) -> str:
    training = card["training"]
    kind = training["training"].removeprefix("adversarial_")
    if kind == training["training"]:
        return kind.replace("_", " ")
    return f"adversarial {kind.upper()}, delta {training['delta']:g}"


_DERIVED: dict[str, Callable[[dict], Any]] = {
    "interval": interval,
    "pipeline": _pipeline,
    "bits": lambda row: f"{row['bits_per_dim']:.3f} ± {row['half_width_95']:.3f}",
    "fraction": lambda row: row["eps_attack"] / 255,
    "rate": lambda row: row["n"] / row["seconds"],
    "rmse_of_one": lambda row: row["rmse"] / 255,
    # Of training.
    "hours": lambda made: sum(run["seconds"] for run in _runs(made)) / 3600,
    "seen": lambda made: sum(run["images"] for run in _runs(made)),
    "epochs": lambda card: card["seen"] / 55_000,  # of MNIST and Fashion-MNIST
    "size": lambda made: _runs(made)[-1]["parameters"],
    "millions": lambda made: made["size"] / 1e6,
    "test": lambda card: card["figures"]["test"],
    "network": _network,
    "training_kind": _training,
}
