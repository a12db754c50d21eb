"""The library without the packages that only some of it needs."""

import numpy as np
import pytest
from test_main import run_program

# As on a machine that has JAX and little else.
ABSENT = ("tensorflow_datasets", "array_record", "matplotlib", "ml_collections")
PROGRAM = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import jax
import numpy as np
import pixeldefend
from pixeldefend import attacks, data
from pixeldefend.experiment import density_training, modes, schedule, train

images, labels = data.load("fashion_mnist", "train", {data_dir!r})
model, params, _ = pixeldefend.load_released("fashion_mnist/pixelcnn")
network, variables, _ = pixeldefend.load_released("fashion_mnist/cnn_a")
shown = images[:2]
bits = jax.jit(pixeldefend.bits_per_dim, static_argnums=0)(model, params, shown)
logits_fn = pixeldefend.logits_fn(network)
attack = jax.jit(attacks.fgsm, static_argnums=0)
attacked, _ = attack(logits_fn, variables, shown, labels[:2], eps=8.0)
tiny = pixeldefend.PixelCNN(features=2, depth=1, mixtures=1, dropout=0.0, channels=1)
arrays = {{"images": images[:8], "labels": labels[:8]}}
first = density_training.initial_params(tiny, 0, arrays, 8)
purify = jax.jit(pixeldefend.purify, static_argnums=0, static_argnames="window")
purified = purify(tiny, first, attacked, eps=2, window=17)
plan = schedule.Plan(batch=4, steps=2)
optimizer = train.adam(plan)
step = train.make_step(density_training.loss_fn(tiny), optimizer, 0.0)
state = train.start(first, {{}}, optimizer)
_, line = train.fit(
    state, step, arrays, plan, {workdir!r}, lambda state: {{}}, lambda line: None
)
moved = np.abs(np.asarray(purified).astype(int) - attacked).max()
assert np.isfinite(line["loss"]) and np.isfinite(bits).all() and 0 < moved <= 2
try:
    data.load("mnist", "test", {data_dir!r})
except ValueError as error:
    print(error)
loaded = set({absent}) & {{name.split(".")[0] for name in sys.modules}}
assert not loaded, loaded
"""


@pytest.mark.slow
def test_arrays_are_trained_on_scored_attacked_and_purified(tmp_path, rng):
    for name, count in (("train", 16), ("validation", 4)):
        path = tmp_path / "fashion_mnist" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        images = rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
        np.savez(path, images=images, labels=np.arange(count) % 10)
    prepared = tmp_path / "mnist/3.0.1/dataset_info.json"
    prepared.parent.mkdir(parents=True)
    prepared.write_text("{}")
    program = PROGRAM.format(
        absent=ABSENT, data_dir=str(tmp_path), workdir=str(tmp_path / "run")
    )
    printed = run_program(program)
    assert "tensorflow_datasets is missing: pip install" in printed


@pytest.mark.parametrize("name", ABSENT)
def test_the_names_are_right(name):
    __import__(name)
