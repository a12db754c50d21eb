"""The PixelCNN++ network: what it is made of, and its wiring, written once.

Salimans et al., PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture
Likelihood and Other Modifications, ICLR 2017; as used by PixelDefend (Song et al.,
ICLR 2018, section 2.2 and Appendix C).
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from pixeldefend import pixels, sizes
from pixeldefend.density import conditionals, layers
from pixeldefend.density.conditionals import Family


@dataclasses.dataclass(frozen=True)
class PixelCNN:
    """Description of a PixelCNN++; hashable, so static under `jax.jit`.

    Attributes:
      features: channels F of both streams (the paper: 160, Fashion-MNIST 40).
      depth: gated blocks per stream and resolution on the way down (the paper: 5).
      resolutions: of the network; the image's height and width must be divisible by
        `2 ** (resolutions - 1)`.
      mixtures: logistic components M of the mixture conditionals.
      dropout: rate in training, element-wise, in every gated block.
      conditionals: `"independent"` (the paper's), `"joint"` (PixelCNN++'s own) or
        `"softmax"`; see `conditionals.py`.
      classes: number of classes K of a class-conditional model, 0 for none.
      channels: of the images, 1 or 3.
      dtype: name of the floating type that the streams compute in; the head and the
        parameters are never narrower than float32.
    """

    features: int = 160
    depth: int = 5
    resolutions: int = 3
    mixtures: int = 10
    dropout: float = 0.5
    conditionals: str = "independent"
    classes: int = 0
    channels: int = 3
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Checks the description.

        Raises:
          ValueError: a size is out of range or a name is unknown.
        """
        sizes.check(
            self,
            features=(1, sizes.FEATURES),
            depth=(1, 16),
            resolutions=(1, 6),
            mixtures=(1, pixels.LEVELS),
            classes=(0, sizes.CLASSES),
        )
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3: {self.channels}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1): {self.dropout}")
        if self.conditionals not in conditionals.CONDITIONALS:
            raise ValueError(
                f"conditionals must be one of {', '.join(conditionals.CONDITIONALS)}: "
                f"{self.conditionals!r}"
            )
        try:
            floating = jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating)
        except TypeError:
            floating = False
        if not floating:
            raise ValueError(f"dtype must be a floating type: {self.dtype!r}")

    @property
    def head_dtype(self) -> jnp.dtype:
        """Type of the parameters, the head and all log-probabilities."""
        return pixels.at_least_float32(self.dtype)

    @property
    def family(self) -> Family:
        """The conditionals that `conditionals` names, for this model's head."""
        return conditionals.named(
            self.conditionals,
            mixtures=self.mixtures,
            channels=self.channels,
            dtype=self.head_dtype,
        )


def stream(
    face: layers.Face,
    model: PixelCNN,
    resolution: int,
    x: chex.Array,
) -> chex.Array:
    """One stream from a resolution downwards and back, the same for both.

    A U-net: `depth` gated blocks, half the resolution, and back with as many blocks as
    there are outputs to skip over (one more than `depth`, except at the bottom).
    """
    skips = [x]
    for k in range(model.depth):
        x = layers.gated(face, resolution, f"down{k}", x)
        skips.append(x)
    if resolution + 1 < model.resolutions:
        x = face.halved(resolution, x, lambda y: stream(face, model, resolution + 1, y))
    else:
        skips.pop()
    for k in range(len(skips)):
        x = layers.gated(face, resolution, f"up{k}", x, skips.pop())
    return x


def with_ones(model: PixelCNN, images: chex.Array) -> chex.Array:
    """Levels `[..., C]` as units with a channel of ones, `[..., C + 1]`.

    The ones tell a black pixel from padding.
    """
    units = pixels.to_units(images, jnp.dtype(model.dtype))
    return jnp.concatenate([units, jnp.ones_like(units[..., :1])], axis=-1)


def head_outputs(weights: dict, x: chex.Array, dtype: jnp.dtype) -> chex.Array:
    """The last layer: `[..., F]` of the `ul` stream to `[..., P]`, for the family.

    Args:
      weights: of the head, from `layers.fold`.
      x: `[..., F]`.
      dtype: that the layer computes in.
    """
    layer = weights["output"]
    bias = layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
    return jax.nn.elu(x.astype(dtype)) @ layer["kernel"] + bias


