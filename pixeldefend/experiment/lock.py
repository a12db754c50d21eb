"""A folder belongs to one run at a time, on whatever hosts and kind of storage."""

import contextlib
import json
import os
import platform
import sys
import threading
import time
import uuid
from typing import Any

from etils import epath

from pixeldefend.experiment import files, foreign, interruption

# Seconds between two signs of life, and after how many without one a run that cannot be
# asked, since it is on another host, counts as dead.
_BEAT = 5.0
_PATIENCE = 20.0
# How long a file has to stay where several may write it at once. On disks TensorStore
# replaces it only if it is still the one that was read.
_SETTLED = 2.0


class Lock:
    """A file that says who works in a folder, renewed as long as they live.

    Not a lock of the operating system: those do not reach all shared file systems, and
    no object store. A run that was killed on this host is known to be dead at once; of
    one on another host, or in another container, the file is watched for a while.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: epath.PathLike):
        """Nothing is written before `take`."""
        self.path = files.expanded(path)
        self._own: dict[str, Any] = {
            "host": platform.node(),
            "machine": _machine(),
            "process": os.getpid(),
            "started": _started(os.getpid()),
            "token": uuid.uuid4().hex,
        }
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def token(self) -> str:
        """What this run's file is known by."""
        return self._own["token"]

    def holder(self) -> str | None:
        """The token of the file that is there; None without one."""
        return (self._read() or {}).get("token")

    def take(self) -> None:
        """Takes the folder; again by the one who has it, does nothing.

        Raises:
          ValueError: another run is at work; the message says which.
        """
        if self._thread is not None:
            return
        there = self._read()
        if there is not None and self._alive(there):
            raise self._refusal(there)
        self._replace(there)
        if self.holder() != self.token:
            raise self._refusal(self._read() or {})
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _replace(self, dead: dict | None) -> None:
        """Writes the file if it still says what `dead` does; of several, one does."""
        text = json.dumps(self._own | {"beat": 0})
        if not files.is_remote(self.path):
            import tensorstore  # slow to import

            folder = {"driver": "file", "path": f"{files.absolute(self.path.parent)}/"}
            with contextlib.suppress(Exception):  # of file systems without locks
                store = tensorstore.KvStore.open(folder).result()
                found = store.read(self.path.name).result()
                if _parsed(found.value) == dead:
                    generation = found.stamp.generation
                    store.write(self.path.name, text, if_equal=generation).result()
                return
        if self._read() == dead:
            self._write(0)
            time.sleep(_SETTLED)  # of two that come at once, the one whose file stays

    def release(self) -> None:
        """Gives the folder back, if it was taken."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        with contextlib.suppress(OSError):
            if self.holder() == self.token:
                self.path.unlink(missing_ok=True)

    def _read(self) -> dict | None:
        """What the file says; None where there is none, or it is damaged.

        Raises:
          OSError: it cannot be read, and so may be a living run's.
        """
        for pause in (0.1, 0.5, 2.0, 0.0):
            try:
                return _parsed(foreign.read_bytes(self.path))
            except FileNotFoundError:
                return None
            except Exception as error:  # of object stores there are many kinds
                if not pause:
                    raise OSError(f"cannot read {self.path}: {error}") from error
                time.sleep(pause)
        raise AssertionError

    def _write(self, beat: int) -> None:
        files.write_json(self.path, self._own | {"beat": beat})

    def _renew(self) -> None:
        beat = 0
        while not self._stop.wait(_BEAT):
            beat += 1
            # A full disk, or a store that does not answer, is for the run itself to
            # complain about.
            with contextlib.suppress(Exception):
                if self.holder() not in (None, self.token):
                    text = f"{self.path.parent} was taken over by another run"
                    print(text, file=sys.stderr)
                    interruption.ask()
                    return
                self._write(beat)

    def _alive(self, there: dict) -> bool:
        """Whether the run that left the file still lives."""
        if there.get("machine") == self._own["machine"]:
            started = _started(there.get("process"))
            return started is not None and started == there.get("started")
        print(
            f"waiting {_PATIENCE:.0f} s to see whether the run on {there.get('host')} "
            f"that holds {self.path.parent} is alive",
            flush=True,
        )
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            time.sleep(0.5)
            now = self._read()
            if now is None:
                return False
            if now != there:
                return True
        return False

    def _refusal(self, there: dict) -> ValueError:
        return ValueError(
            f"workdir {self.path.parent} is in use by process "
            f"{there.get('process', '?')} on {there.get('host', '?')}: wait for it, or "
            "name another --workdir (the processes of one run need --distributed)"
        )


def _parsed(text: bytes) -> dict | None:
    """What a file says; None of a damaged one."""
    try:
        found = foreign.parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _machine() -> str:
    """This boot of this host, as far as process numbers mean something."""
    try:
        boot = epath.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return uuid.uuid4().hex  # nothing is known: every other file is watched
    return f"{platform.node()} {boot} {space}"


def _started(process: int | None) -> str | None:
    """When a process of this host started, by the kernel's clock; None without it."""
    try:
        stat = epath.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    # The name of the program, in brackets, may hold anything.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else fields[18]
