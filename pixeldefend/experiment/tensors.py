"""Weights as one safetensors file: plain arrays by name, nothing that is executed."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pixeldefend.experiment import files, foreign
from pixeldefend.experiment.checkpoints import flat, unreadable

NAME = "model.safetensors"  # as Hugging Face's hub has it
_LENGTH = 8  # bytes at the start of a file, which tell how long its header is
_LARGEST_HEADER = 2**24  # bytes; one of ours has a thousandth of it


def check_package(what: str) -> None:
    """Raises ValueError where the package is missing that `what` needs."""
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{what} needs the package safetensors: pip install safetensors"
        ) from error


def save(path: epath.PathLike, params: Any) -> None:
    """Writes a pytree of arrays whole, each under its path joined by "/"."""
    from safetensors import numpy

    arrays = {name: np.asarray(leaf) for name, leaf in flat(params).items()}
    content = numpy.save(arrays, metadata={"format": "pixeldefend"})
    with files.whole_file(path) as temporary:
        temporary.write_bytes(content)


def load(path: epath.PathLike, like: Any) -> Any:
    """Reads what `save` wrote.

    Args:
      path: of the file, of anybody's.
      like: the same structure with arrays or `jax.ShapeDtypeStruct`. Names, shapes and
        types are compared before any data is read.

    Raises:
      UnreadableError: damaged, or of other arrays; the message names the first.
      ValueError: the package that reads it is not installed.
      FileNotFoundError: there is none.
    """
    path = files.expanded(path)
    check_package(str(path))
    from safetensors import safe_open

    wanted = flat(like)
    foreign.check_regular(path)
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(_LENGTH), "little")
        if size > _LARGEST_HEADER:
            raise ValueError(f"its header would have {size} bytes")
        with _local(path) as local, safe_open(str(local), "np") as file:
            told = {name: file.get_slice(name) for name in file.keys()}
            _check(told, wanted)
            leaves = [jnp.asarray(file.get_tensor(name)) for name in wanted]
    except FileNotFoundError:
        raise
    except Exception as error:  # the package has a kind of its own
        raise unreadable(path, error) from error
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


@contextlib.contextmanager
def _local(path: epath.Path) -> Iterator[epath.Path]:
    """The file on a disk, where the package looks for it."""
    if not files.is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield path.copy(files.expanded(folder) / path.name)


def _check(told: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ValueError naming the first array that is not as it is wanted."""
    for name, leaf in wanted.items():
        dtype = np.dtype(leaf.dtype)
        expected = f"{dtype.kind}{8 * dtype.itemsize}".upper(), list(leaf.shape)
        if name not in told:
            raise ValueError(f"{name} is missing")
        found = told[name].get_dtype(), list(told[name].get_shape())
        if found != expected:
            words = [f"{kind} {shape}" for kind, shape in (found, expected)]
            raise ValueError(f"{name} is {words[0]}, not {words[1]}")
    if unknown := sorted(told.keys() - wanted.keys()):
        raise ValueError(f"{unknown[0]} is one too many")
