"""Defended classifiers as an attacker sees them who knows the purifier too.

Each function makes a `logits_fn` of the whole defence, which any attack takes like a
classifier's own.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from pixeldefend.attacks.outcome import LogitsFn
from pixeldefend.defences import purification
from pixeldefend.density import likelihood
from pixeldefend.density.pixelcnn import PixelCNN

SLOPES = ("bpda", "straight_through", "expectation")


def behind_purifier(
    logits_fn: LogitsFn,
    model: PixelCNN,
    *,
    slope: str = "bpda",
    adaptive: bool = False,
    window: int | None = None,
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
      window: as for `purification.purify`.

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

    def purify(params: Any, images: chex.Array, eps: chex.Array) -> chex.Array:
        if slope == "expectation":
            return purification.relax(model, params, images, eps=eps, window=window)
        whole = _straight_through(images, jnp.round(images))
        if slope == "straight_through":
            return purification.relax(
                model, params, whole, eps=eps, straight_through=True, window=window
            )
        levels = jax.lax.stop_gradient(whole).astype(jnp.uint8)
        levels = purification.purify(model, params, levels, eps=eps, window=window)
        return _straight_through(images, levels.astype(images.dtype))

    def defended_logits(variables: dict, images: chex.Array) -> chex.Array:
        params, eps = variables["params"], variables["eps"]
        if adaptive:
            whole = jnp.round(jax.lax.stop_gradient(images)).astype(jnp.uint8)
            eps = purification.adaptive_eps(
                likelihood.bits_per_dim(model, params, whole),
                eps=eps,
                threshold=variables["threshold"],
            )
        return logits_fn(variables["classifier"], purify(params, images, eps))

    return defended_logits


def behind_autoencoder(
    logits_fn: LogitsFn,
    rebuild: Callable[[Any, chex.Array, chex.PRNGKey], chex.Array],
    *,
    slope: str = "bpda",
    draws: int = 4,
) -> LogitsFn:
    """A classifier behind a PuVAE or a reformer, which have slopes of their own.

    Three ways to look through it:
      bpda: as if it changed nothing.
      straight_through: its own slope, of one draw of its noise, with the rounding of
        levels passed over. Of a PuVAE that is the slope of the reconstruction which is
        chosen.
      expectation: the mean of several draws, of log-probabilities, with no rounding:
        Athalye et al. (2018), section 4.2, expectation over transformation.

    Draws are the same for all images and at every look; with a key of the attacker's
    own they are not those of the defence.

    Args:
      logits_fn: of the classifier behind it.
      rebuild: `rebuild(params, images, key) -> levels [B, H, W, C]`, floating, for keys
        `[B]`.
      slope: one of `SLOPES`.
      draws: of "expectation".

    Returns:
      `logits_fn(variables, images) -> [B, K]` of floating levels; `variables` holds
      `classifier` (what the given `logits_fn` takes), `params` for `rebuild` and `key`.

    Raises:
      ValueError: an unknown slope, or not at least one draw.
    """
    if slope not in SLOPES:
        raise ValueError(f"slope must be one of {', '.join(SLOPES)}: {slope!r}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1: {draws}")

    def defended_logits(variables: dict, images: chex.Array) -> chex.Array:
        def draw(key: chex.PRNGKey) -> chex.Array:
            keys = jnp.broadcast_to(key, (len(images),))
            seen = jax.lax.stop_gradient(images) if slope == "bpda" else images
            return rebuild(variables["params"], seen, keys)

        if slope == "expectation":
            # One after the other: memory for one.
            each = jax.lax.map(
                jax.checkpoint(
                    lambda key: jax.nn.log_softmax(
                        logits_fn(variables["classifier"], draw(key))
                    )
                ),
                jax.random.split(variables["key"], draws),
            )
            return jnp.mean(each, 0)
        rebuilt = draw(variables["key"])
        onto = images if slope == "bpda" else rebuilt
        return logits_fn(
            variables["classifier"], _straight_through(onto, jnp.round(rebuilt))
        )

    return defended_logits


@jax.custom_vjp
def _straight_through(images: chex.Array, others: chex.Array) -> chex.Array:
    """`others`, whose gradient goes to `images`."""
    del images
    return others


def _forwards(images: chex.Array, others: chex.Array) -> tuple[chex.Array, None]:
    del images
    return others, None


def _backwards(_: Any, gradient: chex.Array) -> tuple[chex.Array, chex.Array]:
    return gradient, jnp.zeros_like(gradient)


_straight_through.defvjp(_forwards, _backwards)
