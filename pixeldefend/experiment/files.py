"""Files written whole, on disks and in object stores."""

import contextlib
import errno
import hashlib
import io
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from pixeldefend.experiment import interruption, processes

# What reaches the object stores that `etils.epath` knows.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
_LONGEST = 255  # bytes in the name of a file
_FULL = os.strerror(errno.ENOSPC)
_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")  # see `whole_file`
# Folders that this process's run writes to, each with a file that it always has.
_runs: dict[epath.Path, epath.Path | None] = {}


class LostError(Exception):
    """The folder of a run was removed while it was at work."""


def enter(folder: epath.PathLike, always: str | None = None) -> None:
    """From now on own images must not lie in a folder.

    Args:
      folder: that is written to.
      always: the name of a file in it; without it nothing more is written there.
    """
    folder = absolute(folder)
    _runs[folder] = None if always is None else folder / always


def leave(folder: epath.PathLike) -> None:
    """The opposite of `enter`."""
    _runs.pop(absolute(folder), None)


def check_outside(path: epath.PathLike) -> None:
    """Raises ValueError where what is read lies in a folder that is written to."""
    read = absolute(path)
    for folder in _runs.keys() & {read, *read.parents}:
        raise ValueError(f"{path} is inside the workdir {folder}; name another")


def is_full(error: BaseException | None) -> bool:
    """Whether a disk that has no space left is behind an error."""
    if error is None:
        return False
    # Packages wrap the system's error in kinds and words of their own.
    number = getattr(error, "errno", None)
    told = number in (errno.ENOSPC, errno.EDQUOT) or _FULL in str(error)
    return told or is_full(error.__cause__ or error.__context__)


def check_there(path: epath.PathLike) -> None:
    """Raises LostError where the folder that is written to is gone.

    To build it again would leave results without the config that they are of. An object
    store has no folders that could go.
    """
    path = absolute(path)
    for folder in () if is_remote(path) else _runs.keys() & set(path.parents):
        if (always := _runs[folder]) is None:
            continue
        try:
            os.stat(always)  # unlike `exists`, for which any failure is an absence
        except FileNotFoundError as error:
            raise LostError(
                f"{always} was removed during the run: run the command again"
            ) from error


@contextlib.contextmanager
def whole_file(
    path: epath.PathLike, *, every_process: bool = False
) -> Iterator[epath.Path]:
    """Gives a temporary path to write to, which becomes `path` once all went well.

    What processes other than the first write is thrown away, unless `every_process`
    has files of its own.
    """
    path = expanded(path)
    kept = every_process or processes.is_first()
    if not kept or is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield (temporary := epath.Path(folder) / path.name)
            # An object appears whole; renaming one would copy and delete it.
            if kept:
                temporary.copy(path, overwrite=True)
        return
    check_there(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of one length, since names may not be long. Hosts that share a folder may have
    # processes of one number.
    writer = f"{path.name} {platform.node()} {os.getpid()}"
    digest = hashlib.sha256(os.fsencode(writer)).hexdigest()[:16]
    temporary = path.parent / f".{digest}.partial"
    try:
        yield temporary
        temporary.replace(path)
    except FileNotFoundError:
        check_there(path)  # until a moment ago it was
        raise
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)  # which a full disk does not tell
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: epath.Path) -> None:
    """Removes what killed runs left of files that they were writing."""
    for path in entries(folder):
        if _PARTIAL.fullmatch(path.name):
            path.unlink(missing_ok=True)


def entries(folder: epath.Path) -> list[epath.Path]:
    """What is in a folder, in order; nothing where there is none."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in an object store, which cannot append and has no folders."""
    return "://" in str(path)


def prepare(paths: Iterable[str]) -> None:
    """Checks that object stores can be reached, where paths are in one.

    Raises:
      ValueError: of a kind that is not known, or whose package is missing.
    """
    for scheme in {path.partition("://")[0] for path in paths if is_remote(path)}:
        import fsspec  # slow to import

        package = _PACKAGES.get(scheme)
        if package is None:
            known = ", ".join(f"{name}://" for name in _PACKAGES)
            raise ValueError(f"unknown kind of path {scheme}://: one of {known}")
        try:
            fsspec.get_filesystem_class(scheme)
        except ImportError as error:
            raise ValueError(
                f"paths of {scheme}:// need the package {package}: pip install "
                f"{package}"
            ) from error
        # What other processes write has to be seen.
        fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False


def expanded(path: epath.PathLike) -> epath.Path:
    """The path that a user wrote, `~` and `~user` being home folders.

    Raises:
      ValueError: there is no such user.
    """
    found = epath.Path(path).expanduser()
    if str(found).startswith("~"):
        user = found.parts[0]
        raise ValueError(
            f"{path}: there is no user {user[1:]}; a folder called {user} needs its "
            f"whole path, {epath.Path('.').resolve() / user}"
        )
    return found


def output_folder(path: epath.PathLike, what: str) -> epath.Path:
    """The folder that a user named for results; it need not be there yet.

    Args:
      path: as it was written.
      what: it is for, named in the message.

    Raises:
      ValueError: it cannot be made or written to.
    """
    folder = expanded(path)
    if is_remote(folder):
        return folder
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        where = "is" if there == folder else f"is inside {there}, which is"
        raise ValueError(f"{what} {folder} {where} a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        where = "" if there == folder else f", since {there} cannot"
        raise ValueError(f"{what} {folder} cannot be written to{where}; name another")
    return folder


def check_name(name: str) -> None:
    """Raises ValueError where a name is too long for a file."""
    if (size := len(os.fsencode(name))) > _LONGEST:
        raise ValueError(
            f"a result would be named {name}: {size} bytes, where at most {_LONGEST} "
            "are allowed; rename the images"
        )


def absolute(path: epath.PathLike) -> epath.Path:
    """A path without links and dots; an object store's is left as it is."""
    path = expanded(path)
    return path if is_remote(path) else path.resolve()


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes a JSON file whole."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def write_arrays(
    path: epath.PathLike,
    *,
    every_process: bool = False,
    **arrays: np.ndarray | np.generic,
) -> None:
    """Writes a compressed `.npz` whole; see `whole_file`."""
    if not every_process and not processes.is_first():
        return
    buffer = io.BytesIO()
    named: dict[str, Any] = {**arrays}  # or a type checker thinks of numpy's options
    np.savez_compressed(buffer, **named)
    with whole_file(path, every_process=every_process) as temporary:
        temporary.write_bytes(buffer.getvalue())


def patiently(
    read: Callable[[], Any], path: epath.PathLike, seconds: float = 120.0
) -> Any:
    """What `read` returns once it is not None: a shared folder may lag behind.

    Args:
      read: called again and again.
      path: what it reads, for the message.
      seconds: to wait.

    Raises:
      OSError: it did not come within `seconds`.
      interruption.Interrupted: another process has stopped.
    """
    end = time.monotonic() + seconds
    while (found := read()) is None:
        if code := processes.left():
            raise interruption.Interrupted(code)
        if time.monotonic() > end:
            raise OSError(
                f"{path}, which another process wrote, does not show up here: all "
                "processes need a shared workdir"
            )
        time.sleep(0.1)
    return found
