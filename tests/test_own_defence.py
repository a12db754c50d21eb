"""The defence of one's own that docs/defences.md shows, run as it says there."""

import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from test_main import FASHION, ROOT, _environment, _rows
from test_main_evaluate import models  # noqa: F401

from pixeldefend import attacks, defences
from pixeldefend.defences import base
from pixeldefend.experiment import data, grid, zoo
from pixeldefend.models import classifiers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    text = (ROOT / "docs/defences.md").read_text()
    code = text.partition("<!-- own defence -->\n```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) < 30
    path = tmp_path_factory.mktemp("own") / "blur.py"
    path.write_text(code)
    return path


def _own(script, mode, *options):
    command = [sys.executable, str(script), f"--config={ROOT / FASHION}:smoke"]
    command += [f"--mode={mode}", *options]
    environment = _environment() | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )


def _blurred(images):
    """Means over the part of the neighbourhood that is in the image."""
    whole = np.ones(images.shape)
    size = (1, 3, 3, 1)
    total, count = (
        ndimage.uniform_filter(a.astype(float), size, mode="constant")
        for a in (images, whole)
    )
    return np.rint(total / count)


def test_a_defence_of_ones_own_is_in_every_table(models, script, tmp_path):  # noqa: F811
    one = models["two"]
    result = _own(
        script,
        "evaluate",
        f"--config.evaluate.rows=('{one} + blur', '{one} + blur + purify')",
        "--config.evaluate.attacks=('bim', 'bim through=straight_through')",
        "--config.evaluate.images=4",
        f"--config.pixelcnn.weights={models['density']}",
        f"--workdir={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    threats = {
        (row["defence"], row["through"]): row["threat"]
        for row in _rows(tmp_path)
        if row["attack"] == "bim"
    }
    assert threats == {
        ("blur", "classifier"): "grey-box",
        ("blur", "blur+classifier"): "white-box",
        ("blur+purify", "classifier"): "grey-box",
        ("blur+purify", "blur+purify+classifier"): "white-box",
    }
    images, labels = (a[:4] for a in data.sample("fashion_mnist"))
    (path,) = (tmp_path / "purified").glob("none_by_blur*.npz")
    with np.load(path) as file:
        np.testing.assert_allclose(file["images"], _blurred(images), atol=1)
        assert np.mean(file["images"] == _blurred(images)) > 0.99
    # The white-box attack is what the functions give.
    blur = runpy.run_path(str(script))["Blur"]()
    model, variables, _ = zoo.load_released(one)
    logits_fn = classifiers.logits_fn(model)
    seen = base.behind((blur,), logits_fn, gradient="straight_through")
    given = {"classifier": variables, "defences": ({},)}
    bim = jax.jit(attacks.named("bim"), static_argnums=0)
    expected, _ = bim(seen, given, images, labels, eps=8.0)
    pattern = "bim*-blur-straight_through-????????.npz"
    (path,) = (tmp_path / "adversarial").glob(pattern)
    with np.load(path) as file:
        np.testing.assert_array_equal(file["images"], expected)
    defences.DEFENCES.pop("blur")


def test_the_main_job_takes_a_defence_of_ones_own(models, script, tmp_path):  # noqa: F811
    result = _own(
        script,
        "purify",
        "--config.purify.defence=blur",
        "--config.purify.count=4",
        f"--config.pixelcnn.weights={models['density']}",
        f"--config.classifier.weights={models['two']}",
        f"--workdir={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    assert "behind blur" in result.stdout
    with np.load(tmp_path / "purified/sample.npz") as file:
        np.testing.assert_allclose(file["purified"], _blurred(file["images"]), atol=1)
    assert [row["defence"] for row in _rows(tmp_path)] == ["none", "none", "blur"]


def test_a_defence_without_a_gradient_of_its_own_says_so():
    class Flat(base.Defence):
        name = "flat"

        def compute(self, params, images, key):
            return {"images": images // 2 * 2}

    images = jnp.full((1, 2, 2, 1), 7.0)
    seen = base.behind((Flat(),), lambda _, images: images.reshape(1, 4))
    given = {"classifier": None, "defences": ({},)}
    np.testing.assert_array_equal(seen(given, images), np.full((1, 4), 6))
    seen = base.behind((Flat(),), lambda _, x: x, gradient="expectation")
    with pytest.raises(ValueError, match="flat has no gradient of its own, only bpda"):
        seen(given, images)


def test_a_gradient_that_a_defence_has_not_is_refused_before_anything_runs(monkeypatch):
    class Flat(base.Defence):
        name = "flat"

    monkeypatch.setitem(defences.DEFENCES, "flat", Flat)
    assert grid.read(("a + flat",), ("bim through=bpda",), (8,))
    with pytest.raises(ValueError, match="flat has no gradient but bpda"):
        grid.read(("a + flat + purify",), ("bim through=expectation",), (8,))


def test_a_random_defence_needs_a_key():
    class Noise(base.Smooth):
        name, random = "noise", True

    with pytest.raises(ValueError, match="noise is random: it needs a key"):
        base.apply((Noise(),), ({},), jnp.zeros((1, 2, 2, 1), jnp.uint8))


def test_what_is_no_defence_of_the_main_job_is_said(script):
    for chosen, message in (
        ("reject_p_value", "reject_p_value only detects"),
        ("blurr", "unknown defence 'blurr'"),
        ("purify_adaptive", "needs a purify.threshold"),
    ):
        result = _own(script, "purify", f"--config.purify.defence={chosen}")
        assert result.returncode == 2 and message in result.stderr, result.stderr
