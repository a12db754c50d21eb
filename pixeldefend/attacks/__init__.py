"""Attacks as pure, batched functions, one file per family."""

from pixeldefend.attacks.carlini_wagner import cw_l2, cw_linf
from pixeldefend.attacks.deepfool import deepfool
from pixeldefend.attacks.noise import rand, uniform_noise
from pixeldefend.attacks.outcome import Info, check_logits
from pixeldefend.attacks.projected_gradient import bim, fgm, fgsm, pgd

__all__ = [
    "Info",
    "bim",
    "check_logits",
    "cw_l2",
    "cw_linf",
    "deepfool",
    "fgm",
    "fgsm",
    "pgd",
    "rand",
    "uniform_noise",
]
