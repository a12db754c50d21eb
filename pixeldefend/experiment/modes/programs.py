"""The functions that a workbench maps over images, made of its tools."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pixeldefend import attacks, keys
from pixeldefend.defences import base, magnet, purification, puvae
from pixeldefend.density import likelihood
from pixeldefend.experiment.grid import DEFENCES, DETECTORS, Made
from pixeldefend.experiment.rows import DETECTOR
from pixeldefend.models import classifiers


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
      threshold: bits/dim below which the adaptive defence leaves an image alone.
      colours: of the squeezed images.
      median: preset of `filters.median`.
      seed: of random attacks and defences.
      batch: images at a time, per device.
      puvae: None where no row takes one.
      samples: of its latent variables.
      noise: of these.
      magnet: None where no row takes one.
      thresholds: `[D]` of each detector's D scores, by its name.
    """

    classifiers: dict[str, Loaded]
    density_model: Loaded | None
    eps_defend: int
    threshold: float
    colours: int
    median: str
    seed: int
    batch: int
    puvae: Loaded | None = None
    samples: int = 1
    noise: float = 0.0
    magnet: Loaded | None = None
    thresholds: dict[str, Any] = dataclasses.field(default_factory=dict)

    def model_of(self, name: str) -> Loaded:
        """The model of that name in `grid.DEFENCES`."""
        return getattr(self, name)


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
        return None, base.blind, {}
    model, variables, _ = tools.classifiers[made.source]
    logits_fn = classifiers.logits_fn(model)
    for name in reversed(made.through):
        if name == "median":
            logits_fn = base.behind_median(logits_fn, preset=tools.median)
            continue
        # Beside the classifier, not in front of it.
        if name in (DETECTOR, *DETECTORS):
            continue
        if name in ("puvae", "magnet"):
            logits_fn = attacks.behind_autoencoder(
                logits_fn, _rebuilding(tools, name), slope=made.slope
            )
            variables = {
                "classifier": variables,
                "params": tools.model_of(name).params,
                "key": _attackers_key(tools),
            }
            continue
        density_model, params, _ = tools.density_model
        logits_fn = attacks.behind_purifier(
            logits_fn,
            density_model,
            slope=made.slope,
            adaptive=name == "purify_adaptive",
            window=purification.window_for(tools.eps_defend),
        )
        variables = {
            "classifier": variables,
            "params": params,
            "eps": jnp.int32(tools.eps_defend),
            "threshold": jnp.float32(tools.threshold),
        }
    return model, logits_fn, variables


def _attackers_key(tools: Tools) -> jax.Array:
    """Of the draws that an attack makes of a random defence: one for all images, where
    the defence has one for each."""
    return jax.random.fold_in(jax.random.key(tools.seed), 1)


def whole_attack(tools: Tools, made: Made) -> Program:
    """An attack that looks at eps from the beginning."""
    model, logits_fn, _ = network(tools, made)
    move = attacks.named(made.attack, made.preset)
    if made.fractional:
        move = functools.partial(move, quantise=False)
    perturb = base.perturbing(move, logits_fn)

    def run(variables: dict, *arrays: jax.Array) -> dict:
        return _told(*perturb(variables, *arrays))

    eps, key = jnp.float32(made.eps), jax.random.key(tools.seed)
    name = ("attack", model, made.through, made.slope, made.attack, made.preset)
    return Program((*name, made.fractional), run, {"eps": eps, "key": key})


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
        return likelihood.log_prob(density_model, variables["params"], images)

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
        log_probs = likelihood.log_prob(density_model, variables["params"], found)
        return _told(found, info) | {"log_probs": log_probs}

    options = {"eps": jnp.float32(made.eps), "least": jnp.float32(least)}
    options |= {"params": params}
    return Program(("evade", model, density_model), run, options)


