"""MagNet: autoencoders that tell attacked images and mend the others (Linen).

An autoencoder that has learnt to take noise out of clean images moves other images
towards them. Detectors judge an image by how far it is moved, or by how much a
classifier changes its mind about it; the reformer hands the moved image to the
classifier. Where an attacker knows the weights, several different copies are trained
and each image meets one of them at random (Meng and Chen, "MagNet: a two-pronged
defense against adversarial examples", 2017).

Images are levels, as everywhere; inside, and in errors and losses, they are fractions.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pixeldefend import pixels
from pixeldefend.attacks import LogitsFn
from pixeldefend.models import convolution

# By name, what comes before the last convolution, which gives the image's channels.
ARCHITECTURES = {
    "pooled": ("convolve", "pool", "convolve", "convolve", "repeat", "convolve"),
    "plain": ("convolve", "convolve"),
}
# Of log-probabilities; far below what any floating type can tell from zero.
_FLOOR = -1000.0


@dataclasses.dataclass(frozen=True)
class Detector:
    """What one detector looks at: an error, or a divergence.

    Attributes:
      name: for tables.
      autoencoder: its place among those of the model.
      power: of the reconstruction error; 0 for none.
      temperature: of the divergence; 0 for none.
    """

    name: str
    autoencoder: int
    power: int = 0
    temperature: float = 0.0

    def __post_init__(self):
        """Raises ValueError unless there is either a power or a temperature."""
        if (self.power > 0) == (self.temperature > 0):
            raise ValueError(
                f"{self.name}: one of power and temperature must be above 0: "
                f"{self.power}, {self.temperature}"
            )


_GREY = (Detector("pooled_l2", 0, power=2), Detector("plain_l1", 1, power=1))
# By data set: of models with the autoencoders "pooled" and "plain", and for colour with
# "plain" alone.
DETECTORS: dict[str, tuple[Detector, ...]] = {
    "mnist": _GREY,
    "fashion_mnist": _GREY,
    "cifar10": (
        Detector("plain_l1", 0, power=1),
        Detector("divergence_10", 0, temperature=10.0),
        Detector("divergence_40", 0, temperature=40.0),
    ),
}


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

    def __post_init__(self):
        """Checks the attributes; raises ValueError naming the one that is wrong."""
        names = self.autoencoders
        names = (names,) if isinstance(names, str) else tuple(names)
        # Cards hold lists, which are not hashable.
        object.__setattr__(self, "autoencoders", names)
        if not names or not set(names) <= set(ARCHITECTURES):
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"autoencoders must be one or more of {known}: {names}")
        for name in ("features", "copies"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number from 1 up: {value}")
        super().__post_init__()

    def setup(self):
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


def check_detectors(model: MagNet, dataset: str) -> None:
    """Raises ValueError where `DETECTORS` of a data set are for other autoencoders."""
    wanted = ("plain",) if dataset == "cifar10" else ("pooled", "plain")
    if model.autoencoders != wanted:
        raise ValueError(
            f"the detectors of {dataset} take the autoencoders {', '.join(wanted)}, "
            f"not {', '.join(model.autoencoders)}"
        )


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
    return model.init({"params": key}, images)


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


def chosen(model: MagNet, key: chex.PRNGKey) -> chex.Array:
    """The copy that each image meets, all equally likely: int32 `[B]` of keys `[B]`.

    The same for the reformer and all detectors that are given the same keys.
    """
    draw = functools.partial(jax.random.randint, shape=(), minval=0, dtype=jnp.int32)
    return jax.vmap(lambda one: draw(one, maxval=model.copies))(key)


def _rebuilt(
    model: MagNet,
    variables: dict,
    images: chex.Array,
    key: chex.PRNGKey,
    autoencoder: int,
) -> chex.Array:
    """Floating levels `[B, H, W, C]`, each by the copy that its image meets."""
    count = len(model.autoencoders)
    if not 0 <= autoencoder < count:
        raise ValueError(f"autoencoder must be from 0 to {count - 1}: {autoencoder}")
    found = model.apply(variables, images, autoencoder, method="of_one")
    return found[chosen(model, key), jnp.arange(images.shape[0])]


def reformed(
    model: MagNet, variables: dict, images: chex.Array, key: chex.PRNGKey
) -> chex.Array:
    """The reformer, not rounded, so that attacks can go through it.

    Args:
      model: the description; its first autoencoder is the reformer.
      variables: from `init` or training.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      key: `[B]`, one for each image's choice among copies.

    Returns:
      Floating levels `[B, H, W, C]`.
    """
    return _rebuilt(model, variables, images, key, 0)


def reform(
    model: MagNet, variables: dict, images: chex.Array, key: chex.PRNGKey
) -> chex.Array:
    """What the classifier gets in place of the images: `reformed`, in whole levels.

    Args:
      model: as for `reformed`.
      variables: likewise.
      images: likewise.
      key: likewise.

    Returns:
      Levels `[B, H, W, C]` uint8.
    """
    levels = jnp.round(reformed(model, variables, images, key))
    return jnp.clip(levels, 0, pixels.LEVELS - 1).astype(jnp.uint8)


def reconstruction_error(
    model: MagNet,
    variables: dict,
    images: chex.Array,
    key: chex.PRNGKey,
    *,
    autoencoder: int = 0,
    power: int = 1,
) -> chex.Array:
    """How far an autoencoder moves images.

    Args:
      model: the description.
      variables: from `init` or training.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      key: `[B]`, as for `reformed`.
      autoencoder: its place among those of the model.
      power: 1 or 2 in the paper.

    Returns:
      `[B]`: the mean over an image's values of |x - AE(x)|^power, in fractions.

    Raises:
      ValueError: no such autoencoder, or a power below 1.
    """
    rebuilt = _rebuilt(model, variables, images, key, autoencoder)
    return _error(images, rebuilt, power)


def _error(images: chex.Array, rebuilt: chex.Array, power: int) -> chex.Array:
    if power < 1:
        raise ValueError(f"power must be at least 1: {power}")
    moved = pixels.to_fractions(rebuilt - images.astype(rebuilt.dtype))
    return jnp.mean(jnp.abs(moved) ** power, (1, 2, 3))


def jensen_shannon(
    first: chex.Array, second: chex.Array, *, temperature: float = 1.0
) -> chex.Array:
    """The Jensen-Shannon divergence of two softmax laws.

    Args:
      first: logits `[..., K]`; minus infinity for a class that cannot be.
      second: likewise.
      temperature: divides both, so that confident classifiers differ visibly.

    Returns:
      `[...]` nats, from 0 to log 2.

    Raises:
      ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0: {temperature}")

    def log_softmax(logits: chex.Array) -> chex.Array:
        logits = logits.astype(pixels.at_least_float32(logits.dtype))
        return jnp.maximum(jax.nn.log_softmax(logits / temperature), _FLOOR)

    p, q = log_softmax(first), log_softmax(second)
    # From (P - Q) / (P + Q), since subtracting logarithms of nearly equal laws leaves
    # little but rounding; inside (-1, 1), at whose ends slopes are infinite.
    nearly_one = 1 - float(jnp.finfo(p.dtype).eps)
    lean = jnp.clip(jnp.tanh((p - q) / 2), -nearly_one, nearly_one)
    terms = (1 + lean) * jnp.log1p(lean) + (1 - lean) * jnp.log1p(-lean)
    return jnp.sum((jnp.exp(p) + jnp.exp(q)) / 4 * terms, -1)


