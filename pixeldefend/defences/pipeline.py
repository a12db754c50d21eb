"""Attack, defence and classifier as one function: perturb, defend, score, classify."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax.numpy as jnp

from pixeldefend import attacks, keys
from pixeldefend.attacks import LogitsFn
from pixeldefend.defences import base
from pixeldefend.density import likelihood, pixelcnn

STAGES = ("clean", "perturbed", "purified")


def blind(variables: Any, images: chex.Array) -> chex.Array:
    """Logits `[B, 2]` of a classifier that tells nothing apart, where there is none."""
    del variables
    return jnp.zeros((len(images), 2))


def perturbed(
    attack: Callable,
    logits_fn: LogitsFn,
    variables: Any,
    clean: chex.Array,
    labels: chex.Array,
    indices: chex.Array,
    *,
    key: chex.PRNGKey,
    eps: chex.Array | float,
) -> tuple[chex.Array, Any]:
    """Attacks images of which some may have no label.

    Args:
      attack: see `attacks.named`.
      logits_fn: `logits_fn(variables, images) -> [B, K]`, of floating levels.
      variables: for `logits_fn`.
      clean: levels `[B, H, W, C]` uint8.
      labels: integers `[B]`; a negative one stands for the predicted class.
      indices: `[B]`, the images' places in their set, for their keys.
      key: of all images together.
      eps: levels, in the norm of the attack.

    Returns:
      What the attack returns, levels and `attacks.Info`.
    """
    guesses = attacks.predicted(logits_fn, variables, clean).astype(labels.dtype)
    wanted = jnp.where(labels < 0, guesses, labels)
    image_keys = keys.for_images(key, indices)
    return attack(logits_fn, variables, clean, wanted, image_keys, eps=eps)


def perturbing(
    attack: Callable, logits_fn: LogitsFn
) -> Callable[..., tuple[chex.Array, Any]]:
    """`perturbed` as a function to be mapped over images.

    Args:
      attack: see `attacks.named`.
      logits_fn: as for `perturbed`.

    Returns:
      `perturb(variables, clean, labels, indices)`, which returns what `perturbed` does;
      `variables` holds `classifier` (what `logits_fn` takes), `key` and `eps`.
    """

    def perturb(
        variables: dict, clean: chex.Array, labels: chex.Array, indices: chex.Array
    ) -> tuple[chex.Array, Any]:
        return perturbed(
            attack,
            logits_fn,
            variables["classifier"],
            clean,
            labels,
            indices,
            key=variables["key"],
            eps=variables["eps"],
        )

    return perturb


def upright(
    defences: Sequence[base.Defence | type[base.Defence]], images: chex.Array
) -> chex.Array:
    """Images that passed defences, turned back to how they came in."""
    for defence in reversed(defences):
        images = defence.upright(images)
    return images


def perturb_and_defend(
    model: pixelcnn.PixelCNN,
    attack: Callable | None,
    logits_fn: LogitsFn | None,
    defences: Sequence[base.Defence],
) -> Callable[..., dict]:
    """The main job as one pure function, so that it compiles to one program.

    Args:
      model: the density model's description, which scores all images.
      attack: see `attacks.named`; None for none.
      logits_fn: of the classifier that is attacked and defended; None where there is
        none, which only an attack that does not look at it can do without.
      defences: in the order in which an image passes them; no detectors.

    Returns:
      `defend(variables, clean, labels, indices) -> dict`: `variables` holds `params` of
      the density model, `classifier` (what `logits_fn` takes), `defences` (the `params`
      of each), `eps_attack` (levels) and `key`; `clean` is `[B, H, W, C]` uint8,
      `labels` `[B]` (negative where unknown) and `indices` `[B]` the images' places in
      their set. The result has the images `perturbed` and `purified` (`upright`), the
      log-probabilities `[B]` of all three stages and, with a classifier, their
      predicted classes `[B]`.
    """

    def defend(
        variables: dict, clean: chex.Array, labels: chex.Array, indices: chex.Array
    ) -> dict:
        params, classifier = variables["params"], variables["classifier"]
        images = {"clean": clean, "perturbed": clean}
        if attack is not None:
            images["perturbed"], _ = perturbed(
                attack,
                logits_fn or blind,
                classifier,
                clean,
                labels,
                indices,
                key=variables["key"],
                eps=variables["eps_attack"],
            )
        passed = base.Passed(images["perturbed"])
        # What a purifier by this density model has computed anyway.
        known: dict[str, chex.Array | None] = {}
        image_keys = keys.for_images(variables["key"], indices)
        for place, defence in enumerate(defences):
            its = variables["defences"][place]
            own = base.keys_for(defences[:place], image_keys)
            computed = defence.compute(its, passed.images, own)
            known.setdefault("perturbed", computed.get("given_log_probs"))
            decided = defence.decide(its, computed, passed.images)
            passed = base.joined(passed, defence, decided)
        images["purified"] = upright(defences, passed.images)
        known["purified"] = passed.log_prob
        seen = images | {"purified": passed.images}
        found = {name: images[name] for name in ("perturbed", "purified")}
        for name in STAGES:
            log_prob = known.get(name)
            if log_prob is None:
                log_prob = likelihood.log_prob(model, params, images[name])
            found[f"{name}_log_prob"] = log_prob
            if logits_fn is not None:
                guesses = attacks.predicted(logits_fn, classifier, seen[name])
                found[f"{name}_prediction"] = guesses
        return found

    return defend
