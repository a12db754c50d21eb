"""PuVAE's network and how it is trained: a conditional variational autoencoder (Linen).

An encoder and a decoder that both know the class learn to give images again: Hwang et
al., PuVAE (2019), as Wester and Thisted's thesis (2020) has it (section 3.1, Table 6).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from pixeldefend import pixels, sizes
from pixeldefend.models import convolution

LogitsFn = Callable[[Any, chex.Array], chex.Array]
_SAME_AS_IMAGE = 0
_WIDEST = 1024  # image
# Feature maps, kernel and dilation of the encoder's convolutions.
_ENCODERS = {
    "C": ((32, 7, 2),) * 3,
    "D": ((_SAME_AS_IMAGE, 2, 1), (32, 2, 2), (32, 2, 2), (32, 2, 2)),
}
_HIDDEN = {"C": (1024, 1024), "D": (1024,)}
# Dense layers of the decoder; then how often its grid goes into the image, and feature
# maps, kernel and stride of its convolutions; then the kernel of the last.
_DECODERS = {
    "C": ((), 8, ((32, 7, 2),) * 3, 3),
    "D": ((1024,), 2, ((32, 2, 1), (32, 2, 1), (32, 3, 2)), 2),
}
_GRID_MAPS = 32


def _conv(features: int, kernel: int, dilation: int = 1) -> nn.Conv:
    return nn.Conv(
        features,
        (kernel, kernel),
        kernel_dilation=(dilation, dilation),
        kernel_init=nn.initializers.he_normal(),
        conv_general_dilated=convolution.convolve,
    )


class _Doubling(nn.Module):
    """A transposed convolution of stride two."""

    features: int
    kernel: int

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        # Each value comes of a quarter of the kernel.
        he = nn.initializers.variance_scaling(8.0, "fan_in", "normal")
        zeros = nn.initializers.zeros
        kernel = self.param("kernel", he, shape, jnp.float32)
        bias = self.param("bias", zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        return convolution.double(x, kernel) + bias[None, None, None]


class PuVAE(nn.Module):
    """The conditional variational autoencoders C and D of the thesis, its Table 6.

    What the table leaves open, or has otherwise: convolutions are padded so that sizes
    stay (C's could not be applied otherwise). The label enters as a one-hot vector, in
    the first dense layer of each half, so that the encoder's convolutions serve all
    labels. The means have no ReLU. C ends with a sigmoid, as D does, not with a ReLU:
    values stay in range, and the error may be a cross-entropy. C's grid of 4 x 4 is
    doubled to 7, 14 and 28, the first of them cut.

    Attributes:
      variant: "C" (MNIST, Fashion-MNIST) or "D" (CIFAR-10).
      shape: of an image, (H, W, C).
      latents: dimensions of z: 32 for MNIST, 128 for Fashion-MNIST, 1024 for CIFAR-10.
      divisor: of feature maps and dense widths: 1 is the thesis's.
      classes: K.
    """

    variant: str = "C"
    shape: tuple[int, int, int] = (28, 28, 1)
    latents: int = 32
    divisor: int = 1
    classes: int = 10

    def __post_init__(self) -> None:
        """Checks the attributes; raises ValueError naming the one that is wrong."""
        if self.variant not in _ENCODERS:
            raise ValueError(
                f"unknown variant {self.variant!r}: one of {', '.join(_ENCODERS)}"
            )
        object.__setattr__(self, "shape", tuple(self.shape))  # a list in JSON
        whole = all(type(n) is int and 8 <= n <= _WIDEST for n in self.shape[:2])
        if len(self.shape) != 3 or not whole or self.shape[2] not in (1, 3):
            raise ValueError(
                f"shape must be (H, W, C), from 8 x 8 to {_WIDEST} x {_WIDEST}, 1 or 3 "
                f"channels: {self.shape}"
            )
        if type(self.divisor) is not int or self.divisor < 1 or 32 % self.divisor:
            raise ValueError(f"divisor must be 1, 2, 4, 8, 16 or 32: {self.divisor}")
        sizes.check(self, latents=(1, 2**16), classes=(2, sizes.CLASSES))
        super().__post_init__()

    def setup(self) -> None:
        """Makes the layers."""
        channels = self.shape[2]
        self.convolutions = [
            _conv(width // self.divisor or channels, kernel, dilation)
            for width, kernel, dilation in _ENCODERS[self.variant]
        ]
        first, *others = (width // self.divisor for width in _HIDDEN[self.variant])
        # One dense layer of features and label, taken apart.
        self.of_image = nn.Dense(first)
        self.of_label = nn.Dense(first, use_bias=False)
        self.hidden = [nn.Dense(width) for width in others]
        self.mean = nn.Dense(self.latents)
        self.deviation = nn.Dense(self.latents)
        dense, _, steps, last = _DECODERS[self.variant]
        self.dense = [nn.Dense(width // self.divisor) for width in dense]
        self.grid = nn.Dense(int(np.prod(self._sizes()[0])) * self._maps)
        self.steps = [
            (_Doubling if stride == 2 else _conv)(width // self.divisor, kernel)
            for width, kernel, stride in steps
        ]
        self.last = _conv(channels, last)

    @property
    def _maps(self) -> int:
        return _GRID_MAPS // self.divisor

    def _sizes(self) -> list[tuple[int, int]]:
        """Of the decoder's grid and of what each step makes of it, up to the image."""
        _, part, steps, _ = _DECODERS[self.variant]
        height, width, _ = self.shape
        sizes = [(-(-height // part), -(-width // part))]
        for _, _, stride in steps:
            part //= stride
            sizes.append((-(-height // part), -(-width // part)))
        return sizes

    def features(self, images: chex.Array) -> chex.Array:
        """What encoding takes of levels `[B, H, W, C]`, of any label: `[B, F]`."""
        # Networks begin best around zero.
        x = pixels.to_units(images, pixels.at_least_float32(images.dtype))
        for layer in self.convolutions:
            x = nn.relu(layer(x))
        return self.of_image(x.reshape(len(x), -1))

    def posterior(
        self, features: chex.Array, labels: chex.Array
    ) -> tuple[chex.Array, chex.Array]:
        """Means and standard deviations `[..., Z]` of z for labels `[...]`."""
        one_hot = jax.nn.one_hot(labels, self.classes, dtype=features.dtype)
        x = nn.relu(features + self.of_label(one_hot))
        for layer in self.hidden:
            x = nn.relu(layer(x))
        # Far below zero softplus is zero, of which there is no logarithm.
        return self.mean(x), nn.softplus(self.deviation(x)) + 1e-6

    def decode(self, latents: chex.Array, labels: chex.Array) -> chex.Array:
        """Log-odds of white `[B, H, W, C]` of latents `[B, Z]` and labels `[B]`."""
        one_hot = jax.nn.one_hot(labels, self.classes, dtype=latents.dtype)
        x = jnp.concatenate([latents, one_hot], -1)
        for layer in self.dense:
            x = nn.relu(layer(x))
        sizes = self._sizes()
        x = nn.relu(self.grid(x)).reshape(len(x), *sizes[0], self._maps)
        for step, (height, width) in zip(self.steps, sizes[1:], strict=True):
            x = nn.relu(step(x)[:, :height, :width])
        return self.last(x)

    def __call__(self, images: chex.Array, labels: chex.Array) -> chex.Array:
        """Log-odds of the reconstruction from the mean of z; touches every layer."""
        mean, _ = self.posterior(self.features(images), labels)
        return self.decode(mean, labels)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Of the three parts of the loss; the thesis does not give them.

    Attributes:
      reconstruction: of the mean cross-entropy per value, nats.
      divergence: of the Kullback-Leibler divergence, nats: one over the number of
        values makes both the variational bound.
      classification: of the classifier's cross-entropy, nats.
    """

    reconstruction: float = 1.0
    divergence: float = 1e-3
    classification: float = 0.1

    def __post_init__(self) -> None:
        """Raises ValueError naming a weight that is negative or not finite."""
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be finite and not negative: {value}")


def describe(model: PuVAE) -> dict[str, Any]:
    """What `PuVAE` needs to make `model` again."""
    names = [f.name for f in dataclasses.fields(model)]
    return {n: getattr(model, n) for n in names if n not in ("parent", "name")}


def init(model: PuVAE, key: chex.PRNGKey, images: chex.Array) -> dict:
    """First parameters; of the images `[B, H, W, C]` only the shape matters.

    Raises:
      ValueError: images of another shape than the model's.
    """
    check_shape(model, images)
    labels = jnp.zeros(len(images), jnp.int32)
    return cast(dict, model.init({"params": key}, images, labels))


def check_shape(model: PuVAE, images: chex.Array) -> None:
    """Raises ValueError for images of another shape than the model's."""
    if tuple(images.shape[1:]) != model.shape:
        raise ValueError(
            f"this PuVAE takes images {model.shape}, not {tuple(images.shape[1:])}"
        )


def loss(
    model: PuVAE,
    params: dict,
    images: chex.Array,
    labels: chex.Array,
    key: chex.PRNGKey,
    *,
    logits_fn: LogitsFn,
    variables: Any,
    weights: Weights,
) -> tuple[chex.Array, dict]:
    """Reconstruction, divergence and classification: the thesis's section 3.1.

    The classifier is fixed; its cross-entropy reaches the PuVAE through the
    reconstruction.

    Args:
      model: the description.
      params: from `init`, training or a released model.
      images: levels `[B, H, W, C]`.
      labels: the true ones `[B]`.
      key: of the latent noise.
      logits_fn: of the classifier, of floating levels.
      variables: for `logits_fn`.
      weights: of the parts.

    Returns:
      The loss, a mean over the images, and its parts without their weights, with the
      share of reconstructions that are classified rightly as `accuracy`.
    """
    wanted = pixels.to_fractions(images)
    apply: Callable[..., Any] = model.apply  # to flax it may return variables too
    features = apply(params, images, method="features")
    mean, deviation = apply(params, features, labels, method="posterior")
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    log_odds = apply(params, mean + deviation * noise, labels, method="decode")
    logits = logits_fn(variables, pixels.from_fractions(nn.sigmoid(log_odds)))
    parts = {
        "reconstruction": jnp.mean(
            optax.sigmoid_binary_cross_entropy(log_odds, wanted)
        ),
        "divergence": jnp.mean(divergence(mean, deviation)),
        "classification": jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        ),
    }
    total = sum(getattr(weights, name) * value for name, value in parts.items())
    return total, parts | {"accuracy": jnp.mean(jnp.argmax(logits, -1) == labels)}


def divergence(mean: chex.Array, deviation: chex.Array) -> chex.Array:
    """Kullback and Leibler's, nats `[...]`, of normal laws `[..., Z]` from the prior's.

    Kingma and Welling (2013), Appendix B.
    """
    return 0.5 * jnp.sum(mean**2 + deviation**2 - 1 - 2 * jnp.log(deviation), -1)
