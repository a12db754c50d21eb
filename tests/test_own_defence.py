"""The defence of one's own that docs/defences.md shows, run as it says there."""

import dataclasses
import functools
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import ROOT, environment
from scipy import ndimage
from test_main import FASHION, _rows
from test_main_evaluate import models  # noqa: F401

from pixeldefend import attacks, defences
from pixeldefend.defences import base, filters
from pixeldefend.experiment import adversaries, data, grid, tools, zoo
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
    own = environment() | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)


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
    with pytest.raises(ValueError, match="flat has no gradient other than bpda"):
        seen(given, images)


def test_a_gradient_that_a_defence_has_not_is_refused_before_anything_runs(monkeypatch):
    class Flat(base.Defence):
        name = "flat"

    monkeypatch.setitem(defences.DEFENCES, "flat", Flat)
    assert grid.read(("a + flat",), ("bim through=bpda",), (8,))
    with pytest.raises(ValueError, match="flat has no gradient other than bpda"):
        grid.read(("a + flat + purify",), ("bim through=expectation",), (8,))


def test_a_random_defence_needs_a_key():
    class Noise(base.Smooth):
        name, random = "noise", True

    with pytest.raises(ValueError, match="noise is random: it needs a key"):
        base.apply((Noise(),), ({},), jnp.zeros((1, 2, 2, 1), jnp.uint8))


@dataclasses.dataclass(frozen=True)
class Noise(base.Smooth):
    name = "noise"
    random = True

    def smooth(self, params, images, key):
        draw = functools.partial(jax.random.normal, shape=images.shape[1:])
        return images.astype(jnp.float32) + 8 * jax.vmap(draw)(key)


def test_random_defences_in_a_row_do_not_draw_alike():
    images = jnp.full((2, 16, 16, 1), 128, jnp.uint8)
    key = jax.random.split(jax.random.key(0), 2)
    one, two = (
        base.apply((Noise(),) * n, ({},) * n, images, key).images for n in (1, 2)
    )
    first = np.asarray(one, int) - 128
    second = np.asarray(two, int) - np.asarray(one, int)
    assert first.std() == pytest.approx(8, rel=0.1)
    assert second.std() == pytest.approx(8, rel=0.1)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.15
    # As an attacker sees them, too; and as the grid keeps them.
    seen = base.behind((Noise(), Noise()), lambda _, x: x.reshape(2, -1))
    given = {"classifier": None, "defences": ({}, {}), "key": jax.random.key(1)}
    moved = np.asarray(seen(given, images.astype(jnp.float32))) - 128
    assert moved.std() == pytest.approx(8 * 2**0.5, rel=0.15)
    computed = tools.compute(Noise(), (), 0, {}, images, jnp.arange(2))
    again = tools.compute(Noise(), ("magnet",), 0, {}, images, jnp.arange(2))
    assert np.mean(computed["images"] == again["images"]) < 0.2


def test_an_attacker_has_a_key_for_what_is_random():
    for gradient in base.GRADIENTS:
        seen = base.behind((Noise(),), lambda _, x: x.reshape(2, -1), gradient=gradient)
        given = {"classifier": None, "defences": ({},)}
        images = jnp.zeros((2, 4, 4, 1))
        with pytest.raises(ValueError, match="noise is random: it needs a key"):
            seen(given, images)
        keys = {"key": jax.random.split(jax.random.key(0), 2)}
        with pytest.raises(ValueError, match="the key must be a single one"):
            seen(given | keys, images)
        with pytest.raises(ValueError, match="1 defences need as many params, not 0"):
            seen(given | {"defences": (), "key": jax.random.key(0)}, images)


def _broken(**members):
    return type("Broken", (base.Defence,), {"name": "broken", **members})


