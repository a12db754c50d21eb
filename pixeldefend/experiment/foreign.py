"""Files that others made: regular ones only, of which headers are read before data.

Whatever is wrong with one, the error names it. Nothing is ever unpickled.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from etils import epath
from numpy.lib import format as npy

from pixeldefend.experiment import files

_LARGEST_JSON = 2**24  # bytes; a card of ours has a thousandth of it
_LARGEST_ARRAY = 2**34  # bytes: 5 million images of CIFAR-10
_MOST_ARRAYS = 2**14  # in a file
_HEAD = 2**14  # bytes; more than numpy takes as a header
_PIECE = 2**20  # bytes that are read at once


def check_regular(path: epath.PathLike) -> None:
    """Checks that a file is one that ends; a folder passes.

    A pipe waits for somebody to write to it, and a device may give for ever. An object
    store has neither.

    Raises:
      ValueError: it is neither a regular file nor a folder, after following links.
      FileNotFoundError: there is nothing.
    """
    if files.is_remote(path):
        return
    mode = os.stat(files.expanded(path)).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path} is not a regular file but a pipe, socket or device")


def check_all_regular(folder: epath.PathLike) -> None:
    """`check_regular` of all files below a folder, before something else reads them."""
    for inner, _, names in [] if files.is_remote(folder) else os.walk(folder):
        for name in names:
            check_regular(os.path.join(inner, name))


def read_bytes(path: epath.PathLike) -> bytes:
    """All of a file; raises as `check_regular` and where it cannot be read."""
    check_regular(path)
    return files.expanded(path).read_bytes()


def sha256(path: epath.PathLike) -> str:
    """The hash of a file, as hexadecimal digits; raises as `read_bytes`."""
    check_regular(path)
    with files.expanded(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(text: str | bytes) -> Any:
    """What JSON says; ValueError where it is none, or nested beyond all measure."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: epath.PathLike) -> Any:
    """What a JSON file says.

    Raises:
      ValueError: it is not JSON, too large or no regular file; the message names it.
      OSError: it cannot be read.
    """
    check_regular(path)
    size = files.expanded(path).stat().length
    if size > _LARGEST_JSON:
        raise ValueError(f"{path} has {size} bytes, too many for a file of its kind")
    try:
        return parse_json(read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


class Header(NamedTuple):
    """What an array says of itself before its data."""

    dtype: np.dtype
    shape: tuple[int, ...]


def read_arrays(
    path: epath.PathLike,
    names: Sequence[str] | None,
    check: Callable[[Mapping[str, Header]], None],
) -> dict[str, np.ndarray]:
    """Arrays of an `.npz`, or the one of an `.npy`.

    Args:
      path: of the file; its ending says which of the two it is.
      names: of the arrays to read, where they are there; the first has to be. The one
        of an `.npy` is called by the first. None: all of an `.npz`.
      check: is given the headers by name before any data is read, and raises where they
        are not what is wanted. So a small file cannot ask for much memory, but for what
        is wanted.

    Raises:
      ValueError: the file is damaged, holds no such array, or is no regular file.
      FileNotFoundError: there is none.
      Exception: whatever `check` raises.
    """
    path = files.expanded(path)
    check_regular(path)
    with path.open("rb") as file:
        with _named(path):
            opened = _archive if path.suffix == ".npz" else _single
            arrays = {name: _Array(*one) for name, *one in opened(file, names)}
        check({name: array.header for name, array in arrays.items()})
        with _named(path):
            return {name: array.read() for name, array in arrays.items()}


@contextlib.contextmanager
def _named(path: epath.Path) -> Iterator[None]:
    """Whatever a damaged file makes numpy and zipfile raise, as a ValueError."""
    try:
        yield
    except Exception as error:  # a dozen kinds: EOFError, zlib.error, SyntaxError, ...
        reason = str(error) or type(error).__name__
        raise ValueError(f"cannot read numeric arrays from {path}: {reason}") from error


def _single(file: IO[bytes], names: Sequence[str] | None) -> Iterator[tuple]:
    """The array of an `.npy`: its name, a stream and how many bytes that has."""
    if file.read(4) == b"PK\x03\x04":
        raise ValueError("it holds several arrays; name it .npz")
    assert names is not None  # see `read_arrays`
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    yield names[0], file, size


def _archive(file: IO[bytes], names: Sequence[str] | None) -> Iterator[tuple]:
    """Those of an `.npz`, as `_single` gives them; without names, all."""
    if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
        raise ValueError("it is a single array; name it .npy")
    if not zipfile.is_zipfile(file):
        raise ValueError("it is not in numpy's format")
    archive = zipfile.ZipFile(file)
    members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
    if len(members) > _MOST_ARRAYS:
        raise ValueError(f"it holds {len(members)} arrays")
    if names is not None and names[0] not in members:
        there = ", ".join(sorted(members)[:5]) or "nothing"
        raise ValueError(f"no array called {names[0]!r}, only {there}")
    for name in members if names is None else names:
        if (member := members.get(name)) is None:
            continue
        # What other methods make of a few bytes cannot be read piece by piece.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is compressed by a method that numpy never uses")
        yield name, archive.open(member), member.file_size


class _Array:
    """An array in a stream, whose header is read at once and its data later."""

    def __init__(self, stream: io.BufferedIOBase, size: int):
        """Reads the header; ValueError where `size`, in bytes, is not what it says."""
        head = stream.read(_HEAD)
        try:
            with warnings.catch_warnings(action="ignore"):  # of Python 2's numbers
                shape, self._fortran, dtype, start = _parsed(head)
        except Exception as error:  # numpy evaluates a text there
            raise ValueError("it is not in numpy's format") from error
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never loaded")
        self.header = Header(dtype, shape)
        self._stream, self._begun = stream, head[start:]
        self._bytes = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or start + self._bytes != size:
            raise ValueError(
                f"its header claims {self._bytes} bytes, but there are {size - start}"
            )
        if self._bytes > _LARGEST_ARRAY:
            raise ValueError(f"it has {self._bytes} bytes, too many: split it")

    def read(self) -> np.ndarray:
        """The data; memory is touched only as it comes."""
        dtype, shape = self.header
        data = np.empty(self._bytes, np.uint8)
        data[: len(self._begun)] = np.frombuffer(self._begun, np.uint8)
        view, done = data.data, len(self._begun)
        while done < self._bytes:
            count = self._stream.readinto(view[done : done + _PIECE])
            if not count:
                raise ValueError("it ends early")
            done += count
        self._stream.read(1)  # an archive compares its sum at the end
        if self._fortran:
            return data.view(dtype).reshape(shape[::-1]).T
        return data.view(dtype).reshape(shape)


def _parsed(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, order and type that a header tells of, and where it ends."""
    buffer = io.BytesIO(head)  # a header that is told to be long ends here all the same
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, fortran, dtype = read[npy.read_magic(buffer)](buffer)
    return tuple(int(size) for size in shape), fortran, dtype, buffer.tell()
