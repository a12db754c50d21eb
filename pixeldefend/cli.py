"""The command line of `main.py`, and of programs with other modes."""

import logging as standard_logging
import pathlib
import sys
import traceback
from collections.abc import Mapping

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from pixeldefend.experiment import files, interruption, modes, parallel, processes

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Configuration, e.g. configs/cifar10.py", lock_config=True
)
_MODE = flags.DEFINE_string("mode", "list", "What to do; list tells what there is.")
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder for results; default runs/<dataset>/<mode>-<hash>."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, as a launcher started it."
)


def parse(arguments: list[str]) -> list[str]:
    """Parses flags; a mistake ends in one line and exit code 2."""
    try:
        rest = flags.FLAGS(arguments)
        if rest[1:]:
            raise ValueError(f"unexpected argument {rest[1]!r}; options start with --")
        return rest
    except (KeyError, AttributeError) as error:  # how ml_collections says no such field
        inner = error.args[0] if error.args else error
        text = str(inner.args[0] if isinstance(inner, KeyError) else inner)
        field = text.splitlines()[0].strip("\"'")
        sys.exit(
            _mistake(
                f"the config has no field {field!r}; configs/default.py has them all"
            )
        )
    except Exception as error:  # a config file may raise anything
        # Of a config file's own traceback, its last line.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        sys.exit(_mistake(lines[-1] if "Traceback" in str(error) else " ".join(lines)))


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
    app.run(lambda _: main(known), flags_parser=parse)


def main(known: Mapping[str, modes.Mode]) -> int:
    """Runs the mode that the parsed flags ask for; returns the exit code."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.FATAL)
        # A restore that fails leaves tasks of orbax behind, each with a traceback; what
        # is wrong is reported in one line.
        standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
    if _MODE.value == "list":
        print(modes.describe(known))
        return 0
    if _MODE.value not in known:
        if _MODE.value in modes.MOVED:
            return _mistake(f"{_MODE.value} is now {modes.MOVED[_MODE.value]}")
        names = ", ".join((*known, "list"))
        return _mistake(f"unknown mode {_MODE.value!r}: one of {names}")
    config = _CONFIG.value
    if config is None:
        return _mistake("--config is missing, for example --config=configs/cifar10.py")
    if not isinstance(config, ml_collections.ConfigDict):
        # What ml_collections gives in place of a file that is not there.
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        return _mistake(
            f"no config file {path}, for example --config=configs/cifar10.py"
        )
    code = _start(config, known)
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        processes.leave(code)
    return code


def _start(config: ml_collections.ConfigDict, known: Mapping[str, modes.Mode]) -> int:
    """Runs the mode; returns the exit code."""
    try:
        if _DISTRIBUTED.value:
            with modes.user_errors():
                parallel.initialize()
        interruption.listen()
        modes.start(_MODE.value, config, _WORKDIR.value, known)
    except (modes.UserError, files.LostError) as error:
        return _mistake(str(error))
    except interruption.Interrupted as stop:
        if stop.code != interruption.EXIT_CODE:
            return stop.code  # another process has said why
        _tell("asked to stop; start it again to go on")
        return stop.code
    except KeyboardInterrupt:
        if not _DISTRIBUTED.value:
            raise
        return 130  # as a shell has it; the others have to be told
    except Exception:
        if not _DISTRIBUTED.value:
            raise
        traceback.print_exc()  # the others have to be told
        return 1
    return 0
