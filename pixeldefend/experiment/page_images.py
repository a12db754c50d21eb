"""Images of a page: clean, attacked, purified, and what the attack changed."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from pixeldefend.experiment import page, pictures


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
    stages = {name: _levels(images[:count]) for name, images in strip.stages.items()}
    changed, times = pictures.difference(stages[after], stages[before])
    amplified = f" ×{times}" if times > 1 else ""
    told = f"difference: {after} minus {before},{amplified} around mid-grey"
    stages[f"difference{amplified}"] = changed
    threats = "".join(
        f"{page.text(name)} {page.tag(threat)} · "
        for name, threat in strip.threats.items()
    )
    shown = "".join(_card(strip, stages, i) for i in range(len(changed)))
    return (
        f"<h3>{page.text(strip.title)}</h3>"
        f'<p class="facts">{threats}{page.text(told)}</p>'
        f'<div class="cards">{shown}</div>'
    )


def _card(strip: Strip, stages: dict[str, np.ndarray], i: int) -> str:
    label = None if strip.labels is None else int(strip.labels[i])
    tiles = []
    for name, images in stages.items():
        guess = strip.guesses.get(name)
        said = "" if guess is None else _verdict(strip, int(guess[i]), label)
        tiles.append(_tile(images[i], name, said))
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


def _levels(images: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(images.astype(float)), 0, 255).astype(np.uint8)


def _source(image: np.ndarray) -> str:
    """A PNG as the address of an image, which holds all of it."""
    buffer = io.BytesIO()
    pictures.picture(image).save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
