"""Data sets of the user's own: arrays, folders of pictures, what TFDS prepared."""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from pixeldefend.experiment import files, foreign
from pixeldefend.experiment.own_images import (
    describe,
    fitted,
    list_pictures,
    read_labelled,
    read_pictures,
    shape_of_pictures,
)

# Splits, and the names of folders that hold them.
_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}


class Pool(NamedTuple):
    """Images that belong together, of which none is read yet.

    Attributes:
      count: N of them.
      labels: `[N]` int32; None where nobody knows.
      read: `read(rows)`, the images `[len(rows), H, W, C]` uint8.
      marks: by which an image is known again, whatever stands beside it.
    """

    count: int  # type: ignore[assignment]  # in place of a tuple's method
    labels: np.ndarray | None
    read: Callable[[np.ndarray], np.ndarray]
    marks: Callable[[], list[bytes]]


def find(name: str, data_dir: epath.PathLike | None) -> epath.Path | None:
    """The file or folder of an own data set; None where there is none.

    Args:
      name: a path, or the name of a folder in `data_dir`.
      data_dir: where data sets are, or None.
    """
    if not name:
        return None
    own = files.expanded(name)
    if own.exists():
        return own
    there = files.expanded(data_dir) / name if data_dir else None
    return there if there is not None and there.exists() else None


def name_of(path: epath.PathLike) -> str:
    """What an own data set is called on cards and in rows: as its file or folder."""
    path = files.absolute(path)
    if (path / "dataset_info.json").exists():  # of TFDS: NAME/VERSION, or with CONFIG
        return str(foreign.read_json(path / "dataset_info.json").get("name", path.name))
    return path.name if path.is_dir() else path.stem


def load(
    path: epath.Path, split: str, *, size: int = 0, held_out: float = 0.1
) -> tuple[np.ndarray, np.ndarray | None]:
    """A split of an own data set.

    It is one of these: an `.npz` with `images` and `labels`; a folder with such files,
    `train.npz` and perhaps `validation.npz` and `test.npz`; a folder of pictures with a
    folder for each class, or with folders `train`, `validation` and `test` of that
    kind; a folder with a `dataset_info.json`, as TFDS prepared it in array_record.
    Pictures without folders are a data set without labels.

    A split that it does not have is cut from its training images, of each class the
    same share. Which ones follows from the names of pictures and from the levels of
    arrays, so that most stay where they are when others are added.

    Args:
      path: of the file or folder.
      split: "train", "validation" or "test".
      size: pictures are cut to the square in their middle and resized to so many pixels
        on each side; 0: taken as they are.
      held_out: share of the images that a missing split gets.

    Returns:
      Images `[N, H, W, C]` uint8 and labels `[N]` int32, or None.

    Raises:
      ValueError, TypeError, FileNotFoundError: no data set, or one that cannot be read
        or cut; the message says what is wrong.
    """
    pools = _pools(path, size)
    if split in pools and (split != "train" or {"validation", "test"} <= {*pools}):
        rows = np.arange(pools[split].count)
        pool = pools[split]
    else:
        pool = pools["train"]
        missing = [name for name in ("validation", "test") if name not in pools]
        parts = _cut(pool, missing, held_out, path)
        sizes = ", ".join(f"{len(rows)} {name}" for name, rows in parts.items())
        _say_once(f"{path}: {_in_words(pool)}, split by name into {sizes}")
        rows = parts[split]
    labels = None if pool.labels is None else pool.labels[rows]
    return pool.read(rows), labels


def facts(path: epath.Path, *, size: int = 0) -> tuple[tuple[int, int, int], int]:
    """(H, W, C) of an own data set's images, and its classes; 0 without labels."""
    pool = _pools(path, size)["train"]
    shape = pool.read(np.arange(1)).shape[1:]
    return shape, 0 if pool.labels is None else int(pool.labels.max()) + 1


def _in_words(pool: Pool) -> str:
    if pool.labels is None:
        return f"{pool.count} images without labels"
    return f"{pool.count} images of {pool.labels.max() + 1} classes"


@functools.cache
def _say_once(text: str) -> None:
    print(text)


