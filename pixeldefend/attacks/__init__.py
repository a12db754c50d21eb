"""Attacks as pure, batched functions, one file per family."""

from pixeldefend.attacks.corruption import (
    contrast_reduction,
    gaussian_blur,
    salt_and_pepper,
)
from pixeldefend.attacks.lbfgs import lbfgs
from pixeldefend.attacks.noise import rand, uniform_noise
from pixeldefend.attacks.outcome import Info, check_logits
from pixeldefend.attacks.projected_gradient import bim, fgm, fgsm, pgd
from pixeldefend.attacks.saliency import saliency_map

__all__ = [
    "Info",
    "bim",
    "check_logits",
    "contrast_reduction",
    "fgm",
    "fgsm",
    "gaussian_blur",
    "lbfgs",
    "pgd",
    "rand",
    "saliency_map",
    "salt_and_pepper",
    "uniform_noise",
]
