"""The installed wheel, from a project elsewhere: what the pages promise importers."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def _snippet(page, name):
    text = (ROOT / page).read_text()
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", text, re.S)
    return found.group(1)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # A copy, since setuptools leaves its build folder in the source.
    source = folder / "source"
    shutil.copytree(
        ROOT / "pixeldefend",
        source / "pixeldefend",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [*pip, "wheel", "--no-deps", "--wheel-dir", folder, source]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", target, wheel], check=True
    )
    return target


def _run(script, site, folder):
    """Runs a project of somebody else's, in `folder`."""
    (folder / "project.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(site), "XLA_FLAGS": ""}
    subprocess.run(
        [sys.executable, "project.py"], cwd=folder, env=environment, check=True
    )


LEFT_OUT = (
    "cifar10/pixelcnn-64x2",
    "cifar10/vgg",
    "fashion_mnist/puvae",
    "mnist/puvae",
)


def test_the_wheel_has_every_card_and_all_but_the_largest_weights(site):
    def models(folder, part):
        folder = folder / "pixeldefend" / "released"
        found = [path.parent for path in folder.glob(f"*/*/{part}")]
        return {str(path.relative_to(folder)) for path in found}

    assert models(site, "card.json") == models(ROOT, "card.json")
    assert models(ROOT, "weights") - models(site, "weights") == set(LEFT_OUT)
    assert (site / "pixeldefend/configs/cifar10.py").is_file()
    (wheel,) = site.parent.glob("*.whl")
    assert wheel.stat().st_size < 30e6


def test_weights_left_out_of_the_wheel_are_told_and_taken_from_a_checkout(
    site, tmp_path
):
    script = f"""
import pixeldefend
for name in {LEFT_OUT!r}:
    try:
        pixeldefend.load_released(name)
    except FileNotFoundError as error:
        assert f"weights of {{name}} come only with a checkout" in str(error), error
    else:
        raise AssertionError(name)
pixeldefend.load_released({str(ROOT / "pixeldefend/released/cifar10/vgg")!r})
"""
    _run(script, site, tmp_path)


def test_the_whole_defence_runs_as_one_program_from_the_wheel(site, tmp_path):
    script = (
        _snippet("docs/python.md", "snippet")
        + f"""
import numpy as np
assert pixeldefend.__file__.startswith({str(site)!r}), pixeldefend.__file__
assert logits.shape == (8, 10) and bits.shape == (8,)
assert purified.dtype == np.uint8
spared = np.asarray(bits) < 2.5
moved = np.abs(np.asarray(purified, int) - images[:8]).max((1, 2, 3))
assert np.all(moved[spared] == 0) and np.all(moved[~spared] > 0)
assert moved.max() <= 32
again = defended(params, weights, images[:8], 8, 0.0)[2]
assert 0 < np.abs(np.asarray(again, int) - images[:8]).max() <= 8
assert defended._cache_size() == 1, "another eps compiled again"
assert pixeldefend.load_reference("cifar10/pixelcnn").ndim == 1
"""
    )
    _run(script, site, tmp_path)


@pytest.mark.slow
def test_an_attack_runs_in_five_lines_from_the_wheel(site, tmp_path):
    lines = _snippet("docs/attacks.md", "attack")
    assert len([line for line in lines.splitlines() if line]) == 5
    assert lines.count("import ") == 1 and "import jax, pixeldefend as pd" in lines
    script = (
        lines
        + """
import numpy as np
moved = np.abs(np.asarray(adversarial, int) - images).max((1, 2, 3))
assert adversarial.dtype == np.uint8 and moved.max() == 8
assert np.mean(info.success) > 0.5 and np.all(info.distance == moved)
attack(pd.logits_fn(model), variables, images, labels, eps=3)
assert attack._cache_size() == 1, "another eps compiled again"
"""
    )
    _run(script, site, tmp_path)


@pytest.mark.slow
def test_the_package_serves_from_the_wheel(site, tmp_path):
    script = (
        _snippet("docs/python.md", "serving")
        + """
moved = np.abs(purified - images) * 255
assert purified.dtype == np.float32 and purified.shape == (6, 1, 28, 28)
assert 8 < moved.max() <= 32.01
np.testing.assert_array_equal(found.images, purified)
assert found.bits_per_dim.shape == found.p_values.shape == (6,)
assert np.mean(found.suspicious) < 1
"""
    )
    _run(script, site, tmp_path)


@pytest.mark.slow
def test_the_readme_defends_a_classifier_from_the_wheel(site, tmp_path):
    script = (
        """
import numpy as np
import pixeldefend
levels = pixeldefend.data.sample("cifar10")[0][:3]
images = np.float32(levels.transpose(0, 3, 1, 2) / 255)
seen = []
def classifier(images):
    seen.append(images)
    return images.mean((2, 3))
"""
        + _snippet("README.md", "your classifier")
        + """
(purified,) = seen
moved = np.abs(purified - images) * 255
assert purified.dtype == np.float32 and 8 < moved.max() <= 16.01
np.testing.assert_array_equal(logits, purified.mean((2, 3)))
"""
    )
    _run(script, site, tmp_path)


def test_the_wheel_carries_samples_and_models(site):
    names = {str(p.relative_to(site)) for p in site.rglob("*") if p.is_file()}
    for name in ("cifar10", "fashion_mnist", "mnist"):
        assert f"pixeldefend/samples/{name}.npz" in names
    for name in ("cifar10", "fashion_mnist"):
        assert f"pixeldefend/released/{name}/pixelcnn/card.json" in names
        assert any(
            n.startswith(f"pixeldefend/released/{name}/pixelcnn/weights/")
            for n in names
        )
    assert "pixeldefend/py.typed" in names
    assert not any(n.startswith(("tests/", "configs/", "notebooks/")) for n in names)


@pytest.mark.slow
@pytest.mark.parametrize("program", [["bin/pixeldefend"], ["-m", "pixeldefend"]])
def test_the_program_has_its_configs_with_it(site, tmp_path, program):
    (tmp_path / "fashion_mnist").mkdir()  # a folder is no config
    environment = os.environ | {"PYTHONPATH": str(site), "XLA_FLAGS": ""}
    script = str(site / program[0]) if len(program) == 1 else program[0]
    command = [sys.executable, script, *program[1:]]

    def run(*options):
        return subprocess.run(
            [*command, *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    done = run("--config=fashion_mnist:smoke", "--mode=classify", "--workdir=out")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "results in out" in done.stdout
    told = run("--config", "mnist", "--help").stdout
    assert "pixelcnn.weights" in told and "mnist/pixelcnn" in told
    assert "levels, the L-infinity radius" in told  # what the default config remarks
    done = run("--config=cifar11", "--mode=classify")
    assert done.returncode == 2 and "no config file cifar11" in done.stderr
    # A config of one's own, made of the default one as those here are.
    text = "from configs import mnist\n\n\ndef get_config():\n"
    (tmp_path / "own.py").write_text(f"{text}    return mnist.get_config('smoke')\n")
    done = run("--config=own.py", "--mode=classify", "--workdir=own")
    assert done.returncode == 0, done.stderr[-2000:]
