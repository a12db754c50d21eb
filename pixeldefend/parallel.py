"""The only file that knows devices and processes: maps functions over all of them.

Every process runs the same program on the same data. What is mapped over images is
dealt to the processes, each of which works on its rows with its own devices and no word
to the others; a training step runs on the devices of all. What depends on files, clocks
or signals is agreed upon through the coordination service of `jax.distributed`, which
unlike a collective does not mind how long one process waits for another.
"""

import contextlib
import functools
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import chex
import jax
import numpy as np

from pixeldefend import interruption

AXIS = "devices"
_PIECE = 2**20  # bytes of one message to the coordination service
_STOP = "pixeldefend/stop"  # a process wants to stop
_LEFT = "pixeldefend/left"  # a process has stopped
_names = itertools.count()
_busy: list[bool] = []
Found = TypeVar("Found")


def initialize() -> None:
    """Joins the other processes of this run; before anything else uses a device.

    The environment says who they are: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`
    and `JAX_PROCESS_ID`, or else what JAX knows by itself (Slurm steps, Cloud TPU).

    Raises:
      ValueError: it does not, or they do not have equally many devices.
    """
    # Its handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    given = {}
    for name in ("num_processes", "process_id"):
        text = os.environ.get(f"JAX_{name.upper()}", "")
        if text and not text.isdecimal():
            raise ValueError(f"JAX_{name.upper()} must be a number: {text!r}")
        if text:
            given[name] = int(text)
    if "num_processes" in given:
        address = os.environ.get("JAX_COORDINATOR_ADDRESS", "?")
        print(f"{given['num_processes']} processes meet at {address}", flush=True)
    try:
        jax.distributed.initialize(**given)
    except ValueError as error:
        raise ValueError(
            f"--distributed, but no launcher to be seen ({error}): start it by srun or "
            "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error
    own, every = jax.local_device_count(), jax.device_count()
    if own * jax.process_count() != every:
        raise ValueError(
            f"{own} of {every} devices are this process's, of {jax.process_count()}: "
            "give each process as many"
        )


def is_first() -> bool:
    """Whether this is the process that writes what all share."""
    return jax.process_index() == 0


def process_count() -> int:
    """How many processes run this program together."""
    return jax.process_count()


def agreed(value: Any) -> Any:
    """The first process's value, anything that JSON can hold, in every process."""
    if jax.process_count() == 1:
        return value
    name = f"pixeldefend/agreed/{next(_names)}"
    if is_first():
        _client().key_value_set(name, json.dumps(value))
        return value
    return json.loads(_wait(lambda: _look(name)))


def barrier() -> None:
    """Waits until every process has come as far."""
    if jax.process_count() == 1:
        return
    name = f"pixeldefend/barrier/{next(_names)}"
    _client().key_value_set(f"{name}/{jax.process_index()}", "")
    there = jax.process_count()
    _wait(lambda: len(_client().key_value_dir_get(name)) == there or None)


def gathered(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Every process's arrays, in the order of the processes; for what is small."""
    if jax.process_count() == 1:
        return [arrays]
    name = f"pixeldefend/gathered/{next(_names)}"
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    text, own = buffer.getvalue(), f"{name}/{jax.process_index()}"
    pieces = -(-len(text) // _PIECE)
    for i in range(pieces):
        piece = text[i * _PIECE : (i + 1) * _PIECE]
        _client().key_value_set_bytes(f"{own}/{i}", piece)
    _client().key_value_set(f"{own}/pieces", str(pieces))
    found = []
    for process in range(jax.process_count()):
        theirs = f"{name}/{process}"
        count = int(_wait(functools.partial(_look, f"{theirs}/pieces")))
        get = _client().key_value_try_get_bytes
        sent = b"".join(get(f"{theirs}/{i}") for i in range(count))
        with np.load(io.BytesIO(sent), allow_pickle=False) as file:
            found.append(dict(file))
    barrier()
    _client().key_value_delete(own)
    return found


def stop_wanted() -> int:
    """The code to exit with if any process was asked to stop, or failed; else 0."""
    own = interruption.EXIT_CODE if interruption.wanted() else 0
    if jax.process_count() == 1:
        return 0 if _busy else own
    if code := left():
        return code
    if own:
        _client().key_value_set(_STOP, str(own), allow_overwrite=True)
    return 0 if _busy else int(_look(_STOP) or 0)


def left() -> int:
    """The code that another process of this run has ended with before its end; or 0."""
    return 0 if jax.process_count() == 1 else int(_look(_LEFT) or 0)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A wish to stop has to wait for what is done in here; a failure does not."""
    _busy.append(True)
    try:
        yield
    finally:
        _busy.pop()


def leave(code: int) -> None:
    """Ends this process with an exit code, and has the others do so as well.

    Does nothing if it is the only one. Else the others get time to notice, even from
    within a compilation, for the first process takes the rest with it.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    try:
        _client().key_value_set(_LEFT, str(code), allow_overwrite=True)
        _client().wait_at_barrier("pixeldefend/leave", 100_000)
        if is_first():
            time.sleep(3)  # whoever is not gone when this one is, would be aborted
    except jax.errors.JaxRuntimeError:
        pass  # somebody is lost, or was already done
    os._exit(code)


def _client() -> Any:
    # Not public, yet what orbax builds on too, in all versions that we run on.
    return jax._src.distributed.global_state.client


def _look(name: str) -> str | None:
    """What the coordination service holds under a name; None for nothing."""
    try:
        return _client().key_value_try_get(name)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def _wait(look: Callable[[], Found | None]) -> Found:
    """Looks until there is something; stops where a process has.

    Not for a wish to stop: others may be past this point and go on to the next batch or
    to the end, and all have to stop at the same one.
    """
    pause = 1e-3
    while (found := look()) is None:
        stop_wanted()  # tells the others of this process's wish
        if code := left():
            raise interruption.Interrupted(code)
        time.sleep(pause)
        pause = min(2 * pause, 0.2)
    return found


def check_batch(batch: int, field: str = "batch") -> int:
    """Images per device, checked; `field` is named in the message.

    Raises:
      ValueError: less than one.
    """
    if batch < 1:
        raise ValueError(f"{field} must be at least 1: {batch}")
    return batch


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
    count = batch // jax.process_count()
    return slice(count * jax.process_index(), count * (jax.process_index() + 1))


def map_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a training step over the devices of all processes.

    Args:
      step: `step(state, batch, key, learning_rate, told) -> (state, metrics)` for one
        device; averages what it must over the axis `AXIS`.

    Returns:
      The same function for this process's rows of a global batch, and for `told`, a
      vector whose average over the processes comes back in the metrics; the state stays
      one copy and is donated.
    """
    mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, None, None, 0),
        out_axes=(None, None),
        donate_argnums=0,
    )

    def given(
        state: Any,
        batch: Any,
        key: chex.PRNGKey,
        learning_rate: float,
        told: Sequence[float] = (0.0,),
    ) -> tuple:
        # Where it was before the first step, a donated state cannot stay.
        state = jax.device_put(state, _everywhere())
        heard = np.tile(np.float32(told), (jax.local_device_count(), 1))
        return state, split(batch), key, np.float32(learning_rate), heard

    compiled = False

    @functools.wraps(step)
    def run(*arguments: Any) -> Any:
        nonlocal compiled
        arguments = given(*arguments)
        if not compiled:
            # A collective does not wait long for a process that still compiles; what is
            # compiled here is what the call finds.
            mapped.lower(*arguments).compile()
            barrier()
            compiled = True
        return mapped(*arguments)

    run.lower = lambda *arguments: mapped.lower(*given(*arguments))
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
          ValueError: a batch of less than one.
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
            size * jax.process_index(), len(rows), size * jax.process_count()
        ):
            if code := stop_wanted():
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
        return whole(list(self.batches(variables, *arrays)), len(arrays[0]))


def whole(parts: list[tuple[np.ndarray, Any]], count: int) -> Any:
    """The results of all processes in the order of their rows, as numpy arrays.

    Args:
      parts: of this process, rows `[n]` and their results: an array `[n, ...]` or a
        dict of such.
      count: how many rows there are in all.
    """
    if jax.process_count() == 1:
        return in_order(parts, count)
    own = concatenated([result for _, result in parts]) if parts else {}
    alone = not isinstance(own, dict)
    rows = np.concatenate([rows for rows, _ in parts]) if parts else np.zeros(0, int)
    sent = {"alone": own} if alone else {f"of {name}": own[name] for name in own}
    found = []
    for arrays in gathered({"rows": rows, **sent}):
        theirs = arrays.pop("rows")
        named = {name.removeprefix("of "): array for name, array in arrays.items()}
        if len(theirs):  # one that had no rows does not know what results look like
            found.append((theirs, arrays.get("alone", named)))
    return in_order(found, count)


def in_order(parts: list[tuple[np.ndarray, Any]], count: int) -> Any:
    """Rows `[n]` with pytrees of arrays `[n, ...]`, as one pytree of `[count, ...]`.

    Raises:
      ValueError: a row is missing, or there twice.
    """
    rows = np.concatenate([rows for rows, _ in parts])
    order = np.argsort(rows, kind="stable")
    if not np.array_equal(rows[order], np.arange(count)):
        raise ValueError(
            f"results of {len(np.unique(rows))} rows where {count} are due"
        )
    together = concatenated([result for _, result in parts])
    return jax.tree.map(lambda a: a[order], together)


def concatenated(parts: list[Any]) -> Any:
    """Pytrees of arrays `[B, ...]`, batch after batch, as one of `[N, ...]`."""
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


def _fetched(rows: np.ndarray, result: Any) -> tuple[np.ndarray, Any]:
    """`[devices, B / devices, ...]` to `[n, ...]` on the host, leaf by leaf."""
    return rows, jax.tree.map(
        lambda a: np.asarray(a).reshape(-1, *a.shape[2:])[: len(rows)], result
    )
