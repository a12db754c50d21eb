"""Images as picture files; figures of the papers are drawn elsewhere."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw

from pixeldefend.experiment import files

_SCALE = 3  # printed pixels per image pixel
_GAP = 4  # printed pixels between images
_LINE = 15  # printed pixels of a line of text
_SIZE = 12  # of its letters
_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_RIGHT, _WRONG = (0, 114, 178), (213, 94, 0)  # apart for colour-blind people too
_GREY = 128  # where nothing differs
AMPLIFIED = 8  # of differences, at most


@dataclasses.dataclass(frozen=True)
class Row:
    """Images side by side.

    Attributes:
      images: `[N, H, W, C]` uint8.
      title: to their left, in lines; "" for none.
      texts: below each, such as its class; none for none.
      right: whether each text is right, which is told by a sign, a word and a colour;
        none where that is not known.
    """

    images: np.ndarray
    title: str = ""
    texts: Sequence[str] = ()
    right: Sequence[bool] | np.ndarray = ()

    @property
    def lines(self) -> int:
        """Of text below the images."""
        return bool(len(self.texts)) + bool(len(self.right))


def _enlarged(image: np.ndarray) -> np.ndarray:
    """`[H, W, C]` levels as RGB, each pixel a square."""
    colour = np.broadcast_to(image, (*image.shape[:2], 3))
    return colour.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)


def grid(rows: Sequence[Row]) -> Image.Image:
    """Lays images, all of one shape, out in rows."""
    count, height, width = rows[0].images.shape[:3]
    titles = [line for row in rows for line in row.title.split("\n")]
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    titled = max(pen.textlength(line, font_size=_SIZE + 1) for line in titles)
    margin = int(titled) + 18 if titled else _GAP
    high, wide = height * _SCALE + _GAP, width * _SCALE + _GAP
    tops = [_GAP]
    for row in rows:
        tops.append(tops[-1] + high + _LINE * row.lines + _GAP * bool(row.lines))
    picture = Image.new("RGB", (margin + count * wide, tops[-1]), _PAPER)
    pen = ImageDraw.Draw(picture)
    for row, top in zip(rows, tops, strict=False):
        middle = top + (high - _GAP - 18 * (row.title.count("\n") + 1)) // 2
        pen.text((8, middle), row.title, _INK, font_size=_SIZE + 1, spacing=5)
        for c, image in enumerate(row.images):
            left = margin + c * wide
            picture.paste(Image.fromarray(_enlarged(image)), (left, top))
            _caption(pen, row, c, left, top + high - 2)
    return picture


def _caption(pen: ImageDraw.ImageDraw, row: Row, i: int, left: int, top: int) -> None:
    """Below an image its text, and whether that is right."""
    if not len(row.texts):
        return
    colour = _INK
    if len(row.right):
        right = bool(row.right[i])
        colour = _RIGHT if right else _WRONG
        _sign(pen, right, left + 2, top + _LINE + 3, colour)
        word = "right" if right else "wrong"
        pen.text((left + 16, top + _LINE), word, colour, font_size=_SIZE)
    pen.text((left + 2, top), row.texts[i], colour, font_size=_SIZE)


def _sign(
    pen: ImageDraw.ImageDraw, right: bool, left: int, top: int, colour: tuple
) -> None:
    """A tick or a cross: fonts need not have them."""
    if right:
        points = [(left, top + 5), (left + 3, top + 9), (left + 10, top)]
        pen.line(points, colour, width=2, joint="curve")
        return
    pen.line([(left + 1, top), (left + 9, top + 8)], colour, width=2)
    pen.line([(left + 1, top + 8), (left + 9, top)], colour, width=2)


def difference(images: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, int]:
    """`images - others`, amplified, around grey.

    Args:
      images: `[N, H, W, C]` uint8.
      others: likewise.

    Returns:
      Levels like these, and by how much they are amplified: by at most 8, and so that
      one in a hundred is clipped at most where that is possible.
    """
    apart = images.astype(np.int32) - others.astype(np.int32)
    far = max(float(np.quantile(np.abs(apart), 0.99)), 1)
    times = int(np.clip((_GREY - 1) // far, 1, AMPLIFIED))
    return np.clip(_GREY + times * apart, 0, 255).astype(np.uint8), times


def save(
    picture: Image.Image, path: epath.PathLike, *, every_process: bool = False
) -> None:
    """Writes a picture as PNG, whole; see `files.whole_file`."""
    with files.whole_file(path, every_process=every_process) as temporary:
        with temporary.open("wb") as file:
            picture.save(file, format="png", optimize=True)


def picture(image: np.ndarray) -> Image.Image:
    """One image `[H, W, C]` of levels, at its own size."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
