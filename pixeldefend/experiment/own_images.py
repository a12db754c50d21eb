"""Images that others made: arrays of numpy and folders of pictures."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from pixeldefend.experiment import files, foreign

_FORMATS = {  # as the picture library calls them, and their endings
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".pgm", ".ppm", ".pnm"),
}
_SUFFIXES = [suffix for suffixes in _FORMATS.values() for suffix in suffixes]
# Tags of TIFF.
_BITS, _SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1


def read_images(
    path: epath.PathLike, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Reads the user's own images from an `.npz`, an `.npy` or a folder of pictures.

    An `.npz` holds `images` and, if known, `labels`; an `.npy` holds the images.
    Nothing is ever unpickled, resized or converted between colour and grey. Pictures
    are turned as their EXIF orientation says; colour profiles and gammas are ignored,
    levels being taken as they are. What is not read of a folder is said in one line.

    Args:
      path: of the file or folder.
      shape: (H, W, C) that the images must have.

    Returns:
      Images `[N, H, W, C]` uint8, labels `[N]` int32 or None, and a name for each.

    Raises:
      TypeError: arrays that are not integers.
      ValueError: not images, or of another range or shape, or pictures of which a part
        would be lost: more than 8 bits, transparency, several frames; the message says
        how to mend it.
      FileNotFoundError: nothing at `path`.
    """
    path = files.expanded(path)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}")
    if path.is_dir():
        images, names = _read_folder(path, shape)
        return images, None, names
    if path.suffix not in (".npz", ".npy"):
        raise ValueError(
            f"{path} is neither an .npz, an .npy nor a folder of pictures; put pictures"
            " into a folder and give the folder"
        )
    images, labels = read_labelled(path, shape)
    return images, labels, [f"{path.stem}_{i:05d}" for i in range(len(images))]


