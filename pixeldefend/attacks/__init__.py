"""Attacks as pure, batched functions, one file per family."""

from pixeldefend.attacks.noise import rand, uniform_noise
from pixeldefend.attacks.outcome import Info, LogitsFn, check_eps, check_logits
from pixeldefend.attacks.presets import ATTACKS, named, usual
from pixeldefend.attacks.projected_gradient import bim, fgm, fgsm, pgd

__all__ = [
    "ATTACKS",
    "Info",
    "LogitsFn",
    "bim",
    "check_eps",
    "check_logits",
    "fgm",
    "fgsm",
    "named",
    "pgd",
    "rand",
    "uniform_noise",
    "usual",
]
