"""Whole defences as one function each: perturb, score, adapt, purify."""

from collections.abc import Callable

import chex
import jax

from pixeldefend import attacks, density, pixelcnn, purification

ATTACKS = ("none", "rand")


def perturb_and_purify(
    model: pixelcnn.PixelCNN,
    attack: str,
    seed: int,
    *,
    width: int | None = None,
    solver: str = "scan",
) -> Callable[..., dict]:
    """The main job as one pure function, so that it compiles to one program.

    Args:
      model: the description.
      attack: "none", or "rand" for uniform noise.
      seed: of the noise; image i depends on it and on its index alone.
      width: static bound on `2 eps + 1`, see `purification.width_for`; None for any.
      solver: see `purification.purify`.

    Returns:
      `defend(variables, clean, indices) -> dict`: `variables` holds `params`, `eps`
      (int32 levels), `threshold` (bits/dim, 0 for none) and `eps_attack` (levels),
      `clean` is `[B, H, W, C]` uint8 and `indices` `[B]` the images' places in their
      set. The result has the images `perturbed` and `purified`, the log-probabilities
      `[B]` of all three, and the `eps` of each image.
    """

    def defend(variables: dict, clean: chex.Array, indices: chex.Array) -> dict:
        params = variables["params"]
        perturbed = clean
        if attack == "rand":
            key = jax.random.key(seed)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
            perturbed = attacks.uniform_noise(clean, keys, eps=variables["eps_attack"])
        before = density.log_prob(model, params, perturbed)
        eps = purification.adaptive_eps(
            density.to_bits_per_dim(before, clean.shape[1:]),
            eps=variables["eps"],
            threshold=variables["threshold"],
        )
        purified = purification.purify(
            model, params, perturbed, eps=eps, width=width, solver=solver
        )
        return {
            "perturbed": perturbed,
            "purified": purified,
            "clean_log_prob": density.log_prob(model, params, clean),
            "perturbed_log_prob": before,
            "purified_log_prob": density.log_prob(model, params, purified),
            "eps": eps,
        }

    return defend
