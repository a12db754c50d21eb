"""MagNet: autoencoders that detect attacked images and reform the others.

Detectors judge an image by how far an autoencoder moves it, or by how much a classifier
changes its mind about it; the reformer hands the moved image to the classifier. Where
an attacker knows the weights, several different copies are trained and each image meets
one of them at random (Meng and Chen, "MagNet: a two-pronged defense against adversarial
examples", 2017). The networks and their training are those of `models.magnet`.

Images are levels, as everywhere; errors are of fractions.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from pixeldefend import pixels
from pixeldefend.attacks.outcome import LogitsFn
from pixeldefend.defences import base
from pixeldefend.models import classifiers
from pixeldefend.models.magnet import (
    MagNet,
    describe,
    init,
    loss,
    make,
    reconstructions,
)

__all__ = [
    "DETECTORS",
    "Detector",
    "MagNet",
    "Reform",
    "RejectUnstable",
    "chosen",
    "describe",
    "detectors_of",
    "divergence",
    "init",
    "jensen_shannon",
    "loss",
    "make",
    "reconstruction_error",
    "reconstructions",
    "reform",
    "reformed",
    "scores",
]
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

    def __post_init__(self) -> None:
        """Raises ValueError unless there is either a power or a temperature."""
        if (self.power > 0) == (self.temperature > 0):
            raise ValueError(
                f"{self.name}: either power or temperature must be above 0: "
                f"{self.power}, {self.temperature}"
            )


# By autoencoders: the paper's for MNIST, and for CIFAR-10.
DETECTORS: dict[tuple[str, ...], tuple[Detector, ...]] = {
    ("pooled", "plain"): (
        Detector("pooled_l2", 0, power=2),
        Detector("plain_l1", 1, power=1),
    ),
    ("plain",): (
        Detector("plain_l1", 0, power=1),
        Detector("divergence_10", 0, temperature=10.0),
        Detector("divergence_40", 0, temperature=40.0),
    ),
}


def detectors_of(model: MagNet) -> tuple[Detector, ...]:
    """The detectors of `DETECTORS` for a model; ValueError where there are none."""
    if model.autoencoders not in DETECTORS:
        known = " or ".join("+".join(names) for names in DETECTORS)
        raise ValueError(
            f"there are detectors only for the autoencoders {known}, not "
            f"{'+'.join(model.autoencoders)}"
        )
    return DETECTORS[model.autoencoders]


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
    found: chex.Array = model.apply(variables, images, autoencoder, method="of_one")
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
        assert logits_fn is not None  # seen to above
        return logits_fn(classifier_variables, shown)

    def score(detector: Detector) -> chex.Array:
        place = detector.autoencoder
        if detector.power:
            return _error(images, rebuilt[place], detector.power)
        return jensen_shannon(
            logits(None), logits(place), temperature=detector.temperature
        )

    return jnp.stack([score(detector) for detector in detectors])


@dataclasses.dataclass(frozen=True)
class Reform(base.Smooth):
    """`reform` as a defence.

    Its `params`: `params` of the MagNet.

    Attributes:
      magnet: the description.
    """

    name = "magnet"
    model = "magnet"
    random = True
    magnet: MagNet

    def smooth(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> chex.Array:
        """What the copy that each image meets makes of it."""
        return reformed(self.magnet, params["params"], images, key)


@dataclasses.dataclass(frozen=True)
class RejectUnstable(base.Detector):
    """MagNet's detectors as a defence.

    Its `params`: `params` of the MagNet, `classifier` (variables of the one that is
    asked) and `threshold` `[D]`.

    Attributes:
      magnet: the description.
      classifier: whose opinion divergences ask.
      detectors: D of them.
    """

    name = "reject_magnet"
    model = "magnet"
    random = True
    asks_classifier = True
    magnet: MagNet
    classifier: classifiers.Classifier
    detectors: tuple[Detector, ...]

    @classmethod
    def build(cls, given: base.Given) -> tuple[base.Defence, base.Params]:
        """As for every defence; detectors are those of the autoencoders."""
        assert given.classifier is not None  # it asks for one
        asked, variables = given.classifier
        found = cls(given.model, asked, detectors_of(given.model))
        return found, {"params": given.params, "classifier": variables}

    def scores(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> chex.Array:
        """Those of `scores`, `[D, B]`."""
        return scores(
            self.magnet,
            params["params"],
            images,
            key,
            detectors=self.detectors,
            logits_fn=classifiers.logits_fn(self.classifier),
            classifier_variables=params["classifier"],
        )
