"""PixelDefend's purifiers: moving an image to where the density model finds it likely.

Each is a policy for `decode.decode` and a call. Song et al., PixelDefend (ICLR 2018),
section 4 and Algorithm 1.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend import pixels
from pixeldefend.defences import base
from pixeldefend.density import decode, likelihood, pixelcnn


def purify(
    model: pixelcnn.PixelCNN,
    params: dict,
    images: chex.Array,
    *,
    eps: chex.Array | int,
    labels: chex.Array | None = None,
    window: int | None = None,
) -> chex.Array:
    """Greedy decoding within the L-infinity ball of radius `eps` around each image.

    In raster order each channel of each pixel is set to the likeliest level no further
    than `eps` from the image's own, given everything already purified; of equally
    likely levels the smallest (PixelDefend, Algorithm 1).

    Args:
      model: the description.
      params: from `pixelcnn.init` or a released model.
      images: levels `[B, H, W, C]`, uint8.
      eps: whole levels 0..255, a number or `[B]`; data, so one program serves all.
      labels: integers `[B]` for a class-conditional model.
      window: static bound on `2 max(eps) + 1`, see `decode.decode`. None: that of
        `window_for`, as everywhere in this package; where eps is traced, it is chosen
        at run time. Levels whose probabilities float32 hardly tells apart may come out
        otherwise in another window, batch shape or surrounding program.

    Returns:
      Purified levels `[B, H, W, C]`, uint8.

    Raises:
      TypeError: images or eps of a type that holds no whole levels.
      ValueError: eps out of range, too narrow a window, or shapes that do not fit.
    """
    lower, upper = _ball(images, eps)
    return decode.decode(
        model,
        params,
        images,
        likeliest,
        lower=lower,
        upper=upper,
        labels=labels,
        window=_window(window, eps),
    )


def relax(
    model: pixelcnn.PixelCNN,
    params: dict,
    images: chex.Array,
    *,
    eps: chex.Array | int,
    labels: chex.Array | None = None,
    straight_through: bool = False,
    window: int | None = None,
) -> chex.Array:
    """Differentiable `purify`: a level is the mean of the allowed ones, not the mode.

    In raster order each channel of each pixel becomes the expectation of the level
    under the model, restricted to the ball around the image's own and given everything
    relaxed before. That is smooth in the image, through the earlier levels and through
    the place of the ball; derivatives compute the scan once more instead of keeping it
    (`jax.checkpoint`), so they need little more memory. It is what an attacker sees who
    differentiates the defence (PixelDefend, section 4.4; Athalye et al. 2018).

    Args:
      model: as for `purify`.
      params: likewise.
      images: floating levels `[B, H, W, C]`, which need not be whole.
      eps: as for `purify`.
      labels: likewise.
      straight_through: go on with the levels of `purify` and take only the slope of
        the expectation (Bengio et al. 2013); of whole images the result is then that of
        `purify`.
      window: as for `purify`.

    Returns:
      Floating levels `[B, H, W, C]`, of the type of `images`.

    Raises:
      TypeError: images that are not floating, or eps that is no integer.
      ValueError: as for `purify`.
    """
    pixels.check_images(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be floating levels 0..255: {images.dtype}")
    radius = _radius(images, eps).astype(images.dtype)
    return decode.decode(
        model,
        params,
        images,
        straight_through_mean if straight_through else mean,
        lower=images - radius,
        upper=images + radius,
        labels=labels,
        window=_window(window, eps),
    )


def window_for(eps: int) -> int:
    """The narrowest of the scan's windows that is wide enough for `eps`.

    With it as `window`, a program is compiled once for each of the five windows instead
    of once for all eps, holds a fifth of them, and treats an image alike whatever the
    eps of those beside it. For the host: `eps` is one known number.
    """
    check_eps(eps)
    needed = _needed(eps)
    return next(window for window in decode.WINDOWS if window >= needed)


def largest_eps(window: int) -> int:
    """The largest eps that a window of the scan serves; the inverse of `window_for`."""
    return pixels.LEVELS - 1 if window >= pixels.LEVELS else (window - 1) // 2


def _needed(eps: chex.Array | int) -> int:
    """How many levels the largest of the known `eps` allows."""
    return min(2 * int(np.max(np.asarray(eps), initial=0)) + 1, pixels.LEVELS)


def likeliest(
    candidates: chex.Array,
    log_mass: chex.Array,
    level: chex.Array,
    keys: chex.PRNGKey | None,
) -> chex.Array:
    """The policy of `purify`: the likeliest candidate, of ties the smallest."""
    del level, keys
    best = jnp.argmax(log_mass, axis=0)
    return jnp.take_along_axis(candidates, best[None], axis=0)[0]


def mean(
    candidates: chex.Array,
    log_mass: chex.Array,
    level: chex.Array,
    keys: chex.PRNGKey | None,
) -> chex.Array:
    """The policy of `relax`: the mean of the candidates, weighed by probability."""
    del level, keys
    return jnp.sum(jax.nn.softmax(log_mass, axis=0) * candidates, axis=0)


def straight_through_mean(
    candidates: chex.Array,
    log_mass: chex.Array,
    level: chex.Array,
    keys: chex.PRNGKey | None,
) -> chex.Array:
    """The likeliest candidate, with the slope of the mean."""
    best = jax.lax.stop_gradient(likeliest(candidates, log_mass, level, keys))
    soft = mean(candidates, log_mass, level, keys)
    return best + (soft - jax.lax.stop_gradient(soft))


def bounds(images: chex.Array, eps: chex.Array | int) -> tuple[chex.Array, chex.Array]:
    """The ball of radius `eps` around `images`, cut to 0..255, as integer levels.

    Args:
      images: levels `[B, H, W, C]`, uint8.
      eps: whole levels 0..255, a number or `[B]`.

    Returns:
      Inclusive bounds (lower, upper), int32 `[B, H, W, C]`.

    Raises:
      TypeError: images or eps are not integers.
      ValueError: eps out of range or of a shape that does not fit.
    """
    lower, upper = _ball(images, eps)
    return jnp.maximum(lower, 0), jnp.minimum(upper, pixels.LEVELS - 1)


def _ball(images: chex.Array, eps: chex.Array | int) -> tuple[chex.Array, chex.Array]:
    """`bounds` before they are cut: how far they are apart does not depend on images,
    and by that `decode.decode` chooses its window.
    """
    pixels.check_images(images)
    pixels.check_some(images)
    if images.dtype != jnp.uint8:
        raise TypeError(
            f"images must be uint8 levels 0..255: {images.dtype} (round, then astype)"
        )
    radius = _radius(images, eps)
    levels = images.astype(jnp.int32)
    return levels - radius, levels + radius


def _radius(images: chex.Array, eps: chex.Array | int) -> chex.Array:
    """`eps`, checked, as int32 that goes with `images [B, ...]`."""
    radius = check_eps(eps)
    if radius.ndim and radius.shape != images.shape[:1]:
        raise ValueError(
            f"eps must be a number or [{images.shape[0]}], one per image: "
            f"{list(radius.shape)}"
        )
    return radius.astype(jnp.int32).reshape((-1,) + (1,) * (images.ndim - 1))


def _window(window: int | None, eps: chex.Array | int) -> int | None:
    """The window to decode with, checked where `eps` is known."""
    if isinstance(eps, jax.core.Tracer):
        return window
    if window is None:
        return window_for(np.max(np.asarray(eps), initial=0))
    if isinstance(window, int) and window < _needed(eps):
        raise ValueError(
            f"window must be at least {_needed(eps)} for this eps: {window}"
        )
    return window


def check_eps(eps: chex.Array | int) -> chex.Array:
    """The defence's eps as an integer array; values are checked where they are known.

    Raises:
      TypeError: not integers (the defence moves by whole levels).
      ValueError: negative, above 255, or not a number or a vector.
    """
    traced = isinstance(eps, jax.core.Tracer)
    array: Any = eps if traced else np.asarray(pixels.native(eps))
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"the defence's eps must be whole levels, an integer: {eps}")
    if array.ndim > 1:
        raise ValueError(f"eps must be a number or a vector: {list(array.shape)}")
    if not traced and array.size and (array.min() < 0 or array.max() >= pixels.LEVELS):
        raise ValueError(f"the defence's eps must be between 0 and 255 levels: {eps}")
    return jnp.asarray(array)


@dataclasses.dataclass(frozen=True)
class Purify(base.Defence):
    """`purify` as a defence.

    Its `params`: `params` of the density model and `eps`, int32 levels, a number (or,
    for those built on it, `[B]`).

    Attributes:
      density_model: the description.
      window: as for `purify`.
    """

    name = "purify"
    model = "density_model"
    gradients = base.GRADIENTS
    density_model: pixelcnn.PixelCNN
    window: int | None = None

    @classmethod
    def build(cls, given: base.Given) -> tuple[base.Defence, base.Params]:
        """As for every defence; takes `purify.eps`."""
        eps = given.settings["purify"]["eps"]
        window = window_for(eps)  # which checks it
        return cls(given.model, window), {"params": given.params, "eps": jnp.int32(eps)}

    def compute(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> base.Computed:
        """Purified `images`, their `log_probs` and the `given_log_probs`, nats `[B]`.

        Images that are not whole are rounded: the density model knows nothing else.
        """
        del key
        given = base.whole(images)
        model, its = self.density_model, params["params"]
        log_probs = likelihood.log_prob(model, its, given)
        purified = purify(model, its, given, eps=params["eps"], window=self.window)
        return {
            "images": purified,
            "log_probs": likelihood.log_prob(model, its, purified),
            "given_log_probs": log_probs,
        }

    def decide(
        self, params: base.Params, computed: base.Computed, images: chex.Array
    ) -> base.Passed:
        """The purified images with their log-probabilities."""
        del params, images
        return base.Passed(computed["images"], log_prob=computed["log_probs"])

    def facts(self, params: base.Params) -> dict[str, Any]:
        """`eps_defend`, levels."""
        return {"eps_defend": int(params["eps"])}

    def view(
        self, params: base.Params, images: chex.Array, key: base.Keys, gradient: str
    ) -> chex.Array:
        """As an attacker sees it; the argmax has no gradient.

        Images are rounded before they are purified, as any image is that can be sent.
          bpda: what purification returns is near what it was given, so the gradient of
            the classifier at the purified image serves for both. It left PixelDefend
            9 % accuracy (Athalye et al. 2018). One purification a gradient.
          straight_through: that of the expected levels, at the purified image; see
            `relax`. Several times the cost.
          expectation: likewise, and forwards too the classifier gets expected levels of
            images that are not rounded: the differentiable defence that PixelDefend's
            section 4.4 attacked.
        """
        del key
        model, its = self.density_model, params["params"]
        eps = params["eps"]
        if gradient == "expectation":
            return relax(model, its, images, eps=eps, window=self.window)
        rounded = base.straight_through(images, jnp.round(images))
        if gradient == "straight_through":
            return relax(
                model, its, rounded, eps=eps, straight_through=True, window=self.window
            )
        levels = jax.lax.stop_gradient(rounded).astype(jnp.uint8)
        levels = purify(model, its, levels, eps=eps, window=self.window)
        return base.straight_through(images, levels.astype(images.dtype))
