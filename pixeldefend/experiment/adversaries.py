"""Attacks as functions to be mapped over images, of what they look at.

Each is `attack(target, ..., variables, images, labels, indices) -> dict`: what comes
before `variables` is static and hashable, so that one program serves all values.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import attacks
from pixeldefend.defences import base, pipeline
from pixeldefend.models import classifiers


@dataclasses.dataclass(frozen=True)
class Target:
    """What an attack looks at.

    Attributes:
      model: the classifier, or a `logits_fn` of one's own; None for an attack that
        looks at nothing.
      defences: that it sees in front of it, in the order in which an image passes them.
      gradient: how, as for `base.behind`; "" without defences.
      truly: likewise.
    """

    model: classifiers.Classifier | attacks.LogitsFn | None
    defences: tuple[base.Defence, ...] = ()
    gradient: str = ""
    truly: bool = False

    @property
    def logits_fn(self) -> attacks.LogitsFn:
        """Of the classifier, behind the defences where there are any."""
        if self.model is None:
            return pipeline.blind
        logits_fn = (
            classifiers.logits_fn(self.model)
            if isinstance(self.model, classifiers.Classifier)
            else self.model
        )
        if not self.defences:
            return logits_fn
        return base.behind(
            self.defences,
            logits_fn,
            gradient=self.gradient or "bpda",
            truly=self.truly,
        )


def attacked(
    target: Target,
    name: str,
    preset: str | None,
    fractional: bool,
    variables: dict,
    *arrays: jax.Array,
) -> dict:
    """By an attack that looks at eps from the beginning.

    Args:
      target: see there.
      name: of the attack.
      preset: of its arguments.
      fractional: whether levels are left as they are found.
      variables: `target` (what its `logits_fn` takes), `eps` and `key`.
      *arrays: images, labels and their places in the set.
    """
    move = attacks.named(name, preset or "")
    if fractional:
        move = functools.partial(move, quantise=False)
    perturb = pipeline.perturbing(move, target.logits_fn)
    return _outcome(*perturb(variables | {"classifier": variables["target"]}, *arrays))


def searched(
    target: Target,
    name: str,
    preset: str | None,
    variables: dict,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
) -> dict:
    """By an attack without a ball; the same search whatever eps is, see `cut`."""
    del indices
    move = attacks.named(name, preset or "")
    found, info = move(
        target.logits_fn,
        variables["target"],
        images,
        labels,
        eps=jnp.inf,
        quantise=False,
        keep_failed=True,
    )
    return _outcome(found, info)


def cut(
    target: Target,
    norm: str,
    variables: dict,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    found: jax.Array,
) -> dict:
    """What `searched` found, cut to a ball of radius `variables["eps"]`."""
    del indices
    images, info = attacks.cut(
        target.logits_fn,
        variables["target"],
        images,
        labels,
        found,
        eps=variables["eps"],
        norm=norm,
    )
    return _outcome(images, info)


def evading(
    target: Target,
    detectors: tuple[base.Detector, ...],
    variables: dict,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
) -> dict:
    """By an attack past all that stands in front of a classifier: defences and
    detectors.

    Args:
      target: see there.
      detectors: that must not reject the images.
      variables: `target`, `eps`, `detectors` (the `params` of each) and `key`.
      images: `[B, H, W, C]` uint8.
      labels: `[B]`.
      indices: `[B]`.
    """
    del indices

    def innocence(variables: dict, images: jax.Array) -> jax.Array:
        keys = jnp.broadcast_to(variables["key"], (len(images),))
        shares = []
        for detector, params in zip(detectors, variables["detectors"], strict=True):
            bar = params["threshold"][:, None]
            share = detector.scores(params, images, keys) / bar
            # Above 1 is rejected, also where the threshold is negative.
            shares.append(jnp.where(bar < 0, 2 - share, share))
        return -jnp.max(jnp.concatenate(shares), 0)

    def logits_fn(variables: dict, images: jax.Array) -> jax.Array:
        return target.logits_fn(variables["target"], images)

    found, info = attacks.evade(
        logits_fn,
        innocence,
        variables,
        images,
        labels,
        eps=variables["eps"],
        threshold=-1.0,
        keep_failed=True,
    )
    return _outcome(found, info)


def classes(model: classifiers.Classifier, variables: Any, images: jax.Array) -> dict:
    """What a classifier takes images for, `classes` `[B]`."""
    logits_fn = classifiers.logits_fn(model)
    return {"classes": attacks.predicted(logits_fn, variables, images)}


def probabilities(
    model: classifiers.Classifier, variables: Any, images: jax.Array
) -> jax.Array:
    """A classifier's probabilities `[B, K]`."""
    logits_fn = classifiers.logits_fn(model)
    return jax.nn.softmax(logits_fn(variables, images.astype(jnp.float32)))


def doubts(attacked: dict[str, np.ndarray]) -> dict:
    """What AutoAttack says of its own verdict; nothing of other attacks.

    Args:
      attacked: see `Workbench.attacked`.

    Returns:
      `fooled_by`, how many images each of its parts has fooled, and `doubts`, of how
      many images what is in doubt (see `attacks.AutoInfo`).
    """
    if "by" not in attacked:
        return {}
    by = np.asarray(attacked["by"])
    counts = {name: int(np.sum(by == i)) for i, name in enumerate(attacks.PARTS)}
    found = {name: int(np.sum(attacked[name])) for name in ("flat", "random", "loops")}
    told = {"square": counts["square"]} | found
    return {
        "fooled_by": {name: count for name, count in counts.items() if count},
        "doubts": {name: count for name, count in told.items() if count},
    }


def _outcome(images: jax.Array, info: attacks.Info) -> dict[str, jax.Array]:
    told = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    del told["steps"]
    return {"images": images} | told
