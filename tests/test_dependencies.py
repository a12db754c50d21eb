"""The dependency rule, by folder: what is pure imports only what is pure."""

import ast
import importlib.metadata
import pathlib
import sys
import tomllib

import pytest
from packaging import requirements

import pixeldefend

ROOT = pathlib.Path(pixeldefend.__file__).parent
# What each of the pure ones, folders and files, may import of the package.
PURE = {
    "pixels": set(),
    "keys": set(),
    "sizes": set(),
    "detection": {"pixels"},
    "models": {"pixels", "sizes"},
    "density": {"pixels", "sizes"},
    "attacks": {"pixels"},
    "defences": {"pixels", "keys", "models", "density", "attacks"},
}
EFFECTS = {"__main__", "cli", "usage", "experiment", "adapters"}
PACKAGES = {"jax", "flax", "optax", "chex", "numpy", "scipy"}


def _imports(path):
    """Dotted names of all that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules():
    return [p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py"]


def _place(path):
    """The file or folder directly below the package."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _name(path):
    return str(path.relative_to(ROOT))


def test_every_module_has_its_side():
    assert {_place(path) for path in _modules()} == set(PURE) | EFFECTS


@pytest.mark.parametrize(
    "path", [path for path in _modules() if _place(path) in PURE], ids=_name
)
def test_pure_modules_import_only_pure_ones(path):
    place = _place(path)
    for name in _imports(path):
        top, *rest = name.split(".")
        if top == "pixeldefend":
            assert rest[0] in PURE[place] | {place}, f"{_name(path)} imports {name}"
        else:
            allowed = PACKAGES | set(sys.stdlib_module_names)
            assert top in allowed, f"{_name(path)} imports {name}"


def test_no_module_imports_itself_through_others():
    names = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path
        for path in _modules()
    }
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    found = {
        name: {
            whole
            for imported in _imports(path)
            for whole in (imported, imported.rpartition(".")[0])
            if whole in names and whole != name
        }
        for name, path in names.items()
    }
    # A package's own file only gathers what its modules have.
    folders = {name for name, path in names.items() if path.stem == "__init__"}
    done: set[str] = set()

    def visit(name, above):
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for imported in sorted(found[name] - folders):
                visit(imported, [*above, name])
            done.add(name)

    for name in sorted(set(names) - folders):
        visit(name, [])


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_configs_stop_in_the_modes(path):
    if "modes" not in path.parts and path.stem != "cli":
        assert not any(n.split(".")[0] == "ml_collections" for n in _imports(path)), (
            _name(path)
        )


def test_nothing_imports_what_reproduces():
    for path in _modules():
        assert not any(n.split(".")[0] == "reproduction" for n in _imports(path)), (
            _name(path)
        )


def test_only_parallel_knows_devices():
    for path in _modules():
        if path.stem != "parallel":
            text = path.read_text()
            for word in ("device_count", "jax.devices", "jax.pmap", "shard_map"):
                assert word not in text, (_name(path), word)


def test_public_names_exist_and_are_documented():
    for module in (pixeldefend, pixeldefend.attacks):
        for name in module.__all__:
            thing = getattr(module, name)
            if name not in ("ATTACKS", "LogitsFn"):  # data, described in comments
                assert thing.__doc__, name


def _package(name):
    """The package's name, as written one way: "array-record"."""
    return name.lower().replace("_", "-")


def _all_that_comes(lines, known):
    """Adds the packages of requirements, and all that these require, to `known`."""
    for requirement in map(requirements.Requirement, lines):
        for extra in (requirement.extras or {""}) | {""}:
            if (wanted := (_package(requirement.name), extra)) in known:
                continue
            known.add(wanted)
            further = map(
                requirements.Requirement,
                importlib.metadata.requires(requirement.name) or [],
            )
            _all_that_comes(
                [
                    str(line)
                    for line in further
                    if not line.marker or line.marker.evaluate({"extra": extra})
                ],
                known,
            )


def test_whatever_is_imported_is_required_or_comes_with_what_is():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) <= 10
    come = set()
    _all_that_comes(project["dependencies"], come)
    extras = (line for v in project["optional-dependencies"].values() for line in v)
    known = {name for name, _ in come} | {
        _package(requirements.Requirement(line).name) for line in extras
    }
    installed = importlib.metadata.packages_distributions()
    for path in _modules():
        for top in {name.partition(".")[0] for name in _imports(path)}:
            if top in sys.stdlib_module_names | {"pixeldefend"}:
                continue
            # None where the package of an extra is not installed.
            packages = {_package(name) for name in installed.get(top, ())}
            assert not packages or packages & known, (_name(path), top)
