"""A folder belongs to one run at a time, on whatever hosts and kind of storage."""

import json
import os
import platform
import threading
import time
import uuid

from etils import epath

from pixeldefend import files

# Seconds between two signs of life, and after how many without one a run that cannot be
# asked, since it is on another host, counts as dead.
_BEAT = 5.0
_PATIENCE = 20.0


class Lock:
    """A file that says who works in a folder, renewed as long as they live.

    Not a lock of the operating system: those do not reach all shared file systems, and
    no object store. A run that was killed on this host is known to be dead at once; of
    one on another host, or in another container, the file is watched for a while.
    """

    def __init__(self, path: epath.PathLike):
        """Nothing is written before `take`."""
        self._path = epath.Path(path)
        self._own = _identity()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

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
        self._write(0)
        # Of two that came at once, the one whose file stays.
        if there is not None or files.is_remote(self._path):
            time.sleep(0.2)
        there = self._read()
        if there is None or there.get("token") != self._own["token"]:
            raise self._refusal(there or {})
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Gives the folder back, if it was taken."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        there = self._read()
        if there is not None and there.get("token") == self._own["token"]:
            self._path.unlink(missing_ok=True)

    def _read(self) -> dict | None:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _write(self, beat: int) -> None:
        files.write_json(self._path, self._own | {"beat": beat})

    def _renew(self) -> None:
        beat = 0
        while not self._stop.wait(_BEAT):
            beat += 1
            try:
                self._write(beat)
            except OSError:  # a full disk is for the run itself to complain about
                continue

    def _alive(self, there: dict) -> bool:
        """Whether the run that left the file still lives."""
        if there.get("machine") == self._own["machine"]:
            return there.get("started") == _started(there.get("process", -1))
        print(
            f"waiting {_PATIENCE:.0f} s to see whether the run on {there.get('host')} "
            f"that has {self._path.parent} is alive",
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
            f"workdir {self._path.parent} is in use by process "
            f"{there.get('process', '?')} on {there.get('host', '?')}: wait for it, or "
            "name another --workdir (the processes of one run need --distributed)"
        )


def _identity() -> dict:
    process = os.getpid()
    return {
        "host": platform.node(),
        "machine": _machine(),
        "process": process,
        "started": _started(process),
        "token": uuid.uuid4().hex,
    }


def _machine() -> str:
    """This boot of this host, as far as process numbers mean something."""
    try:
        boot = epath.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return uuid.uuid4().hex  # nothing is known: every other file is watched
    return f"{platform.node()} {boot} {space}"


def _started(process: int) -> str | None:
    """When a process of this host started, by the kernel's clock; None without it."""
    try:
        stat = epath.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    # The name of the program, in brackets, may hold anything.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else fields[18]
