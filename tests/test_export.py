"""Programs that run without this package give what it gives."""

import functools
import hashlib
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from jax import export
from processes import ROOT

import pixeldefend
from configs import fashion_mnist
from pixeldefend.experiment import artefacts, modes, zoo
from pixeldefend.models import classifiers, convolution

# Run by a Python that finds neither the source nor what it is built on.
PROGRAM = """
import json, pathlib, sys

absent = ("pixeldefend", "flax", "optax", "chex", "orbax", "etils")
sys.modules.update(dict.fromkeys(absent))
for name in absent:
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(name)
lines = json.loads(pathlib.Path("defence.json").read_text())["call"]
assert len(lines) == 6
exec("\\n".join(lines))
given = dict(np.load(sys.argv[1]))
found = {}
for call in given.pop("calls"):
    arguments = (given["images"][: call[0]], *map(np.int32, call[1:]))
    for name, array in run(*arguments).items():
        found[f"{name} {call.tolist()}"] = np.asarray(array)
np.savez("found.npz", **found)
"""


def _taken_away(folder, images, calls):
    """What the program in a folder gives, by name and call (images and perhaps eps)."""
    np.savez(folder / "given.npz", images=images, calls=np.array(calls))
    found = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, "given.npz"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return dict(np.load(folder / "found.npz"))


def _told(folder):
    return json.loads((folder / "defence.json").read_text())


@pytest.fixture(scope="module")
def classifier(toy, tmp_path_factory):
    """A folder with one for the toy's images."""
    folder, shape = tmp_path_factory.mktemp("classifier"), toy.levels.shape[1:]
    # So few features that some of its convolutions have a way of their own on CPUs.
    model = classifiers.make("vgg", divisor=16)
    abstract = zoo.abstract_params("classifier", model, shape)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda a: rng.uniform(0.1, 0.3, a.shape).astype(a.dtype), abstract
    )
    card = {"kind": "classifier", "dataset": "cifar10", "image_shape": shape}
    zoo.save_released(folder, model, variables, card)
    return str(folder)


def test_purifying_is_taken_away_to_the_last_level(toy, tmp_path):
    pixeldefend.export(toy.folder, tmp_path, eps=toy.eps)
    calls = [(11, toy.eps), (2, toy.eps), (11, 3), (11, 0), (11, 16), (11, 200)]
    found = _taken_away(tmp_path, toy.levels, calls)
    purifier = pixeldefend.Purifier(toy.folder, eps=toy.eps, batch=11, cache=False)
    np.testing.assert_array_equal(found["images [11, 9]"], purifier(toy.levels))
    np.testing.assert_array_equal(found["images [11, 9]"], toy.purified)
    np.testing.assert_array_equal(found["images [2, 9]"], toy.purified[:2])
    np.testing.assert_array_equal(found["images [11, 0]"], toy.levels)
    purify = jax.jit(functools.partial(pixeldefend.purify, toy.model, window=33))
    for eps in (3, 16):
        expected = purify(toy.params, toy.levels, eps=eps)
        np.testing.assert_array_equal(found[f"images [11, {eps}]"], expected)
    # More than the largest is the largest.
    assert _told(tmp_path)["inputs"]["eps"]["largest"] == 16
    np.testing.assert_array_equal(found["images [11, 200]"], found["images [11, 16]"])


def test_scores_are_taken_away(toy, tmp_path):
    pixeldefend.export(toy.folder, tmp_path, what="score")
    found = _taken_away(tmp_path, toy.levels, [(11,)])
    score = jax.jit(functools.partial(pixeldefend.log_prob, toy.model))
    log_probs = np.asarray(score(toy.params, toy.levels))
    np.testing.assert_array_equal(found["log_probs [11]"], log_probs)
    bits = -log_probs / (toy.levels[0].size * np.log(2))
    np.testing.assert_allclose(found["bits_per_dim [11]"], bits, rtol=1e-6)
    ranks = pixeldefend.p_values(log_probs, np.float32(toy.reference))
    np.testing.assert_array_equal(found["p_values [11]"], ranks)


