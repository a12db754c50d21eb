"""Graded purification: the more suspicious an image, the more is done to it."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pixeldefend.defences import base, compression, purification
from pixeldefend.density import likelihood


@dataclasses.dataclass(frozen=True)
class PurifyGraded(purification.Purify):
    """The more suspicious an image, the more is done to it.

    The grade is found as by `purification.graded_eps`. An image is purified and then
    compressed (`compression.compress`): greedy decoding leaves specks of colour that no
    photograph has, and JPEG takes those first.

    Its `params` have `eps` `[T + 1]`, `thresholds` `[T]`, bits/dim, and `quality`
    `[T + 1]`, that of JPEG, 0 for no compression.
    """

    name = "purify_graded"

    @classmethod
    def build(cls, given: base.Given) -> tuple[base.Defence, base.Params]:
        """As for every defence; takes `purify.grades`, see `read_grades`, whose largest
        eps is `purify.eps`: one that differs would be a setting without effect.

        Raises:
          ValueError: grades that are none, or that go up to another eps.
        """
        settings = given.settings["purify"]
        its = read_grades(settings["grades"])
        largest = int(its["eps"].max())
        if settings["eps"] != largest:
            raise ValueError(
                f"purify.grades go up to eps {largest}, purify.eps is "
                f"{settings['eps']}: make them equal, or give no grades "
                '(--config.purify.grades="()") for the same eps everywhere'
            )
        window = purification.window_for(largest)
        its = {name: jnp.asarray(values) for name, values in its.items()}
        return cls(given.model, window), its | {"params": given.params}

    def compute(
        self, params: base.Params, images: chex.Array, key: base.Keys
    ) -> base.Computed:
        """As for `Purify`; the `log_probs` are those of the compressed images."""
        computed = super().compute(params, images, key)
        grade = self._grade(params, computed["given_log_probs"], images.shape[1:])
        purified = computed["images"].astype(jnp.float32)
        found = base.whole(self._compressed(purified, params["quality"][grade]))
        log_probs = likelihood.log_prob(self.density_model, params["params"], found)
        return computed | {"images": found, "log_probs": log_probs}

    def facts(self, params: base.Params) -> dict[str, Any]:
        """`eps_defend`, the largest, and `grades` in words."""
        starts = (0.0, *np.asarray(params["thresholds"], float))
        words = []
        for start, eps, quality in zip(
            starts, params["eps"], params["quality"], strict=True
        ):
            word = f"{int(eps)} with JPEG {int(quality)}" if quality else f"{int(eps)}"
            words.append(word + (f" from {start:.6g}" if words else ""))
        largest = int(np.max(params["eps"]))
        return {"eps_defend": largest, "grades": ", ".join(words)}

    def view(
        self, params: base.Params, images: chex.Array, key: base.Keys, gradient: str
    ) -> chex.Array:
        """As for `Purify`, compression with it; the grade has no gradient."""
        whole = base.whole(jax.lax.stop_gradient(images))
        log_probs = likelihood.log_prob(self.density_model, params["params"], whole)
        grade = self._grade(params, log_probs, images.shape[1:])
        eps, quality = params["eps"][grade], params["quality"][grade]
        purifier = purification.Purify(self.density_model, self.window)
        purified = purifier.view(params | {"eps": eps}, images, key, gradient)
        compressed = self._compressed(purified, quality)
        if gradient == "expectation":
            return compressed
        onto = images if gradient == "bpda" else compressed
        levels = jnp.round(jax.lax.stop_gradient(compressed))
        return base.straight_through(onto, levels)

    def eps_for(
        self, params: base.Params, log_probs: chex.Array, shape: tuple[int, ...]
    ) -> chex.Array:
        """By bits/dim."""
        return params["eps"][self._grade(params, log_probs, shape)]

    def _grade(
        self, params: base.Params, log_probs: chex.Array, shape: tuple[int, ...]
    ) -> chex.Array:
        """Of images `[B]`, 0 for the least suspicious."""
        bits = likelihood.to_bits_per_dim(log_probs, shape)
        grades = jnp.arange(len(params["eps"]), dtype=jnp.int32)
        return purification.graded_eps(
            bits, thresholds=params["thresholds"], eps=grades
        )

    def _compressed(self, images: chex.Array, quality: chex.Array) -> chex.Array:
        """Floating levels after JPEG, where there is a quality above 0."""
        found = compression.compress(images, quality=jnp.maximum(quality, 1))
        return jnp.where((quality > 0)[:, None, None, None], found, images)


def read_grades(grades: Any) -> dict[str, np.ndarray]:
    """Grades as a config has them, as arrays.

    Args:
      grades: for each the bits/dim from which on it holds, eps, and the quality of JPEG
        afterwards, which may be left out: ((0.0, 16), (4.5, 24, 75)).

    Returns:
      `thresholds` `[T]`, `eps` `[T + 1]` and `quality` `[T + 1]`, 0 for none.

    Raises:
      ValueError: no such grades, or not ascending from 0.
    """
    try:
        rows = [(float(start), *levels) for start, *levels in grades]
    except (TypeError, ValueError):
        rows = []
    fits = rows and all(
        len(row) in (2, 3) and all(type(level) is int for level in row[1:])
        for row in rows
    )
    starts = [row[0] for row in rows]
    if not fits or starts[0] != 0 or not np.all(np.diff(starts) > 0):
        raise ValueError(
            "purify.grades must be (bits/dim, eps) or (bits/dim, eps, quality of "
            "JPEG), eps and quality whole, bits/dim ascending from 0, such as "
            f"((0.0, 16), (4.5, 24, 75)): {grades!r}"
        )
    found = {
        "thresholds": np.array(starts[1:], np.float32),
        "eps": np.array([row[1] for row in rows], np.int32),
        "quality": np.array([row[2] if len(row) > 2 else 0 for row in rows], np.int32),
    }
    purification.check_eps(found["eps"])
    compression.check_quality(np.maximum(found["quality"], 1))
    if np.any(found["quality"] < 0):
        raise ValueError(f"quality must be between 1 and 100, whole: {grades!r}")
    return found
