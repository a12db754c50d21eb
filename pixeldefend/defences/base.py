"""Whole defences as one function each: perturb, score, adapt, purify, classify."""

from collections.abc import Callable
from typing import Any

import chex
import jax.numpy as jnp

from pixeldefend import attacks, keys
from pixeldefend.attacks import LogitsFn
from pixeldefend.defences import filters, purification
from pixeldefend.density import likelihood, pixelcnn

STAGES = ("clean", "perturbed", "purified")


def blind(variables: Any, images: chex.Array) -> chex.Array:
    """Logits `[B, 2]` of a classifier that tells nothing apart, where there is none."""
    del variables
    return jnp.zeros((len(images), 2))


def behind_median(logits_fn: LogitsFn, *, preset: str = "paper") -> LogitsFn:
    """A squeezed classifier as attacks see it: through the median filter only.

    What rounds the colours has no slope, so in PixelDefend's experiments the gradient
    goes through the other half of feature squeezing.

    Args:
      logits_fn: of the classifier.
      preset: see `filters.median`.

    Returns:
      Another `logits_fn`, of floating levels.
    """

    def looked_at(variables: Any, images: chex.Array) -> chex.Array:
        return logits_fn(variables, filters.median(images, preset=preset))

    return looked_at


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


def perturb_and_purify(
    model: pixelcnn.PixelCNN,
    attack: Callable | None,
    logits_fn: LogitsFn | None,
    *,
    window: int | None = None,
) -> Callable[..., dict]:
    """The main job as one pure function, so that it compiles to one program.

    Args:
      model: the density model's description.
      attack: see `attacks.named`; None for none.
      logits_fn: of the classifier that is attacked and defended; None where there is
        none, which only an attack that does not look at it can do without.
      window: static bound on `2 eps + 1`, see `purification.window_for`; None for any.

    Returns:
      `defend(variables, clean, labels, indices) -> dict`: `variables` holds `params`,
      `classifier` (what `logits_fn` takes), `eps` (int32 levels), `threshold`
      (bits/dim, 0 for none), `eps_attack` (levels) and `key`; `clean` is `[B, H, W, C]`
      uint8, `labels` `[B]` (negative where unknown) and `indices` `[B]` the images'
      places in their set. The result has the images `perturbed` and `purified`, the
      log-probabilities `[B]` of all three stages, with a classifier their predicted
      classes `[B]`, and the `eps` of each image.
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
        before = likelihood.log_prob(model, params, images["perturbed"])
        eps = purification.adaptive_eps(
            likelihood.to_bits_per_dim(before, clean.shape[1:]),
            eps=variables["eps"],
            threshold=variables["threshold"],
        )
        images["purified"] = purification.purify(
            model, params, images["perturbed"], eps=eps, window=window
        )
        found = {name: images[name] for name in ("perturbed", "purified")} | {
            "eps": eps
        }
        for name in STAGES:
            found[f"{name}_log_prob"] = (
                before
                if name == "perturbed"
                else likelihood.log_prob(model, params, images[name])
            )
            if logits_fn is not None:
                guesses = attacks.predicted(logits_fn, classifier, images[name])
                found[f"{name}_prediction"] = guesses
        return found

    return defend