def read_labelled(
    path: epath.Path, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Checked images and labels of an `.npz` or `.npy`; see `read_images`."""

    def check(headers: Mapping[str, foreign.Header]) -> None:
        _check_levels(headers["images"], shape, path)
        if "labels" in headers:
            _check_labels(headers["labels"], headers["images"].shape[0], path)

    found = foreign.read_arrays(path, ("images", "labels"), check)
    images, labels = found["images"], found.get("labels")
    if images.min() < 0 or images.max() > 255:
        raise ValueError(
            f"{path} has values {images.min()}..{images.max()} outside 0..255"
        )
    if labels is not None:
        if labels.min() < 0 or labels.max() > 255:
            raise ValueError(f"labels in {path} must be classes between 0 and 255")
        labels = labels.astype(np.int32)
    return images.astype(np.uint8), labels


def _check_levels(
    given: foreign.Header, shape: tuple[int, int, int], path: epath.Path
) -> None:
    """Checks, before they are read, that an array holds images as levels.

    Raises:
      TypeError: not integers; floats in particular, whatever their range: scaling them
        silently is how levels overflow.
      ValueError: no image, or another shape.
    """
    if given.dtype.kind not in "iu":
        hint = ""
        if np.issubdtype(given.dtype, np.floating):
            hint = ": for units 0..1 use np.round(images * 255).astype(np.uint8)"
        raise TypeError(
            f"{path} holds {given.dtype}; images are integer levels 0..255 (uint8)"
            f"{hint}"
        )
    if len(given.shape) != 4 or given.shape[1:] != tuple(shape):
        found = describe(given.shape) or "a single number"
        raise ValueError(f"{path} is {found}; expected N x {describe(shape)}")
    if not given.shape[0]:
        raise ValueError(f"{path} holds no image")


def _check_labels(given: foreign.Header, count: int, path: epath.Path) -> None:
    """Raises ValueError where labels are not one integer for each of `count` images."""
    if given.shape != (count,) or given.dtype.kind not in "iu":
        raise ValueError(
            f"labels in {path} must be integers of shape {(count,)}: "
            f"{given.dtype} {given.shape}"
        )


def _read_folder(
    path: epath.Path, shape: tuple[int, int, int]
) -> tuple[np.ndarray, list[str]]:
    """The pictures of a folder, in order of their names, and these."""
    # Hidden files, such as one that a killed run left, do not count.
    there = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    paths = [file for file in there if _is_picture(file)]
    if not paths:
        raise ValueError(f"no pictures in {path} (looked for {', '.join(_SUFFIXES)})")
    stems: dict[str, epath.Path] = {}
    for file in paths:
        twin = stems.setdefault(file.stem.casefold(), file)
        if twin != file:
            raise ValueError(f"{twin} and {file} would get the same name; rename one")
    images = [_read_picture(file, shape).reshape(shape) for file in paths]
    if left := sorted(set(there) - set(paths)):
        many = f"{len(left)} entries" if len(left) > 1 else "1 entry"
        verb = "were" if len(left) > 1 else "was"
        print(f"{many} of {path} {verb} not read, such as {left[0].name}")
    return np.stack(images), [file.stem for file in paths]


def _is_picture(path: epath.Path) -> bool:
    """By its name, but for a folder of such a name."""
    named = path.suffix.lower() in _SUFFIXES
    return named and (files.is_remote(path) or not path.is_dir())


def _read_picture(path: epath.Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Levels `[H, W]` or `[H, W, 3]` of one picture; see `read_images`."""
    from PIL import Image, ImageOps

    foreign.check_regular(path)
    try:
        with _strictly(), path.open("rb") as stream:
            head = stream.read(25)
            with Image.open(stream, formats=tuple(_FORMATS)) as picture:
                # Only the header is read before a picture is refused.
                unfit = _unfit(picture, head, shape)
                if not unfit:
                    if picture.format == "PNG":  # the only one with sums
                        Image.open(stream, formats=("PNG",)).verify()
                    pixels = np.asarray(ImageOps.exif_transpose(picture))
                    if pixels.shape[:2] != shape[:2]:
                        unfit = _of_size((*pixels.shape[:2], picture.mode), shape)
    except Exception as error:  # damaged ones make it raise SyntaxError and what not
        raise ValueError(f"{path} is not a picture that can be read") from error
    if unfit:
        raise ValueError(f"{path} {unfit}")
    return pixels


@contextlib.contextmanager
def _strictly() -> Iterator[None]:
    """Has the picture library fail where it would go on with a part of a file."""
    from PIL import ImageFile

    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings(action="ignore"):
            warnings.filterwarnings("error", "Corrupt EXIF")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _unfit(picture: Any, head: bytes, shape: tuple[int, int, int]) -> str:
    """Why a picture, of which the header is read, cannot be taken as it is; "" if not.

    Args:
      picture: the picture library's.
      head: the first 25 bytes of the file.
      shape: (H, W, C) wanted.
    """
    mode = "L" if shape[2] == 1 else "RGB"
    # On its side, perhaps, but the orientation may stand behind the pixels.
    turned = sorted(picture.size) == sorted(shape[:2])
    if not turned or picture.mode != mode:
        return _of_size((picture.height, picture.width, picture.mode), shape)
    bits, unsigned = 8, True
    if picture.format == "PNG":
        bits = head[24]
    elif picture.format == "TIFF":
        bits = max(picture.tag_v2.get(_BITS, (8,)))
        unsigned = set(picture.tag_v2.get(_SAMPLE_FORMAT, ())) <= {_UNSIGNED}
    elif picture.format == "PPM" and picture.tile[0][0] != "raw":
        bits = int(picture.tile[0][3][-1]).bit_length()
    if bits > 8 or not unsigned:
        kind = f"{bits} bits a channel" if bits > 8 else "negative levels"
        return f"has {kind}; images are levels 0..255: convert it to 8 bits first"
    if "transparency" in picture.info:
        return "has a transparent colour, which would get lost: flatten it first"
    if getattr(picture, "n_frames", 1) > 1:
        return "has several frames or pages: make a picture of each"
    return ""


def _of_size(found: tuple[int, int, str], shape: tuple[int, int, int]) -> str:
    """Why a picture of another height, width or mode does not fit."""
    mode = "L" if shape[2] == 1 else "RGB"
    return (
        f"is {describe(found[:2])} ({found[2]}); this model takes "
        f"{describe(shape[:2])} ({mode}), 8 bits: resize and convert it first"
    )


def describe(shape: Sequence[int]) -> str:
    """A shape as one says it: 28 x 28 x 1."""
    return " x ".join(str(size) for size in shape)
