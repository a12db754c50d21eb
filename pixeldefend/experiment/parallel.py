"""Maps functions over devices; no other file counts them.

Every process runs the same program on the same data. What is mapped over images is
dealt to the processes, each of which works on its rows with its own devices and no word
to the others; a training step runs on the devices of all.
"""

import contextlib
import functools
import operator
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chex
import jax
import numpy as np

from pixeldefend.experiment import files, interruption, processes

AXIS = "devices"
_LARGEST_BATCH = 2**20
_GPU = pathlib.Path("/dev/nvidia0")


def initialize() -> None:
    """Joins the other processes of this run; before anything else uses a device.

    Raises:
      ValueError: there are none to be seen, or they do not have equally many devices,
        or any.
    """
    processes.join()
    check_platform()
    own, every = jax.local_device_count(), jax.device_count()
    if own * processes.count() != every:
        raise ValueError(
            f"this process has {own} of {every} devices, shared by "
            f"{processes.count()} processes: give each the same number"
        )


def check_platform() -> None:
    """Raises ValueError where there is no device of the platform that is asked for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the second without its plugin
        configured = jax.config.jax_platforms  # type: ignore[attr-defined]
        asked = os.environ.get("JAX_PLATFORMS") or configured
        raise ValueError(
            f"JAX finds no device for JAX_PLATFORMS={asked or ''}: unset it, or set "
            "JAX_PLATFORMS=cpu"
        ) from error


def warn_of_idle_gpu() -> None:
    """Says so on a machine with an NVIDIA GPU of which JAX knows nothing."""
    asked = os.environ.get("JAX_PLATFORMS")
    if jax.default_backend() == "cpu" and not asked and _GPU.exists():
        print(
            "this machine has a GPU, but JAX uses its CPU: pip install "
            '"jax[cuda12]", or set JAX_PLATFORMS=cpu to silence this',
            file=sys.stderr,
        )


def check_batch(batch: int, field: str = "batch") -> int:
    """Images per device, checked; `field` is named in the message.

    Raises:
      TypeError: no integer.
      ValueError: less than one, or more than any device holds.
    """
    batch = operator.index(batch)
    if batch < 1:
        raise ValueError(f"{field} must be at least 1: {batch}")
    if batch > _LARGEST_BATCH:
        raise ValueError(f"{field} must be at most {_LARGEST_BATCH}: {batch}")
    return batch


def enable_cache(folder: str = "~/.cache/pixeldefend") -> None:
    """Caches compiled JAX programs in a folder, for this process and later ones.

    It sets JAX's own configuration, for all programs of the process. `main.py` does so
    by itself. Nothing changes where the process has a cache already, by
    `JAX_COMPILATION_CACHE_DIR` or an earlier call.

    Args:
      folder: created if missing.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(files.expanded(folder)))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def batch_for(batch: int, images: int) -> int:
    """Images per device, `batch` at most, no more than there are.

    Copies that fill a batch are worked on as well. The number of devices has no say, so
    results do not depend on it.
    """
    return min(check_batch(batch), images)


def per_device(batch: int, field: str = "batch") -> int:
    """The images per device of a batch over the devices of all processes.

    Raises:
      ValueError: the devices do not divide it; the message names `field`.
    """
    count = jax.device_count()
    if batch < 1 or batch % count:
        raise ValueError(
            f"{field} must be a positive multiple of {count} devices: {batch}"
        )
    return batch // count


def devices() -> str:
    """Which devices there are, in words."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def split(arrays: Any) -> Any:
    """`[B, ...]` to `[devices, B / devices, ...]` for this process's, leaf by leaf."""
    count = jax.local_device_count()
    return jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), arrays)


def own_rows(batch: int) -> slice:
    """Which rows of a batch over all devices are this process's."""
    count = batch // processes.count()
    return slice(count * jax.process_index(), count * (jax.process_index() + 1))


def steps_per_call(wanted: int) -> int:
    """Training steps in one call: as wanted, or for 0 what suits the devices.

    A loop on the device spares an accelerator the host's part of each step; on a CPU it
    slows convolutions down (`train.several`).
    """
    if wanted:
        return wanted
    return 1 if jax.devices()[0].platform == "cpu" else 50


