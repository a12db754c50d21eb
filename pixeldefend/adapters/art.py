"""A purifier as a preprocessor of the Adversarial Robustness Toolbox (ART)."""

from typing import Any

import numpy as np
from art.defences.preprocessor.preprocessor import Preprocessor

from pixeldefend.adapters import check
from pixeldefend.experiment.serving import Purifier


class PurifierPreprocessor(Preprocessor):
    """Purifies what an estimator of ART predicts, in its `preprocessing_defences`.

    ART's own `PixelDefend` takes every pixel from one forward pass; this one decodes
    them one after the other, as the paper's Algorithm 1 does.
    """

    def __init__(
        self,
        purifier: Purifier,
        *,
        gradient: str = "bpda",
        apply_fit: bool = False,
        apply_predict: bool = True,
    ):
        """Puts the purifier in front of an estimator.

        Args:
          purifier: of the layout and range of the estimator's images.
          gradient: what attacks of ART put in the defence's place, "bpda" or
            "straight_through".
          apply_fit: whether training images are purified.
          apply_predict: whether images that are predicted are.

        Raises:
          TypeError: no `Purifier`.
          ValueError: another gradient.
        """
        super().__init__(
            is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict
        )
        check(purifier, gradient)
        self.purifier = purifier
        self.gradient = gradient

    def __call__(self, x: np.ndarray, y: Any = None) -> tuple[np.ndarray, Any]:
        """Purified images, and the labels as they were."""
        return self.purifier(x), y

    def estimate_gradient(self, x: np.ndarray, grad: np.ndarray) -> np.ndarray:
        """The gradient in the images, from that in the purified ones."""
        return self.purifier.pull_back(x, grad, gradient=self.gradient)