def apply(
    model: PixelCNN,
    params: dict,
    images: chex.Array,
    *,
    labels: chex.Array | None = None,
    key: chex.PRNGKey | None = None,
) -> chex.Array:
    """The network on whole images, all positions at once (teacher-forced).

    Args:
      model: the description.
      params: from `init`.
      images: levels `[B, H, W, C]`, `uint8` or floating 0..255.
      labels: integers `[B]`; needed if and only if the model is class-conditional.
      key: means training: dropout is on.

    Returns:
      Head outputs `[B, H, W, P]`, at least float32: the parameters of each position's
      conditionals, which `model.family` reads.

    Raises:
      ValueError: shapes or labels that the model cannot take.
    """
    check_images(model, images, labels)
    weights = layers.fold(params, jnp.dtype(model.dtype), labels)
    units = with_ones(model, images)
    keys = (None, None) if key is None else jax.random.split(key)
    u = layers.Image(weights["u"], dropout=model.dropout, key=keys[0])
    stream(u, model, 0, u.input(units, model.features))
    ul = layers.Image(weights["ul"], u, dropout=model.dropout, key=keys[1])
    x = stream(ul, model, 0, ul.input(units, model.features))
    return head_outputs(weights["head"], x, model.head_dtype)


def init(
    model: PixelCNN,
    key: chex.PRNGKey,
    images: chex.Array,
    *,
    labels: chex.Array | None = None,
) -> dict:
    """Makes parameters whose activations are normalised on the given images.

    Data-dependent initialisation (Salimans and Kingma, Weight Normalization, 2016):
    every layer's outputs start with mean 0 and deviation 1 (0.1 for the second layer
    of a block) over `images`; the original uses 100 of them.

    Args:
      model: the description.
      key: consumed.
      images: levels `[B, H, W, C]`.
      labels: integers `[B]` for a class-conditional model; their tables start at zero.

    Returns:
      The parameters, a dict of arrays of `model.head_dtype`.

    Raises:
      ValueError: shapes or labels that the model cannot take.
    """
    check_images(model, images, labels)
    pixels.check_some(images)
    u_key, ul_key, head_key = jax.random.split(key, 3)
    wide = model.head_dtype
    units = with_ones(model, images).astype(wide)
    options: dict[str, Any] = {
        "resolutions": model.resolutions,
        "classes": model.classes,
        "dropout": model.dropout,
        "dtype": wide,
    }
    u = layers.Init(key=u_key, **options)
    stream(u, model, 0, u.input(units, model.features))
    ul = layers.Init(u, key=ul_key, **options)
    x = jax.nn.elu(stream(ul, model, 0, ul.input(units, model.features)))
    last = layers.Init(key=head_key, **options)
    shape = (model.features, model.family.num_outputs)
    _, output = last.make(shape, lambda w: x @ w, 1.0)
    return {
        "u": u.params,
        "ul": ul.params,
        "head": {"output": output, **model.family.head_parameters()},
    }


def check_images(
    model: PixelCNN, images: chex.Array, labels: chex.Array | None
) -> None:
    """Checks what a trace can see.

    Raises:
      TypeError: no array, or of a type that holds no levels.
      ValueError: not levels `[B, H, W, C]` with the model's channels, a height or width
        that the resolutions do not divide, or labels where none belong or the reverse.
    """
    factor = 2 ** (model.resolutions - 1)
    pixels.check_images(images, model.channels)
    if images.shape[1] % factor or images.shape[2] % factor:
        height, width = (-(-size // factor) * factor for size in images.shape[1:3])
        raise ValueError(
            f"height and width must be divisible by {factor} for {model.resolutions} "
            f"resolutions: {images.shape[1]} x {images.shape[2]}; the next that are: "
            f"{height} x {width}"
        )
    if (labels is None) != (model.classes == 0):
        raise ValueError(
            "this model is class-conditional: give labels [B]"
            if labels is None
            else "this model is not class-conditional: labels must be None"
        )
    if labels is None:
        return
    whole = jnp.issubdtype(labels.dtype, jnp.integer)
    if labels.shape != images.shape[:1] or not whole:
        raise ValueError(
            f"labels must be integers [{images.shape[0]}], one per image: "
            f"{labels.dtype} {list(labels.shape)}"
        )
