"""Sizes of models, which may come from a card that somebody else wrote."""

from typing import Any

# Far beyond what any model of the papers has, and still described in a moment.
FEATURES = 4096
CLASSES = 2**16


def check(model: Any, **ranges: tuple[int, int]) -> None:
    """Checks fields of a model that are sizes.

    Args:
      model: whose fields they are.
      **ranges: by field, the least and the most.

    Raises:
      ValueError: one is no whole number, or out of its range.
    """
    for name, (least, most) in ranges.items():
        value = getattr(model, name)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(
                f"{name} must be a whole number from {least} to {most}: {value!r}"
            )
