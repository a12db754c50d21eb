"""Weights that PyTorch and TensorFlow saved, as arrays by name.

Nothing in them is executed. Neither package is needed here: what one of them saved can
be written as an `.npz` where it is installed, and read from that.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from etils import epath

from pixeldefend.density import published_weights
from pixeldefend.experiment import files, foreign

_DENSEST = 16  # bytes of arrays for a byte of the file; trained weights hardly compress
_SAFE_TORCH = (2, 6)  # before, a file could run code in spite of `weights_only`


class _Form(NamedTuple):
    """A form of files.

    Attributes:
      read: what is in one.
      package: that it takes, as pip calls it; "" for none.
      line: of Python, which writes the file called `{}` as an `.npz`.
    """

    read: Callable[[epath.Path], dict[str, np.ndarray]]
    package: str = ""
    line: str = ""


def read(path: epath.PathLike) -> dict[str, np.ndarray]:
    """The arrays in a file of weights.

    Args:
      path: an `.npz`; a `.pth` or `.pt` of PyTorch, which holds a `state_dict()`; or a
        `.ckpt` of TensorFlow, where `.index` and `.data` may follow on the name.

    Raises:
      ValueError: none of these, damaged, too large, or the package that reads it is not
        installed; the message is one line and says how to go on.
      FileNotFoundError: there is none.
    """
    path = _checkpoint(path)
    form = _form(path)
    for file in files_of(path):
        foreign.check_regular(file)
        if file.is_dir():
            raise ValueError(f"{path} is a folder; name a file of weights")
    try:
        with _one_line(path):
            return form.read(path)
    except ImportError as error:
        raise ValueError(
            f"{path} needs the package {form.package}: pip install {form.package}; or, "
            f'where that is installed, python -c "{form.line.format(path)}", and read '
            "weights.npz"
        ) from error


def files_of(path: epath.PathLike) -> list[epath.Path]:
    """The files that a user calls by `path`: several of a checkpoint of TensorFlow.

    Raises:
      FileNotFoundError: there are none.
    """
    path = _checkpoint(path)
    if path.exists():
        return [path]
    index = path.with_name(f"{path.name}.index")
    if not index.exists():
        raise FileNotFoundError(f"no file of weights {path}")
    return [index, *sorted(path.parent.glob(f"{path.name}.data-*"))]


def _checkpoint(path: epath.PathLike) -> epath.Path:
    """The path, without the ending of one of the files of a checkpoint."""
    path = files.expanded(path)
    return path.with_suffix("") if path.suffix == ".index" else path


def _form(path: epath.Path) -> _Form:
    """The form of a file, by its name; ValueError where there is none."""
    if ".ckpt" in path.name:  # a number of steps may follow
        return _FORMS[".ckpt"]
    if path.suffix not in _FORMS:
        known = ", ".join(_FORMS)
        raise ValueError(f"{path}: weights are read from {known} files")
    return _FORMS[path.suffix]


@contextlib.contextmanager
def _one_line(path: epath.Path) -> Iterator[None]:
    """Whatever a package raises for a file, as a ValueError of one line."""
    try:
        yield
    except (ImportError, ValueError, OSError):
        raise
    except Exception as error:  # many kinds, some of them of many lines
        raise ValueError(
            f"cannot read weights from {path} ({type(error).__name__}): it is damaged, "
            "or holds things other than arrays, which are never loaded"
        ) from error


def _check_size(path: epath.Path, sizes: Iterable[int]) -> None:
    """Raises ValueError where a small file would take much memory.

    Args:
      path: of it.
      sizes: of its arrays, bytes.
    """
    given = sum(file.stat().length for file in files_of(path))
    if (wanted := sum(sizes)) > _DENSEST * given:
        raise ValueError(
            f"{path} has {given} bytes, too few for the {wanted} of its arrays"
        )


def _npz(path: epath.Path) -> dict[str, np.ndarray]:
    def check(headers: Mapping[str, foreign.Header]) -> None:
        sizes = (math.prod(h.shape) * h.dtype.itemsize for h in headers.values())
        _check_size(path, sizes)

    return foreign.read_arrays(path, None, check)


def _torch(path: epath.Path) -> dict[str, np.ndarray]:
    import torch

    if torch.__version__ < _SAFE_TORCH:
        raise ValueError(
            f"torch {torch.__version__} may run code that is in a file: pip install "
            "'torch>=2.6'"
        )
    with path.open("rb") as file:
        found = torch.load(file, map_location="cpu", weights_only=True)
    tensors = isinstance(found, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in found.items()
    )
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors by name; save what model.state_dict() returns"
        )
    # A tensor may tell of more than there is.
    _check_size(path, (t.numel() * t.element_size() for t in found.values()))
    # numpy does not know bfloat16.
    return {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(
            force=True
        )
        for name, tensor in found.items()
    }


def _tensorflow(path: epath.Path) -> dict[str, np.ndarray]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(path))
    shapes = reader.get_variable_to_shape_map()
    dtypes = reader.get_variable_to_dtype_map()
    _check_size(path, (math.prod(shapes[name]) * dtypes[name].size for name in shapes))
    # The optimizer's variables are as many again.
    names = [name for name in shapes if name.startswith(published_weights.SCOPE)]
    return {name: reader.get_tensor(name) for name in names or shapes}


_TORCH = _Form(
    _torch,
    "torch",
    "import numpy, torch; numpy.savez('weights.npz', **{{k: v.numpy() for k, v in "
    "torch.load('{}', 'cpu', weights_only=True).items()}})",
)
_TENSORFLOW = _Form(
    _tensorflow,
    "tensorflow",
    "import numpy, tensorflow; r = tensorflow.train.load_checkpoint('{}'); "
    "numpy.savez('weights.npz', **{{k: r.get_tensor(k) for k in "
    "r.get_variable_to_shape_map() if k.startswith('model/')}})",
)
_FORMS = {
    ".npz": _Form(_npz),
    ".pth": _TORCH,
    ".pt": _TORCH,
    ".ckpt": _TENSORFLOW,
}
