"""The images that a table needs, and what classifiers say of them; each made once."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pixeldefend import (
    attacks,
    checkpoint,
    classifiers,
    data,
    defence,
    density,
    parallel,
    purification,
    squeeze,
)
from pixeldefend.grid import CLEAN, Made, Pipeline
from pixeldefend.run.kept import Kept, mark

_PURIFIERS = {"purify", "purify_adaptive"}


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


class Shown(NamedTuple):
    """Images as a classifier gets them.

    Attributes:
      images: `[N, H, W, C]` uint8.
      log_probs: `[N]` nats, where known.
      seconds: that it took to make them.
      device: that made them, in words.
    """

    images: np.ndarray
    log_probs: np.ndarray | None
    seconds: float
    device: str


class _Program(NamedTuple):
    """A function of `(variables, *arrays)`, and what tells it from others."""

    key: tuple
    function: Callable[..., dict]
    options: dict


class Workbench:
    """Makes sets of images with some tools, keeps them, and finds them again."""

    def __init__(self, folder: epath.PathLike, given: data.Input, tools: Tools):
        """Prepares; nothing is computed before it is asked for.

        Args:
          folder: of the run.
          given: clean images with their labels.
          tools: see there.
        """
        self._given, self._tools = given, tools
        self._kept = Kept(folder)
        self._programs: dict[tuple, parallel.BatchMap] = {}

    @property
    def seconds(self) -> float:
        """That everything asked for took to make, compilation apart."""
        return self._kept.seconds

    def tidy(self) -> None:
        """Removes what only a killed run would need."""
        self._kept.tidy()

    def attacked(self, made: Made) -> dict[str, np.ndarray]:
        """The attacked images of a set.

        Returns:
          `images [N, H, W, C]` uint8, and of the attack `success`, `distance` and
          `queries` `[N]` (see `attacks.Info`); `seconds` and `device`. Of clean images
          only the first and the last two.
        """
        if made.attack == CLEAN:
            clean = self._given.images[: self._count(made)]
            none = {"seconds": np.float64(0), "device": parallel.devices()}
            return {"images": clean} | none
        if not attacks.ATTACKS[made.attack].cut:
            return self._made(made, self._whole_attack(made), f"{made}")
        # The same search whatever eps is.
        wide = dataclasses.replace(made, eps=float("inf"))
        search = self._search(wide)
        # Its images only if they are not cut yet; its time in any case.
        of, name = self._mark(wide, search), f"{_slug(wide)}-search"
        known = self._kept.find("adversarial", name, of, only=("seconds",))

        def searched() -> np.ndarray:
            return self._made(wide, search, f"{wide} (search)")["images"]

        cut = self._made(made, self._cut(made), f"{made}", after=(of, searched))
        known = known or self._kept.find("adversarial", name, of, only=("seconds",))
        return cut | {"seconds": cut["seconds"] + (known or {"seconds": 0})["seconds"]}

    def shown(self, made: Made, defences: tuple[str, ...]) -> Shown:
        """A set of images after it passed defences, in their order."""
        if not defences:
            found = self.attacked(made)
            seconds, device = float(found["seconds"]), str(found["device"])
            return Shown(found["images"], None, seconds, device)
        *before, last = defences
        given = self.shown(made, tuple(before))
        if last == "squeeze":
            return given._replace(images=self._squeezed(given.images), log_probs=None)
        found = self._purified(made, tuple(before), given.images)
        images, log_probs = found["images"], found["log_probs"]
        if last == "purify_adaptive":
            bits = self.bits_per_dim(found["given_log_probs"])
            alone = bits < self._tools.threshold
            images = np.where(alone[:, None, None, None], given.images, images)
            log_probs = np.where(alone, found["given_log_probs"], log_probs)
        seconds = given.seconds + float(found["seconds"])
        return Shown(images, log_probs, seconds, str(found["device"]))

    def scores(self, made: Made) -> np.ndarray:
        """Bits/dim `[N]` of a set of images before they are purified."""
        images = self.attacked(made)["images"]
        return self.bits_per_dim(self._purified(made, (), images)["given_log_probs"])

    def correct(
        self, row: Pipeline, made: Made, shown: Shown | None = None
    ) -> np.ndarray:
        """Whether a classifier is right about a set behind its defences, `[N]` bool.

        Args:
          row: the classifier and its defences.
          made: the set.
          shown: what `self.shown(made, row.defences)` gave, if it is at hand.
        """
        images = (shown or self.shown(made, row.defences)).images
        model, variables, card = self._tools.classifiers[row.classifier]

        def predict(variables: Any, images: jax.Array) -> dict:
            logits_fn = classifiers.logits_fn(model)
            return {"classes": attacks.predicted(logits_fn, variables, images)}

        mapped = self._mapped(("predict", model), predict, len(images))
        name = f"{row} {_slug(made)}"
        of = mark(mapped, weights=card["sha256"], images=checkpoint.fingerprint(images))
        found = self._kept.find("predictions", name, of) or self._kept.run(
            "predictions", name, of, mapped, f"{row}: {made}", variables, images
        )
        return found["classes"] == self._given.labels[: len(images)]

    def bits_per_dim(self, log_probs: np.ndarray) -> np.ndarray:
        """`[N]`, of log-probabilities in nats."""
        shape = self._given.images.shape[1:]
        return np.asarray(density.to_bits_per_dim(log_probs, shape))

    def _count(self, made: Made) -> int:
        """How many images a set has."""
        whole = len(self._given.images)
        return min(made.images or whole, whole)

    def _squeezed(self, images: np.ndarray) -> np.ndarray:
        tools = self._tools

        def run(_: Any, images: jax.Array) -> jax.Array:
            return squeeze.squeeze_features(
                images, colours=tools.colours, preset=tools.median
            )

        return self._mapped(("squeeze",), run, len(images))({}, images)

    def _mark(self, made: Made, program: _Program, after: str = "") -> str:
        """What attacked images depend on."""
        count, preset = self._count(made), {}
        if made.preset is not None:
            preset = dict(attacks.ATTACKS[made.attack].presets[made.preset])
        more: dict[str, Any] = {}
        if _PURIFIERS & set(made.through):
            more["density_model"] = self._tools.density_model.card["sha256"]
            more["eps_defend"] = self._tools.eps_defend
        if "purify_adaptive" in made.through:
            more["threshold"] = self._tools.threshold
        weights = ""
        if made.source is not None:
            weights = self._tools.classifiers[made.source].card["sha256"]
        return mark(
            self._mapped(program.key, program.function, count),
            what=program.key[0],
            made=dataclasses.asdict(made)
            | {
                "eps": str(made.eps),
                "source": weights,
                "through": "+".join(made.through),
            },
            preset=preset,
            median=self._tools.median if "median" in made.through else "",
            seed=self._tools.seed,
            images=checkpoint.fingerprint(self._given.images[:count]),
            labels=checkpoint.fingerprint(self._given.labels[:count]),
            after=after,
            **more,
        )

    def _made(
        self,
        made: Made,
        program: _Program,
        what: str,
        after: tuple[str, Callable[[], np.ndarray]] | None = None,
    ) -> dict[str, np.ndarray]:
        """Attacked images from their file or from a program.

        Args:
          made: the set.
          program: what makes it.
          what: in front of the progress.
          after: the mark of what the program takes besides, and how to get that.
        """
        before, more = after or ("", None)
        of = self._mark(made, program, before)
        name = f"{_slug(made)}{'-search' * (program.key[0] == 'search')}"
        found = self._kept.find("adversarial", name, of)
        if found is not None:
            return found
        others = () if more is None else (more(),)
        count = self._count(made)
        _, _, variables = self._network(made)
        return self._kept.run(
            "adversarial",
            name,
            of,
            self._mapped(program.key, program.function, count),
            what,
            {"classifier": variables} | program.options,
            self._given.images[:count],
            self._given.labels[:count].astype(np.int32),
            np.arange(count, dtype=np.uint32),
            *others,
        )

    def _network(self, made: Made) -> tuple[Any, Callable, Any]:
        """What an attack looks at: the model, its logits as seen, and their variables.

        What stands in front of the classifier is put there from the inside outwards.
        """
        if made.source is None:
            return None, defence.blind, {}
        tools = self._tools
        model, variables, _ = tools.classifiers[made.source]
        logits_fn = classifiers.logits_fn(model)
        for name in reversed(made.through):
            if name == "median":
                logits_fn = defence.behind_median(logits_fn, preset=tools.median)
                continue
            density_model, params, _ = tools.density_model
            logits_fn = attacks.bpda(
                logits_fn,
                density_model,
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

    def _whole_attack(self, made: Made) -> _Program:
        model, logits_fn, _ = self._network(made)
        move = attacks.named(made.attack, made.preset)

        def run(
            variables: dict, images: jax.Array, labels: jax.Array, indices: jax.Array
        ) -> dict:
            found, info = defence.perturbed(
                move,
                logits_fn,
                variables["classifier"],
                images,
                labels,
                indices,
                key=variables["key"],
                eps=variables["eps"],
            )
            return _told(found, info)

        eps, key = jnp.float32(made.eps), jax.random.key(self._tools.seed)
        name = ("attack", model, made.through, made.attack, made.preset)
        return _Program(name, run, {"eps": eps, "key": key})

    def _search(self, made: Made) -> _Program:
        """An attack without a ball."""
        model, logits_fn, _ = self._network(made)
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

        name = ("search", model, made.through, made.attack, made.preset)
        return _Program(name, run, {})

    def _cut(self, made: Made) -> _Program:
        """Its end: what is found, cut to the ball."""
        model, logits_fn, _ = self._network(made)
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
        return _Program(name, run, {"eps": jnp.float32(made.eps)})

    def _purified(
        self, made: Made, before: tuple[str, ...], images: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Purified `images`, their `log_probs` and those that they had before."""
        model, params, card = self._tools.density_model
        tools, width = self._tools, purification.width_for(self._tools.eps_defend)

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

        mapped = self._mapped(("purify",), run, len(images))
        name = " ".join((_slug(made), *before))
        of = mark(
            mapped,
            weights=card["sha256"],
            eps_defend=tools.eps_defend,
            solver=tools.solver,
            images=checkpoint.fingerprint(images),
        )
        return self._kept.find("purified", name, of) or self._kept.run(
            "purified",
            name,
            of,
            mapped,
            f"purifying {' + '.join((str(made), *before))}",
            {"params": params, "eps": jnp.int32(tools.eps_defend)},
            images,
        )

    def _mapped(self, key: tuple, function: Callable, count: int) -> parallel.BatchMap:
        """A program, compiled once for all variables of one shape."""
        batch = parallel.batch_for(self._tools.batch, count)
        program = parallel.BatchMap(function, batch)
        return self._programs.setdefault((*key, batch), program)


def _told(images: jax.Array, info: attacks.Info) -> dict[str, jax.Array]:
    return {
        "images": images,
        "success": info.success,
        "distance": info.distance,
        "queries": info.queries,
    }


def _slug(made: Made) -> str:
    """A name for files; what else a set depends on is in their mark."""
    if made.attack == CLEAN:
        words = [CLEAN]
    else:
        words = [made.attack, made.preset or "", f"eps{made.eps:g}"]
        words += [made.source or "", *made.through]
    if made.images:
        words.append(f"first{made.images}")
    return "-".join(filter(None, words))
