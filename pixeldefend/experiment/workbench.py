"""What a table needs: attacked images, images behind defences, and what classifiers say
of them; each computed once and kept."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pixeldefend import attacks
from pixeldefend.defences import DEFENCES, base
from pixeldefend.density import likelihood
from pixeldefend.experiment import adversaries, data, parallel
from pixeldefend.experiment.adversaries import Target
from pixeldefend.experiment.grid import CLEAN, EVADE, Adversary, Pipeline
from pixeldefend.experiment.store import Store, fingerprint
from pixeldefend.experiment.tools import Tools, compute, source_of


class Shown(NamedTuple):
    """Images as a classifier gets them.

    Attributes:
      passed: what the last defence handed on, as numpy arrays.
      seconds: that it took to make them.
      device: that made them, in words.
    """

    passed: base.Passed
    seconds: float
    device: str


class Workbench:
    """Makes sets of images with some tools, keeps them, and finds them again."""

    def __init__(self, folder: epath.PathLike, given: data.Input, tools: Tools):
        """Prepares; nothing is computed before it is asked for.

        Args:
          folder: of the run.
          given: clean images with their labels.
          tools: see there.
        """
        self.given, self.tools = given, tools
        self._store = Store(folder)
        self._maps = parallel.BatchMaps()

    @property
    def seconds(self) -> float:
        """That everything asked for took to make, compilation apart."""
        return self._store.seconds

    @property
    def labels(self) -> np.ndarray:
        """The true ones `[N]`; nothing is attacked or measured without."""
        assert self.given.labels is not None
        return self.given.labels

    def tidy(self) -> None:
        """Removes what only a killed run would need."""
        self._store.tidy()

    def attacked(self, adversary: Adversary) -> dict[str, np.ndarray]:
        """The attacked images of a set.

        Returns:
          `images [N, H, W, C]` uint8 (fractional ones floating), and of the attack
          `success`, `distance` and `queries` `[N]` (see `attacks.Info`; AutoAttack's
          `AutoInfo` has more); `seconds` and `device`. Of clean images only the first
          and the last two.
        """
        if adversary.attack == CLEAN:
            clean = self.given.images[: self._count(adversary)]
            none: dict[str, Any] = {"seconds": np.float64(0)}
            none["device"] = np.array(parallel.devices())
            return {"images": clean} | none
        target, variables = self._target(adversary)
        if adversary.attack == EVADE:
            names = [n for n in adversary.through if DEFENCES[n].detects]
            built = [self.tools.defence(name, adversary.source or "") for name in names]
            detectors, params = zip(*built, strict=True)
            variables |= {"detectors": params, "key": self._attackers_key}
            return self._attack(
                adversary,
                f"{adversary}",
                adversaries.evading,
                (target, detectors),
                variables,
            )
        if not attacks.ATTACKS[adversary.attack].cut:
            static = (target, adversary.attack, adversary.preset, adversary.fractional)
            variables |= {"key": jax.random.key(self.tools.seed)}
            return self._attack(
                adversary, f"{adversary}", adversaries.attacked, static, variables
            )
        wide = dataclasses.replace(adversary, eps=float("inf"))
        search = self._attack(
            wide,
            f"{wide} (search)",
            adversaries.searched,
            (target, adversary.attack, adversary.preset),
            {"target": variables["target"]},
        )
        norm = attacks.ATTACKS[adversary.attack].norm
        found = self._attack(
            adversary,
            f"{adversary}",
            adversaries.cut,
            (target, norm),
            variables,
            search["images"],
        )
        return found | {"seconds": found["seconds"] + search["seconds"]}

    def _target(self, adversary: Adversary) -> tuple[Target, dict[str, Any]]:
        """What an attack looks at, and the variables of that; its `eps` too."""
        eps = {"eps": jnp.float32(adversary.eps)}
        if adversary.source is None:
            return Target(None), eps | {"target": {}}
        model, variables, _ = self.tools.classifiers[adversary.source]
        names = [n for n in adversary.through if not DEFENCES[n].detects]
        if not names:
            return Target(model), eps | {"target": variables}
        built = [self.tools.defence(name, adversary.source) for name in names]
        defences, params = zip(*built, strict=True)
        variables = {"classifier": variables, "defences": params}
        if any(defence.random for defence in defences):
            variables["key"] = self._attackers_key
        known = adversary.attack in attacks.ATTACKS
        truly = known and attacks.stops(adversary.attack, adversary.preset or "")
        target = Target(model, tuple(defences), adversary.gradient, truly)
        return target, eps | {"target": variables}

    @property
    def _attackers_key(self) -> jax.Array:
        """Of the draws that an attack makes of a random defence: one for all images,
        where the defence has one for each."""
        return jax.random.fold_in(jax.random.key(self.tools.seed), 1)

    def _attack(
        self,
        adversary: Adversary,
        what: str,
        function: Callable[..., dict],
        static: tuple,
        variables: dict,
        *more: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Attacked images from their file or from one of `adversaries`."""
        count = self._count(adversary)
        preset: dict[str, Any] = {}
        if adversary.preset and adversary.attack in attacks.ATTACKS:
            preset = dict(attacks.ATTACKS[adversary.attack].presets[adversary.preset])
        images, labels = (a[:count] for a in (self.given.images, self.labels))
        arrays = (images, labels.astype(np.int32), np.arange(count, dtype=np.uint32))
        name = slug(adversary) + "-search" * (function is adversaries.searched)
        return self.once(
            "adversarial",
            name,
            what,
            function,
            static,
            variables,
            *arrays,
            *more,
            also=preset,
        )

    def shown(
        self,
        adversary: Adversary,
        defences: tuple[str, ...],
        classifier: str = "",
        draw: int = 0,
    ) -> Shown:
        """A set of images after it passed defences, in their order.

        Args:
          adversary: the set.
          defences: of `DEFENCES`.
          classifier: behind them, which some ask.
          draw: of random defences, which of many.
        """
        found = self.attacked(adversary)
        passed = base.Passed(found["images"])
        seconds, device = float(found["seconds"]), str(found["device"])
        before: tuple[str, ...] = ()
        for name in defences:
            defence, params = self.tools.defence(name, classifier)
            computed = self._computed(
                adversary, before, passed.images, defence, params, classifier, draw
            )
            decided = defence.decide(params, computed, passed.images)
            joined = base.joined(passed, defence, decided)
            passed = jax.tree.map(np.asarray, joined)
            seconds += float(computed["seconds"])
            device = str(computed["device"])
            before += () if defence.detects else (name,)
        return Shown(passed, seconds, device)

    def _computed(
        self,
        adversary: Adversary,
        before: tuple[str, ...],
        images: np.ndarray,
        defence: base.Defence,
        params: base.Params,
        classifier: str,
        draw: int = 0,
    ) -> dict[str, np.ndarray]:
        """What a defence computes of images, from its file or anew.

        Args:
          adversary: the set that they come from.
          before: what they have passed.
          images: `[N, H, W, C]`.
          defence: that they are to pass.
          params: its.
          classifier: behind it.
          draw: of random defences, which of many; its key is another's of the run.
        """
        by = defence.computed_by
        several = (f"draw{draw}",) if draw else ()
        asked = (classifier,) if by.asks_classifier else ()
        detects = by.detects
        return self.once(
            "scores" if detects else "purified",
            " ".join((slug(adversary), *before, "by", by.name, *asked, *several)),
            f"{by.name}: {' + '.join((str(adversary), *before))}",
            compute,
            (by, before, (self.tools.seed + draw) % 2**32),
            {name: value for name, value in params.items() if name != "threshold"},
            images,
            np.arange(len(images), dtype=np.uint32),
        )

    def suspicion(
        self, adversary: Adversary, detector: str, classifier: str = ""
    ) -> np.ndarray:
        """How suspicious a set is to a detector that stands first: scores `[N, D]`."""
        images = self.attacked(adversary)["images"]
        defence, params = self.tools.defence(detector, classifier)
        computed = self._computed(adversary, (), images, defence, params, classifier)
        assert isinstance(defence, base.Detector)
        return np.asarray(defence.computed_scores(computed)).T

    def log_probs(self, adversary: Adversary) -> np.ndarray:
        """Log-probabilities `[N]`, nats, of a set of images before it is purified."""
        images = self.attacked(adversary)["images"]
        purify, params = self.tools.defence("purify")
        computed = self._computed(adversary, (), images, purify, params, "")
        return computed["given_log_probs"]

    def bits_per_dim(self, log_probs: np.ndarray) -> np.ndarray:
        """`[N]`, of log-probabilities in nats."""
        shape = self.given.images.shape[1:]
        return np.asarray(likelihood.to_bits_per_dim(log_probs, shape))

    def correct(
        self, row: Pipeline, adversary: Adversary, images: np.ndarray | None = None
    ) -> np.ndarray:
        """Whether a classifier is right about a set behind its defences, `[N]` bool.

        Arguments as for `classes`; what detectors say is not regarded.
        """
        found = self.classes(row, adversary, images)
        return found == self.labels[: len(found)]

    def classes(
        self,
        row: Pipeline,
        adversary: Adversary,
        images: np.ndarray | None = None,
        draw: int = 0,
    ) -> np.ndarray:
        """What a classifier takes a set for behind its defences, `[N]`.

        Args:
          row: the classifier and its defences.
          adversary: the set.
          images: those of `self.shown(adversary, row.defences)`, if they are at hand.
          draw: of these images, as for `shown`.
        """
        if images is None:
            images = self.shown(adversary, row.defences, row.classifier).passed.images
        model, variables, _ = self.tools.classifiers[row.classifier]
        return self.once(
            "predictions",
            f"{row} {slug(adversary)}" + f" draw{draw}" * (draw > 0),
            f"{row}: {adversary}",
            adversaries.classes,
            (model,),
            variables,
            images,
        )["classes"]

    def probabilities(self, classifier: str, images: np.ndarray) -> np.ndarray:
        """A classifier's probabilities `[N, K]` for a few images, which are not kept.

        Args:
          classifier: the name of its weights.
          images: `[N, H, W, C]` uint8.
        """
        model, variables, _ = self.tools.classifiers[classifier]
        mapped = self._maps.of(
            adversaries.probabilities, (model,), self.tools.batch, images
        )
        return mapped(variables, images)

    def _count(self, adversary: Adversary) -> int:
        """How many images a set has."""
        whole = len(self.given.images)
        return min(adversary.images or whole, whole)

    def once(
        self,
        kind: str,
        name: str,
        what: str,
        function: Callable[..., dict],
        static: tuple,
        variables: Any,
        *arrays: np.ndarray,
        also: Any = None,
    ) -> dict[str, np.ndarray]:
        """What a function makes of arrays, from its file or anew.

        Args:
          kind: the folder of the file.
          name: of the file.
          what: in front of the progress.
          function: of `(*static, variables, *arrays)`.
          static: hashable.
          variables: a pytree of arrays.
          *arrays: `[N, ...]` each.
          also: what the result depends on besides.
        """
        mapped = self._maps.of(function, static, self.tools.batch, *arrays)
        words = (function.__name__, static, source_of(static), mapped.batch, also)
        of = fingerprint(words, (variables, arrays))
        return self._store.once(
            kind, name, of, mapped, what, lambda: (variables, *arrays)
        )


def slug(adversary: Adversary) -> str:
    """A name for files; what else a set depends on is in their fingerprint."""
    if adversary.attack == CLEAN:
        words = [CLEAN]
    else:
        words = [adversary.attack, adversary.preset or "", f"eps{adversary.eps:g}"]
        words += [adversary.source or "", *adversary.through, adversary.gradient]
        words.append("fractional" if adversary.fractional else "")
    if adversary.images:
        words.append(f"first{adversary.images}")
    return "-".join(filter(None, words))