def on_host() -> contextlib.AbstractContextManager:
    """Compiles and runs what is called in here on the CPU, if JAX has it.

    For what is done once and takes an accelerator's compiler longer than a CPU to do.
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names others only
        return contextlib.nullcontext()


def on_every_device(arrays: Any) -> Any:
    """A copy of a pytree of arrays on each device of this process."""
    return jax.device_put(arrays, _everywhere())


def map_step(call: Callable[..., Any], most: int = 1) -> Callable[..., Any]:
    """Maps training steps over the devices of all processes.

    Args:
      call: from `train.several`, for one device; averages what it must over the axis
        `AXIS`.
      most: steps of a call.

    Returns:
      `run(state, arrays, rows, rates, key, told=(0.0,)) -> (state, sums)`, with
      `arrays` from `on_every_device`, this process's rows `[n, B]` of n batches, rates
      `[n]`, n at most `most`, and a vector `told`, whose average over the processes
      comes back in the metrics. The state stays one copy and is donated.
    """
    mapped = jax.pmap(
        call,
        axis_name=AXIS,
        in_axes=(None, None, 0, None, None, None, 0),
        out_axes=(None, None),
        donate_argnums=0,
    )
    compiled = False

    def given(
        state: Any,
        arrays: Any,
        rows: np.ndarray,
        rates: np.ndarray,
        key: chex.PRNGKey,
        told: Sequence[float] = (0.0,),
    ) -> tuple:
        if not compiled or processes.count() > 1:
            # Where it was before the first step, a donated state cannot stay.
            state = on_every_device(state)
        count, devices = len(rows), jax.local_device_count()
        per_device = np.zeros((devices, most, rows.shape[1] // devices), np.int32)
        per_device[:, :count] = np.swapaxes(split(np.swapaxes(rows, 0, 1)), 1, 2)
        padded = np.zeros(most, np.float32)
        padded[:count] = rates
        heard = np.tile(np.asarray(told, np.float32), (devices, 1))
        return state, arrays, per_device, padded, np.int32(count), key, heard

    @functools.wraps(call)
    def run(*arguments: Any) -> Any:
        nonlocal compiled
        arguments = given(*arguments)
        if not compiled:
            # A collective does not wait long for a process that still compiles; what is
            # compiled here is what the call finds.
            with processes.compiling():
                mapped.lower(*arguments).compile()
            processes.barrier()
            compiled = True
        return mapped(*arguments)

    def lower(*arguments: Any) -> Any:
        return mapped.lower(*given(*arguments))

    run.lower = lower  # type: ignore[attr-defined]
    return run


@functools.cache
def _everywhere() -> jax.sharding.Sharding:
    """One copy on each device of this process."""
    mesh = jax.sharding.Mesh(jax.local_devices(), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


class BatchMap:
    """Maps `function(variables, *arrays)` over arrays of any length `[N, ...]`.

    Batches of one shape go to each device, so one program is compiled and results do
    not depend on how many devices and processes share the work; the last batch is
    padded with copies of its last row and the padding is cut off.
    """

    def __init__(self, function: Callable[..., Any], batch: int):
        """Prepares the map; nothing is compiled before it is needed.

        Args:
          function: pure; arrays `[B, ...]` in, an array `[B, ...]` or a dict of such
            out.
          batch: B, images per device.

        Raises:
          ValueError: a batch that `check_batch` refuses.
        """
        self.batch = check_batch(batch)
        self.compile_seconds = 0.0
        self._function = function
        self._program: Any = None

    @property
    def program(self) -> Any:
        """What was compiled; None before."""
        return self._program

    def _given(self, rows: np.ndarray, arrays: tuple) -> list:
        """A batch for the devices of this process: `rows`, the last one repeated."""
        size = self.batch * jax.local_device_count()
        rows = rows[np.minimum(np.arange(size), len(rows) - 1)]
        return [split(np.asarray(array)[rows]) for array in arrays]

    def compile(self, variables: Any, *arrays: chex.Array) -> float:
        """Compiles for arrays such as these, once; returns the seconds that it took."""
        if self._program is not None:
            return self.compile_seconds
        axes = (None,) + (0,) * len(arrays)
        begun = time.perf_counter()
        mapped = jax.pmap(
            self._function,
            axis_name=AXIS,
            in_axes=axes,
            devices=jax.local_devices(),
        )
        shown = self._given(np.zeros(1, int), arrays)
        with processes.compiling():
            self._program = mapped.lower(variables, *shown).compile()
        self.compile_seconds = time.perf_counter() - begun
        return self.compile_seconds

    def batches(
        self, variables: Any, *arrays: chex.Array, rows: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yields this process's share, batch by batch, as numpy arrays.

        While the caller works on one batch the devices work on the next.

        Args:
          variables: for the function.
          *arrays: `[N, ...]` each.
          rows: those to work on, the same in every process; None for all.

        Yields:
          Rows `[n]` and their results `[n, ...]`.

        Raises:
          interruption.Interrupted: a process was asked to stop; what was running has
            been yielded.
        """
        if self._program is None:
            self.compile(variables, *arrays)
        # Variables that were restored sit on one device; the program wants them on all.
        placement = self._program.input_shardings[0][0]
        variables = jax.device_put(variables, placement)
        rows = np.arange(len(arrays[0])) if rows is None else rows
        size = self.batch * jax.local_device_count()
        running: list[tuple[np.ndarray, Any]] = []
        code = 0
        for first in range(
            size * jax.process_index(), len(rows), size * processes.count()
        ):
            if code := processes.stop_wanted():
                break
            own = rows[first : first + size]
            running.append((own, self._program(variables, *self._given(own, arrays))))
            if len(running) > 1:
                yield _fetched(*running.pop(0))
        for own, result in running:
            yield _fetched(own, result)
        if code:
            raise interruption.Interrupted(code)

    def __call__(self, variables: Any, *arrays: chex.Array) -> Any:
        """Returns the results `[N, ...]`, as numpy arrays, in every process."""
        return processes.whole(list(self.batches(variables, *arrays)), len(arrays[0]))


class BatchMaps:
    """Batch maps, each made once: who asks again gets the program that is compiled."""

    def __init__(self) -> None:
        """None yet."""
        self._known: dict[tuple, BatchMap] = {}

    def of(
        self,
        function: Callable[..., Any],
        static: tuple,
        batch: int,
        *arrays: chex.Array,
    ) -> BatchMap:
        """A function's map, one for all variables of one structure.

        Args:
          function: of `(*static, variables, *arrays)`, as for `BatchMap`.
          static: hashable.
          batch: images per device, at most.
          *arrays: such as it will be given, `[N, ...]` each.
        """
        batch = batch_for(batch, len(arrays[0]))
        key = (function, *static, *(str(array.dtype) for array in arrays), batch)
        if key not in self._known:
            bound = functools.partial(function, *static)
            self._known[key] = BatchMap(bound, batch)
        return self._known[key]


def _fetched(rows: np.ndarray, result: Any) -> tuple[np.ndarray, Any]:
    """`[devices, B / devices, ...]` to `[n, ...]` on the host, leaf by leaf."""
    return rows, jax.tree.map(
        lambda a: np.asarray(a).reshape(-1, *a.shape[2:])[: len(rows)], result
    )
