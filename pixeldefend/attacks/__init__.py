"""Attacks as pure, batched functions, one file per family."""

from pixeldefend.attacks.noise import uniform_noise

__all__ = ["uniform_noise"]
