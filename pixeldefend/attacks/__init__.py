"""Attacks as pure, batched functions, one file per family."""

from pixeldefend.attacks.gradient_sign import bim, fgsm
from pixeldefend.attacks.noise import uniform_noise

__all__ = ["bim", "fgsm", "uniform_noise"]
