"""Images that others made: arrays of numpy and folders of pictures."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

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
_ORIENTATION = 274
_GREY = {"1", "L"}  # modes
_TRANSPARENT = {"RGBA", "LA", "PA", "RGBa", "La"}


def read_images(
    path: epath.PathLike, shape: tuple[int, int, int], *, size: int = 0
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Reads the user's own images from an `.npz`, an `.npy` or a folder of pictures.

    An `.npz` holds `images` and, if known, `labels`; an `.npy` holds the images.
    Nothing is ever unpickled, and colour is never made grey. Pictures are turned as
    their EXIF orientation says; colour profiles and gammas are ignored, levels being
    taken as they are. What is not read of a folder is said in one line.

    Args:
      path: of the file or folder.
      shape: (H, W, C) that the images must have.
      size: 0, and images are taken as they are; or H and W, which images of other sizes
        are made to fit, see `fitted`.

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
    if size and shape[:2] != (size, size):
        raise ValueError(
            f"own.size is {size}, but the model takes images {describe(shape)}: leave "
            "it at 0 or give the model's size"
        )
    if path.is_dir():
        paths = list_pictures(path)
        return read_pictures(paths, shape, size), None, [file.stem for file in paths]
    if path.suffix not in (".npz", ".npy"):
        raise ValueError(
            f"{path} is neither an .npz, an .npy nor a folder of pictures; put pictures"
            " into a folder and give the folder"
        )
    images, labels = read_labelled(path, (None, None, shape[2]) if size else shape)
    images = fitted(images, size)
    return images, labels, [f"{path.stem}_{i:05d}" for i in range(len(images))]


def read_labelled(
    path: epath.Path, shape: tuple[int | None, ...] | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Checked images and labels of an `.npz` or `.npy`; see `read_images`.

    Args:
      path: of the file.
      shape: (H, W, C) wanted, None for what may be any; None: any image.
    """
    shape = shape or (None, None, None)

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
    given: foreign.Header, shape: tuple[int | None, ...], path: epath.Path
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
            hint = ": for values in 0..1 use np.round(images * 255).astype(np.uint8)"
        raise TypeError(
            f"{path} holds {given.dtype}; images are integer levels 0..255 (uint8)"
            f"{hint}"
        )
    wanted = [{1, 3} if s is None and i == 2 else {s} for i, s in enumerate(shape)]
    fits = [
        n in those or those == {None}
        for n, those in zip(given.shape[1:], wanted, strict=False)
    ]
    if len(given.shape) != 4 or not all(fits):
        found = describe(given.shape) or "a single number"
        names = ("height", "width", "channels (1 or 3)")
        told = describe([n or name for n, name in zip(shape, names, strict=True)])
        raise ValueError(f"{path} is {found}; expected N x {told}")
    if not given.shape[0]:
        raise ValueError(f"{path} holds no image")


def _check_labels(given: foreign.Header, count: int, path: epath.Path) -> None:
    """Raises ValueError where labels are not one integer for each of `count` images."""
    if given.shape != (count,) or given.dtype.kind not in "iu":
        raise ValueError(
            f"labels in {path} must be integers of shape {(count,)}: "
            f"{given.dtype} {given.shape}"
        )


def list_pictures(path: epath.Path) -> list[epath.Path]:
    """Files of pictures in a folder, in order of their names; says what others it has.

    Raises:
      ValueError: there are none, or two whose results would get the same name.
    """
    # Hidden files, such as one that a killed run left, do not count.
    there = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    paths = [file for file in there if _is_picture(file)]
    if not paths:
        inner = [file.name for file in there if file.is_dir()]
        hint = f"; name one of its folders, such as {inner[0]}" if inner else ""
        looked = ", ".join(_SUFFIXES)
        raise ValueError(f"no pictures in {path} (looked for {looked}){hint}")
    stems: dict[str, epath.Path] = {}
    for file in paths:
        twin = stems.setdefault(file.stem.casefold(), file)
        if twin != file:
            raise ValueError(f"{twin} and {file} would get the same name; rename one")
    if left := sorted(set(there) - set(paths)):
        many = f"{len(left)} entries" if len(left) > 1 else "1 entry"
        verb = "were" if len(left) > 1 else "was"
        print(f"{many} of {path} {verb} not read, such as {left[0].name}")
    return paths


def read_pictures(
    paths: Sequence[epath.Path], shape: tuple[int, int, int], size: int = 0
) -> np.ndarray:
    """Levels `[N, H, W, C]` of pictures; see `read_images`."""
    return np.stack([_read_picture(file, shape, size).reshape(shape) for file in paths])


def shape_of_pictures(paths: Sequence[epath.Path], size: int) -> tuple[int, int, int]:
    """(H, W, C) of pictures that belong together.

    Args:
      paths: of their files.
      size: see `read_images`. 0: the first picture says; else all are asked for colour.
    """
    modes = set()
    for path in paths:
        with _opened(path) as (picture, *_):
            modes.add("L" if picture.mode in _GREY else "RGB")
            height, width = picture.height, picture.width
            if picture.getexif().get(_ORIENTATION, 1) > 4:  # it lies on its side
                height, width = width, height
        if not size or "RGB" in modes:
            break
    return (size or height, size or width, 3 if "RGB" in modes else 1)


