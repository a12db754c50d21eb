"""Released models in the layout of Hugging Face's hub, for `zoo.load_released` too.

A folder with `model.safetensors`, our card, the scores beside it and a README.md.
"""

import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from pixeldefend.experiment import files, foreign, processes, report, tensors, zoo

LICENSE = "apache-2.0"
_SCORES = ("reference.npy", "validation.npy")
_DATASETS = {  # as the hub calls them
    "cifar10": "uoft-cs/cifar10",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "mnist": "ylecun/mnist",
}
_WHAT = {
    "pixelcnn": "A PixelCNN++, which detects and purifies adversarial images "
    "(PixelDefend, Song et al. 2018). Attacks through the purifier defeat it (Athalye "
    "et al. 2018).",
    "classifier": "A classifier.",
    "puvae": "A PuVAE, a conditional autoencoder that purifies images.",
    "magnet": "MagNet's autoencoders, which detect and reform adversarial images.",
}
_README = """\
---
library_name: pixeldefend
license: {license}
datasets:
- {dataset}
tags:
- jax
- adversarial-robustness
- {kind}
---

# {name}

{what} It takes images {shape} of {images}, levels 0 to 255.{note}

```python
import pixeldefend as pd

model, params, card = pd.load_released("FOLDER")  # this one
```

{figures}

`card.json` says how it was trained, how to measure these figures again, and the SHA-256
of every file.
"""


def export_weights(
    weights: str, to: epath.PathLike, *, license: str = LICENSE
) -> epath.Path:
    """Writes a released model in the layout of the Hugging Face Hub.

    `load_released` reads it back, as it does every released model.

    Args:
      weights: a released model of any kind by name, or a folder with one.
      to: the folder; made if need be, and written anew where it is one of these.
      license: of the weights, by its identifier on the Hub.

    Returns:
      The folder.

    Raises:
      FileNotFoundError: no such model.
      ValueError: it is damaged, the folder holds other things, or the package
        safetensors is not installed.
    """
    folder = check(to, "to", license)
    write(folder, weights, zoo.load_released(weights), license)
    return folder


def check(to: epath.PathLike, field: str, license: str) -> epath.Path:
    """The folder that a model goes to, after all checks; `field` is named in messages.

    Raises:
      ValueError: as for `export_weights`.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise ValueError(
            "license must be an identifier of the Hugging Face Hub, such as "
            f"apache-2.0: {license!r}"
        )
    folder = files.output_folder(to, field)
    there = {path.name for path in files.entries(folder) if path.name[0] != "."}
    known = {"card.json", *_SCORES, tensors.NAME}
    if tensors.NAME in there:  # else it is somebody's own
        known.add("README.md")
    if other := sorted(there - known):
        raise ValueError(f"{field} {folder} holds {other[0]}; name another folder")
    tensors.check_package(tensors.NAME)
    return folder


def write(
    folder: epath.Path, weights: str, found: zoo.Loaded, license: str = LICENSE
) -> None:
    """Writes a model to a folder from `check`; the card comes last."""
    if not processes.is_first():
        return
    source, card, scores = zoo.find_released(weights), found.card, {}
    for name in _SCORES:
        if (source / name).exists():
            zoo.check_files(source, card, name)
            scores[name] = foreign.read_bytes(source / name)
    folder.mkdir(parents=True, exist_ok=True)
    # First, so that a kill never leaves an old card beside new weights.
    for name in ("card.json", *_SCORES):
        (folder / name).unlink(missing_ok=True)
    for name, content in scores.items():
        with files.whole_file(folder / name) as temporary:
            temporary.write_bytes(content)
    tensors.save(folder / tensors.NAME, found.params)
    with files.whole_file(folder / "README.md") as temporary:
        temporary.write_text(_readme(card, license))
    files.write_json(folder / "card.json", card | {"files": zoo.file_hashes(folder)})


def _readme(card: dict, license: str) -> str:
    """The hub's card of a model, from ours."""
    kind, dataset = card["kind"], str(card["dataset"])
    note = " ".join(str(card.get("note", "")).split())
    return _README.format(
        license=license,
        dataset=_DATASETS.get(dataset, dataset),
        kind=kind,
        name=" ".join(str(card.get("name", f"{dataset}/{kind}")).split()),
        what=_WHAT[kind],
        shape=" x ".join(map(str, card["image_shape"])),
        images=dataset,
        note=note and f" {note}",
        figures=_table(dict(_rows(card.get("figures", {})))),
    )


def _rows(figures: dict, of: str = "") -> Iterator[tuple[str, dict]]:
    """Numbers by what they are of, such as "test" or "test, fgsm8"."""
    numbers = {name: n for name, n in figures.items() if isinstance(n, int | float)}
    if numbers:
        yield of, numbers
    for name, inner in figures.items():
        if isinstance(inner, dict):
            yield from _rows(inner, f"{of}, {name}" if of else name)


def _table(rows: dict[str, dict[str, Any]]) -> str:
    if not rows:
        return "It has not been measured (`--mode=release` does that)."
    columns = list(dict.fromkeys(name for numbers in rows.values() for name in numbers))
    lines = [
        [of, *(str(numbers.get(name, "")) for name in columns)]
        for of, numbers in rows.items()
    ]
    return report.markdown_table(["images", *columns], lines)