def _cut(
    pool: Pool, missing: Sequence[str], held_out: float, path: epath.Path
) -> dict[str, np.ndarray]:
    """Rows of the splits that are missing, and of the training images that are left.

    Raises:
      ValueError: a class has too few images for all of them.
    """
    if not 0 < held_out < 0.5:
        raise ValueError(f"own.held_out must be between 0 and 0.5: {held_out}")
    labels = np.zeros(pool.count, int) if pool.labels is None else pool.labels
    digests = [hashlib.sha256(mark).digest() for mark in pool.marks()]
    parts: dict[str, list] = {name: [] for name in ("train", *missing)}
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = np.array(sorted(rows, key=lambda row: digests[row]))
        count = max(1, round(held_out * len(rows)))
        if len(rows) <= count * len(missing):
            names = class_names(path)
            raise ValueError(
                f"{path} has {len(rows)} images of class "
                f"{names[label] if names else label}, too few to hold any out for "
                f"{' and '.join(missing)}"
            )
        for name in missing:
            parts[name].append(rows[:count])
            rows = rows[count:]
        parts["train"].append(rows)
    return {name: np.sort(np.concatenate(rows)) for name, rows in parts.items()}


def _pools(path: epath.Path, size: int) -> dict[str, Pool]:
    """The images of each split that a data set has; of an uncut one "train" only."""
    if type(size) is not int or not 0 <= size <= 1024:
        raise ValueError(f"own.size must be from 0 to 1024 pixels: {size}")
    if not path.is_dir():
        if path.suffix != ".npz":
            raise ValueError(
                f"{path} is neither a folder nor an .npz with `images` and `labels`"
            )
        return _alike({"train": _arrays(path, size)}, path)
    if (path / "dataset_info.json").exists():
        return _prepared(path, size)
    if versions := sorted(path.glob("*/dataset_info.json")):
        if len(versions) > 1:
            raise ValueError(
                f"{path} holds {len(versions)} versions: name one, such as "
                f"{versions[-1].parent}"
            )
        return _prepared(versions[0].parent, size)
    arrays = {split: path / f"{split}.npz" for split in _FOLDERS}
    if any(file.exists() for file in arrays.values()):
        if not arrays["train"].exists():
            raise FileNotFoundError(f"no train.npz in {path}")
        found = {k: _arrays(file, size) for k, file in arrays.items() if file.exists()}
        return _alike(found, path)
    return _folders(path, size)


def _alike(pools: dict[str, Pool], path: epath.Path) -> dict[str, Pool]:
    """The same; ValueError where not all splits have labels, or not all of a class."""
    if len({pool.labels is None for pool in pools.values()}) > 1:
        raise ValueError(f"{path} has labels for some of its splits only")
    classes = pools["train"].labels
    if classes is not None and (absent := {*range(classes.max())} - {*classes}):
        raise ValueError(
            f"{path} has labels up to {classes.max()}, but no training image of "
            f"{min(absent)}: number the classes from 0 without gaps"
        )
    for split, pool in pools.items():
        if classes is None or pool.labels is None:
            continue
        if pool.labels.max() > classes.max():
            raise ValueError(
                f"{path}: {split} has labels up to {pool.labels.max()}, the training "
                f"images up to {classes.max()}"
            )
    return pools


def _arrays(path: epath.Path, size: int) -> Pool:
    """Images and labels of an `.npz`."""
    images, labels = read_labelled(path, None)
    return Pool(
        len(images),
        labels,
        lambda rows: fitted(images[rows], size),
        lambda: [image.tobytes() for image in images],
    )


def _folders(path: epath.Path, size: int) -> dict[str, Pool]:
    """Pictures, in a folder for each class or without one, in splits or without."""
    found = {
        split: next((path / n for n in names if (path / n).is_dir()), None)
        for split, names in _FOLDERS.items()
    }
    if found["train"] is None:
        if there := [folder.name for folder in found.values() if folder]:
            raise FileNotFoundError(f"no folder train in {path}, only {there[0]}")
        found = {"train": path}
    classes = class_names(path)
    listed = {k: _listed(folder, classes) for k, folder in found.items() if folder}
    shape = shape_of_pictures([p for paths, _ in listed.values() for p in paths], size)

    def pool(paths: list[epath.Path], labels: np.ndarray | None) -> Pool:
        def read(rows: np.ndarray) -> np.ndarray:
            return read_pictures([paths[row] for row in rows], shape, size)

        return Pool(len(paths), labels, read, lambda: [p.name.encode() for p in paths])

    return {split: pool(*one) for split, one in listed.items()}


