"""Classifiers of the papers (Linen): ResNet, VGG and the thesis's two CNNs.

Every classifier takes levels 0..255, `uint8` or floating, and standardises each image
itself. Its variables are `{"params": ..., "batch_stats": ...}`; the second is absent
where nothing is batch-normalised.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from pixeldefend import pixels, sizes
from pixeldefend.models import convolution

VARIANTS = ("paper", "code")
# By variant: feature maps before division, and units of a stage (ResNet) or
# convolutions of a block (VGG).
_RESNET_STAGES = {
    "paper": ((16, 10), (32, 10), (64, 10)),
    "code": ((16, 5), (32, 5), (64, 5)),
}
_VGG_BLOCKS = {
    "paper": ((16, 2), (128, 2), (512, 3), (512, 3)),
    "code": ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
}
_VGG_DENSE = 512
_CNN_CONVOLUTIONS = {
    "A": ((64, 5, 1), (64, 5, 2)),  # feature maps, kernel, stride
    "B": ((64, 3, 1), (128, 3, 1), (256, 3, 2)),
}
_CNN_DENSE = {"A": (128,), "B": (512, 256)}


def standardise(images: chex.Array) -> chex.Array:
    """Every image to mean 0 and standard deviation 1 over all its values.

    The deviation is floored at 1/sqrt(H*W*3) levels, three channels also for grey, as
    the authors' code does, so that a constant image gives zeros.

    Args:
      images: levels `[B, H, W, C]`, `uint8` or floating.

    Returns:
      `[B, H, W, C]`, floating, at least float32.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        images = images.astype(jnp.float32)
    images = images.astype(pixels.at_least_float32(images.dtype))
    axes = (1, 2, 3)
    centred = images - jnp.mean(images, axes, keepdims=True)
    variance = jnp.mean(centred**2, axes, keepdims=True)
    # Floored before the root, whose slope at zero is infinite.
    floor = 1.0 / (images.shape[1] * images.shape[2] * 3)
    return centred / jnp.sqrt(jnp.maximum(variance, floor))


def _conv(features: int, kernel: int, stride: int, **options: Any) -> nn.Conv:
    he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        kernel_init=he,
        conv_general_dilated=convolution.convolve,
        **options,
    )


def _norm(train: bool, axis_name: str | None) -> nn.BatchNorm:
    # A short memory, so that short runs end with statistics of their last weights.
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-3, axis_name=axis_name
    )


def _check(model: Any, variants: Any) -> None:
    """Raises ValueError naming what all classifiers have and is wrong in this one."""
    variant, divisor = model.variant, model.divisor
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r}: one of {', '.join(variants)}")
    if type(divisor) is not int or divisor < 1 or 16 % divisor:
        raise ValueError(f"divisor must be 1, 2, 4, 8 or 16: {divisor}")
    sizes.check(model, classes=(2, sizes.CLASSES))


