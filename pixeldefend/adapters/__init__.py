"""Purifiers in other frameworks; each module wants its framework installed."""

from pixeldefend.experiment.serving import Purifier

GRADIENTS = ("bpda", "straight_through")


def check(purifier: Purifier, gradient: str) -> None:
    """Checks what stands in front of a network, and how it is differentiated.

    The forward pass is the purifier itself, so "expectation", whose is not, is no
    gradient here.

    Raises:
      TypeError: no `Purifier`; a `Screener` returns more than images.
      ValueError: none of `GRADIENTS`.
    """
    if not isinstance(purifier, Purifier):
        raise TypeError(f"purifier must be a Purifier: {type(purifier).__qualname__}")
    if gradient not in GRADIENTS:
        known = ", ".join(GRADIENTS)
        raise ValueError(f"gradient must be one of {known}: {gradient!r}")