def class_names(path: epath.PathLike) -> tuple[str, ...]:
    """Folders of classes, in the order of their labels; () where there are none."""
    path = files.expanded(path)
    inner = path / "train" if (path / "train").is_dir() else path
    if not inner.is_dir() or any(path.glob("*.npz")):
        return ()
    folders = (one for one in inner.iterdir() if not one.name.startswith("."))
    return tuple(sorted(one.name for one in folders if one.is_dir()))


def _listed(
    folder: epath.Path, classes: tuple[str, ...]
) -> tuple[list[epath.Path], np.ndarray | None]:
    """Paths of pictures in a folder, and their labels if there are classes."""
    if not classes:
        return list_pictures(folder), None
    inner = sorted(f.name for f in folder.iterdir() if not f.name.startswith("."))
    if unknown := [name for name in inner if name not in classes]:
        raise ValueError(
            f"{folder / unknown[0]} is beside class folders ("
            f"{', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}): put it "
            "into one of them, or elsewhere"
        )
    found = {
        label: list_pictures(folder / name)
        for label, name in enumerate(classes)
        if name in inner
    }
    paths = [path for those in found.values() for path in those]
    labels = [label for label, those in found.items() for _ in those]
    return paths, np.array(labels, np.int32)


def _prepared(folder: epath.Path, size: int) -> dict[str, Pool]:
    """The splits of a set that TFDS prepared, by their names there."""
    there = foreign.read_json(folder / "dataset_info.json").get("splits", [])
    names = [str(one.get("name")) for one in there]
    if "train" not in names:
        raise ValueError(f"{folder} has no split train, only {', '.join(names)}")

    def pool(split: str) -> Pool:
        images, labels = read_prepared(folder, split)
        return Pool(
            len(labels),
            labels,
            lambda rows: _one_size(images, rows),
            lambda: [image.tobytes() for image in images],
        )

    def _one_size(images: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
        chosen = [fitted(images[row][None], size) for row in rows]
        shapes = sorted({one.shape[1:] for one in chosen})
        if len(shapes) > 1:
            raise ValueError(
                f"{folder} has images of {len(shapes)} sizes, {describe(shapes[0])} "
                f"and {describe(shapes[1])} among them: give --config.own.size"
            )
        return np.concatenate(chosen)

    return _alike({name: pool(name) for name in _FOLDERS if name in names}, folder)


def read_prepared(
    folder: epath.Path, split: str, rows: slice = slice(None)
) -> tuple[list[np.ndarray], np.ndarray]:
    """Records of a data set that TFDS prepared as array_record, in their order.

    Args:
      folder: with the `dataset_info.json`.
      split: as TFDS calls it.
      rows: of the split.

    Returns:
      Images `[H, W, C]`, perhaps of several sizes, and labels `[N]` int32.

    Raises:
      ValueError: they cannot be read, are not 8-bit images with labels, or a package
        is missing.
    """
    foreign.check_all_regular(folder)
    # TFDS advises OpenCV at every start; it would save a second once.
    logging.getLogger("absl").addFilter(lambda r: "OpenCV" not in r.getMessage())
    try:
        import tensorflow_datasets as tfds  # slow to import

        source = tfds.builder_from_directory(folder).as_data_source(split=split)
        records = source.__getitems__([*range(len(source))[rows]])
    except ImportError as error:  # TFDS imports some of these when it reads
        raise ValueError(
            f"{folder} was prepared by TFDS, and the package "
            f"{error.name or 'tensorflow_datasets'} is missing: pip install "
            "tensorflow-datasets array_record importlib_resources"
        ) from error
    except Exception as error:  # TFDS and array_record raise many kinds
        raise ValueError(
            f"cannot read the {split} split in {folder} ({type(error).__name__}); it "
            "is damaged, of another version or not array_record"
        ) from error
    for name in ("image", "label"):
        if not records or name not in records[0]:
            there = ", ".join(records[0]) if records else "none"
            raise ValueError(f"{folder} has no feature {name}, only {there}")
    images = [np.asarray(record["image"]) for record in records]
    if images[0].dtype != np.uint8 or images[0].ndim != 3:
        raise ValueError(f"{folder} holds {images[0].dtype} images, not 8-bit ones")
    return images, np.array([record["label"] for record in records], np.int32)
