"""Splits of data sets as `uint8` arrays, and the user's own images."""

import io
from typing import NamedTuple

import numpy as np
from etils import epath

from pixeldefend.experiment import files, own_data
from pixeldefend.experiment.own_images import describe, read_images, read_labelled

HEIGHT_WIDTH_CHANNELS = {
    "cifar10": (32, 32, 3),
    "fashion_mnist": (28, 28, 1),
    "mnist": (28, 28, 1),
}
CLASSES = 10  # of each of these
CLASS_NAMES = {
    "cifar10": tuple(
        "airplane automobile bird cat deer dog frog horse ship truck".split()
    ),
    "fashion_mnist": tuple(
        "t-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()
    ),
    "mnist": tuple("0123456789"),
}
SPLITS = ("train", "validation", "test")
VALIDATION = 5000  # the last records of the training split
_ROWS = {"train": slice(-VALIDATION), "validation": slice(-VALIDATION, None)}
SAMPLES = epath.resource_path("pixeldefend") / "samples"


def load(
    name: str,
    split: str,
    data_dir: epath.PathLike | None = None,
    *,
    size: int = 0,
    held_out: float = 0.1,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a whole split.

    Of a known set in record order: `data_dir` holds either what TFDS prepared as
    array_record (see `launch/prepare_data.sh`) or plain arrays, which need no TFDS:
    `name/train.npz`, `name/test.npz` and perhaps `name/validation.npz`, each with
    `images` uint8 `[N, H, W, C]` and integer `labels` `[N]`. Arrays come first where
    both are there. Without validation images of its own a set gives the last 5 000 of
    its training images for that, and `train` goes without them.

    Args:
      name: "cifar10", "fashion_mnist" or "mnist"; or a data set of the user's own, the
        path of a file or folder as `own_data.load` reads it, or the name of a folder
        in `data_dir`.
      split: "train", "validation" or "test".
      data_dir: a local path or an object store's. None is an error that says so.
      size: of own images, see `own_data.load`.
      held_out: of own images, likewise.

    Returns:
      Images `[N, H, W, C]` uint8 and labels `[N]` int32, or None for an own set
      without.

    Raises:
      ValueError: unknown name or split, no data_dir, or files that hold something else.
      TypeError: arrays of another type, such as floats.
      FileNotFoundError: no prepared data set in `data_dir`, or not this split of it.
    """
    own = find(name, data_dir)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    if own is not None:
        return own_data.load(own, split, size=size, held_out=held_out)
    if not data_dir:
        raise ValueError(
            f"the {split} split needs --config.data_dir; prepare one with "
            f"launch/prepare_data.sh DATA_DIR {name}, or use the bundled sample"
        )
    root = files.expanded(data_dir)
    hint = f"prepare it with: launch/prepare_data.sh {root} {name}"
    if not root.exists():
        raise FileNotFoundError(f"data_dir {root} does not exist; {hint}")
    if any((root / name / f"{known}.npz").exists() for known in SPLITS):
        return _load_arrays(root / name, split, HEIGHT_WIDTH_CHANNELS[name])
    prepared = sorted(root.glob(f"{name}/*/dataset_info.json"))
    if not prepared:
        raise FileNotFoundError(
            f"no {name} data set in data_dir {root}; {hint}, or put train.npz and "
            f"test.npz into {root / name}"
        )
    return _load_prepared(prepared[-1].parent, name, split, hint)


def _load_arrays(
    folder: epath.Path, split: str, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """A split of a set that is kept as `.npz` files; see `load`."""
    cut = split != "test" and not (folder / "validation.npz").exists()
    path = folder / ("train.npz" if cut else f"{split}.npz")
    if not path.exists():
        there = ", ".join(sorted(file.name for file in folder.glob("*.npz")))
        raise FileNotFoundError(f"no {path.name} in {folder}, only {there}")
    images, labels = read_labelled(path, shape)
    if labels is None:
        raise ValueError(f"{path} has no labels")
    if labels.max() >= CLASSES:
        raise ValueError(
            f"{path} has labels up to {labels.max()}, which are not those of the "
            f"{CLASSES} classes"
        )
    if not cut:
        return images, labels
    if len(images) <= VALIDATION:
        raise ValueError(
            f"{path} holds {len(images)} images, from which the last {VALIDATION} "
            "cannot be taken for validation: put a validation.npz beside it"
        )
    rows = _ROWS.get(split, slice(None))
    return images[rows], labels[rows]


def _load_prepared(
    folder: epath.Path, name: str, split: str, hint: str
) -> tuple[np.ndarray, np.ndarray]:
    """A split of a known set that TFDS prepared as array_record; see `load`."""
    try:
        whole = "test" if split == "test" else "train"
        rows = _ROWS.get(split, slice(None))
        found, labels = own_data.read_prepared(folder, whole, rows)
    except ValueError as error:
        again = "" if "pip install" in str(error) else f": remove it, then {hint}"
        raise ValueError(f"{error}{again}") from error
    images = np.stack(found)
    if images.shape[1:] != HEIGHT_WIDTH_CHANNELS[name]:
        raise ValueError(
            f"{folder} holds {describe(images.shape[1:])} {images.dtype} images, "
            f"which are not {name}'s; {hint}"
        )
    return images, labels


def find(name: str, data_dir: epath.PathLike | None) -> epath.Path | None:
    """The file or folder of a data set of the user's own; None for a known set.

    Raises:
      ValueError: neither.
    """
    if name in HEIGHT_WIDTH_CHANNELS:
        return None
    if (found := own_data.find(name, data_dir)) is None:
        known = ", ".join(HEIGHT_WIDTH_CHANNELS)
        raise ValueError(
            f"unknown data set {name!r}: neither one of {known}, nor a file or folder "
            "of yours, nor a folder in data_dir"
        )
    return found


def name_of(name: str, data_dir: epath.PathLike | None) -> str:
    """What a data set is called on cards and in rows."""
    own = find(name, data_dir)
    return name if own is None else own_data.name_of(own)


class Facts(NamedTuple):
    """What a data set is like.

    Attributes:
      shape: (H, W, C) of its images.
      classes: K; 0 where it has no labels.
    """

    shape: tuple[int, int, int]
    classes: int


def facts(
    name: str, data_dir: epath.PathLike | None, *, size: int = 0, held_out: float = 0.1
) -> Facts:
    """Of a data set, of which no more is read than that takes; see `load`."""
    del held_out
    own = find(name, data_dir)
    if own is None:
        return Facts(HEIGHT_WIDTH_CHANNELS[name], CLASSES)
    return Facts(*own_data.facts(own, size=size))


def sample(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The bundled first 256 test images `[256, H, W, C]` uint8 and labels int32."""
    if name not in HEIGHT_WIDTH_CHANNELS:
        known = ", ".join(HEIGHT_WIDTH_CHANNELS)
        raise ValueError(f"no sample of {name!r} is bundled, only of {known}")
    with np.load(io.BytesIO((SAMPLES / f"{name}.npz").read_bytes())) as file:
        return file["images"], file["labels"].astype(np.int32)


class Input(NamedTuple):
    """Images to work on.

    Attributes:
      images: `[N, H, W, C]` uint8.
      labels: `[N]` int32, or None.
      names: one for each image, for files.
      source: "sample", a split, or the name of the user's file or folder.
      own: whether the images are the user's.
    """

    images: np.ndarray
    labels: np.ndarray | None
    names: list[str]
    source: str
    own: bool


def read_input(
    name: str,
    source: str,
    count: int,
    shape: tuple[int, int, int],
    data_dir: epath.PathLike | None,
    *,
    size: int = 0,
    held_out: float = 0.1,
) -> Input:
    """Reads the sample, a split or the user's own images.

    Args:
      name: of the data set.
      source: "sample", "train", "validation", "test", or a path for `read_images`.
      count: at most so many images, the first; 0 for all.
      shape: (H, W, C) that the images must have.
      data_dir: for the splits, see `load`.
      size: of own images, see `own_data.load`.
      held_out: for the splits of an own data set, likewise.

    Raises:
      ValueError, TypeError, FileNotFoundError: as `load` and `read_images`, for a
        negative count, and for own images in a folder that this process writes to.
    """
    if count < 0:
        raise ValueError(f"count must not be negative: {count}")
    own = source not in ("sample", *SPLITS)
    if own:
        if not source:
            raise ValueError("input is empty: give sample, a split, a file or a folder")
        files.check_outside(source)
        images, labels, names = read_images(source, shape, size=size)
        path = files.absolute(source)
        source = (path.name if path.is_dir() else path.stem) or "images"
    else:
        images, labels = (
            sample(name)
            if source == "sample"
            else load(name, source, data_dir, size=size, held_out=held_out)
        )
        names = [f"{source}_{i:05d}" for i in range(len(images))]
        if images.shape[1:] != shape:
            advice = "; own.size says how large they are" if size else ""
            raise ValueError(
                f"the model takes images {describe(shape)}, {name} has "
                f"{describe(images.shape[1:])}{advice}"
            )
    stop = min(count or len(images), len(images))
    kept = labels if labels is None else labels[:stop]
    return Input(images[:stop], kept, names[:stop], source, own)
