"""The dependency rule: pure modules import only pure things."""

import ast
import pathlib
import sys

import pytest

import pixeldefend

ROOT = pathlib.Path(pixeldefend.__file__).parent
PURE = {
    "pixels",
    "mixture",
    "causal",
    "incremental",
    "pixelcnn",
    "raster",
    "row_solvers",
    "density",
    "detection",
    "purification",
    "defence",
    "attacks",
    "augmentation",
    "keys",
    "grid",
    "classifiers",
    "convolution",
    "squeeze",
    "puvae",
    "magnet",
    "reject",
}
EFFECTS = {
    "data",
    "files",
    "checkpoint",
    "parallel",
    "processes",
    "interruption",
    "lock",
    "train",
    "evaluate",
    "tables",
    "published",
    "figures",
    "plots",
    "likelihood_ascent",
    "report",
    "parts",
    "run",
    "workdir",
    "density_training",
    "classifier_training",
    "autoencoder_training",
    "sweeps",
    "thesis_plots",
    "schematics",
}
PACKAGES = {"jax", "flax", "optax", "chex", "numpy", "scipy"}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules():
    return [p for p in ROOT.rglob("*.py") if p.stem != "__init__"]


def _name(path):
    """The module directly below the package: everything in `run/` is `run`."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _pure():
    return [path for path in _modules() if _name(path) in PURE]


def test_every_module_has_its_side():
    assert {_name(path) for path in _modules()} == PURE | EFFECTS


@pytest.mark.parametrize("path", _pure(), ids=lambda path: path.stem)
def test_pure_modules_import_only_pure_ones(path):
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == "pixeldefend":
            assert rest[0] in PURE, f"{path.name} imports {name}"
        else:
            assert top in PACKAGES | set(sys.stdlib_module_names), (
                f"{path.name} imports {name}"
            )


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.stem)
def test_configs_stop_in_run(path):
    if _name(path) != "run":
        assert not any(n.split(".")[0] == "ml_collections" for n in _imports(path)), (
            path.name
        )


def test_only_parallel_knows_devices():
    for path in _modules():
        if path.stem != "parallel":
            text = path.read_text()
            for word in ("device_count", "jax.devices", "jax.pmap", "shard_map"):
                assert word not in text, (path.name, word)


def test_public_names_exist_and_are_documented():
    for module in (pixeldefend, pixeldefend.attacks):
        for name in module.__all__:
            thing = getattr(module, name)
            if name not in ("ATTACKS", "LogitsFn"):  # data, described in comments
                assert thing.__doc__, name
