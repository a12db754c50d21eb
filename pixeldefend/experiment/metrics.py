"""What a training says of itself: averages over steps, `metrics.jsonl`, and the same as
TensorBoard's events."""

import functools
import json
import time
from typing import Any

import numpy as np
from etils import epath

from pixeldefend.experiment import files, foreign, processes


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the last good checkpoint is kept."""


class Averages:
    """Metrics since the last line, added up."""

    def __init__(self, batch: int, kept: dict | None = None):
        """Begins a line, or goes on with what a run that was stopped has `kept`.

        Args:
          batch: that of a step.
          kept: from `kept`.
        """
        self._batch = batch
        self._begun = time.monotonic()
        before = kept or {"steps": 0, "totals": {}}
        self._before = self._steps = before["steps"]
        self._totals = dict(before["totals"])
        self._calls: list[dict] = []
        self._rate = 0.0

    def add(self, sums: dict, rates: np.ndarray) -> None:
        """Adds a call's metrics, summed over its steps, and the steps' rates."""
        self._steps += len(rates)
        self._calls.append(sums)
        self._rate = float(rates[-1])

    def kept(self) -> dict:
        """All that a line still to come needs to know, as JSON takes it."""
        # Only here, as it waits for the devices. One after the other in float64, so
        # that the sums do not depend on where a run was stopped.
        for sums in self._calls:
            for name, value in sums.items():
                self._totals[name] = self._totals.get(name, 0.0) + float(value)
        self._calls = []
        return {"steps": self._steps, "totals": self._totals}

    def means(self, done: int) -> dict[str, float]:
        """Averages over the steps, the last one's rate, and images a second.

        Raises:
          NonFiniteLossError: the loss or the gradient is not.
        """
        totals = self.kept()["totals"]
        means = {name: total / self._steps for name, total in totals.items()}
        # The gradient too: one that is not finite has already spoiled the parameters.
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(means[name]):
                raise NonFiniteLossError(
                    f"the {name} is {means[name]} at step {done}: lower the learning "
                    "rate or clip the gradient, and start again in another workdir"
                )
        seconds = max(time.monotonic() - self._begun, 1e-9)
        here = self._batch * (self._steps - self._before)
        return means | {
            "learning_rate": self._rate,
            "images_per_second": round(here / seconds, 2),
        }


class MetricsFile:
    """`metrics.jsonl`, cut back to the step that training continues from."""

    def __init__(self, path: epath.Path, done: int):
        """Keeps what is in the file, up to the step `done`."""
        self.path = path
        kept = []
        if path.exists():
            for text in foreign.read_bytes(path).splitlines():
                try:
                    line = foreign.parse_json(text)
                    later = line["step"] > done
                # The line that a kill left unfinished, or something else.
                except (ValueError, TypeError, KeyError, IndexError):
                    break
                if later:
                    break
                kept.append(line)
        self.last = kept[-1] if kept else {}
        with files.whole_file(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def add(self, line: dict) -> None:
        """Writes a line."""
        self.last = line
        if not processes.is_first():
            return
        text = json.dumps(line) + "\n"
        files.check_there(self.path)
        if files.is_remote(self.path):
            with files.whole_file(self.path) as temporary:
                temporary.write_text(self.path.read_text() + text)
            return
        with self.path.open("a") as file:
            file.write(text)


class Events:
    """Lines of metrics as events in a folder, for TensorBoard.

    A run that goes on writes another file; TensorBoard drops what an earlier one has
    of the same steps.
    """

    def __init__(self, folder: epath.Path):
        """Prepares; the folder is made with the first line.

        Raises:
          ValueError: tensorboardX is not installed, or the folder is in a bucket.
        """
        try:
            import tensorboardX
        except ImportError as error:
            raise ValueError(
                "train.tensorboard needs the package tensorboardX: pip install "
                "tensorboardX"
            ) from error
        if files.is_remote(folder):
            raise ValueError(f"train.tensorboard needs a local folder, not {folder}")
        self._begin = functools.partial(tensorboardX.SummaryWriter, str(folder))
        self._writer: Any = None

    def add(self, line: dict) -> None:
        """Writes a line's numbers as scalars at its step."""
        if not processes.is_first():
            return
        if self._writer is None:
            self._writer = self._begin(purge_step=line["step"])
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()
