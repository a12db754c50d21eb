"""The help of the command line: options, modes, and the fields of a config."""

import ast
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Says what every field means.
_DEFAULT = pathlib.Path(__file__).parent / "configs/default.py"
_USAGE = """\
usage: {program} --config=NAME[:VARIANT] --mode=MODE [OPTION...]

options:
  --config=NAME         cifar10, fashion_mnist, mnist, custom:DATA or a file, with the
                        fields below
  --config.FIELD=VALUE  set a field
  --mode=MODE           what to do, see below; list shows the modes only
  --workdir=FOLDER      for results; default runs/DATASET/MODE-HASH
  --distributed         this process is one of several, started by a launcher

modes{which}:
{modes}
"""
_ASSIGNED = re.compile(r"    (?:\w+ = )?([\w.]+) = .*?(?:  # (.*))?")
_REMARK = re.compile(r"    # (.*)")
_WIDEST = 60  # characters of a value


def text(
    program: str,
    modes: str,
    config: Mapping[str, Any] | None,
    reads: Callable[[str], bool] | None = None,
) -> str:
    """The whole help.

    Args:
      program: as one types it.
      modes: a line for each.
      config: nested fields with their values; None for none.
      reads: whether a field is to be shown, by its name; None: all are.
    """
    which = "" if reads else " (for the fields of one: --help --mode=MODE)"
    shown = _USAGE.format(program=program, modes=_indented(modes), which=which)
    if config is None:
        return f"{shown}\nfields: add --config=NAME to see them"
    table = _indented(_table(config, reads or (lambda _: True)))
    return f"{shown}\nfields, with their values:\n{table}"


def flat(config: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Names ("section.field") and values of all fields of a config, in its order."""
    for name, value in config.items():
        path = f"{section}.{name}" if section else name
        if hasattr(value, "items"):
            yield from flat(value, path)
        else:
            yield path, value


def described(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, value (long ones are cut) and comment ("": none) of all fields."""
    comments = _comments()
    for name, value in flat(config):
        shown = repr(value)
        if len(shown) > _WIDEST:
            shown = f"{shown[: _WIDEST - 3]}..."
        section, _, field = name.partition(".")
        found = [comments.get(part, {}) for part in (section, "autoencoder_train", "")]
        last = field.rpartition(".")[2] or section
        yield name, shown, next((known[last] for known in found if last in known), "")


def _indented(lines: str) -> str:
    return "\n".join(f"  {line}" for line in lines.splitlines())


def _table(config: Mapping[str, Any], reads: Callable[[str], bool]) -> str:
    """A line for every field that is read: name, value and comment."""
    return "\n".join(
        f"{name} = {value}" + (f"  # {remark}" if remark else "")
        for name, value, remark in described(config)
        if reads(name)
    )


def _comments() -> dict[str, dict[str, str]]:
    """What the default config says of its fields, by section; "" of those without."""
    module = sys.modules.get("configs.default")
    path = pathlib.Path((module and module.__file__) or _DEFAULT)
    if not path.is_file():
        return {}
    source = path.read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        if node.name != "get_config" and not node.name.startswith("_"):
            continue  # a variant, which only sets other values
        section = "" if node.name == "get_config" else node.name.removeprefix("_")
        known = found.setdefault(section, {})
        above: list[str] = []
        for line in source.splitlines()[node.lineno : node.end_lineno]:
            if remark := _REMARK.fullmatch(line):
                above.append(remark[1])
            elif assigned := _ASSIGNED.fullmatch(line):
                beside = [assigned[2]] if assigned[2] else []
                known[assigned[1].rpartition(".")[2]] = " ".join(above + beside)
                above = []
    return found
