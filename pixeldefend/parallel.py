"""The only file that knows devices: maps a per-device function over all of them."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import numpy as np

AXIS = "devices"


def check_batch(batch: int, field: str = "batch") -> int:
    """The images per device of a global batch; `field` is named in the message.

    Raises:
      ValueError: the devices do not divide it.
    """
    count = jax.local_device_count()
    if batch < 1 or batch % count:
        raise ValueError(
            f"{field} must be a positive multiple of {count} devices: {batch}"
        )
    return batch // count


def batch_for(batch: int, images: int) -> int:
    """A global batch that is not larger than it need be.

    Copies that fill a batch are worked on as well. The images per device do not depend
    on the number of devices, so results do not either.

    Args:
      batch: at most so many, over all devices.
      images: to be worked on.

    Raises:
      ValueError: the devices do not divide `batch`.
    """
    return min(check_batch(batch), images) * jax.local_device_count()


def devices() -> str:
    """Which devices there are, in words."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def split(arrays: Any) -> Any:
    """`[B, ...]` to `[devices, B / devices, ...]`, leaf by leaf."""
    count = jax.local_device_count()
    return jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), arrays)


def map_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a training step over the devices.

    Args:
      step: `step(state, batch, key, learning_rate) -> (state, metrics)` for one device;
        averages what it must over the axis `AXIS`.

    Returns:
      The same function for a global batch `[B, ...]`; the state stays one copy and is
      donated.
    """
    mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, None, None),
        out_axes=(None, None),
        donate_argnums=0,
    )

    @functools.wraps(step)
    def run(state: Any, batch: Any, key: chex.PRNGKey, learning_rate: float) -> Any:
        return mapped(state, split(batch), key, np.float32(learning_rate))

    return run


class BatchMap:
    """Maps `function(variables, *arrays)` over arrays of any length `[N, ...]`.

    Batches of one shape go to the devices, so one program is compiled and results do
    not depend on how many devices share the work; the last batch is padded with copies
    of its last row and the padding is cut off.
    """

    def __init__(self, function: Callable[..., Any], batch: int):
        """Prepares the map; nothing is compiled before it is needed.

        Args:
          function: pure; arrays `[B, ...]` in, a pytree of arrays `[B, ...]` out.
          batch: B over all devices together.

        Raises:
          ValueError: the devices do not divide `batch`.
        """
        check_batch(batch)
        self.batch = batch
        self.compile_seconds = 0.0
        self._function = function
        self._program: Callable[..., Any] | None = None

    def _rows(self, start: int, arrays: tuple) -> list:
        rows = np.arange(start, start + self.batch)
        rows = np.minimum(rows, len(arrays[0]) - 1)
        return [split(np.asarray(array)[rows]) for array in arrays]

    def compile(self, variables: Any, *arrays: chex.Array) -> float:
        """Compiles for arrays such as these, once; returns the seconds that it took."""
        if self._program is not None:
            return self.compile_seconds
        axes = (None,) + (0,) * len(arrays)
        begun = time.perf_counter()
        mapped = jax.pmap(self._function, axis_name=AXIS, in_axes=axes)
        self._program = mapped.lower(variables, *self._rows(0, arrays)).compile()
        self.compile_seconds = time.perf_counter() - begun
        return self.compile_seconds

    def batches(
        self, variables: Any, *arrays: chex.Array, start: int = 0
    ) -> Iterator[Any]:
        """Yields the results `[B or fewer, ...]` batch by batch, as numpy arrays.

        While the caller works on one batch the devices work on the next.

        Args:
          variables: for the function.
          *arrays: `[N, ...]` each.
          start: the first row to compute.
        """
        if self._program is None:
            self.compile(variables, *arrays)
        # Variables that were restored sit on one device; the program wants them on all.
        placement = self._program.input_shardings[0][0]
        variables = jax.device_put(variables, placement)
        running: list[tuple[int, Any]] = []
        for first in range(start, len(arrays[0]), self.batch):
            result = self._program(variables, *self._rows(first, arrays))
            running.append((min(self.batch, len(arrays[0]) - first), result))
            if len(running) > 1:
                yield _fetched(*running.pop(0))
        for kept, result in running:
            yield _fetched(kept, result)

    def __call__(self, variables: Any, *arrays: chex.Array) -> Any:
        """Returns the results `[N, ...]`, as numpy arrays."""
        return concatenated(list(self.batches(variables, *arrays)))


def concatenated(parts: list[Any]) -> Any:
    """Pytrees of arrays `[B, ...]`, batch after batch, as one of `[N, ...]`."""
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


def _fetched(kept: int, result: Any) -> Any:
    """`[devices, B / devices, ...]` to `[kept, ...]` on the host, leaf by leaf."""
    return jax.tree.map(
        lambda a: np.asarray(a).reshape(-1, *a.shape[2:])[:kept], result
    )