def test_a_whole_defence_is_taken_away(toy, classifier, tmp_path):
    pixeldefend.export(
        toy.folder, tmp_path, what="defence", eps=toy.eps, classifier=classifier
    )
    found = _taken_away(tmp_path, toy.levels, [(11, toy.eps)])
    np.testing.assert_array_equal(found["images [11, 9]"], toy.purified)
    model, variables, card = zoo.load_released(classifier)
    logits = jax.jit(pixeldefend.logits_fn(model))(variables, toy.purified)
    np.testing.assert_allclose(found["logits [11, 9]"], logits, rtol=1e-5)
    told = _told(tmp_path)
    assert told["models"]["classifier"]["sha256"] == card["sha256"]
    assert told["outputs"] == {
        "images": {"shape": ["batch", 4, 6, 3], "dtype": "uint8"},
        "logits": {"shape": ["batch", 10], "dtype": "float32"},
    }


def test_it_tells_all_that_a_caller_needs(toy, tmp_path):
    folder = pixeldefend.export(
        toy.folder, tmp_path / "a/b", eps=toy.eps, batch=4, platforms=["cuda", "cpu"]
    )
    assert {path.name for path in folder.iterdir()} == {"defence.jax", "defence.json"}
    told, content = _told(folder), (folder / "defence.jax").read_bytes()
    assert told["what"] == "purify" and told["bytes"] == len(content)
    assert told["sha256"] == hashlib.sha256(content).hexdigest()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(toy.params))
    assert weights < told["bytes"] < weights + 2**20
    assert told["platforms"] == ["cpu", "cuda"]
    assert told["inputs"] == {
        "images": {"shape": [4, 4, 6, 3], "dtype": "uint8", "unit": "levels 0 to 255"},
        "eps": {
            "shape": [],
            "dtype": "int32",
            "unit": "levels",
            "default": 9,
            "smallest": 0,
            "largest": 16,
        },
    }
    assert told["versions"]["jax"] == jax.__version__
    hashes = zoo.load_card(zoo.find_released(toy.folder))["sha256"]
    assert told["models"] == {"pixelcnn": {"name": "cifar10", "sha256": hashes}}
    program = export.deserialize(bytearray(content))
    assert program.platforms == ("cpu", "cuda")
    found = program.call(toy.levels[:4], np.int32(toy.eps))["images"]
    np.testing.assert_array_equal(found, toy.purified[:4])
    with pytest.raises(ValueError, match="hape"):
        program.call(toy.levels, np.int32(toy.eps))


@pytest.mark.parametrize("platforms", [("cpu",), ("cuda",), ("cpu", "cuda")])
def test_what_is_faster_on_cpus_is_for_cpus_alone(platforms):
    """Convolutions between few channels are sums there."""
    images, kernel = np.zeros((2, 8, 8, 2)), np.zeros((3, 3, 2, 2))
    arrays = [jax.ShapeDtypeStruct(a.shape, np.float32) for a in (images, kernel)]

    def convolved(images, kernel):
        return convolution.convolve(images, kernel, (1, 1), "SAME")

    text = export.export(jax.jit(convolved), platforms=platforms)(*arrays).mlir_module()
    assert ("stablehlo.convolution" in text) == ("cuda" in platforms)
    assert ("stablehlo.multiply" in text) == ("cpu" in platforms)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"what": "both"}, "what must be one of purify, score, defence: 'both'"),
        ({"what": "score"}, "score takes no eps: 9"),
        ({"eps": None}, "purify takes an eps: None"),
        ({"eps": 256}, "between 0 and 255"),
        ({"what": "defence"}, "defence takes a classifier"),
        ({"classifier": "mnist/cnn_a"}, "purify takes no classifier"),
        (
            {"what": "defence", "classifier": "mnist/cnn_a"},
            r"classifier takes images \[28, 28, 1\], the density model \[4, 6, 3\]",
        ),
        ({"platforms": "cpu"}, "platforms must be some of cpu, cuda: 'cpu'"),
        ({"platforms": ()}, "platforms must be some of"),
        ({"platforms": ({}, 1)}, "platforms must be some of"),
        ({"batch": -1}, "batch must be at least 1"),
        ({"weights": "mnist/cnn_a"}, "the density model is a classifier"),
        ({"weights": "no/model"}, "no model 'no/model'"),
    ],
)
def test_settings_that_cannot_be_are_told(change, message, toy, tmp_path):
    options = {"weights": toy.folder, "to": tmp_path / "a", "eps": toy.eps} | change
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pixeldefend.export(**options)
    assert not list(tmp_path.iterdir())