class ResNet(nn.Module):
    """The pre-activation residual network of PixelDefend, Appendix C.1.

    Attributes:
      variant: "paper", 10 units a stage, 62 layers; or "code", 5 and 32, what the
        authors released.
      divisor: of the feature maps: 1 for CIFAR-10, 4 for Fashion-MNIST.
      classes: K.
      axis_name: mapped axis over which batch statistics are taken, or None.
    """

    variant: str = "paper"
    divisor: int = 1
    classes: int = 10
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the attributes; raises ValueError naming the one that is wrong."""
        _check(self, VARIANTS)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: chex.Array, *, train: bool) -> chex.Array:
        """Logits `[B, K]` of levels `[B, H, W, C]`."""

        def active(x: chex.Array) -> chex.Array:
            return nn.leaky_relu(_norm(train, self.axis_name)(x), 0.1)

        stages = _RESNET_STAGES[self.variant]
        x = standardise(images)
        x = _conv(stages[0][0] // self.divisor, 3, 1, use_bias=False)(x)
        for stage, (width, units) in enumerate(stages):
            width //= self.divisor
            for unit in range(units):
                stride = 2 if stage and not unit else 1
                y = _conv(width, 3, stride, use_bias=False)(active(x))
                y = _conv(width, 3, 1, use_bias=False)(active(y))
                x = _shortcut(x, width, stride) + y
        x = jnp.mean(active(x), (1, 2))
        return nn.Dense(self.classes)(x)


def _shortcut(x: chex.Array, width: int, stride: int) -> chex.Array:
    """Average pooling, and channels of zeros on both sides."""
    if stride > 1:
        window = (stride, stride)
        # By hand: flax's average mixes types, which strict users of JAX forbid.
        x = nn.pool(x, 0.0, jax.lax.add, window, window, "VALID") / float(stride**2)
    more = width - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))


class VGG(nn.Module):
    """The VGG network of PixelDefend, Appendix C.2, batch-normalised.

    Pooling keeps incomplete windows, without which 28 x 28 images do not reach the end
    of the authors' five blocks. The convolutions have no bias: batch norm adds one.

    Attributes:
      variant: "paper", four blocks; or "code", the five of VGG-16.
      divisor: of the feature maps: 1 for CIFAR-10, 4 for Fashion-MNIST.
      classes: K.
      dropout: rate in front of both dense layers (the paper does not give it).
      axis_name: mapped axis over which batch statistics are taken, or None.
    """

    variant: str = "paper"
    divisor: int = 1
    classes: int = 10
    dropout: float = 0.5
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the attributes; raises ValueError naming the one that is wrong."""
        _check(self, VARIANTS)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1): {self.dropout}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: chex.Array, *, train: bool) -> chex.Array:
        """Logits `[B, K]` of levels `[B, H, W, C]`."""
        x = standardise(images)
        for width, convolutions in _VGG_BLOCKS[self.variant]:
            for _ in range(convolutions):
                x = _conv(width // self.divisor, 3, 1, use_bias=False)(x)
                x = nn.relu(_norm(train, self.axis_name)(x))
            x = nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.relu(nn.Dense(_VGG_DENSE // self.divisor)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


class CNN(nn.Module):
    """The classifiers A and B of the thesis (PuVAE with detector), its Table 6.

    The table does not mention padding; none is used.

    Attributes:
      variant: "A" (MNIST, Fashion-MNIST) or "B" (CIFAR-10).
      divisor: of the feature maps and dense widths: 1 is the thesis's.
      classes: K.
      axis_name: accepted as by the other networks, and ignored.
    """

    variant: str = "A"
    divisor: int = 1
    classes: int = 10
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the attributes; raises ValueError naming the one that is wrong."""
        _check(self, _CNN_CONVOLUTIONS)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: chex.Array, *, train: bool) -> chex.Array:
        """Logits `[B, K]` of levels `[B, H, W, C]`."""
        x = standardise(images)
        for width, kernel, stride in _CNN_CONVOLUTIONS[self.variant]:
            width //= self.divisor
            x = nn.relu(_conv(width, kernel, stride, padding="VALID")(x))
        x = nn.Dropout(0.25, deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        first, *others = _CNN_DENSE[self.variant]
        x = nn.relu(nn.Dense(first // self.divisor)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        for width in others:
            x = nn.relu(nn.Dense(width // self.divisor)(x))
        return nn.Dense(self.classes)(x)


@dataclasses.dataclass(frozen=True)
class Own:
    """A classifier of somebody's own, of which only what it does is known.

    Attributes:
      name: two of a name are taken for the same.
      classes: K.
      function: logits `[B, K]` of levels `[B, H, W, C]`, `uint8` or floating.
    """

    name: str
    classes: int
    function: Callable[[chex.Array], chex.Array] = dataclasses.field(
        repr=False, compare=False
    )

    def apply(self, variables: Any, images: chex.Array, *, train: bool) -> chex.Array:
        """Logits, as of the others in inference mode; there are no variables."""
        del variables, train
        return self.function(images.astype(pixels.at_least_float32(images.dtype)))


Classifier = ResNet | VGG | CNN | Own
ARCHITECTURES: dict[str, Callable[..., Classifier]] = {
    "resnet": ResNet,
    "vgg": VGG,
    "cnn": CNN,
}


def make(architecture: str, **options: Any) -> Classifier:
    """A classifier by name, as configs and cards name it.

    Args:
      architecture: a key of `ARCHITECTURES`.
      **options: constructor arguments.

    Raises:
      ValueError: unknown architecture, or an argument out of range.
      TypeError: an argument that this architecture does not have.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {architecture!r}: one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[architecture](**options)


def describe(model: Classifier) -> dict[str, Any]:
    """What `make` needs to make `model` again; the axis belongs to the devices."""
    if isinstance(model, Own):
        return {"architecture": "own", "name": model.name, "classes": model.classes}
    names = {type_: name for name, type_ in ARCHITECTURES.items()}
    hidden = ("parent", "name", "axis_name")
    fields = [f.name for f in dataclasses.fields(model) if f.name not in hidden]
    options = {name: getattr(model, name) for name in fields}
    return {"architecture": names[type(model)], **options}


def init(model: Classifier, key: chex.PRNGKey, images: chex.Array) -> dict:
    """First variables for images `[B, H, W, C]`, of which only the shape matters."""
    assert not isinstance(model, Own)  # which has no variables
    return cast(dict, model.init({"params": key}, images, train=False))


def logits(model: Classifier, variables: dict, images: chex.Array) -> chex.Array:
    """Logits in inference mode: stored batch statistics, no dropout.

    Args:
      model: the description.
      variables: from `init`, training or a released model.
      images: levels `[B, H, W, C]`, `uint8` or floating.

    Returns:
      `[B, K]`.

    Raises:
      TypeError, ValueError: as for `pixels.check_images`.
    """
    pixels.check_images(images)
    return model.apply(variables, images, train=False)


@functools.cache
def logits_fn(model: Classifier) -> Callable[[Any, chex.Array], chex.Array]:
    """`logits` of a model as the `logits_fn(variables, images)` that attacks take.

    The same object for equal models, so that it can be a static argument of `jax.jit`.
    """
    return functools.partial(logits, model)
