"""The command line of `main.py`, and of programs with other modes."""

import difflib
import errno
import functools
import importlib.util
import io
import logging as standard_logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from pixeldefend import usage
from pixeldefend.experiment import files, interruption, modes, parallel, processes

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Configuration, e.g. configs/cifar10.py", lock_config=True
)
_MODE = flags.DEFINE_string("mode", "list", "What to do; list shows the modes.")
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder for results; default runs/<dataset>/<mode>-<hash>."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "This process is one of several, started by a launcher."
)
_EXAMPLE = "for example --config=configs/cifar10.py"
_CONFIG_FLAGS = ("--config", "-config")
# A link in a checkout, and a folder where the package is installed.
CONFIGS = pathlib.Path(__file__).parent / "configs"
_NAMED_MODE = re.compile(r"--?mode[= ](\S+)")
_HELP = re.compile(r"--?(h|help|helpshort|helpfull)$")
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")
_REFUSED = re.compile(r"flag --(?:no)?(?:config\.)?([\w.]+)=.*?: (expected .*)", re.S)


def _expecting(what: str, kind: type[flags.ArgumentParser]) -> flags.ArgumentParser:
    """A parser of fields that says what it takes."""

    class Parser(kind):  # type: ignore[valid-type, misc]  # of any class
        def parse(self, argument: object) -> object:
            try:
                return super().parse(argument)
            except (ValueError, TypeError, MemoryError, RecursionError) as error:
                raise ValueError(f"expected {what}, got {_short(argument)}") from error

    return Parser()


class _Section(flags.ArgumentParser):
    """Of what has fields itself, and cannot be given as a whole."""

    def parse(self, argument: object) -> object:
        if isinstance(argument, ml_collections.ConfigDict):  # the one that is there
            return argument
        raise ValueError("expected one field of it, --config.SECTION.FIELD=VALUE")


for _type, _parser in {
    int: _expecting("whole number", flags.IntegerParser),
    float: _expecting("number", flags.FloatParser),
    bool: _expecting("true or false", flags.BooleanParser),
    tuple: _expecting("tuple, such as \"('a', 'b')\"", tuple_parser.TupleParser),
    ml_collections.ConfigDict: _Section(),
}.items():
    config_flags.register_flag_parser_for_type(_type, _parser)


