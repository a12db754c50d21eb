"""What stands in front of a classifier: one protocol for every defence.

A defence is a frozen dataclass, hashable, that says what is done; what it is done with
(weights, eps, thresholds) comes as `params`, a dict of arrays. Each has a file of its
own and a line in `defences.DEFENCES`. From the protocol come composition (`apply`), the
network that a white-box attacker sees (`behind`) and all that the experiments need.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
from flax import struct

from pixeldefend import pixels
from pixeldefend.attacks.outcome import LogitsFn

# How an attacker differentiates a defence, see `Defence.view`.
GRADIENTS = ("bpda", "straight_through", "expectation")
# How one sees it who asks for nothing but what comes out.
OUTPUTS = "outputs"
# What a defence is done with; `threshold` is for `Defence.decide` alone.
Params = dict[str, Any]
# What `Defence.compute` found, `[B, ...]` by name.
Computed = dict[str, chex.Array]
Keys: TypeAlias = chex.PRNGKey | None  # `[B]`, one for each image


class Given(NamedTuple):
    """What a defence is built from.

    Attributes:
      settings: sections of a config, such as `settings["purify"]["eps"]`.
      model: of the kind that the defence takes; None where it takes none.
      params: its parameters.
      classifier: that is behind it, a pair of description and variables; None where
        the defence does not ask.
    """

    settings: Mapping[str, Any]
    model: Any = None
    params: Any = None
    classifier: tuple[Any, Any] | None = None


@struct.dataclass
class Passed:
    """Images as a defence hands them on.

    Attributes:
      images: levels `[B, H, W, C]`.
      log_prob: of these images, `[B]` nats, where a density model has told.
      rmse: how far an autoencoder moved them, `[B]` levels, where one did.
      rejected: by a detector, `[B]` bool, where one judged.
    """

    images: chex.Array
    log_prob: chex.Array | None = None
    rmse: chex.Array | None = None
    rejected: chex.Array | None = None


class Defence:
    """Base of all defences; `compute` is all that one of its own must have.

    What costs is in `compute`, a pure function whose results can be kept; `decide`
    makes of these, cheaply, what is handed on. Two defences may share what they compute
    (see `computed_by`).

    Attributes:
      name: in the text of a row, "cifar10/resnet + squeeze + purify".
      model: the kind of released model that it takes; "" for none.
      detects: whether it judges images and hands them on unchanged.
      random: whether it draws from its key.
      asks_classifier: whether it takes the classifier behind it.
      gradients: of `GRADIENTS`, those that it has.
      forwards: those with which `view` forwards what `compute` hands on.
      always_seen: as what the attacks of a table see it even where they know of no
        defence; "" where they do not.
    """

    name: ClassVar[str]
    model: ClassVar[str] = ""
    detects: ClassVar[bool] = False
    random: ClassVar[bool] = False
    asks_classifier: ClassVar[bool] = False
    gradients: ClassVar[tuple[str, ...]] = ("bpda",)
    forwards: ClassVar[tuple[str, ...]] = ("bpda", "straight_through")
    always_seen: ClassVar[str] = ""

    @classmethod
    def build(cls, given: Given) -> tuple["Defence", Params]:
        """The defence and its `params`, as a config describes it; by default the model
        that it takes with its parameters, and no settings.

        Raises:
          ValueError, TypeError: settings that cannot be.
        """
        make: Callable[..., Defence] = cls  # each has fields of its own
        if cls.model:
            return make(given.model), {"params": given.params}
        return make(), {}

    @property
    def computed_by(self) -> "Defence":
        """The defence whose `compute` this one takes the results of."""
        return self

    def compute(self, params: Params, images: chex.Array, key: Keys) -> Computed:
        """All that costs, as arrays `[B, ...]` by name.

        Images are levels `[B, H, W, C]`, `uint8` or floating.
        """
        raise NotImplementedError

    def decide(self, params: Params, computed: Computed, images: chex.Array) -> Passed:
        """What is handed on; by default the `images` that were computed."""
        del params, images
        return Passed(computed["images"], rmse=computed.get("rmse"))

    def facts(self, params: Params) -> dict[str, Any]:
        """What a row tells of its settings, by field."""
        return {}

    @staticmethod
    def upright(images: chex.Array) -> chex.Array:
        """What it handed on as it came, for who looks: a turned image turned back."""
        return images

    def view(
        self, params: Params, images: chex.Array, key: Keys, gradient: str
    ) -> chex.Array:
        """The defence as an attacker sees it who differentiates it.

        Args:
          params: as for `compute`.
          images: floating levels `[B, H, W, C]`.
          key: `[B]`.
          gradient: one of `GRADIENTS`. "bpda": forwards the defence, backwards as if it
            changed nothing (backward pass differentiable approximation, Athalye et al.
            2018, section 4.1). "straight_through": its own gradient, past the rounding
            to levels. "expectation": likewise, and forwards too without rounding; of a
            random defence the mean over draws (their section 4.2).

        Returns:
          Floating levels `[B, H, W, C]`.

        Raises:
          ValueError: it has no such gradient.
        """
        if gradient != "bpda":
            raise ValueError(
                f"{self.name} has no gradient other than bpda: {gradient!r}"
            )
        given = whole(jax.lax.stop_gradient(images))
        passed = self.decide(params, self.compute(params, given, key), given)
        return straight_through(images, passed.images.astype(images.dtype))


class Smooth(Defence):
    """A defence with a gradient of its own, which rounds at the end."""

    gradients = GRADIENTS

    def smooth(self, params: Params, images: chex.Array, key: Keys) -> chex.Array:
        """Differentiable floating levels `[B, H, W, C]`, not rounded."""
        raise NotImplementedError

    def compute(self, params: Params, images: chex.Array, key: Keys) -> Computed:
        """The `images` of `smooth`, in whole levels."""
        return {"images": whole(self.smooth(params, images, key))}

    def view(
        self, params: Params, images: chex.Array, key: Keys, gradient: str
    ) -> chex.Array:
        """As for every defence; a random one's draw is the key's."""
        if gradient == "expectation":
            return self.smooth(params, images, key)
        seen = jax.lax.stop_gradient(images) if gradient == "bpda" else images
        found = self.smooth(params, seen, key)
        onto = images if gradient == "bpda" else found
        return straight_through(onto, jnp.round(found))


class Detector(Defence):
    """A defence that rejects the images that any of its scores finds too suspicious.

    `params` has `threshold` `[D]`, see `reject.thresholds`.
    """

    detects = True
    gradients = forwards = GRADIENTS

    def scores(self, params: Params, images: chex.Array, key: Keys) -> chex.Array:
        """How suspicious images are, `[D, B]`, differentiable."""
        raise NotImplementedError

    def compute(self, params: Params, images: chex.Array, key: Keys) -> Computed:
        """The `scores` `[B, D]`."""
        return {"scores": self.scores(params, images, key).T}

    def computed_scores(self, computed: Computed) -> chex.Array:
        """The scores `[D, B]` in what was computed."""
        return computed["scores"].T

    def decide(self, params: Params, computed: Computed, images: chex.Array) -> Passed:
        """The images as they were, and which of them are `rejected`."""
        out = rejected(self.computed_scores(computed), params["threshold"])
        return Passed(images, rmse=computed.get("rmse"), rejected=out)

    def view(
        self, params: Params, images: chex.Array, key: Keys, gradient: str
    ) -> chex.Array:
        """The images: the classifier behind it gets them as they are."""
        del params, key, gradient
        return images


def rejected(scores: chex.Array, thresholds: chex.Array) -> chex.Array:
    """Whether any detector finds an image too suspicious, `[N]` bool.

    Args:
      scores: `[D, N]`.
      thresholds: `[D]`. What is no number is rejected too.
    """
    return jnp.any(~(scores <= thresholds[:, None]), 0)


def whole(images: chex.Array) -> chex.Array:
    """The nearest whole levels, uint8; of uint8 the images themselves."""
    if images.dtype == jnp.uint8:
        return images
    levels = jnp.clip(jnp.round(images), 0, pixels.LEVELS - 1)
    return levels.astype(jnp.uint8)


def joined(before: Passed, defence: Defence, after: Passed) -> Passed:
    """What two defences in a row hand on, of which `defence` is the second."""
    out = [one for one in (before.rejected, after.rejected) if one is not None]
    return Passed(
        after.images,
        before.log_prob if defence.detects else after.log_prob,
        before.rmse if after.rmse is None else after.rmse,
        None if not out else (out[0] | out[-1]),
    )


def keys_for(before: Sequence[Defence | type[Defence]], key: Keys) -> Keys:
    """The keys of a defence that stands behind others, so that no two draw alike.

    A detector draws as the defence behind it does: it may judge what that one makes.
    """
    drawn = sum(defence.random and not defence.detects for defence in before)
    if not drawn or key is None:
        return key
    return jax.vmap(lambda one: jax.random.fold_in(one, drawn))(key)


def check_params(
    defences: Sequence[Defence], params: Sequence[Params], key: chex.PRNGKey | None
) -> None:
    """Raises ValueError where not each has its params, or a random one has no key."""
    if len(defences) != len(params):
        raise ValueError(
            f"{len(defences)} defences need as many params, not {len(params)}"
        )
    for defence in defences:
        if defence.random and key is None:
            raise ValueError(f"{defence.name} is random: it needs a key")


def apply(
    defences: Sequence[Defence],
    params: Sequence[dict[str, Any]],
    images: chex.Array,
    key: chex.PRNGKey | None = None,
) -> Passed:
    """Images after they passed defences, in their order.

    Args:
      defences: any number of them.
      params: of each.
      images: levels `[B, H, W, C]`, `uint8`.
      key: `[B]`, one for each image; None where no defence is random.

    Returns:
      What the last hands on, with what each detector on the way rejected.

    Raises:
      ValueError: a random defence without a key.
    """
    check_params(defences, params, key)
    passed = Passed(images)
    for place, (defence, its) in enumerate(zip(defences, params, strict=True)):
        keys = keys_for(defences[:place], key)
        computed = defence.compute(its, passed.images, keys)
        passed = joined(passed, defence, defence.decide(its, computed, passed.images))
    return passed


def behind(
    defences: Sequence[Defence],
    logits_fn: LogitsFn,
    *,
    gradient: str = "bpda",
    draws: int = 4,
    truly: bool = False,
) -> LogitsFn:
    """A classifier behind defences, as seen by an attack through all of them.

    Draws of random defences are the same for all images and at every look; with a key
    of the attacker's own they are not those of the defence. With the gradient
    "expectation" it is the mean of several draws, of log-probabilities. Whether the
    defence itself is fooled only the attacked image tells.

    Args:
      defences: in the order in which an image passes them.
      logits_fn: of the classifier behind them, of floating levels.
      gradient: one of `GRADIENTS`, see `Defence.view`, or `OUTPUTS`, which has none.
      draws: of "expectation", where a defence is random.
      truly: forwards the defences themselves also where their view does not (see
        `Defence.forwards`) and none is random, so that an attack which stops at a
        success stops at one that is.

    Returns:
      `logits_fn(variables, images) -> [B, K]` of floating levels; `variables` holds
      `classifier` (what the given `logits_fn` takes), `defences` (the `params` of each)
      and, where one is random, `key`.

    Raises:
      ValueError: an unknown gradient, or not at least one draw.
    """
    if gradient not in (*GRADIENTS, OUTPUTS):
        known = ", ".join((*GRADIENTS, OUTPUTS))
        raise ValueError(f"gradient must be one of {known}: {gradient!r}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1: {draws}")
    random = any(defence.random for defence in defences)
    gradient = "bpda" if gradient == OUTPUTS else gradient

    def seen(variables: dict, images: chex.Array, key: Any) -> chex.Array:
        keys = None if key is None else jnp.broadcast_to(key, (len(images),))
        for place, defence in enumerate(defences):
            own = keys_for(defences[:place], keys)
            images = defence.view(variables["defences"][place], images, own, gradient)
        return logits_fn(variables["classifier"], images)

    @jax.custom_vjp
    def shown(variables: dict, images: chex.Array) -> chex.Array:
        """The defences themselves, cheaper too where no gradient is wanted."""
        given = whole(images)
        passed = apply(defences, variables["defences"], given).images
        return logits_fn(variables["classifier"], passed.astype(images.dtype))

    def differentiated(variables: dict, images: chex.Array) -> tuple[chex.Array, Any]:
        logits, back = jax.vjp(lambda x: seen(variables, x, None), images)
        if not all(gradient in defence.forwards for defence in defences):
            logits = shown(variables, images)
        return logits, back

    def backwards(back: Any, towards: chex.Array) -> tuple[None, chex.Array]:
        return None, *back(towards)

    shown.defvjp(differentiated, backwards)

    def logits_behind(variables: dict, images: chex.Array) -> chex.Array:
        check_params(defences, variables["defences"], variables.get("key"))
        if random and variables["key"].ndim:
            raise ValueError(f"the key must be a single one: {variables['key'].shape}")
        if random and gradient == "expectation":
            return _expectation(
                lambda key: seen(variables, images, key), variables["key"], draws
            )
        if truly and not random:
            return shown(variables, images)
        return seen(variables, images, variables.get("key"))

    return logits_behind


def _expectation(
    logits: Callable[[chex.PRNGKey], chex.Array], key: chex.PRNGKey, draws: int
) -> chex.Array:
    """The mean log-probabilities `[B, K]` of several draws."""

    @jax.checkpoint
    def log_probs(key: chex.PRNGKey) -> chex.Array:
        return jax.nn.log_softmax(logits(key))

    # One after the other: memory for one.
    return jnp.mean(jax.lax.map(log_probs, jax.random.split(key, draws)), 0)


def straight_through(images: chex.Array, others: chex.Array) -> chex.Array:
    """`others`, whose gradient goes to `images`."""
    # What is added is exactly 0, and has the gradient.
    zero = images - jax.lax.stop_gradient(images)
    return jax.lax.stop_gradient(others) + zero
