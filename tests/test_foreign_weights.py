"""Weights of other frameworks are read as they are, or one line says why not."""

import os
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from pixeldefend.experiment import foreign_weights

ARRAYS = {
    "u_init.conv.bias": np.arange(3, dtype=np.float32),
    "model/conv2d_0/V/ExponentialMovingAverage": np.ones((2, 3), np.float64),
}


def _same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_gives_all_its_arrays(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    _same(foreign_weights.read(tmp_path / "a.npz"), ARRAYS)
    assert foreign_weights.files_of(tmp_path / "a.npz") == [tmp_path / "a.npz"]


def test_no_archive_becomes_much_more_than_it_is(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", zeros=np.zeros(2**20))
    with pytest.raises(ValueError, match=r"bytes, too few for the 8388608 of"):
        foreign_weights.read(tmp_path / "a.npz")


def _objects(path):
    np.savez(path, a=np.array([{}], object), allow_pickle=True)


@pytest.mark.parametrize(
    "name, make, message",
    [
        ("a.npz", _objects, "Python objects, which are never loaded"),
        ("a.npz", lambda path: path.write_bytes(b"PK"), "not in numpy's format"),
        ("a.npz", lambda path: np.savez(path.with_name("b")), "no file of weights"),
        ("a.npz", lambda path: path.mkdir(), "is a folder; name a file"),
        ("a.ckpt", lambda path: path.mkdir(), "is a folder; name a file"),
        ("a.ckpt", lambda path: None, "no file of weights"),
        ("a.h5", lambda path: path.touch(), "read from .npz, .pth, .pt, .ckpt files"),
    ],
)
def test_what_holds_no_arrays_is_refused(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as told:
        foreign_weights.read(tmp_path / name)
    assert str(tmp_path / name) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["a.npz", "a.pth", "a.pt", "a.ckpt", "a.ckpt.index"])
def test_weights_that_never_end_are_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="not a regular file"):
        foreign_weights.read(tmp_path / name)


@pytest.mark.parametrize(
    "name, package, ending",
    [
        ("a.pth", "torch", ""),
        ("a.ckpt", "tensorflow", ".index"),
        ("a.ckpt-9", "tensorflow", ""),
    ],
)
def test_without_the_package_a_line_tells_how_to_do(
    tmp_path, monkeypatch, name, package, ending
):
    for absent in ("torch", "tensorflow"):
        monkeypatch.setitem(sys.modules, absent, None)
    (tmp_path / f"{name}{ending}").touch()
    with pytest.raises(ValueError, match=f"needs the package {package}") as told:
        foreign_weights.read(tmp_path / name)
    assert "\n" not in str(told.value) and "pip install" in str(told.value)
    line = re.search(r'python -c "(.*)", and read', str(told.value))[1]
    assert str(tmp_path / name) in line
    compile(line, "line", "exec")


class _Reader:
    """What `tf.train.load_checkpoint` gives."""

    arrays = {
        "Variable_7": np.zeros((5, 5), np.float32),
        "model/dense_0/g": np.arange(3, dtype=np.float32),
    }

    def get_variable_to_shape_map(self):
        return {name: list(array.shape) for name, array in self.arrays.items()}

    def get_variable_to_dtype_map(self):
        return {
            name: types.SimpleNamespace(size=array.itemsize)
            for name, array in self.arrays.items()
        }

    def get_tensor(self, name):
        return self.arrays[name]


@pytest.mark.parametrize("given", ["a.ckpt", "a.ckpt.index"])
@pytest.mark.parametrize("parts", [[".index", ".data-00000-of-00001"], [""]])
def test_of_a_checkpoint_of_tensorflow_the_model_is_read(
    tmp_path, monkeypatch, given, parts
):
    """Beside a stand-in for TensorFlow, which is not installed with the tests."""
    if given.endswith(".index") and parts == [""]:
        given = "a.ckpt"
    paths = [tmp_path / f"a.ckpt{part}" for part in parts]
    for path in paths:
        path.write_bytes(bytes(100))
    asked = []
    load = types.SimpleNamespace(
        load_checkpoint=lambda path: asked.append(path) or _Reader()
    )
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(train=load))
    found = foreign_weights.read(tmp_path / given)
    assert asked == [str(tmp_path / "a.ckpt")]
    _same(found, {"model/dense_0/g": np.arange(3)})
    assert foreign_weights.files_of(tmp_path / given) == paths


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_torch_gives_its_tensors(tmp_path, old):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    tensors["b"] = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    _same(foreign_weights.read(tmp_path / "a.pth"), ARRAYS | {"b": np.ones(2)})


class _Harm:
    def __reduce__(self):
        return os.mkdir, (_Harm.path,)


@pytest.mark.slow
def test_nothing_in_a_file_of_torch_is_executed(tmp_path):
    torch = pytest.importorskip("torch")
    _Harm.path = str(tmp_path / "done")
    torch.save({"a": _Harm()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"\(UnpicklingError\).*never loaded") as told:
        foreign_weights.read(tmp_path / "a.pth")
    assert not (tmp_path / "done").exists() and "\n" not in str(told.value)


@pytest.mark.slow
def test_what_torch_saved_besides_weights_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    whole = {"epoch": 3, "model": {"a": torch.zeros(2)}}
    for given, message in (
        (whole, "save what model.state_dict"),
        (torch.zeros(3), "save what model.state_dict"),
        # More of it than there is.
        ({"a": torch.zeros(1).expand(2**30)}, "too few for the 4294967296 of"),
    ):
        torch.save(given, path)
        with pytest.raises(ValueError, match=message):
            foreign_weights.read(path)
    for content in (b"", b"abc", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot read weights from"):
            foreign_weights.read(path)


def test_a_torch_that_is_not_safe_is_refused(tmp_path, monkeypatch):
    old = types.SimpleNamespace(__version__=(2, 5, 1), load=None)
    monkeypatch.setitem(sys.modules, "torch", old)
    (tmp_path / "a.pth").touch()
    with pytest.raises(ValueError, match="pip install 'torch>=2.6'"):
        foreign_weights.read(tmp_path / "a.pth")


@pytest.mark.slow
def test_the_line_for_torch_writes_what_is_read(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    torch.save(tensors, tmp_path / "a.pth")
    line = foreign_weights._TORCH.line.format(tmp_path / "a.pth")
    subprocess.run([sys.executable, "-c", line], cwd=tmp_path, check=True)
    _same(foreign_weights.read(tmp_path / "weights.npz"), ARRAYS)
