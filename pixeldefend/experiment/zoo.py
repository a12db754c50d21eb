"""Released models and their cards: finding, loading and saving them."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pixeldefend.density import pixelcnn
from pixeldefend.experiment import files, foreign, processes, tensors
from pixeldefend.experiment.checkpoints import (
    UnreadableError,
    fingerprint,
    load_weights,
    save_weights,
    unreadable,
)
from pixeldefend.models import classifiers, magnet, puvae

RELEASED = epath.resource_path("pixeldefend") / "released"


class _Kind(NamedTuple):
    """A kind of model: from arguments to description, back, and to parameters."""

    make: Callable[..., Any]
    describe: Callable[[Any], dict]
    init: Callable[..., Any]


_KINDS = {
    "pixelcnn": _Kind(pixelcnn.PixelCNN, dataclasses.asdict, pixelcnn.init),
    "classifier": _Kind(classifiers.make, classifiers.describe, classifiers.init),
    "puvae": _Kind(puvae.PuVAE, puvae.describe, puvae.init),
    "magnet": _Kind(magnet.make, magnet.describe, magnet.init),
}
KINDS = tuple(_KINDS)
_WIDEST = 1024  # image
_TOLD = ("card.json", "README.md")  # what is written of a model, not the model
# What modes read of a card, where it is there, and of which types it has to be.
_CARD = {
    "dataset": (str,),
    "model": (dict,),
    "sha256": (str,),
    "files": (dict,),
    "figures": (dict,),
    "training": (dict,),
    "training.training": (str,),
    "training.delta": (int, float),
    "training.before": (list,),
    "adaptive": (dict,),
    "adaptive.threshold": (int, float),
    "validation": (dict,),
    "validation.detector": (str,),
    "validation.classifier": (str,),
    "validation.draws": (list,),
}


class Loaded(NamedTuple):
    """A model with its parameters (for a classifier all its variables) and card."""

    model: Any
    params: Any
    card: dict


def abstract_params(kind: str, model: Any, shape: tuple[int, int, int]) -> Any:
    """Shapes and types of a model's parameters for images `shape` (H, W, C)."""
    init = functools.partial(_KINDS[kind].init, model)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    conditional = kind == "pixelcnn" and model.classes
    options = {"labels": labels} if conditional else {}
    return jax.eval_shape(init, jax.random.key(0), images, **options)


