"""The help of the command line."""

import ast

import ml_collections
import pytest
from processes import ROOT

from configs import default
from pixeldefend import cli, usage
from pixeldefend.experiment import modes


def test_every_field_is_told_with_its_value_and_comment():
    told = usage.text("main.py", "purify  does", default.get_config())
    assert "\n  purify  does\n" in told
    names = [name for name, _ in usage.flat(default.get_config())]
    assert len(names) > 150 and all(f"\n  {name} = " in told for name in names)
    for line in (
        "purify.eps = 16  # levels, the L-infinity radius within which images are "
        "purified",
        "magnet.train.batch = 64  # images per step, over all devices",
        "seed = 0  # of all randomness, from 0 to 2^32 - 1",
        "release.to = ''  # folder to write the model to",
        "purify.pictures = True  # Also write a PNG of each of your own images; one "
        ".npz has them all anyway.",
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


def test_the_help_of_a_mode_has_its_fields_alone(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        cli.parse(["main.py", "--config=configs/mnist.py", "--mode", "judge", "-h"])
    told = capsys.readouterr().out
    assert "\n  judge  Judges" in told and "\n  purify  " not in told
    for field in ("judge.eps", "seed", "classifier.weights", "purify.eps"):
        assert f"\n  {field} = " in told
    for field in ("purify.batch", "pixelcnn.train.hours", "sweep.eps"):
        assert f"\n  {field} = " not in told


def test_what_a_mode_reads_is_what_its_workdirs_depend_on():
    """Apart from how results are written, and from where data are."""
    config = default.get_config()
    for name, mode in modes.MODES.items():
        kind = config[name].model if mode.kinds else ""
        whole = {f for f, _ in usage.flat(config) if modes.reads(name, mode, f, kind)}
        kept = {f for f, _ in usage.flat(modes._sections(name, mode, config))}
        kept -= {"mode"}
        own = mode.section or name
        written = {f"{own}.{f}" for f in ("save_seconds", "keep", "pictures")}
        apart = {f for f in whole - kept if "." in f and not f.startswith("own.")}
        assert kept <= whole and apart - written <= {f"{kind}.weights"}, name


@pytest.mark.parametrize("mode", modes.MODES)
def test_a_config_that_lacks_what_a_mode_reads_is_refused(mode):
    bare = ml_collections.ConfigDict({"dataset": "mnist"})
    with pytest.raises(
        modes.UserError, match=f"no seed, which {mode} reads: start from"
    ):
        modes.start(mode, bare)
    whole = default.get_config()
    own = modes.MODES[mode].section or mode
    for section in (own, *modes.MODES[mode].weights, *modes.MODES[mode].reads):
        config = ml_collections.ConfigDict(whole.to_dict())
        del config[section]
        with pytest.raises(modes.UserError, match=f"no {section}, which {mode} reads"):
            modes.start(mode, config)
    for section, fields in modes.MODES[mode].reads.items():
        config = ml_collections.ConfigDict(whole.to_dict())
        del config[section][fields[0]]
        with pytest.raises(modes.UserError, match=f"no {section}.{fields[0]}, which"):
            modes.start(mode, config)
