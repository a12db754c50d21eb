"""Released models in Hugging Face's layout: out, in again, or one line says why not."""

import json
import os
import re
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from processes import ROOT

import pixeldefend
from configs import cifar10, mnist
from pixeldefend.experiment import checkpoints, modes, tensors, zoo


def _same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def written(toy, tmp_path_factory):
    """The folder with the toy in the layout of the hub."""
    folder = tmp_path_factory.mktemp("hub") / "toy"
    assert pixeldefend.export_weights(toy.folder, folder) == folder
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(written, tmp_path / "toy")


def test_a_folder_of_the_hub_is_a_released_model(written, toy):
    before, after = (zoo.load_released(str(f)) for f in (toy.folder, written))
    assert after.model == before.model
    _same(after.params, before.params)
    names = {"model.safetensors", "reference.npy"}
    assert {p.name for p in written.iterdir()} == names | {"card.json", "README.md"}
    assert after.card.pop("files").keys() == names and before.card.pop("files")
    assert after.card == before.card
    np.testing.assert_array_equal(
        *(zoo.load_reference(str(f)) for f in (toy.folder, written))
    )


def test_it_purifies_as_the_model_that_it_was_made_of(written, toy):
    purifier = pixeldefend.Purifier(str(written), eps=toy.eps, batch=2, cache=False)
    np.testing.assert_array_equal(purifier(toy.levels[:8]), toy.purified[:8])


