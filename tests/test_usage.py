"""The help of the command line."""

import ast

import pytest
from processes import ROOT

from configs import default
from pixeldefend import cli, usage


def test_every_field_is_told_with_its_value_and_comment():
    told = usage.text("main.py", "purify  does", default.get_config())
    assert "\n  purify  does\n" in told
    names = [name for name, _ in usage.flat(default.get_config())]
    assert len(names) > 150 and all(f"\n  {name} = " in told for name in names)
    for line in (
        "purify.eps = 16  # levels, the defence's",
        "magnet.train.batch = 64  # images per step, over all devices",
        "seed = 0",
        "release.to = ''  # folder",
        "purify.pictures = True  # A PNG for each of your own images; all are in one "
        ".npz anyway.",
    ):
        assert f"\n  {line}\n" in told


def test_every_default_stands_in_its_section():
    """Where the help looks for comments."""
    known = usage._comments()
    defined = {
        node.name.removeprefix("_")
        for node in ast.parse((ROOT / "configs/default.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert {*default.get_config()} <= {*known[""]} and {*known} - {""} < defined


@pytest.mark.parametrize("option", ["--help", "-h", "--helpfull"])
@pytest.mark.parametrize("config", ["", "configs/mnist.py:smoke"])
def test_help_is_given_whatever_else_is_asked(monkeypatch, capsys, option, config):
    monkeypatch.chdir(ROOT)
    given = [f"--config={config}"] if config else []
    with pytest.raises(SystemExit) as stop:
        cli.parse(["main.py", option, *given, "--mode=nonsense", "stray"])
    assert stop.value.code == 0
    told, errors = capsys.readouterr()
    assert told.startswith("usage: ") and not errors
    assert f"purify.eps = {32 if config else 16}  # levels" in told
