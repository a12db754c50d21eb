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
    density,
    parallel,
    reject,
    squeeze,
)
from pixeldefend.grid import CLEAN, DEFENCES, DETECTORS, EVADE, Made, Pipeline
from pixeldefend.run import programs
from pixeldefend.run.kept import Kept, mark
from pixeldefend.run.programs import Program, Tools


class Shown(NamedTuple):
    """Images as a classifier gets them.

    Attributes:
      images: `[N, H, W, C]` uint8.
      log_probs: `[N]` nats, where known.
      seconds: that it took to make them.
      device: that made them, in words.
      rejected: `[N]` bool, by any detector on the way; None without one.
      rmse: `[N]` levels, how far a PuVAE on the way moved them; None without one.
    """

    images: np.ndarray
    log_probs: np.ndarray | None
    seconds: float
    device: str
    rejected: np.ndarray | None = None
    rmse: np.ndarray | None = None


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
          `images [N, H, W, C]` uint8 (fractional ones floating), and of the attack
          `success`, `distance` and `queries` `[N]` (see `attacks.Info`); `seconds` and
          `device`. Of clean images only the first and the last two.
        """
        if made.attack == CLEAN:
            clean = self._given.images[: self._count(made)]
            none = {"seconds": np.float64(0), "device": parallel.devices()}
            return {"images": clean} | none
        if made.attack == EVADE:
            return self.evading_all(made)
        if not attacks.ATTACKS[made.attack].cut:
            return self._made(made, programs.whole_attack(self._tools, made), f"{made}")
        # The same search whatever eps is.
        wide = dataclasses.replace(made, eps=float("inf"))
        search = programs.search(self._tools, wide)
        # Its images only if they are not cut yet; its time in any case.
        of, name = self._mark(wide, search), f"{_slug(wide)}-search"
        known = self._kept.find("adversarial", name, of, only=("seconds",))

        def searched() -> np.ndarray:
            return self._made(wide, search, f"{wide} (search)")["images"]

        cut = self._made(
            made, programs.cut(self._tools, made), f"{made}", after=(of, searched)
        )
        known = known or self._kept.find("adversarial", name, of, only=("seconds",))
        return cut | {"seconds": cut["seconds"] + (known or {"seconds": 0})["seconds"]}

    def shown(
        self, made: Made, defences: tuple[str, ...], classifier: str = ""
    ) -> Shown:
        """A set of images after it passed defences, in their order.

        Args:
          made: the set.
          defences: of `grid.DEFENCES`.
          classifier: behind them, which some detectors ask.
        """
        if not defences:
            found = self.attacked(made)
            seconds, device = float(found["seconds"]), str(found["device"])
            return Shown(found["images"], None, seconds, device)
        *before, last = defences
        given = self.shown(made, tuple(before), classifier)
        seen = tuple(name for name in before if name not in DETECTORS)
        if last == "squeeze":
            return given._replace(images=self._squeezed(given.images), log_probs=None)
        if last in DETECTORS:
            return self._judged(made, seen, given, last, classifier)
        if last in ("puvae", "magnet"):
            found = self._rebuilt(made, seen, given.images, last)
            seconds = given.seconds + float(found["seconds"])
            return given._replace(
                images=found["images"],
                log_probs=None,
                seconds=seconds,
                device=str(found["device"]),
                rmse=found.get("rmse", given.rmse),
            )
        found = self._purified(made, seen, given.images)
        images, log_probs = found["images"], found["log_probs"]
        if last == "purify_adaptive":
            bits = self.bits_per_dim(found["given_log_probs"])
            alone = bits < self._tools.threshold
            images = np.where(alone[:, None, None, None], given.images, images)
            log_probs = np.where(alone, found["given_log_probs"], log_probs)
        seconds = given.seconds + float(found["seconds"])
        return given._replace(
            images=images,
            log_probs=log_probs,
            seconds=seconds,
            device=str(found["device"]),
        )

    def log_probs(self, made: Made) -> np.ndarray:
        """Log-probabilities `[N]`, nats, of a set of images before it is purified."""
        images = self.attacked(made)["images"]
        return self._purified(made, (), images)["given_log_probs"]

    def scores(self, made: Made) -> np.ndarray:
        """Bits/dim `[N]` of a set of images before they are purified."""
        return self.bits_per_dim(self.log_probs(made))

    def evading(self, made: Made, least: float) -> dict[str, np.ndarray]:
        """Images that get past a classifier and the detector, as `attacked` gives them.

        Args:
          made: `attacks.evade` on a classifier with an eps; `images` of them.
          least: log-probability that the detector lets pass, nats.

        Returns:
          As `attacked`, and their `log_probs`.
        """
        program = programs.evade(self._tools, made, least)
        of = self._mark(made, program, f"{least:.6f}")
        name = f"{_slug(made)}-{of[:8]}"
        return self._kept.find("adversarial", name, of) or self._run(
            made, program, name, of, f"{made}, past the detector"
        )

    def correct(
        self, row: Pipeline, made: Made, images: np.ndarray | None = None
    ) -> np.ndarray:
        """Whether a classifier is right about a set behind its defences, `[N]` bool.

        Arguments as for `classes`; what detectors say is not regarded.
        """
        found = self.classes(row, made, images)
        return found == self._given.labels[: len(found)]

    def classes(
        self, row: Pipeline, made: Made, images: np.ndarray | None = None
    ) -> np.ndarray:
        """What a classifier takes a set for behind its defences, `[N]`.

        Args:
          row: the classifier and its defences.
          made: the set.
          images: those of `self.shown(made, row.defences)`, if they are at hand.
        """
        if images is None:
            images = self.shown(made, row.defences, row.classifier).images
        model, variables, card = self._tools.classifiers[row.classifier]

        def predict(variables: Any, images: jax.Array) -> dict:
            logits_fn = classifiers.logits_fn(model)
            return {"classes": attacks.predicted(logits_fn, variables, images)}

        kind = str(images.dtype)
        mapped = self._mapped(("predict", model, kind), predict, len(images))
        name = f"{row} {_slug(made)}"
        of = mark(mapped, weights=card["sha256"], images=checkpoint.fingerprint(images))
        found = self._kept.find("predictions", name, of) or self._kept.run(
            "predictions", name, of, mapped, f"{row}: {made}", variables, images
        )
        return found["classes"]

    def probabilities(self, classifier: str, images: np.ndarray) -> np.ndarray:
        """A classifier's probabilities `[N, K]` for a few images, which are not kept.

        Args:
          classifier: the name of its weights.
          images: `[N, H, W, C]` uint8.
        """
        model, variables, _ = self._tools.classifiers[classifier]

        def run(variables: Any, images: jax.Array) -> jax.Array:
            logits_fn = classifiers.logits_fn(model)
            return jax.nn.softmax(logits_fn(variables, images.astype(jnp.float32)))

        mapped = self._mapped(("probabilities", model), run, len(images))
        return mapped(variables, images)

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

        mapped = self._mapped(("squeeze", str(images.dtype)), run, len(images))
        return mapped({}, images)

    def _mark(self, made: Made, program: Program, after: str = "") -> str:
        """What attacked images depend on."""
        count, preset = self._count(made), {}
        if made.preset is not None and made.attack in attacks.ATTACKS:
            preset = dict(attacks.ATTACKS[made.attack].presets[made.preset])
        more: dict[str, Any] = {}
        models = {DEFENCES.get(name, "") for name in made.through}
        if "detector" in made.through:
            models.add("density_model")
        if "density_model" in models:
            more["density_model"] = self._tools.density_model.card["sha256"]
            more["eps_defend"] = self._tools.eps_defend
        more |= self._of_autoencoders(models)
        for name in set(made.through) & set(DETECTORS):
            more[name] = self._bars(name)
        if "purify_adaptive" in made.through:
            more["threshold"] = self._tools.threshold
        weights = ""
        if made.source is not None:
            weights = self._tools.classifiers[made.source].card["sha256"]
        return mark(
            self._mapped(program.key, program.function, count),
            what=program.key[0],
            made={
                "attack": made.attack,
                "preset": made.preset,
                "images": made.images,
                "eps": str(made.eps),
                "source": weights,
                "through": "+".join(filter(None, (*made.through, made.slope))),
            }
            | ({"fractional": True} if made.fractional else {}),
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
        program: Program,
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
        return self._run(made, program, name, of, what, *others)

    def _run(
        self,
        made: Made,
        program: Program,
        name: str,
        of: str,
        what: str,
        *others: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Runs a program for a set."""
        count = self._count(made)
        _, _, variables = programs.network(self._tools, made)
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

    def _of_autoencoders(self, models: set[str]) -> dict:
        """What results depend on that a PuVAE or MagNet takes part in."""
        found: dict[str, Any] = {}
        for name in models & {"puvae", "magnet"}:
            found[name] = self._tools.model_of(name).card["sha256"]
        if "puvae" in models:
            found["draws"] = [self._tools.samples, self._tools.noise]
        return found

    def _bars(self, detector: str) -> list[str]:
        """A detector's thresholds, for marks."""
        return [f"{bar:.7g}" for bar in self._tools.thresholds[detector]]

    def evading_all(self, made: Made) -> dict[str, np.ndarray]:
        """Images that get past a whole defence, as `attacked` gives them.

        Args:
          made: `attacks.evade` on a classifier with an eps, through all its defences.
        """
        program = programs.evade_all(self._tools, made)
        of = self._mark(made, program)
        return self._kept.find("adversarial", _slug(made), of) or self._run(
            made, program, _slug(made), of, f"{made}"
        )

    def _rebuilt(
        self, made: Made, before: tuple[str, ...], images: np.ndarray, by: str
    ) -> dict[str, np.ndarray]:
        """Images behind a PuVAE, with their `rmse`, or behind a reformer."""
        program = programs.rebuild(self._tools, by)
        return self._behind(
            "purified", made, before, images, by, program, self._tools.model_of(by)
        )

    def _judged(
        self,
        made: Made,
        before: tuple[str, ...],
        given: Shown,
        detector: str,
        classifier: str,
    ) -> Shown:
        """Images as they were, with those marked that a detector rejects."""
        found = self.suspicion(made, before, given.images, detector, classifier)
        out = reject.rejected(found["scores"].T, self._tools.thresholds[detector])
        out = np.asarray(out)
        if given.rejected is not None:
            out |= given.rejected
        seconds = given.seconds + float(found["seconds"])
        rmse = given.rmse
        if detector == "reject_rmse":
            rmse = found["scores"][:, 0]
        return given._replace(rejected=out, seconds=seconds, rmse=rmse)

    def suspicion(
        self,
        made: Made,
        before: tuple[str, ...],
        images: np.ndarray,
        detector: str,
        classifier: str,
    ) -> dict[str, np.ndarray]:
        """How suspicious images are: `scores` `[N, D]`, see `reject`.

        Args:
          made: the set that they come from.
          before: what they have passed.
          images: `[N, H, W, C]`.
          detector: of `grid.DETECTORS`.
          classifier: which some of MagNet's detectors ask.
        """
        if detector == "reject_rmse":  # known from purifying
            found = self._rebuilt(made, before, images, "puvae")
            return {"scores": found["rmse"][:, None], "seconds": found["seconds"]}
        if DEFENCES[detector] == "density_model":  # which knows whole levels only
            images = np.round(images).astype(np.uint8)
        program = programs.scores(self._tools, detector, classifier)
        one = self._tools.model_of(DEFENCES[detector])
        variables = {
            "params": one.params,
            "classifier": self._tools.classifiers[classifier].params,
        }
        of_classifier = self._tools.classifiers[classifier].card["sha256"]
        return self._behind(
            "scores",
            made,
            before,
            images,
            f"{detector} {classifier}",
            program,
            one._replace(params=variables),
            classifier=of_classifier,
        )

    def _behind(
        self,
        kind: str,
        made: Made,
        before: tuple[str, ...],
        images: np.ndarray,
        by: str,
        program: Program,
        model: programs.Loaded,
        **more: Any,
    ) -> dict[str, np.ndarray]:
        """What a random program makes of images, from its file or anew."""
        mapped = self._mapped(
            (*program.key, str(images.dtype)), program.function, len(images)
        )
        name = " ".join((_slug(made), *before, "by", by))
        of = mark(
            mapped,
            weights=model.card["sha256"],
            draws=[self._tools.samples, self._tools.noise, self._tools.seed],
            images=checkpoint.fingerprint(images),
            **more,
        )
        return self._kept.find(kind, name, of) or self._kept.run(
            kind,
            name,
            of,
            mapped,
            f"{by}: {' + '.join((str(made), *before))}",
            model.params,
            images,
            np.arange(len(images), dtype=np.uint32),
        )

    def _purified(
        self, made: Made, before: tuple[str, ...], images: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Purified `images`, their `log_probs` and those that they had before."""
        tools = self._tools
        # A density model knows whole levels only.
        images = np.round(images).astype(np.uint8)
        program = programs.purify(tools)
        mapped = self._mapped(program.key, program.function, len(images))
        name = " ".join((_slug(made), *before))
        of = mark(
            mapped,
            weights=tools.density_model.card["sha256"],
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
            program.options,
            images,
        )

    def _mapped(self, key: tuple, function: Callable, count: int) -> parallel.BatchMap:
        """A program, compiled once for all variables of one shape."""
        batch = parallel.batch_for(self._tools.batch, count)
        program = parallel.BatchMap(function, batch)
        return self._programs.setdefault((*key, batch), program)


def _slug(made: Made) -> str:
    """A name for files; what else a set depends on is in their mark."""
    if made.attack == CLEAN:
        words = [CLEAN]
    else:
        words = [made.attack, made.preset or "", f"eps{made.eps:g}"]
        words += [made.source or "", *made.through, made.slope]
        words.append("fractional" if made.fractional else "")
    if made.images:
        words.append(f"first{made.images}")
    return "-".join(filter(None, words))
