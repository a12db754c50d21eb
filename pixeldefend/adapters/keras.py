"""A purifier as a layer of Keras 3, of its JAX and torch backends."""

from typing import Any

import keras

from pixeldefend.adapters import check
from pixeldefend.experiment.serving import Purifier

BACKENDS = ("jax", "torch")


@keras.saving.register_keras_serializable("pixeldefend")
class Purified(keras.layers.Layer):
    """Hands purified images on, and gradients back as an attacker has them.

    The first layer of a model that is to be defended. It has no weights: a saved model
    has the purifier's name in it and not the density model.
    """

    def __init__(self, purifier: Purifier, *, gradient: str = "bpda", **options: Any):
        """Puts the purifier into a layer.

        Args:
          purifier: of the layout and range of the model's images.
          gradient: "bpda" (as if purifying changed nothing) or "straight_through" (of
            the expected levels; several times the cost).
          **options: of Keras's `Layer`.

        Raises:
          TypeError: no `Purifier`.
          ValueError: another gradient, or another backend.
        """
        super().__init__(**options)
        check(purifier, gradient)
        if keras.config.backend() not in BACKENDS:
            raise ValueError(
                "the purifier runs in JAX; Keras can differentiate it only with the "
                f"backends {' and '.join(BACKENDS)}: {keras.config.backend()}"
            )
        self.purifier = purifier
        self.gradient = gradient

    def call(self, images: Any) -> Any:
        """Purified `images`, of the same shape and type."""
        if keras.config.backend() == "torch":
            from pixeldefend.adapters.torch import Defended

            return Defended(self.purifier, gradient=self.gradient)(images)
        return self.purifier.traced(images, gradient=self.gradient)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        own = {"purifier": self.purifier.options, "gradient": self.gradient}
        return super().get_config() | own

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Purified":
        options = config["purifier"]
        options = options | {"range": tuple(options["range"])}  # JSON has lists
        return cls(**config | {"purifier": Purifier(**options)})
