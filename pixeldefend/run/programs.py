"""The functions that a workbench maps over images, made of its tools."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pixeldefend import attacks, classifiers, defence, density, purification
from pixeldefend.grid import Made


class Loaded(NamedTuple):
    """A model with its parameters (for a classifier all its variables) and card."""

    model: Any
    params: Any
    card: dict


@dataclasses.dataclass(frozen=True)
class Tools:
    """What images are made with.

    Attributes:
      classifiers: by the name of their weights.
      density_model: None where nothing is purified.
      eps_defend: levels.
      solver: see `purification.purify`.
      threshold: bits/dim below which the adaptive defence leaves an image alone.
      colours: of the squeezed images.
      median: preset of `squeeze.median`.
      seed: of random attacks.
      batch: images at a time, over all devices.
    """

    classifiers: dict[str, Loaded]
    density_model: Loaded | None
    eps_defend: int
    solver: str
    threshold: float
    colours: int
    median: str
    seed: int
    batch: int


class Program(NamedTuple):
    """A function of `(variables, *arrays)`, and what tells it from others."""

    key: tuple
    function: Callable[..., dict]
    options: dict


def network(tools: Tools, made: Made) -> tuple[Any, Callable, Any]:
    """What an attack looks at: the model, its logits as seen, and their variables.

    What stands in front of the classifier is put there from the inside outwards.
    """
    if made.source is None:
        return None, defence.blind, {}
    model, variables, _ = tools.classifiers[made.source]
    logits_fn = classifiers.logits_fn(model)
    for name in reversed(made.through):
        if name == "median":
            logits_fn = defence.behind_median(logits_fn, preset=tools.median)
            continue
        if name == "detector":  # beside the classifier, not in front of it
            continue
        density_model, params, _ = tools.density_model
        logits_fn = attacks.behind_purifier(
            logits_fn,
            density_model,
            slope=made.slope,
            adaptive=name == "purify_adaptive",
            width=purification.width_for(tools.eps_defend),
            solver=tools.solver,
        )
        variables = {
            "classifier": variables,
            "params": params,
            "eps": jnp.int32(tools.eps_defend),
            "threshold": jnp.float32(tools.threshold),
        }
    return model, logits_fn, variables


def whole_attack(tools: Tools, made: Made) -> Program:
    """An attack that looks at eps from the beginning."""
    model, logits_fn, _ = network(tools, made)
    move = attacks.named(made.attack, made.preset)
    perturb = defence.perturbing(move, logits_fn)

    def run(variables: dict, *arrays: jax.Array) -> dict:
        return _told(*perturb(variables, *arrays))

    eps, key = jnp.float32(made.eps), jax.random.key(tools.seed)
    name = ("attack", model, made.through, made.slope, made.attack, made.preset)
    return Program(name, run, {"eps": eps, "key": key})


def search(tools: Tools, made: Made) -> Program:
    """An attack without a ball."""
    model, logits_fn, _ = network(tools, made)
    move = attacks.named(made.attack, made.preset)

    def run(
        variables: dict, images: jax.Array, labels: jax.Array, indices: jax.Array
    ) -> dict:
        del indices
        found, info = move(
            logits_fn,
            variables["classifier"],
            images,
            labels,
            eps=jnp.inf,
            quantise=False,
            keep_failed=True,
        )
        return _told(found, info)

    name = ("search", model, made.through, made.slope, made.attack, made.preset)
    return Program(name, run, {})


def evade(tools: Tools, made: Made, least: float) -> Program:
    """An attack past a classifier and a detector by likelihood (`attacks.evade`), which
    lets log-probabilities from `least` on pass."""
    model, _, _ = tools.classifiers[made.source]
    density_model, params, _ = tools.density_model
    of_classifier = classifiers.logits_fn(model)

    def logits_fn(variables: dict, images: jax.Array) -> jax.Array:
        return of_classifier(variables["classifier"], images)

    def score_fn(variables: dict, images: jax.Array) -> jax.Array:
        return density.log_prob(density_model, variables["params"], images)

    def run(
        variables: dict, images: jax.Array, labels: jax.Array, indices: jax.Array
    ) -> dict:
        del indices
        found, info = attacks.evade(
            logits_fn,
            score_fn,
            variables,
            images,
            labels,
            eps=variables["eps"],
            threshold=variables["least"],
            keep_failed=True,
        )
        log_probs = density.log_prob(density_model, variables["params"], found)
        return _told(found, info) | {"log_probs": log_probs}

    options = {"eps": jnp.float32(made.eps), "least": jnp.float32(least)}
    options |= {"params": params}
    return Program(("evade", model, density_model), run, options)


def cut(tools: Tools, made: Made) -> Program:
    """Its end: what is found, cut to the ball."""
    model, logits_fn, _ = network(tools, made)
    norm = attacks.ATTACKS[made.attack].norm

    def run(
        variables: dict,
        images: jax.Array,
        labels: jax.Array,
        indices: jax.Array,
        found: jax.Array,
    ) -> dict:
        del indices
        cut, info = attacks.cut(
            logits_fn,
            variables["classifier"],
            images,
            labels,
            found,
            eps=variables["eps"],
            norm=norm,
        )
        return _told(cut, info)

    name = ("cut", model, made.through, norm)
    return Program(name, run, {"eps": jnp.float32(made.eps)})


def purify(tools: Tools) -> Program:
    """Purified images, and the scores of both."""
    model, params, _ = tools.density_model
    width = purification.width_for(tools.eps_defend)

    def run(variables: dict, images: jax.Array) -> dict:
        params = variables["params"]
        purified = purification.purify(
            model,
            params,
            images,
            eps=variables["eps"],
            width=width,
            solver=tools.solver,
        )
        return {
            "images": purified,
            "log_probs": density.log_prob(model, params, purified),
            "given_log_probs": density.log_prob(model, params, images),
        }

    options = {"params": params, "eps": jnp.int32(tools.eps_defend)}
    return Program(("purify",), run, options)


def _told(images: jax.Array, info: attacks.Info) -> dict[str, jax.Array]:
    return {
        "images": images,
        "success": info.success,
        "distance": info.distance,
        "queries": info.queries,
    }
