"""The images that a grid needs: made once, kept in the workdir, found again."""

import dataclasses
import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pixeldefend import (
    __version__,
    attacks,
    checkpoint,
    classifiers,
    data,
    defence,
    density,
    parallel,
    purification,
    report,
    squeeze,
)
from pixeldefend.grid import CLEAN, Made, Pipeline
from pixeldefend.parts import Parts
from pixeldefend.workdir import config_hash


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
    """Images on their way to a classifier.

    Attributes:
      images: `[N, H, W, C]` uint8.
      log_probs: `[N]` nats, where known.
      seconds: that it took to make them.
    """

    images: np.ndarray
    log_probs: np.ndarray | None
    seconds: float


class Workbench:
    """Makes sets of images with some tools, each once, and keeps them as files.

    What a killed run left is found again, batch by batch; files that were made with
    other tools or of other images are made anew.
    """

    def __init__(self, folder: epath.Path, given: data.Input, tools: Tools):
        """Prepares; nothing is computed before it is asked for.

        Args:
          folder: of the run.
          given: clean images with their labels.
          tools: see there.
        """
        self._folder, self._given, self._tools = folder, given, tools
        self._programs: dict[tuple, parallel.BatchMap] = {}
        self._seconds: dict[tuple[str, str], float] = {}

    @property
    def seconds(self) -> float:
        """That everything made or found so far took, compilation apart."""
        return sum(self._seconds.values())

    def tidy(self) -> None:
        """Removes what only a killed run would need."""
        if (self._folder / "parts").exists():
            (self._folder / "parts").rmtree()

    def count(self, made: Made) -> int:
        """How many images a set has."""
        whole = len(self._given.images)
        return min(made.images or whole, whole)

    def attacked(self, made: Made) -> dict[str, np.ndarray]:
        """The attacked images of a set.

        Returns:
          `images [N, H, W, C]` uint8, and of the attack `success`, `distance` and
          `queries` `[N]` (see `attacks.Info`) and `seconds`; of clean images only the
          first and the last.
        """
        if made.attack == CLEAN:
            clean = self._given.images[: self.count(made)]
            return {"images": clean, "seconds": np.float64(0)}
        if not attacks.ATTACKS[made.attack].cut:
            return self._attack(made, self._whole_attack(made), str(made))
        # The same search whatever eps is.
        wide = dataclasses.replace(made, eps=float("inf"))
        found = self._attack(wide, self._search(made), f"{wide} (search)", "search")
        cut = self._attack(made, self._cut(made), str(made), "", found["images"])
        queries = found["queries"] + cut["queries"]
        seconds = found["seconds"] + cut["seconds"]
        return cut | {"queries": queries, "seconds": seconds}

    def shown(self, made: Made, defences: tuple[str, ...]) -> Shown:
        """A set of images after it passed defences, in their order."""
        if not defences:
            found = self.attacked(made)
            return Shown(found["images"], None, float(found["seconds"]))
        *before, last = defences
        given = self.shown(made, tuple(before))
        if last == "squeeze":
            squeezed = squeeze.squeeze_features(
                jnp.asarray(given.images),
                colours=self._tools.colours,
                preset=self._tools.median,
            )
            return Shown(np.asarray(squeezed), None, given.seconds)
        found = self._purified(made, tuple(before), given.images)
        images, log_probs = found["images"], found["log_probs"]
        if last == "purify_adaptive":
            alone = self.bits_per_dim(found["given_log_probs"]) < self._tools.threshold
            images = np.where(alone[:, None, None, None], given.images, images)
            log_probs = np.where(alone, found["given_log_probs"], log_probs)
        return Shown(images, log_probs, given.seconds + float(found["seconds"]))

    def scores(self, made: Made) -> np.ndarray:
        """Bits/dim `[N]` of a set of images before they are purified."""
        images = self.attacked(made)["images"]
        return self.bits_per_dim(self._purified(made, (), images)["given_log_probs"])

    def correct(self, row: Pipeline, made: Made) -> np.ndarray:
        """Whether a classifier is right about a set behind its defences, `[N]` bool."""
        images = self.shown(made, row.defences).images
        labels = self._given.labels[: len(images)]
        model, variables, card = self._tools.classifiers[row.classifier]

        def predict(variables: Any, images: jax.Array) -> dict:
            logits_fn = classifiers.logits_fn(model)
            return {"classes": attacks.predicted(logits_fn, variables, images)}

        found = self._kept(
            "predictions",
            f"{row} {_slug(made)}",
            {"weights": card["sha256"]},
            self._program(("predict", model), predict, len(images)),
            f"{row}: {made}",
            variables,
            images,
        )
        return found["classes"] == labels

    def bits_per_dim(self, log_probs: np.ndarray) -> np.ndarray:
        """`[N]`, of log-probabilities in nats."""
        shape = self._given.images.shape[1:]
        return np.asarray(density.to_bits_per_dim(log_probs, shape))

    def _attack(
        self, made: Made, program: tuple, what: str, suffix: str = "", *more: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Runs a program over the images of a set, or finds what it gave."""
        key, function, options = program
        count = self.count(made)
        variables: Any = {}
        identity = {"made": dataclasses.asdict(made), "seed": self._tools.seed}
        if made.source is not None:
            _, variables, card = self._tools.classifiers[made.source]
            identity["weights"] = card["sha256"]
            if made.through:
                identity["median"] = self._tools.median
        return self._kept(
            "adversarial",
            f"{_slug(made)} {suffix}",
            identity | {"eps": str(made.eps), "what": key[0]},
            self._program(key, function, count),
            what,
            {"classifier": variables} | options,
            self._given.images[:count],
            self._given.labels[:count].astype(np.int32),
            np.arange(count, dtype=np.uint32),
            *more,
        )

    def _network(self, made: Made) -> tuple[Any, Callable]:
        """The model that an attack looks at, and its logits as the attack sees them."""
        if made.source is None:
            return None, defence.blind
        model = self._tools.classifiers[made.source].model
        logits_fn = classifiers.logits_fn(model)
        if made.through:
            logits_fn = defence.behind_median(logits_fn, preset=self._tools.median)
        return model, logits_fn

    def _whole_attack(self, made: Made) -> tuple:
        model, logits_fn = self._network(made)
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

        options = {
            "eps": jnp.float32(made.eps),
            "key": jax.random.key(self._tools.seed),
        }
        return ("attack", model, made.through, made.attack, made.preset), run, options

    def _search(self, made: Made) -> tuple:
        model, logits_fn = self._network(made)
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

        return ("search", model, made.through, made.attack, made.preset), run, {}

    def _cut(self, made: Made) -> tuple:
        model, logits_fn = self._network(made)
        norm = attacks.ATTACKS[made.attack].norm

        def run(
            variables: dict,
            images: jax.Array,
            labels: jax.Array,
            indices: jax.Array,
            found: jax.Array,
        ) -> dict:
            del indices
            return _told(
                *attacks.cut(
                    logits_fn,
                    variables["classifier"],
                    images,
                    labels,
                    found,
                    eps=variables["eps"],
                    norm=norm,
                )
            )

        options = {"eps": jnp.float32(made.eps)}
        return ("cut", model, made.through, norm), run, options

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

        identity = {"weights": card["sha256"], "eps_defend": tools.eps_defend}
        return self._kept(
            "purified",
            " ".join((_slug(made), *before)),
            identity | {"solver": tools.solver},
            self._program(("purify",), run, len(images)),
            f"purifying {' + '.join((str(made), *before))}",
            {"params": params, "eps": jnp.int32(tools.eps_defend)},
            images,
        )

    def _program(self, key: tuple, function: Callable, count: int) -> parallel.BatchMap:
        """A program, compiled once for all variables of one shape."""
        # Copies that fill a batch would be worked on as well.
        batch = min(self._tools.batch, parallel.whole_batch(count))
        return self._programs.setdefault(
            (*key, batch), parallel.BatchMap(function, batch)
        )

    def _kept(
        self,
        kind: str,
        name: str,
        identity: dict,
        mapped: parallel.BatchMap,
        what: str,
        variables: Any,
        *arrays: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Results `[N, ...]` from their file, or computed, going on after a kill."""
        name = re.sub(r"[^\w.+-]+", "_", name).strip("_")
        path = self._folder / kind / f"{name}.npz"
        mark = config_hash(
            identity
            | {
                "arrays": [checkpoint.fingerprint(array) for array in arrays],
                "batch": parallel.check_batch(mapped.batch),  # on each device
                "version": __version__,
            }
        )
        found = _stored(path, mark)
        if found is not None:
            self._seconds[kind, name] = float(found["seconds"])
            return found
        parts = Parts(self._folder / "parts" / kind / name, mark, pause=0.0)
        result, seconds = report.run_batches(
            mapped, what, variables, *arrays, parts=parts
        )
        result["seconds"] = np.float64(round(seconds, 3))
        self._seconds[kind, name] = seconds
        checkpoint.write_arrays(path, **result, mark=np.array(mark))
        parts.remove()
        return result


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
        words += [made.source or "", made.through]
    if made.images:
        words.append(f"first{made.images}")
    return "-".join(filter(None, words))


def _stored(path: epath.Path, mark: str) -> dict[str, np.ndarray] | None:
    """What a file holds, if it was made with the same tools of the same images."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            found = dict(file)
        if str(found.pop("mark")) == mark:
            return found
    except Exception:  # missing or damaged, of which there are a dozen kinds
        return None
    return None
