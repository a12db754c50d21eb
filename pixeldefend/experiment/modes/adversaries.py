"""Attacked images, each set of them made once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from pixeldefend import attacks
from pixeldefend.experiment import parallel, zoo
from pixeldefend.experiment.grid import CLEAN, DEFENCES, DETECTORS, EVADE, Made
from pixeldefend.experiment.modes import programs
from pixeldefend.experiment.modes.maker import Maker, slug
from pixeldefend.experiment.modes.programs import Program
from pixeldefend.experiment.store import fingerprint


class Adversaries:
    """Makes the attacked images of sets, and finds them again."""

    def __init__(self, maker: Maker):
        """`maker` has the clean images and the classifiers."""
        self._maker, self._tools = maker, maker.tools
        self._given, self._kept = maker.given, maker.kept

    def attacked(self, made: Made) -> dict[str, np.ndarray]:
        """The attacked images of a set.

        Returns:
          `images [N, H, W, C]` uint8 (fractional ones floating), and of the attack
          `success`, `distance` and `queries` `[N]` (see `attacks.Info`); `seconds` and
          `device`. Of clean images only the first and the last two.
        """
        if made.attack == CLEAN:
            clean = self._given.images[: self._maker.count(made)]
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
        of, name = self._mark(wide, search), f"{slug(wide)}-search"
        known = self._kept.find("adversarial", name, of, only=("seconds",))

        def searched() -> np.ndarray:
            return self._made(wide, search, f"{wide} (search)")["images"]

        cut = self._made(
            made, programs.cut(self._tools, made), f"{made}", after=(of, searched)
        )
        known = known or self._kept.find("adversarial", name, of, only=("seconds",))
        return cut | {"seconds": cut["seconds"] + (known or {"seconds": 0})["seconds"]}

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
        name = f"{slug(made)}-{of[:8]}"
        return self._once(made, program, name, of, f"{made}, past the detector")

    def evading_all(self, made: Made) -> dict[str, np.ndarray]:
        """Images that get past a whole defence, as `attacked` gives them.

        Args:
          made: `attacks.evade` on a classifier with an eps, through all its defences.
        """
        program = programs.evade_all(self._tools, made)
        of = self._mark(made, program)
        return self._once(made, program, slug(made), of, f"{made}")

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
        before, others = after or ("", None)
        of = self._mark(made, program, before)
        name = f"{slug(made)}{'-search' * (program.key[0] == 'search')}"
        return self._once(made, program, name, of, what, others)

    def _once(
        self,
        made: Made,
        program: Program,
        name: str,
        of: str,
        what: str,
        others: Callable[[], np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """What a program makes of a set, from its file or anew.

        Args:
          made: the set.
          program: what makes it.
          name: of the file.
          of: its mark.
          what: in front of the progress.
          others: gives what the program takes besides.
        """
        count = self._maker.count(made)

        def arguments() -> tuple:
            _, _, variables = programs.network(self._tools, made)
            return (
                {"classifier": variables} | program.options,
                self._given.images[:count],
                self._given.labels[:count].astype(np.int32),
                np.arange(count, dtype=np.uint32),
                *(() if others is None else (others(),)),
            )

        mapped = self._maker.mapped(program.key, program.function, count)
        return self._kept.once("adversarial", name, of, mapped, what, arguments)

    def _mark(self, made: Made, program: Program, after: str = "") -> str:
        """What attacked images depend on."""
        count, preset = self._maker.count(made), {}
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
        return fingerprint(
            self._maker.mapped(program.key, program.function, count),
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
            images=zoo.fingerprint(self._given.images[:count]),
            labels=zoo.fingerprint(self._given.labels[:count]),
            after=after,
            **more,
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
