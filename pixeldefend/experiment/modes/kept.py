"""Results in files, each with a mark of all that it depends on."""

import hashlib
import io
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from pixeldefend import __version__
from pixeldefend.experiment import files, parallel, processes, report
from pixeldefend.experiment.parts import Parts
from pixeldefend.experiment.workdir import config_hash

FOLDERS = ("adversarial", "purified", "scores", "predictions", "parts")


def mark(mapped: parallel.BatchMap | None, **identity: Any) -> str:
    """A short name for what results depend on.

    Args:
      mapped: what computes them, if it is a map, for its batch.
      **identity: everything else.
    """
    if mapped is not None:
        identity["batch"] = mapped.batch
    return config_hash(identity | {"version": __version__})


class Kept:
    """Computes results `[N, ...]` once and keeps them, one file each.

    A file with another mark is made anew. What a killed run left of a file is found
    again, batch by batch.
    """

    def __init__(self, folder: epath.PathLike):
        """`folder` is the run's."""
        self._folder = epath.Path(folder)
        self._seconds: dict[epath.Path, float] = {}

    @property
    def seconds(self) -> float:
        """That all files asked for took to make, compilation apart."""
        return sum(self._seconds.values())

    def find(
        self, kind: str, name: str, mark: str, only: Sequence[str] = ()
    ) -> dict[str, np.ndarray] | None:
        """What a file holds, or None if it is missing, damaged or has another mark.

        Args:
          kind: as for `once`.
          name: likewise.
          mark: likewise.
          only: the arrays to read besides the `seconds`; none for all.
        """
        path = self._path(kind, name)
        found = self._read(path, mark, only) if processes.is_first() else None
        if not processes.agreed(found is not None):
            return None
        if found is None:
            found = files.patiently(lambda: self._read(path, mark, only), path)
        self._seconds[path] = float(found["seconds"])
        return found

    @staticmethod
    def _read(
        path: epath.Path, mark: str, only: Sequence[str]
    ) -> dict[str, np.ndarray] | None:
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                if str(file["mark"]) != mark:
                    return None
                keys = ("seconds", *only) if only else file.files
                return {key: file[key] for key in keys if key != "mark"}
        except Exception:  # of a missing or damaged file, which are a dozen kinds
            return None

    def once(
        self,
        kind: str,
        name: str,
        mark: str,
        mapped: parallel.BatchMap,
        what: str,
        arguments: Callable[[], tuple],
    ) -> dict[str, np.ndarray]:
        """What `find` finds; else computes results and keeps them, with the `seconds`
        and `device` they took.

        Args:
          kind: one of `FOLDERS`.
          name: of the results, readable.
          mark: see `mark`.
          mapped: what computes them, a dict of arrays.
          what: in front of the progress.
          arguments: gives what `mapped` takes, the variables and arrays `[N, ...]`.
        """
        if (found := self.find(kind, name, mark)) is not None:
            return found
        variables, *arrays = arguments()
        path = self._path(kind, name)
        # Every batch at once: one is much longer in the making than in the writing.
        parts = Parts(self._folder / "parts" / kind / path.stem, mark)
        if parts.done:
            print(f"{what}: going on after {parts.done} of {len(arrays[0])} images")
        result, seconds = report.run_batches(
            mapped, what, variables, *arrays, parts=parts
        )
        self._write(path, mark, result, seconds)
        parts.remove()
        return result

    def keep(
        self, kind: str, name: str, mark: str, make: Callable[[], dict]
    ) -> dict[str, np.ndarray]:
        """Makes results in one go and keeps them, with the `seconds` it took.

        Args:
          kind: a folder.
          name: of the results, readable.
          mark: see `mark`.
          make: returns the arrays.
        """
        begun = time.perf_counter()
        result = make()
        self._write(self._path(kind, name), mark, result, time.perf_counter() - begun)
        return result

    def _write(self, path: epath.Path, mark: str, result: dict, seconds: float) -> None:
        """Adds to `result` what it took, and writes it."""
        result["seconds"] = np.float64(round(seconds, 3))
        result["device"] = np.array(parallel.devices())
        files.write_arrays(path, **result, mark=np.array(mark))
        self._seconds[path] = seconds

    def tidy(self) -> None:
        """Removes what only a killed run would need."""
        if not processes.is_first():
            return
        if (self._folder / "parts").exists():
            (self._folder / "parts").rmtree()
        for kind in FOLDERS:
            for path in (self._folder / kind).glob(".*.partial.npz"):
                path.unlink()

    def _path(self, kind: str, name: str) -> epath.Path:
        """Readable as far as a file's name goes, and no other name's."""
        readable = re.sub(r"[^\w.+-]+", "_", name).strip("_")
        if readable != name or len(readable) > 100:
            digest = hashlib.sha256(name.encode()).hexdigest()[:8]
            readable = f"{readable[:100]}-{digest}"
        return self._folder / kind / f"{readable}.npz"