def test_tensors_are_plain_bytes_behind_a_header(written, toy):
    """Read by the format's description, without the package that wrote them."""
    content = (written / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    assert header.pop("__metadata__") == {"format": "pixeldefend"}
    expected = checkpoints.flat(toy.params)
    assert header.keys() == expected.keys() and any("/" in name for name in header)
    for name, told in header.items():
        first, last = (start + offset for offset in told["data_offsets"])
        found = np.frombuffer(content[first:last], np.float32).reshape(told["shape"])
        assert told["dtype"] == "F32"
        np.testing.assert_array_equal(found, expected[name])


@pytest.mark.parametrize("name", ["mnist/magnet", "mnist/puvae", "fashion_mnist/vgg"])
def test_every_kind_of_model_comes_back(name, tmp_path):
    before = zoo.load_released(name)
    folder = str(pixeldefend.export_weights(name, tmp_path / "to", license="mit"))
    _same(zoo.load_released(folder).params, before.params)
    text = (tmp_path / "to/README.md").read_text()
    _, front, rest = text.split("---\n", 2)
    fields = dict(re.findall(r"(\w+):[ \n]((?:- .*\n)+|.*)", front))
    dataset = name.split("/")[0]
    assert fields["license"] == "mit" and fields["library_name"] == "pixeldefend"
    assert f"/{dataset}\n" in fields["datasets"]
    assert f"- {before.card['kind']}\n" in fields["tags"]
    assert f"# {name}\n" in rest and before.card["note"] in rest
    figures = before.card["figures"]["test"]
    accuracy = figures.get("clean", figures)["accuracy"]
    assert re.search(rf"\| test(, clean)? \| 10000 \|.* {accuracy} \|", rest)
    if (zoo.find_released(name) / "validation.npy").exists():
        np.testing.assert_array_equal(*map(zoo.load_validation, (name, folder)))


def test_the_page_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs/export.md").read_text()
    (example,) = re.findall(r"<!-- weights -->\n```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    known = {}
    exec(example, known)
    _same(known["params"], zoo.load_released("fashion_mnist/pixelcnn").params)


def test_it_is_written_anew_and_over_itself(folder, toy):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for weights in (toy.folder, str(folder)):
        pixeldefend.export_weights(weights, folder)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def _tensors(change):
    """Changes the arrays in a folder's file."""

    def apply(folder):
        path = folder / "model.safetensors"
        arrays = safetensors.numpy.load_file(path)
        change(arrays)
        safetensors.numpy.save_file(arrays, path)

    return apply


def _bytes(change):
    def apply(folder):
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return apply


def _pipe(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def _zeroed(content):
    return content[:-4] + bytes(4)


DAMAGE = [
    (_tensors(lambda a: a.pop("u/input/bias")), "u/input/bias is missing"),
    (
        _tensors(lambda a: a.update({"u/input/bias": np.zeros(7, np.float32)})),
        r"u/input/bias is F32 \[7\], not F32 \[3\]",
    ),
    (
        _tensors(
            lambda a: a.update({"u/input/bias": a["u/input/bias"].astype(np.float16)})
        ),
        r"u/input/bias is F16 \[3\], not F32 \[3\]",
    ),
    (_tensors(lambda a: a.update(more=np.zeros(3))), "more is one too many"),
    (_tensors(lambda a: None), "is not the file that the card describes"),
    (_bytes(_zeroed), "is not the file that the card describes"),
    (_bytes(lambda content: content[:-4]), "cannot read the checkpoint"),
    (_bytes(lambda content: content[:100]), "cannot read the checkpoint"),
    (_bytes(lambda content: b""), "cannot read the checkpoint"),
    (_bytes(lambda content: b"\xff" * 8 + content), "header would have 1844674407"),
    (_bytes(lambda content: b"PK\x03\x04" + bytes(99)), "header would|cannot read"),
    (_pipe, "is not a regular file"),
]


@pytest.mark.parametrize("damage, message", DAMAGE)
def test_what_does_not_fit_is_told_in_one_line(damage, message, folder):
    damage(folder)
    with pytest.raises(ValueError, match=message) as told:
        zoo.load_released(str(folder))
    assert "\n" not in str(told.value) and "model.safetensors" in str(told.value)


def test_what_the_card_does_not_tell_of_is_refused(folder):
    """A card of which somebody took the hashes of files, but not that of all arrays."""
    _tensors(lambda a: a.update({"u/input/bias": a["u/input/bias"] + 1}))(folder)
    card = json.loads((folder / "card.json").read_text())
    del card["files"]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="they are not those of the card"):
        zoo.load_released(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights in"):
        zoo.load_released(str(folder))


def test_without_the_package_a_line_tells_what_to_install(
    folder, toy, tmp_path, monkeypatch
):
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    for work in (
        lambda: zoo.load_released(str(folder)),
        lambda: pixeldefend.export_weights(toy.folder, tmp_path / "to"),
    ):
        with pytest.raises(ValueError, match="pip install safetensors") as told:
            work()
        assert "\n" not in str(told.value)
    assert not (tmp_path / "to").exists()


def test_an_object_store_is_read_too(folder, toy, monkeypatch):
    monkeypatch.setattr(tensors.files, "is_remote", lambda path: "toy" in str(path))
    found = tensors.load(folder / "model.safetensors", toy.params)
    _same(found, jax.tree.map(np.asarray, toy.params))


@pytest.mark.parametrize(
    "there, message",
    [
        (("README.md",), "holds README.md; name another"),
        (("weights", "card.json"), "holds weights; name another"),
        (("model.safetensors", "mine"), "holds mine; name another"),
    ],
)
def test_nothing_else_is_written_over(there, message, toy, tmp_path):
    for name in there:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=message):
        pixeldefend.export_weights(toy.folder, tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(
        there, "mine"
    )


def test_the_mode_writes_a_model_of_any_kind(tmp_path, capsys):
    config = mnist.get_config("smoke")
    config.compilation_cache = ""
    config.export.what, config.export.model = "weights", "magnet"
    config.export.to, config.export.license = str(tmp_path / "to"), "mit"
    modes.start("export", config, str(tmp_path / "run"))
    assert f"mnist/magnet written to {tmp_path / 'to'}" in capsys.readouterr().out
    found = zoo.load_released(str(tmp_path / "to")).params
    _same(found, zoo.load_released("mnist/magnet").params)
    assert "license: mit\n" in (tmp_path / "to/README.md").read_text()
    assert not (tmp_path / "run").exists()


def test_a_license_is_a_word_of_the_hubs(toy, tmp_path):
    with pytest.raises(ValueError, match="such as apache-2.0: 'Mine: all'"):
        pixeldefend.export_weights(toy.folder, tmp_path / "to", license="Mine: all")
    assert not (tmp_path / "to").exists()


def test_a_release_does_not_go_beside_tensors(folder, tmp_path):
    config = cifar10.get_config("smoke")
    config.compilation_cache, config.release.to = "", str(folder)
    with pytest.raises(modes.UserError, match="release.to .* holds model.safetensors"):
        modes.start("release", config, str(tmp_path / "run"))
