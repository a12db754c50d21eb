"""Images as picture files; figures of the papers are drawn elsewhere."""

from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw

from pixeldefend.experiment import files

_SCALE = 3  # printed pixels per image pixel
_GAP = 4  # printed pixels between images
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


def _enlarged(image: np.ndarray) -> np.ndarray:
    """`[H, W, C]` levels as RGB, each pixel a square."""
    colour = np.broadcast_to(image, (*image.shape[:2], 3))
    return colour.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)


def grid(rows: Sequence[np.ndarray], titles: Sequence[str] = ()) -> Image.Image:
    """Lays images out in rows.

    Args:
      rows: images `[N, H, W, C]` uint8 each, all of one shape.
      titles: of the rows, to their left; none for none.

    Returns:
      The picture.
    """
    count, height, width = rows[0].shape[:3]
    margin = 8 + max((8 * len(title) for title in titles), default=0)
    high, wide = height * _SCALE + _GAP, width * _SCALE + _GAP
    size = (margin + count * wide, len(rows) * high + _GAP)
    picture = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(picture)
    for r, images in enumerate(rows):
        top = _GAP + r * high
        if titles:
            pen.text((8, top + high // 2 - 10), titles[r], _INK, font_size=14)
        for c, image in enumerate(images):
            picture.paste(Image.fromarray(_enlarged(image)), (margin + c * wide, top))
    return picture


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
