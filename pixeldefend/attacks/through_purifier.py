"""Defended classifiers as an attacker sees them who knows the purifier too.

Each function makes a `logits_fn` of the whole defence, which any attack takes like a
classifier's own.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from pixeldefend import density, purification
from pixeldefend.attacks.outcome import LogitsFn
from pixeldefend.pixelcnn import PixelCNN

SLOPES = ("bpda", "straight_through", "expectation")


def behind_purifier(
    logits_fn: LogitsFn,
    model: PixelCNN,
    *,
    slope: str = "bpda",
    adaptive: bool = False,
    width: int | None = None,
    solver: str = "scan",
) -> LogitsFn:
    """The whole defence forwards, and backwards what an attacker makes of it.

    Three slopes of the purifier, of which the argmax has none:
      bpda: as if purifying changed nothing. Backward pass differentiable approximation,
        Athalye et al. (2018), section 4.1: what purification returns is near what it
        was given, so the slope of the classifier at the purified image serves for both.
        It left PixelDefend 9 % accuracy. One purification a gradient.
      straight_through: that of the expected levels, at the purified image; see
        `purification.relax`. Several times the cost.
      expectation: likewise, and forwards too the classifier gets expected levels: the
        differentiable defence that PixelDefend's section 4.4 attacked. Whether the
        defence itself is fooled only the attacked image tells.

    Args:
      logits_fn: of the classifier behind the purifier.
      model: the density model's description.
      slope: one of `SLOPES`.
      adaptive: leave images below a threshold alone, see `purification.adaptive_eps`.
      width: as for `purification.purify`.
      solver: likewise, of "bpda"; the others have to scan.

    Returns:
      `logits_fn(variables, images) -> [B, K]` of floating levels, which are rounded
      before they are purified, as any image is that can be sent (but "expectation"
      takes them as they are). `variables` holds `classifier` (what the given
      `logits_fn` takes), `params` of the density model, `eps` of the defence (int32
      levels) and, if adaptive, `threshold` (bits/dim).

    Raises:
      ValueError: an unknown slope.
    """
    if slope not in SLOPES:
        raise ValueError(f"slope must be one of {', '.join(SLOPES)}: {slope!r}")

    def purified(params: Any, images: chex.Array, eps: chex.Array) -> chex.Array:
        if slope == "expectation":
            return purification.relax(model, params, images, eps=eps, width=width)
        whole = _instead(images, jnp.round(images))
        if slope == "straight_through":
            return purification.relax(
                model, params, whole, eps=eps, straight_through=True, width=width
            )
        levels = jax.lax.stop_gradient(whole).astype(jnp.uint8)
        found = purification.purify(
            model, params, levels, eps=eps, width=width, solver=solver
        )
        return _instead(images, found.astype(images.dtype))

    def defended(variables: dict, images: chex.Array) -> chex.Array:
        params, eps = variables["params"], variables["eps"]
        if adaptive:
            whole = jnp.round(jax.lax.stop_gradient(images)).astype(jnp.uint8)
            eps = purification.adaptive_eps(
                density.bits_per_dim(model, params, whole),
                eps=eps,
                threshold=variables["threshold"],
            )
        return logits_fn(variables["classifier"], purified(params, images, eps))

    return defended


@jax.custom_vjp
def _instead(images: chex.Array, others: chex.Array) -> chex.Array:
    """`others`, whose slope goes to `images`."""
    del images
    return others


def _forwards(images: chex.Array, others: chex.Array) -> tuple[chex.Array, None]:
    del images
    return others, None


def _backwards(_: Any, slope: chex.Array) -> tuple[chex.Array, chex.Array]:
    return slope, jnp.zeros_like(slope)


_instead.defvjp(_forwards, _backwards)
