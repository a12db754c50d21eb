"""Tiny models with random weights, and a decoder that cannot be wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixeldefend.density import conditionals, pixelcnn


def tiny(shape, *, seed=0, **options):
    """A model for images `shape` (H, W, C), its parameters and two random images.

    The parameters are random rather than initialised (where second layers are weak and
    tables and biases are zero), so that every part matters.
    """
    options = {"features": 3, "depth": 1, "mixtures": 2, "dropout": 0.0} | options
    dtype = "float64" if jax.config.jax_enable_x64 else "float32"
    model = pixelcnn.PixelCNN(channels=shape[2], **({"dtype": dtype} | options))
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.integers(0, 256, (2, *shape), dtype=np.uint8))
    labels = jnp.asarray([1, 0]) if model.classes else None
    options = {"labels": labels} if model.classes else {}
    abstract = jax.eval_shape(
        functools.partial(pixelcnn.init, model), jax.random.key(0), images, **options
    )
    params = jax.tree.map(
        lambda a: jnp.asarray(0.3 + 0.6 * rng.normal(size=a.shape), a.dtype), abstract
    )
    return model, params, images, labels


def mostly_slow(cases, quick):
    """Cases for `parametrize`, of which all but the first few are marked slow."""
    rest = [
        pytest.param(*(c if isinstance(c, tuple) else (c,)), marks=pytest.mark.slow)
        for c in cases[quick:]
    ]
    return [*cases[:quick], *rest]


def naive_purify(model, params, images, eps, labels=None):
    """Whole network before every position and channel, full masked 256-way argmax."""

    @jax.jit
    def all_log_probs(images):
        outputs = pixelcnn.apply(model, params, images, labels=labels)
        return conditionals.level_log_probs(
            model.family, params["head"], outputs, images
        )

    original = np.asarray(images, int)
    result = np.array(images)
    levels = np.arange(256)
    for i, j, c in np.ndindex(images.shape[1:]):
        log_probs = np.asarray(all_log_probs(jnp.asarray(result)))[:, i, j, c]
        allowed = np.abs(levels[None] - original[:, i, j, c][:, None]) <= eps
        result[:, i, j, c] = np.where(allowed, log_probs, -np.inf).argmax(-1)
    return result


apply = functools.partial(jax.jit, static_argnums=0)(pixelcnn.apply)
