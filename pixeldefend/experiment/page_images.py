"""Images of a page: clean, attacked, purified, and what the attack changed."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from pixeldefend.experiment import page, pictures

_FACTORS = (16, 8, 4, 2, 1)  # by which a difference may be amplified
_MIDDLE = 128  # level of no difference
_REACH = 100  # levels from there that the largest difference may have


@dataclasses.dataclass(frozen=True)
class Strip:
    """Some images at several stages.

    Attributes:
      title: what was done to them.
      threats: by stage, a key of `page_rows.THREATS`.
      stages: `[N, H, W, C]` levels each, by name, the first as they were given.
      guesses: predicted classes `[N]`, by stage, where there are any.
      labels: the true ones `[N]`, or None.
      classes: their names; none for their numbers.
    """

    title: str
    threats: dict[str, str]
    stages: dict[str, np.ndarray]
    guesses: dict[str, np.ndarray]
    labels: np.ndarray | None
    classes: Sequence[str] = ()


def cards(strip: Strip, count: int) -> str:
    """The first images of a strip as HTML, each with all its stages.

    Args:
      strip: the images.
      count: how many of them at most.
    """
    before, after = list(strip.stages)[:2]
    stages = {name: images[:count] for name, images in strip.stages.items()}
    factor = amplification(stages[before], stages[after])
    told = (
        f"difference: {after} minus {before}, ×{factor} around mid-grey"
        if factor > 1
        else f"difference: {after} minus {before}, around mid-grey"
    )
    threats = "".join(
        f"{page.text(name)} {page.tag(threat)} · "
        for name, threat in strip.threats.items()
    )
    shown = "".join(
        _card(strip, stages, before, after, factor, i)
        for i in range(len(stages[before]))
    )
    return (
        f"<h3>{page.text(strip.title)}</h3>"
        f'<p class="facts">{threats}{page.text(told)}</p>'
        f'<div class="cards">{shown}</div>'
    )


def amplification(before: np.ndarray, after: np.ndarray) -> int:
    """By how much a difference of levels may be multiplied so that all of it fits."""
    most = np.abs(after.astype(float) - before.astype(float)).max(initial=1)
    return next((f for f in _FACTORS if f * most <= _REACH), 1)


def difference(before: np.ndarray, after: np.ndarray, factor: int) -> np.ndarray:
    """What changed in an image, `[H, W, C]` levels, `factor` times around mid-grey."""
    moved = _MIDDLE + factor * (after.astype(float) - before.astype(float))
    return np.clip(np.rint(moved), 0, 255).astype(np.uint8)


def _card(
    strip: Strip,
    stages: dict[str, np.ndarray],
    before: str,
    after: str,
    factor: int,
    i: int,
) -> str:
    label = None if strip.labels is None else int(strip.labels[i])
    tiles = []
    for name, images in stages.items():
        guess = strip.guesses.get(name)
        said = "" if guess is None else _verdict(strip, int(guess[i]), label)
        tiles.append(_tile(_levels(images[i]), name, said))
    changed = difference(stages[before][i], stages[after][i], factor)
    tiles.append(_tile(changed, f"difference ×{factor}", ""))
    of = "" if label is None else f": {page.text(_name(strip, label))}"
    caption = f"<figcaption><b>image {i + 1}{of}</b></figcaption>"
    return f'<figure>{caption}<div class="tiles">{"".join(tiles)}</div></figure>'


def _tile(image: np.ndarray, name: str, said: str) -> str:
    return (
        f'<div><img src="{_source(image)}" alt="{page.text(name)}">'
        f"<span>{page.text(name)}</span>{said}</div>"
    )


def _verdict(strip: Strip, guess: int, label: int | None) -> str:
    """What the classifier said, and in words whether it is right."""
    word = page.text(_name(strip, guess))
    if label is None:
        return word
    return f"✓ {word}, right" if guess == label else f"✗ <b>{word}, wrong</b>"


def _name(strip: Strip, number: int) -> str:
    known = 0 <= number < len(strip.classes)
    return strip.classes[number] if known else f"class {number}"


def _levels(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image.astype(float)), 0, 255).astype(np.uint8)


def _source(image: np.ndarray) -> str:
    """A PNG as the address of an image, which holds all of it."""
    buffer = io.BytesIO()
    pictures.picture(image).save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