def _short(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def parse(
    arguments: list[str], known: Mapping[str, modes.Mode] = modes.MODES
) -> list[str]:
    """Parses flags; a mistake ends in one line and exit code 2, `--help` in the help.

    Args:
      arguments: the program first.
      known: the modes that there are, by name, for the help.
    """
    try:
        arguments = _located(arguments)
        given = flags.FLAGS.read_flags_from_files(arguments, force_gnu=False)
        config = _load(given)
        if any(map(_HELP.match, given[1:])):
            print(_help(given, known, config or _default()), flush=True)
            sys.exit(0)
        _check_fields(given, config)
        rest = flags.FLAGS(arguments)
        _check_numbers(config, _CONFIG.value)
    except BrokenPipeError:  # nobody reads the help to its end
        raise
    except Exception as error:  # a config file may raise anything
        text = str(error) or type(error).__name__
        if refused := _REFUSED.match(text):
            field, expected = refused.groups()
            levels = field.rpartition(".")[2].startswith("eps")
            unit = "; in levels of 0..255, such as 16" if levels else ""
            text = f"{field}: {expected}{unit}"
        sys.exit(_mistake(text))
    if rest[1:]:
        sys.exit(_mistake(f"unexpected argument {rest[1]!r}; options start with --"))
    return rest


def _help(
    arguments: list[str],
    known: Mapping[str, modes.Mode],
    config: ml_collections.ConfigDict | None,
) -> str:
    """The help, where a mode is named that of the mode alone."""
    named = _NAMED_MODE.findall(" ".join(arguments))
    if not named or named[-1] not in known:
        return usage.text(_program(), modes.describe(known), config)
    name = named[-1]
    mode = known[name]
    kinds = [*mode.kinds] or [""]

    def reads(field: str) -> bool:
        return any(modes.reads(name, mode, field, kind) for kind in kinds)

    return usage.text(_program(), modes.describe({name: mode}), config, reads)


def _located(arguments: list[str]) -> list[str]:
    """The same with the file of a config that is given by name, as `cifar10:smoke`."""
    # What is installed elsewhere has no folder `configs` beside it.
    if importlib.util.find_spec("configs") is None:
        sys.modules["configs"] = importlib.import_module("pixeldefend.configs")
    found = list(arguments)
    for place, before, value in _named(arguments):
        name, colon, variant = value.partition(":")
        path = CONFIGS / f"{name}.py"
        if name.isidentifier() and path.is_file() and not pathlib.Path(name).is_file():
            found[place] = f"{before}{path}{colon}{variant}"
    return found


def _named(arguments: list[str]) -> Iterator[tuple[int, str, str]]:
    """Each config that is named: the argument's place, what stands before, the name."""
    for i, argument in enumerate(arguments[1:], 1):
        flag, equals, value = argument.partition("=")
        if flag in _CONFIG_FLAGS and equals:
            yield i, f"{flag}=", value
        elif flag in _CONFIG_FLAGS:
            yield i + 1, "", "".join(arguments[i + 1 : i + 2])


def _load(arguments: list[str]) -> ml_collections.ConfigDict | None:
    """The config as its file has it; None where none is asked for.

    Raises:
      ValueError: the file is none; the message says why.
    """
    found = list(_named(arguments))
    if not found:
        return None
    named = found[-1][2]  # the last one counts
    path, colon, variant = named.partition(":")
    # Under that name ml_collections would run it in what an earlier file has left.
    sys.modules.pop("config_config", None)
    try:
        config = flags.FLAGS["config"].parser.parse(named)
    except Exception as error:  # whatever its code raises
        # ml_collections hands on whole tracebacks, of which the last line counts.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        reason = re.sub(r"^(ValueError|TypeError): ", "", reason)
        if "no attribute 'get_config'" in reason:
            reason = f"it has no get_config(); {_EXAMPLE}"
        elif colon and reason.startswith("get_config() takes 0"):
            reason = f"it takes no variant, such as {variant!r}"
        raise ValueError(f"config file {path}: {reason}") from error
    if isinstance(config, ml_collections.ConfigDict):
        return config
    if not pathlib.Path(path).is_file():  # and what there is instead of a config
        raise ValueError(f"no config file {path or repr(path)}, {_EXAMPLE}")
    raise ValueError(f"config file {path}: get_config() returns no ConfigDict")


def _default() -> ml_collections.ConfigDict | None:
    """The config that all others are made from."""
    return _load(["", f"--config={CONFIGS / 'default.py'}"])


def _check_fields(
    arguments: list[str], config: ml_collections.ConfigDict | None
) -> None:
    """Raises ValueError for an option of a field that there is not."""
    overrides = [m[1] for m in map(_OVERRIDE.match, arguments[1:]) if m]
    if not overrides:
        return
    if config is None:
        raise ValueError(f"--config is missing, {_EXAMPLE}")
    for field in overrides:
        fields = [name for name, _ in usage.flat(config)]
        if field in fields or any(name.startswith(f"{field}.") for name in fields):
            continue
        last = field.rpartition(".")[2]
        near = _nearest(field, fields)
        near = near or [name for name in fields if name.rpartition(".")[2] == last]
        hint = f"did you mean {near[0]}?" if near else "--help shows them all"
        raise ValueError(f"the config has no field {_short(field)}; {hint}")


def _check_numbers(
    before: ml_collections.ConfigDict | None, after: ml_collections.ConfigDict | None
) -> None:
    """Raises ValueError where a tuple that holds numbers in its file does not now."""
    if before is None or after is None:
        return
    for (field, of), (_, now) in zip(
        usage.flat(before), usage.flat(after), strict=True
    ):
        if isinstance(of, tuple) and of and all(map(_is_number, of)):
            if not all(map(_is_number, now)):
                example = _short(of)
                raise ValueError(
                    f"{field}: expected numbers, such as {example}, got {_short(now)}"
                )


def _is_number(value: object) -> bool:
    """Whether a value is a number, of a size that a computer's float can have."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**63


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, known, 1)


def _program() -> str:
    """What was run, as one types it: main.py, pixeldefend, python -m reproduction."""
    path = pathlib.Path(sys.argv[0])
    return f"python -m {path.parent.name}" if path.stem == "__main__" else path.name


def _tell(text: str) -> None:
    print(f"{_program()}:", " ".join(text.split()), file=sys.stderr)


def _mistake(text: str) -> int:
    _tell(text)
    return 2


def run(known: Mapping[str, modes.Mode] = modes.MODES) -> None:
    """Parses the command line and runs the mode that it asks for; does not return.

    Args:
      known: the modes that there are, by name.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not know "±"
            stream.reconfigure(errors="replace")
    try:
        app.run(
            lambda _: main(known), flags_parser=functools.partial(parse, known=known)
        )
    except (KeyboardInterrupt, OSError) as error:
        code = _ending(error)
        if code is None:
            raise
        sys.exit(code)
    finally:
        _flush()


def _flush() -> None:
    """Writes what is still to be printed; nowhere, if nobody can take it any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the pipe is closed, or the disk full
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main(known: Mapping[str, modes.Mode]) -> int:
    """Runs the mode that the parsed flags ask for; returns the exit code."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.FATAL)
        # A restore that fails leaves tasks of orbax behind, each with a traceback; what
        # is wrong is reported in one line.
        standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
        sys.unraisablehook = _unless_late
    name = _MODE.value
    if name == "list":
        print(modes.describe(known), flush=True)
        return 0
    if name not in known:
        if name in modes.MOVED:
            return _mistake(f"{name} is now {modes.MOVED[name]}")
        names = ", ".join((*known, "list"))
        near = _nearest(name, (*known, "list"))
        told = f"; did you mean {near[0]}? (one of {names})" if near else None
        return _mistake(f"unknown mode {_short(name)}{told or f': one of {names}'}")
    if _CONFIG.value is None:
        return _mistake(f"--config is missing, {_EXAMPLE}")
    if flags.FLAGS["workdir"].present and not _WORKDIR.value:
        return _mistake("--workdir is empty; name a folder, or leave it out")
    code = _start(_CONFIG.value, known)
    _flush()
    if code:
        processes.leave(code)
    return code


def _unless_late(lost: Any) -> None:
    """Shows an exception in a thread of others; not of a save that has failed.

    TensorStore has one for each array, after the one that is reported.
    """
    if str(lost.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(lost)


def _start(config: ml_collections.ConfigDict, known: Mapping[str, modes.Mode]) -> int:
    """Runs the mode; returns the exit code."""
    try:
        if _DISTRIBUTED.value:
            with modes.user_errors():
                parallel.initialize()
        interruption.listen(_leave)
        modes.start(_MODE.value, config, _WORKDIR.value, known)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        code = _ending(error)
        if code is None and not _DISTRIBUTED.value:
            raise
        if code is None:
            traceback.print_exc()  # the others have to be told
        return 1 if code is None else code
    return 0


def _leave(code: int) -> None:
    """Ends the process from another thread, as `_ending` would from this one."""
    stop = code == interruption.EXIT_CODE
    _ending(interruption.Interrupted(code) if stop else KeyboardInterrupt())
    _flush()
    processes.leave(code)
    os._exit(code)


def _ending(error: BaseException) -> int | None:
    """The exit code of what is no fault of ours, said in one line; None for others."""
    match error:
        case modes.UserError() | files.LostError():
            return _mistake(str(error))
        case interruption.Interrupted():
            if error.code == interruption.EXIT_CODE:  # else another has said why
                _tell("asked to stop; run the same command again to resume")
            return error.code
        case KeyboardInterrupt():
            _tell("interrupted")
            return interruption.CTRL_C
        case BrokenPipeError():
            return 141  # as a shell has it: whoever read the output has enough of it
        case OSError() if files.is_full(error):
            return _mistake(f"{os.strerror(errno.ENOSPC)}: the output")
    return None
