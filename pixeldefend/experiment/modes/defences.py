"""Images behind defences, each set of them made once."""

from typing import Any, NamedTuple

import jax
import numpy as np

from pixeldefend.defences import filters, reject
from pixeldefend.density import likelihood
from pixeldefend.experiment import zoo
from pixeldefend.experiment.grid import DEFENCES, DETECTORS, Made
from pixeldefend.experiment.modes import programs
from pixeldefend.experiment.modes.maker import Maker, slug
from pixeldefend.experiment.modes.programs import Program
from pixeldefend.experiment.store import fingerprint


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


class Defences:
    """Takes sets of images through defences, and finds them again."""

    def __init__(self, maker: Maker):
        """`maker` has the models of the defences."""
        self._maker, self._tools = maker, maker.tools
        self._given, self._kept = maker.given, maker.kept

    def passed(
        self,
        made: Made,
        given: Shown,
        defences: tuple[str, ...],
        classifier: str = "",
    ) -> Shown:
        """Images after they passed defences, in their order.

        Args:
          made: the set that they are.
          given: they themselves, in front of the first.
          defences: of `grid.DEFENCES`.
          classifier: behind them, which some detectors ask.
        """
        shown = given
        for place, name in enumerate(defences):
            # A detector changes no image.
            before = tuple(one for one in defences[:place] if one not in DETECTORS)
            if name in DETECTORS:
                shown = self._judged(made, before, shown, name, classifier)
            elif name == "squeeze":
                squeezed = self._squeezed(shown.images)
                shown = shown._replace(images=squeezed, log_probs=None)
            elif name in ("puvae", "magnet"):
                shown = self._rebuilt(made, before, shown, name)
            else:
                shown = self._purified(made, before, shown, name == "purify_adaptive")
        return shown

    def log_probs(self, made: Made, images: np.ndarray) -> np.ndarray:
        """Log-probabilities `[N]`, nats, of a set of images before it is purified."""
        return self._scored_and_purified(made, (), images)["given_log_probs"]

    def bits_per_dim(self, log_probs: np.ndarray) -> np.ndarray:
        """`[N]`, of log-probabilities in nats."""
        shape = self._given.images.shape[1:]
        return np.asarray(likelihood.to_bits_per_dim(log_probs, shape))

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
            found = self._reconstructed(made, before, images, "puvae")
            return {"scores": found["rmse"][:, None], "seconds": found["seconds"]}
        if DEFENCES[detector] == "density_model":  # which knows whole levels only
            images = np.round(images).astype(np.uint8)
        program = programs.scores(self._tools, detector, classifier)
        one = self._tools.model_of(DEFENCES[detector])
        asked = self._tools.classifiers[classifier]
        variables = {"params": one.params, "classifier": asked.params}
        return self._random(
            "scores",
            made,
            before,
            images,
            f"{detector} {classifier}",
            program,
            one._replace(params=variables),
            classifier=asked.card["sha256"],
        )

    def _squeezed(self, images: np.ndarray) -> np.ndarray:
        tools = self._tools

        def run(_: Any, images: jax.Array) -> jax.Array:
            return filters.squeeze_features(
                images, colours=tools.colours, preset=tools.median
            )

        mapped = self._maker.mapped(("squeeze", str(images.dtype)), run, len(images))
        return mapped({}, images)

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
        bars = self._tools.thresholds[detector]
        out = np.asarray(reject.rejected(found["scores"].T, bars))
        if given.rejected is not None:
            out = out | given.rejected
        seconds = given.seconds + float(found["seconds"])
        rmse = given.rmse
        if detector == "reject_rmse":
            rmse = found["scores"][:, 0]
        return given._replace(rejected=out, seconds=seconds, rmse=rmse)

    def _rebuilt(
        self, made: Made, before: tuple[str, ...], given: Shown, by: str
    ) -> Shown:
        """Images behind a PuVAE, with their `rmse`, or behind a reformer."""
        found = self._reconstructed(made, before, given.images, by)
        shown = _with(given, found["images"], None, found)
        return shown._replace(rmse=found.get("rmse", given.rmse))

    def _reconstructed(
        self, made: Made, before: tuple[str, ...], images: np.ndarray, by: str
    ) -> dict[str, np.ndarray]:
        program = programs.rebuild(self._tools, by)
        model = self._tools.model_of(by)
        return self._random("purified", made, before, images, by, program, model)

    def _random(
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
        mapped = self._maker.mapped(
            (*program.key, str(images.dtype)), program.function, len(images)
        )
        of = fingerprint(
            mapped,
            weights=model.card["sha256"],
            draws=[self._tools.samples, self._tools.noise, self._tools.seed],
            images=zoo.fingerprint(images),
            **more,
        )
        return self._kept.once(
            kind,
            " ".join((slug(made), *before, "by", by)),
            of,
            mapped,
            f"{by}: {' + '.join((str(made), *before))}",
            lambda: (model.params, images, np.arange(len(images), dtype=np.uint32)),
        )

    def _purified(
        self, made: Made, before: tuple[str, ...], given: Shown, adaptive: bool
    ) -> Shown:
        """Images behind PixelDefend, where `adaptive` the likely ones as they were."""
        found = self._scored_and_purified(made, before, given.images)
        images, log_probs = found["images"], found["log_probs"]
        if adaptive:
            bits = self.bits_per_dim(found["given_log_probs"])
            alone = bits < self._tools.threshold
            images = np.where(alone[:, None, None, None], given.images, images)
            log_probs = np.where(alone, found["given_log_probs"], log_probs)
        return _with(given, images, log_probs, found)

    def _scored_and_purified(
        self, made: Made, before: tuple[str, ...], images: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Purified `images`, their `log_probs` and those that they had before."""
        tools = self._tools
        # A density model knows whole levels only.
        images = np.round(images).astype(np.uint8)
        program = programs.purify(tools)
        mapped = self._maker.mapped(program.key, program.function, len(images))
        of = fingerprint(
            mapped,
            weights=tools.density_model.card["sha256"],
            eps_defend=tools.eps_defend,
            images=zoo.fingerprint(images),
        )
        return self._kept.once(
            "purified",
            " ".join((slug(made), *before)),
            of,
            mapped,
            f"purifying {' + '.join((str(made), *before))}",
            lambda: (program.options, images),
        )


def _with(
    given: Shown, images: np.ndarray, log_probs: np.ndarray | None, found: dict
) -> Shown:
    """`given` with other images, and what it took to make them."""
    return given._replace(
        images=images,
        log_probs=log_probs,
        seconds=given.seconds + float(found["seconds"]),
        device=str(found["device"]),
    )
