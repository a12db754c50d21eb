"""The images that a table needs, and what classifiers say of them; each made once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pixeldefend import attacks
from pixeldefend.experiment import data, zoo
from pixeldefend.experiment.grid import Made, Pipeline
from pixeldefend.experiment.modes.adversaries import Adversaries
from pixeldefend.experiment.modes.defences import Defences, Shown
from pixeldefend.experiment.modes.maker import Maker, slug
from pixeldefend.experiment.modes.programs import Tools
from pixeldefend.experiment.store import fingerprint
from pixeldefend.models import classifiers


class Workbench:
    """Makes sets of images with some tools, keeps them, and finds them again."""

    def __init__(self, folder: epath.PathLike, given: data.Input, tools: Tools):
        """Prepares; nothing is computed before it is asked for.

        Args:
          folder: of the run.
          given: clean images with their labels.
          tools: see there.
        """
        self._maker = Maker(folder, given, tools)
        self._adversaries = Adversaries(self._maker)
        self._defences = Defences(self._maker)

    @property
    def seconds(self) -> float:
        """That everything asked for took to make, compilation apart."""
        return self._maker.kept.seconds

    def tidy(self) -> None:
        """Removes what only a killed run would need."""
        self._maker.kept.tidy()

    def attacked(self, made: Made) -> dict[str, np.ndarray]:
        """The attacked images of a set, see `Adversaries.attacked`."""
        return self._adversaries.attacked(made)

    def evading(self, made: Made, least: float) -> dict[str, np.ndarray]:
        """Images that get past a detector, see `Adversaries.evading`."""
        return self._adversaries.evading(made, least)

    def evading_all(self, made: Made) -> dict[str, np.ndarray]:
        """Images that get past a whole defence, see `Adversaries.evading_all`."""
        return self._adversaries.evading_all(made)

    def shown(
        self, made: Made, defences: tuple[str, ...], classifier: str = ""
    ) -> Shown:
        """A set of images after it passed defences, in their order.

        Args:
          made: the set.
          defences: of `grid.DEFENCES`.
          classifier: behind them, which some detectors ask.
        """
        found = self.attacked(made)
        bare = Shown(
            found["images"], None, float(found["seconds"]), str(found["device"])
        )
        return self._defences.passed(made, bare, defences, classifier)

    def suspicion(self, made: Made, detector: str, classifier: str) -> np.ndarray:
        """How suspicious a set is: scores `[N, D]`, see `Defences.suspicion`."""
        images = self.attacked(made)["images"]
        found = self._defences.suspicion(made, (), images, detector, classifier)
        return found["scores"]

    def log_probs(self, made: Made) -> np.ndarray:
        """Log-probabilities `[N]`, nats, of a set of images before it is purified."""
        return self._defences.log_probs(made, self.attacked(made)["images"])

    def scores(self, made: Made) -> np.ndarray:
        """Bits/dim `[N]` of a set of images before they are purified."""
        return self.bits_per_dim(self.log_probs(made))

    def bits_per_dim(self, log_probs: np.ndarray) -> np.ndarray:
        """`[N]`, of log-probabilities in nats."""
        return self._defences.bits_per_dim(log_probs)

    def correct(
        self, row: Pipeline, made: Made, images: np.ndarray | None = None
    ) -> np.ndarray:
        """Whether a classifier is right about a set behind its defences, `[N]` bool.

        Arguments as for `classes`; what detectors say is not regarded.
        """
        found = self.classes(row, made, images)
        return found == self._maker.given.labels[: len(found)]

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
        model, variables, card = self._maker.tools.classifiers[row.classifier]

        def predict(variables: Any, images: jax.Array) -> dict:
            logits_fn = classifiers.logits_fn(model)
            return {"classes": attacks.predicted(logits_fn, variables, images)}

        kind = str(images.dtype)
        mapped = self._maker.mapped(("predict", model, kind), predict, len(images))
        of = fingerprint(mapped, weights=card["sha256"], images=zoo.fingerprint(images))
        name = f"{row} {slug(made)}"
        return self._maker.kept.once(
            "predictions",
            name,
            of,
            mapped,
            f"{row}: {made}",
            lambda: (variables, images),
        )["classes"]

    def probabilities(self, classifier: str, images: np.ndarray) -> np.ndarray:
        """A classifier's probabilities `[N, K]` for a few images, which are not kept.

        Args:
          classifier: the name of its weights.
          images: `[N, H, W, C]` uint8.
        """
        model, variables, _ = self._maker.tools.classifiers[classifier]

        def run(variables: Any, images: jax.Array) -> jax.Array:
            logits_fn = classifiers.logits_fn(model)
            return jax.nn.softmax(logits_fn(variables, images.astype(jnp.float32)))

        mapped = self._maker.mapped(("probabilities", model), run, len(images))
        return mapped(variables, images)