def save_released(
    folder: epath.PathLike, model: Any, params: Any, card: dict, reference: Any = None
) -> None:
    """Writes a model in the form that `load_released` reads; the card comes last.

    Args:
      folder: created if missing.
      model: a description of the card's kind.
      params: its parameters; for a classifier all its variables.
      card: `kind`, `dataset`, `image_shape` and whatever is to be told; the model's
        constructor arguments are added as `model`.
      reference: log-probabilities `[N]` of the training split, nats, or None.
    """
    if not processes.is_first():
        return
    folder = files.expanded(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # First, so that a kill never leaves an old card beside new weights.
    for name in ("card.json", "reference.npy", "validation.npy"):
        (folder / name).unlink(missing_ok=True)
    save_weights(folder / "weights", params)
    if reference is not None:
        with files.whole_file(folder / "reference.npy") as temporary:
            with temporary.open("wb") as file:
                np.save(file, np.sort(np.asarray(reference, np.float32)))
    arguments = _KINDS[card["kind"]].describe(model)
    known = {"model": arguments, "sha256": fingerprint(params)}
    known["files"] = file_hashes(folder)
    files.write_json(folder / "card.json", card | known)


def file_hashes(folder: epath.Path) -> dict[str, str]:
    """SHA-256 of every file of a model but its cards, by path within `folder`."""
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            inner = file_hashes(path).items()
            found |= {f"{path.name}/{name}": digest for name, digest in inner}
        elif path.name in _TOLD or path.name.startswith("."):
            continue
        elif path.is_file():  # whatever else there is, no model of ours has
            found[path.name] = foreign.sha256(path)
    return found


def check_files(folder: epath.Path, card: dict, part: str) -> None:
    """Compares files with the card; one written before cards had hashes passes.

    A restore from damaged files fails too, but in a dozen ways, some of them in threads
    that print what they think of it, and a flipped bit need not be noticed at all.

    Args:
      folder: of the model.
      card: its.
      part: a folder of it, such as "weights", or the name of one file.

    Raises:
      FileNotFoundError: `part` is missing.
      ValueError: a file of it is missing, or not the one of the card.
    """
    if not (folder / part).exists():
        raise FileNotFoundError(f"no {part} in {folder}")
    for name, digest in card.get("files", {}).items():
        if name != part and not name.startswith(f"{part}/"):
            continue
        path = folder / name
        if not path.exists() or path.is_dir():
            raise ValueError(f"{name} is missing")
        if foreign.sha256(path) != digest:
            raise ValueError(f"{name} is not the file that the card describes")


def find_released(name: str) -> epath.Path:
    """The folder of a released model, or of one's own.

    Args:
      name: "fashion_mnist/pixelcnn", or a folder with a `card.json`, or a training
        run's workdir, whose `model` folder that is.

    Raises:
      FileNotFoundError: neither; the message lists the released models.
    """
    own = files.expanded(name)
    for folder in (RELEASED / name, own, own / "model"):
        if (folder / "card.json").exists():
            return folder
    known = sorted(
        f"{card.parent.parent.name}/{card.parent.name}"
        for card in RELEASED.glob("*/*/card.json")
    )
    raise FileNotFoundError(
        f"no model {name!r}: neither a released one ({', '.join(known) or 'none'}) nor "
        "a folder with a card.json (a training run writes one when it ends)"
    )


def check_writable(folder: epath.Path) -> None:
    """Raises ValueError where nothing can be kept on the card in `folder`."""
    if not os.access(folder / "card.json", os.W_OK):
        raise ValueError(f"{folder}/card.json cannot be written; run without keep")


def keep_on_card(folder: epath.Path, **told: Any) -> None:
    """Writes what was found on the card in `folder`, beside what it tells."""
    files.write_json(folder / "card.json", load_card(folder) | told)


def load_card(folder: epath.Path) -> dict:
    """Reads and checks the card in `folder`.

    Raises:
      ValueError: not a card, or of a kind of model that is not known.
    """
    path = folder / "card.json"
    try:
        card = foreign.read_json(path)
        _check_card(card)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the card of a model: {error}") from error
    return card


def _check_card(card: dict) -> None:
    """Raises ValueError, KeyError or TypeError where what is read is missing or odd."""
    kind, shape = card["kind"], card["image_shape"]
    if kind not in _KINDS:
        raise ValueError(f"unknown kind {kind!r}")
    small = [type(n) is int and 0 < n <= _WIDEST for n in shape]
    if len(small) != 3 or not all(small):
        raise ValueError(f"image_shape is not (H, W, C), each to {_WIDEST}")
    card["model"], card["dataset"]
    for place, wanted in _CARD.items():
        *above, name = place.split(".")
        inner = card.get(above[0], {}) if above else card
        if name in inner and not isinstance(inner[name], wanted):
            words = " or ".join(kind.__name__ for kind in wanted)
            raise ValueError(f"{place} must be {words}: {inner[name]!r}"[:200])
    if not all(isinstance(digest, str) for digest in card.get("files", {}).values()):
        raise ValueError("files must be hashes by name")
    threshold = card.get("adaptive", {}).get("threshold", 0)
    if not 0 <= threshold < float("inf"):
        raise ValueError(f"adaptive.threshold must be finite, from 0: {threshold}")


def make(card: dict) -> Any:
    """The description of a card's model.

    Raises:
      TypeError, ValueError: arguments that it does not take.
    """
    arguments = dict(card["model"])
    if card["kind"] == "pixelcnn" and "levels" in arguments:  # as older cards say
        arguments["resolutions"] = arguments.pop("levels")
    kind = _KINDS[card["kind"]]
    model = kind.make(**arguments)
    # Flax takes a name and a parent as well, which belong to no card.
    if unknown := sorted(set(arguments) - set(kind.describe(model))):
        raise ValueError(f"a model has no {unknown[0]}")
    return model


def load_released(name: str) -> Loaded:
    """Loads a released model, or one in the same form.

    Args:
      name: "fashion_mnist/pixelcnn", or a folder; see `find_released`.

    Returns:
      The model's description, its parameters (for a classifier its variables, batch
      statistics included), and the card.

    Raises:
      FileNotFoundError: no such model.
      ValueError: a card or weights that are damaged or do not fit each other.
    """
    folder = find_released(name)
    card = load_card(folder)
    try:
        model = make(card)
        like = abstract_params(card["kind"], model, tuple(card["image_shape"]))
    except Exception as error:  # flax and JAX raise many kinds for odd sizes
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder / 'card.json'} does not fit: {reason}") from error
    return Loaded(model, _load_params(folder, card, like), card)