def fitted(images: np.ndarray, size: int) -> np.ndarray:
    """Images `[N, H, W, C]` uint8, each cut to the square in its middle and resized.

    Args:
      images: levels.
      size: height and width of the result, bicubic and without aliases; 0: unchanged.
    """
    if not size or images.shape[1:3] == (size, size):
        return images
    from PIL import Image

    grey = images.shape[3] == 1
    pictures = (Image.fromarray(one[:, :, 0] if grey else one) for one in images)
    resized = [np.asarray(_resized(picture, size)) for picture in pictures]
    return np.stack(resized).reshape(-1, size, size, images.shape[3])


def _resized(picture: Any, size: int) -> Any:
    from PIL import Image

    side = min(picture.size)
    left, top = ((whole - side) // 2 for whole in picture.size)
    square = picture.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BICUBIC)


def _is_picture(path: epath.Path) -> bool:
    """By its name, but for a folder of such a name."""
    named = path.suffix.lower() in _SUFFIXES
    return named and (files.is_remote(path) or not path.is_dir())


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[tuple[Any, IO[bytes], bytes]]:
    """A picture of which the header is read, its file, and the first bytes of that.

    Raises:
      ValueError: it cannot be read, there or within.
    """
    from PIL import Image

    foreign.check_regular(path)
    try:
        with _strictly(), path.open("rb") as stream:
            head = stream.read(25)
            with Image.open(stream, formats=tuple(_FORMATS)) as picture:
                yield picture, stream, head
    except _Unfit as error:
        raise ValueError(f"{path} {error}") from error
    except Exception as error:  # damaged ones make it raise SyntaxError and what not
        raise ValueError(f"{path} is not a readable picture") from error


class _Unfit(Exception):
    """Why a picture that can be read is not taken."""


def _read_picture(
    path: epath.Path, shape: tuple[int, int, int], size: int
) -> np.ndarray:
    """Levels `[H, W]` or `[H, W, 3]` of one picture; see `read_images`."""
    from PIL import Image, ImageOps

    with _opened(path) as (picture, stream, head):
        # Only the header is read before a picture is refused.
        _check_fits(picture, head, shape, size)
        if picture.format == "PNG":  # the only one with sums
            Image.open(stream, formats=("PNG",)).verify()
        turned = ImageOps.exif_transpose(picture)
        if size:
            turned = _resized(turned.convert("L" if shape[2] == 1 else "RGB"), size)
        pixels = np.asarray(turned)
        if pixels.shape[:2] != shape[:2]:
            raise _Unfit(_of_size((*pixels.shape[:2], picture.mode), shape, size))
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


def _check_fits(
    picture: Any, head: bytes, shape: tuple[int, int, int], size: int
) -> None:
    """Raises _Unfit where a picture, of which the header is read, cannot be taken.

    Args:
      picture: the picture library's.
      head: the first 25 bytes of the file.
      shape: (H, W, C) wanted.
      size: other than 0, and its height and width may be any.
    """
    grey = shape[2] == 1
    if picture.mode in _TRANSPARENT:
        raise _Unfit(
            f"has transparency ({picture.mode}), which would be lost: flatten it first"
        )
    if size:
        fits = picture.mode in (_GREY if grey else {*_GREY, "RGB", "P", "CMYK"})
    else:
        # On its side, perhaps, but the orientation may stand behind the pixels.
        fits = sorted(picture.size) == sorted(shape[:2])
        fits = fits and picture.mode == ("L" if grey else "RGB")
    if not fits:
        found = (picture.height, picture.width, picture.mode)
        raise _Unfit(_of_size(found, shape, size))
    bits, unsigned = 8, True
    if picture.format == "PNG":
        bits = head[24]
    elif picture.format == "TIFF":
        bits = max(picture.tag_v2.get(_BITS, (8,)))
        unsigned = set(picture.tag_v2.get(_SAMPLE_FORMAT, ())) <= {_UNSIGNED}
    elif picture.format == "PPM" and picture.tile[0][0] != "raw":
        bits = int(picture.tile[0][3][-1]).bit_length()
    if bits > 8 or not unsigned:
        kind = f"{bits} bits per channel" if bits > 8 else "negative levels"
        raise _Unfit(
            f"has {kind}; images are levels 0..255: convert it to 8 bits first"
        )
    if "transparency" in picture.info:
        raise _Unfit("has a transparent colour, which would be lost: flatten it first")
    if getattr(picture, "n_frames", 1) > 1:
        raise _Unfit("has several frames or pages: save each as a picture of its own")


def _of_size(
    found: tuple[int, int, str], shape: tuple[int, int, int], size: int
) -> str:
    """Why a picture of another height, width or mode does not fit."""
    mode = "L" if shape[2] == 1 else "RGB"
    advice = "convert it first"
    if not size:
        square = f"={shape[0]}" if shape[0] == shape[1] else ""
        advice = f"resize and {advice}, or give --config.own.size{square}"
    return (
        f"is {describe(found[:2])} ({found[2]}); expected {describe(shape[:2])} "
        f"({mode}), 8 bits: {advice}"
    )


def describe(shape: Sequence[int | str]) -> str:
    """A shape as one says it: 28 x 28 x 1."""
    return " x ".join(str(size) for size in shape)
