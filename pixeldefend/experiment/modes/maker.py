"""Maps programs over the images of a table, and keeps what they give."""

from collections.abc import Callable

from etils import epath

from pixeldefend.experiment import data, parallel
from pixeldefend.experiment.grid import CLEAN, Made
from pixeldefend.experiment.modes.programs import Tools
from pixeldefend.experiment.store import Store


class Maker:
    """What all that makes images for a table shares.

    Attributes:
      given: clean images with their labels.
      tools: see there.
      kept: the files of what was made.
    """

    def __init__(self, folder: epath.PathLike, given: data.Input, tools: Tools):
        """Prepares; `folder` is the run's."""
        self.given, self.tools = given, tools
        self.kept = Store(folder)
        self._programs: dict[tuple, parallel.BatchMap] = {}

    def count(self, made: Made) -> int:
        """How many images a set has."""
        whole = len(self.given.images)
        return min(made.images or whole, whole)

    def mapped(self, key: tuple, function: Callable, count: int) -> parallel.BatchMap:
        """A program, compiled once for all variables of one shape.

        Args:
          key: what tells it from others.
          function: of `(variables, *arrays)`.
          count: of the images that it is for.
        """
        batch = parallel.batch_for(self.tools.batch, count)
        program = parallel.BatchMap(function, batch)
        return self._programs.setdefault((*key, batch), program)


def slug(made: Made) -> str:
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