def _load_params(folder: epath.Path, card: dict, like: Any) -> Any:
    """The parameters in `folder`, from orbax's files or else from safetensors.

    Raises:
      FileNotFoundError: neither is there.
      ValueError: they are damaged or do not fit; see `load_released`.
    """
    ours = (folder / "weights").exists() or not (folder / tensors.NAME).exists()
    path = folder / ("weights" if ours else tensors.NAME)
    if not path.exists() and RELEASED in folder.parents:
        raise FileNotFoundError(
            f"the weights of {folder.relative_to(RELEASED)} come only with a checkout, "
            "not with the installed package; give the path of their folder there, "
            f".../pixeldefend/released/{folder.relative_to(RELEASED)}, in place of the "
            "name"
        )
    # Before its hash, since it says which of its arrays does not fit.
    params = None if ours else tensors.load(path, like)
    try:
        check_files(folder, card, path.name)
    except ValueError as error:
        raise UnreadableError(
            f"cannot read the checkpoint {path}: {error}; it is damaged "
            "or of another model: install it or make it again"
        ) from error
    params = load_weights(path, like) if ours else params
    if card.get("sha256") != fingerprint(params):
        raise unreadable(path, "they are not those of the card")
    return params


def save_validation(folder: epath.PathLike, scores: np.ndarray, told: dict) -> None:
    """Keeps the scores of validation images beside a model, for thresholds.

    Args:
      folder: of the model.
      scores: how suspicious they are, `[D, N]`; see `reject.thresholds`.
      told: for the card, under `validation`.
    """
    folder = files.expanded(folder)
    with files.whole_file(folder / "validation.npy") as temporary:
        with temporary.open("wb") as file:
            np.save(file, np.asarray(scores, np.float32))
    card = load_card(folder) | {"validation": told}
    if "files" in card:
        card["files"] = file_hashes(folder)
    files.write_json(folder / "card.json", card)


def load_validation(name: str) -> np.ndarray | None:
    """Scores `[D, N]` of validation images by a detector; None if not kept.

    Raises:
      FileNotFoundError: no such model.
      ValueError: the file is damaged.
    """

    def check(scores: np.ndarray) -> None:
        if not np.all(np.isfinite(scores)):
            raise ValueError("they are not finite numbers")

    return _load_scores(find_released(name), "validation.npy", 2, check)


def load_reference(name: str) -> np.ndarray | None:
    """Sorted log-probabilities `[N]` of the training split, nats; None if not kept.

    Raises:
      FileNotFoundError: no such model.
      ValueError: the file is damaged, or this is no density model.
    """

    def check(scores: np.ndarray) -> None:
        if not np.all(np.diff(scores) >= 0):
            raise ValueError("they are not sorted")

    folder = find_released(name)
    kind = load_card(folder)["kind"]
    if kind != "pixelcnn":
        raise ValueError(
            f"{name} is a {kind}; only a density model (pixelcnn) scores training "
            "images"
        )
    return _load_scores(folder, "reference.npy", 1, check)


def _load_scores(
    folder: epath.Path, name: str, axes: int, check: Callable[[np.ndarray], None]
) -> np.ndarray | None:
    """Floating numbers of so many axes, None without a file; `check` may refuse them.

    Raises:
      ValueError: the file is damaged.
    """

    def check_header(headers: Mapping[str, foreign.Header]) -> None:
        dtype, shape = headers["scores"]
        floating = np.issubdtype(dtype, np.floating)
        if len(shape) != axes or not floating or not all(shape):
            raise ValueError(f"{dtype} {shape}")

    path, card = folder / name, load_card(folder)
    if not path.exists():
        if name in card.get("files", {}):
            raise ValueError(f"{folder}: {name} is missing, but the card lists it")
        return None
    try:
        check_files(folder, card, name)
        scores = foreign.read_arrays(path, ["scores"], check_header)["scores"]
        check(scores)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} holds no scores: {error}") from error
    return scores
