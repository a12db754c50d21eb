"""What the processes of one run tell each other.

What depends on files, clocks or signals is agreed upon through the coordination service
of `jax.distributed`, which unlike a collective does not mind how long one process waits
for another.
"""

import contextlib
import io
import itertools
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from pixeldefend.experiment import interruption

_PIECE = 2**20  # bytes of one message to the coordination service
_STOP = "pixeldefend/stop"  # a process wants to stop
_LEFT = "pixeldefend/left"  # a process has stopped
_names = itertools.count()
_busy: list[bool] = []


def join() -> None:
    """Joins the other processes of this run; before anything else uses a device.

    The environment says who they are: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`
    and `JAX_PROCESS_ID`, or else what JAX knows by itself (Slurm steps, Cloud TPU).

    Raises:
      ValueError: it does not.
    """
    # Its handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    given: dict[str, Any] = {}
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
            f"--distributed, but no launcher was found ({error}): start it with srun "
            "or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def is_first() -> bool:
    """Whether this is the process that writes what all share."""
    return jax.process_index() == 0


def count() -> int:
    """How many processes run this program together."""
    return jax.process_count()


def agreed(value: Any) -> Any:
    """The first process's value, anything that JSON can hold, in every process."""
    if count() == 1:
        return value
    name = f"pixeldefend/agreed/{next(_names)}"
    if is_first():
        _send(name, json.dumps(value).encode())
        return value
    return json.loads(_receive(name))


def barrier() -> None:
    """Waits until every process has come as far."""
    if count() == 1:
        return
    name = f"pixeldefend/barrier/{next(_names)}"
    _send(f"{name}/{jax.process_index()}", b"")
    # Two words a process, however many there are.
    for process in range(count()) if is_first() else ():
        _receive(f"{name}/{process}")
    agreed(None)


def gathered(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Every process's arrays, in the order of the processes; for what is small."""
    if count() == 1:
        return [arrays]
    name = f"pixeldefend/gathered/{next(_names)}"
    buffer = io.BytesIO()
    named: dict[str, Any] = arrays  # or a type checker thinks of numpy's options
    np.savez(buffer, **named)
    _send(f"{name}/{jax.process_index()}", buffer.getvalue())
    found = []
    for process in range(count()):
        sent = io.BytesIO(_receive(f"{name}/{process}"))
        with np.load(sent, allow_pickle=False) as file:
            found.append(dict(file))
    barrier()
    _client().key_value_delete(f"{name}/{jax.process_index()}")
    return found


def whole(parts: list[tuple[np.ndarray, Any]], total: int) -> Any:
    """The results of all processes in the order of their rows, as numpy arrays.

    Args:
      parts: of this process, rows `[n]` and their results: an array `[n, ...]` or a
        dict of such.
      total: how many rows there are in all.
    """
    if count() == 1:
        return in_order(parts, total)
    own = concatenated([result for _, result in parts]) if parts else {}
    alone = not isinstance(own, dict)
    rows = np.concatenate([rows for rows, _ in parts]) if parts else np.zeros(0, int)
    sent: dict[str, Any] = (
        {"alone": own} if alone else {f"of {name}": own[name] for name in own}
    )
    found = []
    for arrays in gathered({"rows": rows, **sent}):
        theirs = arrays.pop("rows")
        named = {name.removeprefix("of "): array for name, array in arrays.items()}
        if len(theirs):  # one that had no rows does not know what results look like
            found.append((theirs, arrays.get("alone", named)))
    return in_order(found, total)


def in_order(parts: list[tuple[np.ndarray, Any]], total: int) -> Any:
    """Rows `[n]` with pytrees of arrays `[n, ...]`, as one pytree of `[total, ...]`.

    Raises:
      ValueError: a row is missing, or there twice.
    """
    rows = np.concatenate([rows for rows, _ in parts])
    order = np.argsort(rows, kind="stable")
    if not np.array_equal(rows[order], np.arange(total)):
        raise ValueError(
            f"{len(rows)} results of {len(np.unique(rows))} rows, not of {total}"
        )
    together = concatenated([result for _, result in parts])
    return jax.tree.map(lambda a: a[order], together)


def concatenated(parts: list[Any]) -> Any:
    """Pytrees of arrays `[B, ...]`, batch after batch, as one of `[N, ...]`."""
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


def stop_wanted() -> int:
    """The code to exit with if any process was asked to stop, or failed; else 0."""
    own = interruption.EXIT_CODE if interruption.wanted() else 0
    if count() == 1:
        return 0 if _busy else own
    if code := left():
        return code
    if own:
        _client().key_value_set(_STOP, str(own), allow_overwrite=True)
    return 0 if _busy else int(_look(_STOP) or 0)


def left() -> int:
    """The code that another process of this run has ended with before its end; or 0."""
    return 0 if count() == 1 else int(_look(_LEFT) or 0)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A wish to stop has to wait for what is done in here; a failure does not."""
    _busy.append(True)
    try:
        yield
    finally:
        _busy.pop()


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """A wish to stop ends the process in here, unless something has to wait for it."""
    with contextlib.nullcontext() if _busy else interruption.disposable():
        yield


def leave(code: int) -> None:
    """Ends this process with an exit code, and has the others do so as well.

    Does nothing if it is the only one. Else the others get time to notice, even from
    within a compilation, for the first process takes the rest with it.
    """
    if not jax.distributed.is_initialized() or count() == 1:
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
    # Not public, but what orbax builds on too, in all versions that we run on. What is
    # public has no values that can be looked for without waiting: in orbax.checkpoint
    # .multihost barriers; in jax collectives, and a preemption sync point which wants
    # equally many steps of all processes, owns SIGTERM and carries no exit code.
    return jax._src.distributed.global_state.client


def _send(name: str, payload: bytes) -> None:
    pieces = [payload[i : i + _PIECE] for i in range(0, len(payload), _PIECE)]
    for i, piece in enumerate(pieces):
        _client().key_value_set_bytes(f"{name}/{i}", piece)
    _client().key_value_set(f"{name}/pieces", str(len(pieces)))


def _receive(name: str) -> bytes:
    """Waits for what was sent under a name; stops where a process has.

    Not for a wish to stop: others may be past this point and go on to the next batch or
    to the end, and all have to stop at the same one.
    """
    pause = 1e-3
    while (pieces := _look(f"{name}/pieces")) is None:
        stop_wanted()  # tells the others of this process's wish
        if code := left():
            raise interruption.Interrupted(code)
        time.sleep(pause)
        pause = min(2 * pause, 0.2)
    get = _client().key_value_try_get_bytes
    return b"".join(get(f"{name}/{i}") for i in range(int(pieces)))


def _look(name: str) -> str | None:
    """What the coordination service holds under a name; None for nothing."""
    try:
        return _client().key_value_try_get(name)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise
