"""Small networks to attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (5, 4, 2)


def linear(variables, images):
    """Logits, linear in levels; numbers and all in the type of the weights."""
    weights, bias = variables
    flat = images.reshape(images.shape[0], -1).astype(weights.dtype)
    return flat @ weights + bias[None]


def bent(variables, images):
    """Logits of a network with one hidden layer, smooth and of no symmetry."""
    first, second = variables
    flat = images.reshape(images.shape[0], -1).astype(first.dtype)
    return jnp.tanh((flat - 128) @ first) @ second


def compiled(attack, **options):
    """The attack on `bent`, as one program."""
    return jax.jit(functools.partial(attack, bent, **options))


def draw(rng, count, *, classes=5, dtype="float32"):
    """Variables of `bent`, images `[count, 5, 4, 2]` and the predicted labels."""
    variables = (
        jnp.asarray(rng.normal(size=(40, 16)) / 300, dtype),
        jnp.asarray(rng.normal(size=(16, classes)), dtype),
    )
    images = jnp.asarray(rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8))
    return variables, images, jnp.argmax(bent(variables, images), -1)


def sizes(change, norm):
    """`[B]` in numpy."""
    flat = np.asarray(change, float).reshape(len(change), -1)
    return np.abs(flat).max(1) if norm == "linf" else np.sqrt((flat**2).sum(1))