@pytest.mark.parametrize(
    "kind, message",
    [
        (_broken(), "must be a dataclass with frozen=True"),
        (dataclasses.dataclass(_broken()), "must be a dataclass with frozen=True"),
        (dataclasses.dataclass(frozen=True)(_broken()), "must define compute"),
        (
            dataclasses.dataclass(frozen=True)(
                _broken(compute=lambda self, params, images, key: {"image": images})
            ),
            "cannot be computed: KeyError",
        ),
        (
            dataclasses.dataclass(frozen=True)(
                _broken(compute=lambda self, params, images, key: images)
            ),
            "cannot be computed",
        ),
        (
            dataclasses.dataclass(frozen=True)(
                _broken(
                    compute=lambda self, params, images, key: {"images": images[:, :1]}
                )
            ),
            "turns images into",
        ),
        (
            dataclasses.dataclass(frozen=True)(
                _broken(facts=lambda self, params: {"step": 3})
            ),
            "a row has no field 'step'",
        ),
    ],
)
def test_what_a_defence_lacks_is_said_before_anything_runs(kind, message):
    with pytest.raises(ValueError, match=message):
        tools.check_defence(kind(), {}, (4, 4, 1))


def test_an_edited_defence_is_another(tmp_path, monkeypatch):
    text = "import dataclasses\nfrom pixeldefend.defences import base\n\n"
    text += "@dataclasses.dataclass(frozen=True)\nclass Own(base.Defence):\n"
    text += "    def compute(self, params, images, key):\n        return {}\n"
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for name, code in (("own1", text), ("own2", text.replace("{}", "{'a': 1}"))):
        (tmp_path / f"{name}.py").write_text(code)
        own = __import__(name).Own()
        target = adversaries.Target(None, (own,))
        assert tools.source_of((own,)) == tools.source_of((target,))
        found.append(tools.source_of((own,)))
    assert found[0] and found[0] != found[1]
    assert tools.source_of((filters.Squeeze(),)) == []


DETECTOR = """
import dataclasses
import jax.numpy as jnp
from pixeldefend import cli, defences
from pixeldefend.defences import base, filters

@dataclasses.dataclass(frozen=True)
class Bright(base.Detector):
    name = "bright"

    @classmethod
    def build(cls, given):
        return cls(), {"threshold": jnp.float32([80.0])}

    def scores(self, params, images, key):
        return jnp.mean(images.astype(jnp.float32), (1, 2, 3))[None]

defences.DEFENCES[Bright.name] = Bright

if __name__ == "__main__":
    cli.run()
"""


def test_a_detector_of_ones_own_has_a_threshold_of_its_own(models, tmp_path):  # noqa: F811
    script = tmp_path / "bright.py"
    script.write_text(DETECTOR)
    result = _own(
        script,
        "evaluate",
        f"--config.evaluate.rows=('{models['two']} + bright',)",
        "--config.evaluate.attacks=('bim',)",
        "--config.evaluate.images=8",
        f"--workdir={tmp_path}/run",
    )
    assert result.returncode == 0, result.stderr
    clean = next(row for row in _rows(tmp_path / "run") if row["attack"] == "none")
    images = data.sample("fashion_mnist")[0][:8]
    share = np.mean(images.mean((1, 2, 3)) > 80)
    assert 0 < share < 1 and clean["rejected"] == pytest.approx(share)
    assert clean["thresholds"] == {"bright": [80.0]}
    result = _own(script, "calibrate", "--config.calibrate.defences=('bright',)")
    assert result.returncode == 2 and "its build sets the threshold" in result.stderr


def test_what_is_no_defence_of_the_main_job_is_said(script):
    for chosen, message in (
        ("reject_p_value", "reject_p_value only detects"),
        ("blurr", "purify.defence must be some of auto, "),
        ("", "purify.defence must be some of auto, "),
        ("purify_adaptive", "needs purify.threshold"),
    ):
        result = _own(script, "purify", f"--config.purify.defence={chosen}")
        assert result.returncode == 2 and message in result.stderr, result.stderr