def evade_all(tools: Tools, made: Made) -> Program:
    """An attack past all that stands in front of a classifier, `made.through`: its
    purifiers looked through as `made.slope` says, and its detectors."""
    model, logits_fn, _ = network(tools, made)
    detectors = [name for name in made.through if name in DETECTORS]
    judges = {name: suspicion(tools, name, made.source) for name in detectors}
    of_classifier = tools.classifiers[made.source].params

    def defended(variables: dict, images: jax.Array) -> jax.Array:
        return logits_fn(variables["classifier"], images)

    def harmless(variables: dict, images: jax.Array) -> jax.Array:
        keys = jnp.broadcast_to(variables["key"], (len(images),))
        shares = [
            judges[name](variables["detectors"][name], images, keys)
            / variables["thresholds"][name][:, None]
            for name in detectors
        ]
        return -jnp.max(jnp.concatenate(shares), 0)

    def run(
        variables: dict, images: jax.Array, labels: jax.Array, indices: jax.Array
    ) -> dict:
        del indices
        found, info = attacks.evade(
            defended,
            harmless,
            variables,
            images,
            labels,
            eps=variables["eps"],
            threshold=-1.0,
            keep_failed=True,
        )
        return _told(found, info)

    options = {
        "detectors": {
            name: {
                "params": tools.model_of(DEFENCES[name]).params,
                "classifier": of_classifier,
            }
            for name in detectors
        },
        "thresholds": {name: jnp.asarray(tools.thresholds[name]) for name in detectors},
        "key": _attackers_key(tools),
        "eps": jnp.float32(made.eps),
    }
    return Program(("evade_all", model, made.through, made.slope), run, options)


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
    window = purification.window_for(tools.eps_defend)

    def run(variables: dict, images: jax.Array) -> dict:
        params = variables["params"]
        purified = purification.purify(
            model,
            params,
            images,
            eps=variables["eps"],
            window=window,
        )
        return {
            "images": purified,
            "log_probs": likelihood.log_prob(model, params, purified),
            "given_log_probs": likelihood.log_prob(model, params, images),
        }

    options = {"params": params, "eps": jnp.int32(tools.eps_defend)}
    return Program(("purify",), run, options)


def _rebuilding(tools: Tools, name: str) -> Callable[..., jax.Array]:
    """What a PuVAE or a reformer makes of images, floating levels."""
    if name == "puvae":
        model = tools.puvae.model
        options = {"samples": tools.samples, "noise": tools.noise}

        def rebuild(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
            return puvae.reconstruct(model, params, images, key, **options).images

        return rebuild
    return functools.partial(magnet.reformed, tools.magnet.model)


def rebuild(tools: Tools, name: str) -> Program:
    """Images behind a PuVAE or a reformer; of a PuVAE also how far it moved them."""
    reform = _rebuilding(tools, name)
    seed = tools.seed

    def run(variables: Any, images: jax.Array, indices: jax.Array) -> dict:
        key = keys.for_images(jax.random.key(seed), indices)
        if name == "magnet":
            return {"images": _whole(reform(variables, images, key))}
        found = puvae.reconstruct(
            tools.puvae.model,
            variables,
            images,
            key,
            samples=tools.samples,
            noise=tools.noise,
        )
        return {"images": _whole(found.images), "rmse": found.rmse}

    return Program((name, tools.samples, tools.noise), run, {})


def _whole(images: jax.Array) -> jax.Array:
    return jnp.round(images).astype(jnp.uint8)


def scores(tools: Tools, detector: str, classifier: str) -> Program:
    """How suspicious images are: `scores` `[N, D]`, see `reject`.

    Args:
      tools: with the detector's model.
      detector: of `grid.DETECTORS`, but not "reject_rmse", whose scores `rebuild` has.
      classifier: whose opinion some of MagNet's detectors ask.
    """
    of_images = suspicion(tools, detector, classifier)
    seed = tools.seed

    def run(variables: dict, images: jax.Array, indices: jax.Array) -> dict:
        key = keys.for_images(jax.random.key(seed), indices)
        return {"scores": of_images(variables, images, key).T}

    return Program((detector, tools.classifiers[classifier].model), run, {})


def suspicion(
    tools: Tools, detector: str, classifier: str
) -> Callable[[dict, jax.Array, jax.Array], jax.Array]:
    """`scores(variables, images, key) -> [D, B]`, differentiable, for keys `[B]`;
    `variables` holds `params` of the detector's model and those of the `classifier`."""
    if detector == "reject_p_value":
        density_model = tools.density_model.model

        def unlikely(variables: dict, images: jax.Array, key: jax.Array) -> jax.Array:
            del key
            return -likelihood.log_prob(density_model, variables["params"], images)[
                None
            ]

        return unlikely
    if detector == "reject_rmse":

        def distant(variables: dict, images: jax.Array, key: jax.Array) -> jax.Array:
            return puvae.reconstruct(
                tools.puvae.model,
                variables["params"],
                images,
                key,
                samples=tools.samples,
                noise=tools.noise,
            ).rmse[None]

        return distant
    model, _, card = tools.magnet
    logits_fn = classifiers.logits_fn(tools.classifiers[classifier].model)

    def unstable(variables: dict, images: jax.Array, key: jax.Array) -> jax.Array:
        return magnet.scores(
            model,
            variables["params"],
            images,
            key,
            detectors=magnet.DETECTORS[card["dataset"]],
            logits_fn=logits_fn,
            classifier_variables=variables["classifier"],
        )

    return unstable


def _told(images: jax.Array, info: attacks.Info) -> dict[str, jax.Array]:
    return {
        "images": images,
        "success": info.success,
        "distance": info.distance,
        "queries": info.queries,
    }