def divergence(
    model: MagNet,
    variables: dict,
    images: chex.Array,
    key: chex.PRNGKey,
    *,
    logits_fn: LogitsFn,
    classifier_variables: Any,
    autoencoder: int = 0,
    temperature: float = 10.0,
) -> chex.Array:
    """How much a classifier changes its mind about images that were moved.

    Args:
      model: the description.
      variables: from `init` or training.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      key: `[B]`, as for `reformed`.
      logits_fn: `logits_fn(variables, images) -> [B, K]`, of floating levels.
      classifier_variables: for `logits_fn`.
      autoencoder: its place among those of the model.
      temperature: as for `jensen_shannon`; 10 and 40 in the paper.

    Returns:
      `[B]` nats, from 0 to log 2.

    Raises:
      ValueError: no such autoencoder, or a temperature that is not above 0.
    """
    detector = Detector("divergence", autoencoder, temperature=temperature)
    return scores(
        model,
        variables,
        images,
        key,
        detectors=(detector,),
        logits_fn=logits_fn,
        classifier_variables=classifier_variables,
    )[0]


def scores(
    model: MagNet,
    variables: dict,
    images: chex.Array,
    key: chex.PRNGKey,
    *,
    detectors: Sequence[Detector],
    logits_fn: LogitsFn | None = None,
    classifier_variables: Any = None,
) -> chex.Array:
    """What all detectors make of images; high means attacked.

    Args:
      model: the description.
      variables: from `init` or training.
      images: levels `[B, H, W, C]`, `uint8` or floating.
      key: `[B]`, as for `reformed`.
      detectors: D of them, such as those of `DETECTORS`.
      logits_fn: as for `divergence`; errors alone need none.
      classifier_variables: for `logits_fn`.

    Returns:
      `[D, B]`: mean errors in fractions, or nats.

    Raises:
      ValueError: a detector's autoencoder is none of the model's, or a divergence is
        asked for without `logits_fn`.
    """
    if logits_fn is None and any(detector.temperature for detector in detectors):
        raise ValueError("a detector with a temperature needs logits_fn")
    rebuilt = {
        place: _rebuilt(model, variables, images, key, place)
        for place in {detector.autoencoder for detector in detectors}
    }

    # Once for all temperatures.
    @functools.cache
    def logits(place: int | None) -> chex.Array:
        given = images.astype(pixels.at_least_float32(images.dtype))
        shown = given if place is None else rebuilt[place]
        return logits_fn(classifier_variables, shown)

    def score(detector: Detector) -> chex.Array:
        place = detector.autoencoder
        if detector.power:
            return _error(images, rebuilt[place], detector.power)
        return jensen_shannon(
            logits(None), logits(place), temperature=detector.temperature
        )

    return jnp.stack([score(detector) for detector in detectors])
