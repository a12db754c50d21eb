"""A purifier as a layer of Keras, which has one backend a process."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from processes import ROOT, environment

if importlib.util.find_spec("keras") is None:  # to import it takes a backend
    pytest.skip("no keras", allow_module_level=True)
pytestmark = pytest.mark.slow  # `.ci/run` installs requirements-adapters.txt for them

PROGRAM = """
import sys

import keras
import numpy as np
import pixeldefend
from pixeldefend.adapters.keras import Purified

folder, eps, arrays, here = sys.argv[1:]
with np.load(arrays) as file:
    images, towards = file["images"], file["towards"]
options = {"range": (0, 1), "batch": 4, "cache": False}
purifier = pixeldefend.Purifier(folder, eps=int(eps), **options)
expected = purifier(images)


def gradient(layer):
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(jax.grad(lambda x: (layer(x) * towards).sum()))(images)
    import torch

    given = torch.tensor(images, requires_grad=True)
    (layer(given) * torch.tensor(towards)).sum().backward()
    return given.grad.numpy()


for kind in ("bpda", "straight_through"):
    layer = Purified(purifier, gradient=kind)
    found = np.asarray(layer(images))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    pulled = purifier.pull_back(images, towards, gradient=kind)
    np.testing.assert_allclose(gradient(layer), pulled, rtol=1e-4, atol=1e-5)
network = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(5)])
defended = keras.Sequential([Purified(purifier), network])
logits = defended.predict(images, batch_size=2, verbose=0)
np.testing.assert_allclose(logits, network.predict(expected, verbose=0), atol=1e-5)
# Trained behind it, saved, and made again.
defended.compile(optimizer="sgd", loss="mse")
defended.fit(images, np.zeros_like(logits), verbose=0)
defended.save(f"{here}/model.keras")
again = keras.saving.load_model(f"{here}/model.keras")
assert again.layers[0].purifier.options == purifier.options
wanted = defended.predict(images, verbose=0)
np.testing.assert_array_equal(again.predict(images, verbose=0), wanted)
for wrong, error in ((network, TypeError), (purifier, ValueError)):
    try:
        Purified(wrong, gradient="none")
    except error:
        continue
    raise AssertionError(wrong)
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_layer_purifies_and_is_differentiated(backend, toy, tmp_path, rng):
    if backend == "torch":
        pytest.importorskip("torch")
    images = (toy.levels / 255).astype(np.float32)
    towards = rng.normal(size=images.shape).astype(np.float32)
    np.savez(tmp_path / "arrays.npz", images=images, towards=towards)
    given = [str(toy.folder), str(toy.eps), f"{tmp_path}/arrays.npz", str(tmp_path)]
    _run(PROGRAM, backend, *given)


def test_the_page_runs():
    page = (ROOT / "docs/frameworks.md").read_text()
    code = page.partition("<!-- keras -->\n```python\n")[2].partition("```")[0]
    before = (
        "import keras, pixeldefend\n"
        "images = pixeldefend.data.sample('cifar10')[0][:8].astype('float32') / 255\n"
        "layers = [keras.layers.Flatten(), keras.layers.Dense(10)]\n"
        "network = keras.Sequential(layers)\n"
    )
    _run(f"{before}{code}\nassert logits.shape == (8, 10)", "jax")


def _run(program, backend, *given):
    done = subprocess.run(
        [sys.executable, "-c", program, *given],
        cwd=ROOT,
        env=environment() | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
