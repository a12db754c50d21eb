"""The attack of one's own that docs/attacks.md shows, run as it says there."""

import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from processes import ROOT, SMOKE, environment, rows

from pixeldefend import attacks
from pixeldefend.experiment import data, tools


@pytest.fixture
def script(tmp_path):
    text = (ROOT / "docs/attacks.md").read_text()
    code = text.partition("<!-- own attack -->\n```python\n")[2].partition("```")[0]
    path = tmp_path / "corners.py"
    path.write_text(code)
    return path


@pytest.fixture
def corners(script):
    known = dict(attacks.ATTACKS)
    yield runpy.run_path(str(script))["corners"]
    attacks.ATTACKS.clear()
    attacks.ATTACKS.update(known)


def test_it_does_what_its_page_says(corners):
    images, labels = (a[:4] for a in data.sample("mnist"))
    keys = jax.random.split(jax.random.key(0), 4)

    def logits_fn(variables, images):
        return images[:, :2, 3, 0]

    found, info = attacks.named("corners")(
        logits_fn, {}, images, labels % 2, keys, eps=8, keep_failed=True
    )
    found = np.asarray(found)
    moved = found.astype(int) - images
    assert found.dtype == np.uint8 and info.distance.tolist() == [8] * 4
    inside = (images >= 8) & (images <= 247)
    assert set(np.unique(moved[inside])) == {-8, 8}
    # An image for itself, whatever stands beside it.
    alone, _ = attacks.named("corners")(
        logits_fn, {}, images[2:3], labels[2:3] % 2, keys[2:3], eps=8, keep_failed=True
    )
    np.testing.assert_array_equal(alone[0], found[2])


def test_results_are_marked_with_its_source(corners, script):
    assert tools.source_of(("bim", ("pgd", "strong"), "of no attack")) == []
    (source,) = tools.source_of(((1, "corners"),))
    assert source in script.read_text() and "rademacher" in source


@pytest.mark.slow
def test_it_is_in_every_mode(script, tmp_path):
    def run(mode, *options):
        command = [sys.executable, str(script), f"--config={ROOT / SMOKE}"]
        command += [f"--mode={mode}", f"--workdir={tmp_path / mode}", *options]
        own = environment() | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=ROOT, env=own, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return rows(tmp_path / mode / "rows.jsonl")

    found = run("attack", "--config.attack.name=corners", "--config.attack.eps=16")
    assert [row["attack"] for row in found] == ["none", "corners"]
    assert found[1]["preset"] == "usual" and found[1]["eps_attack"] == 16
    with np.load(next((tmp_path / "attack/adversarial").glob("*.npz"))) as file:
        apart = abs(file["images"].astype(int) - file["clean"])
        assert set(apart.max((1, 2, 3))) <= {0, 16}
    network = "fashion_mnist/vgg"
    found = run(
        "evaluate",
        f"--config.evaluate.rows=('{network}', '{network} + jpeg50')",
        "--config.evaluate.attacks=('corners', 'corners through=bpda')",
        "--config.evaluate.images=4",
    )
    threats = {(row["attack"], row["through"], row["threat"]) for row in found}
    assert ("corners", "jpeg50+classifier", "white-box") in threats
    assert ("corners", "classifier", "grey-box") in threats
