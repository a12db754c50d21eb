"""Whatever a field of the config is set to, a run starts or one line says why not."""

import ast
import functools
import resource
import signal
import sys

import numpy as np
import pytest
from models import tiny
from processes import ROOT, enter_anew
from published import as_tensorflow

from configs import mnist
from pixeldefend import cli, usage
from pixeldefend.experiment import artefacts, hub, modes, report, zoo
from pixeldefend.experiment.workdir import Workdir

SECONDS = 10
KILOBYTES = 2**20  # by which a check may make the process grow
LONG, HUGE = 5000 * "x", "9" * 400
ODD = ["", "ü☃", LONG, "../..", "/dev/null"]
NUMBERS = ["-1", "0", "1e400", "nan", "inf", "-inf", HUGE, "1000000000000", *ODD]
VALUES = {
    bool: ["true", "maybe", "2", *ODD],
    int: [*NUMBERS, "3.5", "2147483648", "-9223372036854775809", "8/255"],
    float: [*NUMBERS, "1e308", "1e-320", "-0.0", "abc"],
    str: [*ODD, "{", "{eps}", "a + b", " + ", "~nobody-at-all/x", "\x01", "(1,)", "0"],
    tuple: [
        *ODD,
        *("()", "((),)", "((1,),)", "(1,)", "(-1,)", "(1e400,)", "(1e308, 0.0)"),
        *(
            "('',)",
            "('a', 'b')",
            "('{',)",
            "('x + y',)",
            "(None,)",
            "({},)",
            "(1, 'a')",
        ),
        *("(True,)", f"({HUGE},)", "((1, 2, 3, 4),)", "(b'a',)", "(1,", f"('{LONG}',)"),
        "((0.0, 8), (0.0, 9))",
    ],
}


class Accepted(Exception):
    """The checks are over: a run would begin."""


class TooLong(Exception):
    """The checks take too long."""


def _begin(*_, **__):
    raise Accepted


def _alarm(*_):
    raise TooLong


def _reads(name, kind):
    """Fields that a mode reads, for a kind of model where it has one."""
    for field, value in usage.flat(mnist.get_config("smoke")):
        if modes.reads(name, modes.MODES[name], field, kind or ""):
            yield field, str if value is None else type(value)


def _cases():
    """Commands and the field and value of each: every value of every field."""
    for name, mode in modes.MODES.items():
        for kind in mode.kinds or [None]:
            for field, of in _reads(name, kind):
                values = VALUES[of][:]
                if ".model." in field:  # sizes of networks have tests of their own
                    values = [v for v in values if not v.isdecimal() or len(v) < 5]
                yield from ((name, kind, field, value) for value in values)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of weights to be imported, with a row of somebody's beside it."""
    model, params, _, _ = tiny((28, 28, 1), conditionals="joint")
    path = tmp_path_factory.mktemp("published") / "weights.npz"
    np.savez(path, **as_tensorflow(model, params))
    (path.parent / "rows.jsonl").write_text('{"images": 1}')
    return path


def _shown(value):
    """A value, or the first of several, as messages quote it."""
    try:
        of = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        of = value.replace("{eps}", "8")  # what a config's eps_train makes of it
    of = of if isinstance(of, tuple) and of else (of,)
    return repr(value), repr(of[0]), str(of[0])


def _arguments(folder, published, name, kind):
    """What each command has; `kind` is a model's, or None."""
    return [
        "--config=configs/mnist.py:smoke",
        f"--mode={name}",
        f"--workdir={folder}/w",
        f"--config.release.to={folder}/released",
        f"--config.import_.weights={published}",
        f"--config.export.to={folder}/exported",
        f"--config.report.input={published.parent}",
        *([f"--config.{name}.model={kind}"] if kind else []),
    ]


@pytest.fixture
def only_checks(monkeypatch, tmp_path):
    """Runs end where they would begin; what is read is read once."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(Workdir, "open", _begin)
    monkeypatch.setattr(report, "run_batches", _begin)
    monkeypatch.setattr(cli.interruption, "listen", lambda leave: None)
    monkeypatch.setattr(zoo, "save_released", _begin)
    monkeypatch.setattr(artefacts, "write", _begin)
    monkeypatch.setattr(hub, "write", _begin)
    for name in ("load_released", "load_reference", "load_validation"):
        monkeypatch.setattr(zoo, name, functools.cache(getattr(zoo, name)))
    before = signal.signal(signal.SIGALRM, _alarm)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
def test_every_value_is_accepted_or_told_in_one_line(
    only_checks, published, tmp_path, capsys
):
    wrong, accepted, refused = [], 0, 0
    for name, mode in modes.MODES.items():  # what is read takes its time once
        for kind in mode.kinds or [None]:
            with pytest.raises(Accepted):
                enter_anew(_arguments(tmp_path, published, name, kind))
    capsys.readouterr()
    for name, kind, field, value in _cases():
        arguments = _arguments(tmp_path, published, name, kind)
        arguments.append(f"--config.{field}={value}")
        case = f"{name} {kind} {field}={value[:50]!r}"
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.alarm(SECONDS)
        try:
            code = enter_anew(arguments)
        except Accepted:
            accepted += 1
            continue
        except Exception as error:
            wrong.append(f"{case}: {type(error).__name__}: {str(error)[:300]}")
            continue
        finally:
            signal.alarm(0)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size
            if grown > KILOBYTES:
                wrong.append(f"{case}: {grown} kB")
            told = capsys.readouterr().err
        refused += 1
        names = (field.rpartition(".")[2], value.strip("()',\" ")[:20], *_shown(value))
        named = any(part and part in told for part in names)
        if code != 2 or told.count("\n") != 1 or not named:
            wrong.append(f"{case}: {code} {told[:400]}")
    assert not wrong, f"{len(wrong)} of {accepted + refused}:\n" + "\n".join(wrong)
    assert accepted > 500 and refused > 1000
    assert not list(tmp_path.iterdir())
