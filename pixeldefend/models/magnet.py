"""MagNet's networks and how they are trained: autoencoders in several copies (Linen).

An autoencoder that has learnt to take noise out of clean images moves other images
towards them (Meng and Chen, "MagNet: a two-pronged defense against adversarial
examples", 2017). Images are levels, as everywhere; inside, and in losses, fractions.
"""

import dataclasses
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pixeldefend import pixels, sizes
from pixeldefend.models import convolution

# By name, what comes before the last convolution, which gives the image's channels.
ARCHITECTURES = {
    "pooled": ("convolve", "pool", "convolve", "convolve", "repeat", "convolve"),
    "plain": ("convolve", "convolve"),
}
_MOST = 8  # autoencoders of one model


def _widest(*arrays: chex.Array | None, **_: Any) -> list[chex.Array | None]:
    """For `nn.Conv`, whose own promotion strict users of JAX forbid."""
    dtype = np.result_type(*(x.dtype for x in arrays if x is not None))
    return [None if x is None else x.astype(dtype) for x in arrays]


class _Autoencoder(nn.Module):
    architecture: str
    features: int

    @nn.compact
    def __call__(self, fractions: chex.Array) -> chex.Array:
        """Fractions `[B, H, W, C]` of fractions of the same shape."""
        height, width, channels = fractions.shape[1:]

        def convolved(x: chex.Array, features: int) -> chex.Array:
            layer = nn.Conv(
                features,
                (3, 3),
                kernel_init=nn.initializers.glorot_uniform(),
                promote_dtype=_widest,
                conv_general_dilated=convolution.convolve,
            )
            return nn.sigmoid(layer(x))

        x = fractions
        for layer in ARCHITECTURES[self.architecture]:
            if layer == "pool":
                if height % 2 or width % 2:
                    raise ValueError(
                        f"{self.architecture!r} halves images, whose height and width "
                        f"must be even: {height} x {width}"
                    )
                pairs = (-1, height // 2, 2, width // 2, 2, x.shape[-1])
                x = jnp.mean(x.reshape(pairs), (2, 4))
            elif layer == "repeat":
                x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
            else:
                x = convolved(x, self.features)
        return convolved(x, channels)


class MagNet(nn.Module):
    """Autoencoders of one or more architectures, in one or more copies each.

    Every convolution is followed by a sigmoid, the last one too. Leaves of the
    parameters have a leading axis N of copies.

    Attributes:
      autoencoders: A names of `ARCHITECTURES`; the first is the reformer.
      features: maps of every convolution but the last: 3 for MNIST, 32 for CIFAR-10.
      copies: N.
    """

    autoencoders: tuple[str, ...] = ("pooled", "plain")
    features: int = 3
    copies: int = 1

    def __post_init__(self) -> None:
        """Checks the attributes; raises ValueError naming the one that is wrong."""
        names = self.autoencoders
        names = (names,) if isinstance(names, str) else tuple(names)
        # Cards hold lists, which are not hashable.
        object.__setattr__(self, "autoencoders", names)
        if not names or any(name not in [*ARCHITECTURES] for name in names):
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"autoencoders must be one or more of {known}: {names}")
        if len(names) > _MOST:
            raise ValueError(f"autoencoders must be at most {_MOST}: {len(names)}")
        sizes.check(self, features=(1, sizes.FEATURES), copies=(1, 256))
        super().__post_init__()

    def setup(self) -> None:
        """One module for all copies of an architecture."""
        copied = nn.vmap(
            _Autoencoder,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=self.copies,
        )
        self.networks = [copied(name, self.features) for name in self.autoencoders]

    def __call__(self, images: chex.Array) -> chex.Array:
        """Floating levels `[A, N, B, H, W, C]` of levels `[B, H, W, C]`."""
        found = [self.of_one(images, i) for i in range(len(self.autoencoders))]
        return jnp.stack(found)

    def of_one(self, images: chex.Array, autoencoder: int) -> chex.Array:
        """Those of one autoencoder, by its place: `[N, B, H, W, C]`."""
        fractions = pixels.to_fractions(images)
        return pixels.from_fractions(self.networks[autoencoder](fractions))


def make(**options: Any) -> MagNet:
    """A model from what `describe` gives, also where lists stand for tuples.

    Args:
      **options: constructor arguments.

    Raises:
      ValueError: an argument out of range.
      TypeError: an argument that there is not.
    """
    return MagNet(**options)


def describe(model: MagNet) -> dict[str, Any]:
    """What `make` needs to make `model` again."""
    return {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in ("parent", "name")
    }


def init(model: MagNet, key: chex.PRNGKey, images: chex.Array) -> dict:
    """First variables for images `[B, H, W, C]`, of which only the shape matters.

    Raises:
      ValueError: an odd height or width, where an architecture pools.
    """
    return cast(dict, model.init({"params": key}, images))


def reconstructions(model: MagNet, variables: dict, images: chex.Array) -> chex.Array:
    """What every copy of every autoencoder makes of images.

    Args:
      model: the description.
      variables: from `init` or training.
      images: levels `[B, H, W, C]`, `uint8` or floating.

    Returns:
      Floating levels `[A, N, B, H, W, C]`, of the wider of the images' and the
      parameters' types, at least float32.

    Raises:
      ValueError: an odd height or width, where an architecture pools.
    """
    return model.apply(variables, images)


def loss(
    model: MagNet,
    variables: dict,
    images: chex.Array,
    key: chex.PRNGKey,
    *,
    noise: chex.Array | float = 0.1,
    diversity: chex.Array | float = 0.0,
) -> tuple[chex.Array, dict[str, chex.Array]]:
    """What training makes small: errors, less what makes copies differ.

    All autoencoders are trained at once. The copies are compared on the noisy images,
    as the authors' code does; their penalty on activations, a billionth, is left out.

    Args:
      model: the description.
      variables: from `init` or training.
      images: clean levels `[B, H, W, C]`.
      key: of the noise of the whole batch.
      noise: standard deviation of what is added to the input, in fractions; the sum is
        clipped to 0..1.
      diversity: weight of the mean squared distance of copies from their mean.

    Returns:
      A number and, both in squared fractions, its parts `reconstruction` and
      `diversity`.
    """
    clean = pixels.to_fractions(images)
    noisy = clean + noise * jax.random.normal(key, clean.shape, clean.dtype)
    shown = pixels.from_fractions(jnp.clip(noisy, 0, 1))
    found = pixels.to_fractions(reconstructions(model, variables, shown))
    wanted = clean.astype(found.dtype)[None, None]
    parts = {
        "reconstruction": jnp.mean((found - wanted) ** 2),
        "diversity": jnp.mean((found - jnp.mean(found, 1, keepdims=True)) ** 2),
    }
    return parts["reconstruction"] - diversity * parts["diversity"], parts
