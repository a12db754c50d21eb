"""Purifiers in other frameworks; each module wants its framework installed."""

GRADIENTS = ("bpda", "straight_through")


def check_gradient(gradient: str) -> str:
    """What stands for a purifier's gradient, checked.

    It forwards the purifier itself, so "expectation", which does not, is none of them.

    Raises:
      ValueError: none of `GRADIENTS`.
    """
    if gradient not in GRADIENTS:
        known = ", ".join(GRADIENTS)
        raise ValueError(f"gradient must be one of {known}: {gradient!r}")
    return gradient