def test_without_the_package_a_line_tells_what_to_install(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ValueError, match="pip install flatbuffers"):
        pixeldefend.export(toy.folder, tmp_path / "a", eps=toy.eps)
    assert not list(tmp_path.iterdir())


def test_the_mode_writes_two_files_and_says_how_large(tmp_path, capsys):
    config = fashion_mnist.get_config("smoke")
    config.compilation_cache, config.export.to = "", str(tmp_path / "to")
    config.export.platforms = ("cuda",)  # which need not be here
    modes.start("export", config, str(tmp_path / "run"))
    told = _told(tmp_path / "to")
    said = capsys.readouterr().out
    assert f"purify for cuda, {told['bytes'] / 2**20:.1f} MiB" in said
    assert told["inputs"]["eps"]["default"] == 32
    assert told["models"]["pixelcnn"]["name"] == "fashion_mnist/pixelcnn"
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {"to/defence.jax", "to/defence.json"}


@pytest.mark.slow
def test_the_page_takes_a_released_defence_away(tmp_path, monkeypatch):
    """Beside the same programs of this package, as a user has them."""
    page = (ROOT / "docs/export.md").read_text()
    blocks = re.findall(r"<!-- (program|call) -->\n```python\n(.*?)```", page, re.S)
    examples = dict(blocks)
    monkeypatch.chdir(tmp_path)
    exec(examples["program"], {})
    folder = tmp_path / "taken"
    lines = [line for line in examples["call"].splitlines() if line]
    assert _told(folder)["call"] == lines
    images = pixeldefend.data.sample("fashion_mnist")[0][:4]
    found = _taken_away(folder, images, [(4, 32)])
    here = """
import jax, numpy as np, pixeldefend as pd
images = np.load("given.npz")["images"]
purifier = pd.Purifier("fashion_mnist/pixelcnn", eps=32, batch=4, cache=False)
model, variables, _ = pd.load_released("fashion_mnist/cnn_a")
purified = purifier(images)
logits = jax.jit(pd.logits_fn(model))(variables, purified)
np.savez("here.npz", images=purified, logits=logits)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", here], cwd=folder, env=environment, check=True
    )
    with np.load(folder / "here.npz") as expected:
        assert np.any(expected["images"] != images)
        np.testing.assert_array_equal(found["images [4, 32]"], expected["images"])
        np.testing.assert_allclose(
            found["logits [4, 32]"], expected["logits"], atol=1e-5, rtol=1e-5
        )


def test_a_program_that_calls_python_is_refused(toy, tmp_path):
    """As a torch network does."""

    def function(images, eps):
        told = jax.ShapeDtypeStruct(images.shape, images.dtype)
        return {"images": jax.pure_callback(np.asarray, told, images)}

    made = artefacts.Artefact("purify", function, (4, 6, 3), 3, ("cpu",), 2, {})
    with pytest.raises(ValueError, match="as a torch network does"):
        artefacts.write(epath.Path(tmp_path), made)
    assert not list(tmp_path.iterdir())
