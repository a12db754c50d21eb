"""The folder of a run, and the mistakes of a user that are found before it is made."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Container, Iterator, Sequence
from typing import Any

from etils import epath

from pixeldefend.experiment import files, foreign, interruption, processes
from pixeldefend.experiment.lock import Lock

# All that modes write in a workdir, besides its `config.json` and what is hidden.
RESULTS = frozenset(
    "adversarial calibration checkpoints correct detection.npz events figures "
    "figures.json grades.json metrics.jsonl model parts predictions predictions.npz "
    "purified purifiers.npz report.html rows.jsonl samples.npz samples.png scores "
    "scores.npz searches sweep.npz table.md table.tex test threshold.json verdict.md "
    "verdict.npz "
    "verdict.tex written.json".split()
)


class UserError(Exception):
    """A mistake of the user; the message is one line and says how to mend it."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns what checks of the user's input raise into a `UserError`.

    Around preparation only: the same types raised later are faults of ours.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads what is printed
        raise
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error


def config_hash(config: dict) -> str:
    """A short name for what a run's results depend on."""
    text = json.dumps(config, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def command_line() -> str:
    """This command as anyone can repeat it: without this machine's folders."""
    kept, arguments = [], iter(sys.argv[1:])
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        name = flag.lstrip("-")
        if name in ("workdir", "config.data_dir") and not equals:
            next(arguments, None)
        if name == "config.data_dir":
            kept.append("--config.data_dir=DATA_DIR")
        elif name != "workdir":
            kept.append(argument)
    # A package that is run has the path of its __main__.py there.
    path = pathlib.Path(sys.argv[0])
    of = ["-m", path.parent.name] if path.stem == "__main__" else ["main.py"]
    return shlex.join(["python", *of, *kept])


class Workdir:
    """The folder of a run; made only when a mode asks for its path."""

    def __init__(
        self,
        folder: epath.PathLike,
        config: dict,
        free: Container[str] = (),
        started: str = "",
    ):
        """Checks that the folder is free or belongs to this config, as `open` does.

        Args:
          folder: for the results.
          config: what they depend on; kept as `config.json`.
          free: fields ("section.field") that may differ from an earlier run's, since
            what is kept in the folder says by itself whether it still holds.
          started: printed once the folder is opened, when all checks are behind.

        Raises:
          ValueError: the folder belongs to another config, or cannot be
            written to.
        """
        self._folder = files.output_folder(folder, "workdir")
        self._config, self._free, self._started = config, free, started
        self._lock = Lock(self._folder / "lock.json")
        self.hash = config_hash(config)
        self._check()
        files.enter(self._folder)

    @property
    def folder(self) -> epath.Path:
        """That of the run, which is there once it is opened."""
        return self._folder

    def _check(self) -> None:
        """Raises ValueError where the folder has somebody else's files."""
        folder, path = self._folder, self._folder / "config.json"
        there = [inner for inner in files.entries(folder) if inner.name in RESULTS]
        for inner in there:
            foreign.check_regular(inner)
        if not path.exists():
            for inner in there:
                self._check_own(inner.name)
            if not self._lock.holder():  # one of a run that was killed at its start
                self._check_own("lock.json")
            return
        try:
            old = dict(foreign.read_json(path))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged; name another --workdir") from error
        differences = dict(_differences(old, self._config))
        if "mode" in differences:
            raise ValueError(
                f"workdir {folder} belongs to another mode ({differences['mode']}); "
                "name another --workdir"
            )
        changed = [
            f"{name}: {text}"
            for name, text in sorted(differences.items())
            if name not in self._free
        ]
        if changed and any(map(_has_results, there)):
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ValueError(
                f"workdir {folder} belongs to another config "
                f"({', '.join(changed[:3])}{more}); name another --workdir"
            )

    def _check_own(self, name: str) -> None:
        """Raises ValueError where a file, or one in a subfolder, is no run's."""
        inner = self._folder / name
        if (self._folder / "config.json").exists():
            return
        if inner.is_dir() and not any(inner.iterdir()):
            return
        if inner.exists() or os.path.islink(inner):
            raise ValueError(
                f"{inner} was not written by a run; name another --workdir"
            )

    def open(self) -> epath.Path:
        """Makes the folder with its `config.json`; only after all checks.

        Until `close` it is refused to other runs.

        Raises:
          UserError: another run is at work here, or was since the folder was looked at,
            or it cannot be written to.
        """
        path = self._folder / "config.json"
        with user_errors():
            if processes.is_first():
                self._folder.mkdir(parents=True, exist_ok=True)
                self._lock.take()
                self._check()
                if path.exists():
                    files.remove_partial(self._folder)
                files.write_json(path, self._config)
            token = processes.agreed(self._lock.token)
            files.patiently(
                lambda: (self._lock.holder() == token and path.exists()) or None, path
            )
            processes.barrier()  # all see the same folder
        files.enter(self._folder, always=path.name)
        if self._started:
            print(self._started, flush=True)
        return self._folder

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Leaves the folder to other runs in the end, however that comes.

        Raises:
          UserError: the disk is full.
        """
        try:
            with interruption.farewell(self._lock.release):
                yield
        except Exception as error:
            if isinstance(error, UserError) or not files.is_full(error):
                raise
            path = getattr(error, "filename", None) or self._folder
            raise UserError(
                f"{os.strerror(errno.ENOSPC)}: {path}; make room and run it again"
            ) from error
        finally:
            self.close()

    def close(self) -> None:
        """Leaves the folder to other runs."""
        self._lock.release()
        files.leave(self._folder)


def remove_results(folder: epath.Path, names: Sequence[str]) -> None:
    """Removes what an earlier run of this config wrote here, perhaps of other images.

    Args:
      folder: of the run.
      names: of the files that this run will write. They are noted before there are any,
        since only by that they can be told from what others put beside them.

    Raises:
      UserError: the note of the earlier run is damaged, or not of files in the folder.
    """
    if not processes.is_first():
        return
    note = folder / "written.json"
    with user_errors(), contextlib.suppress(FileNotFoundError):
        earlier = foreign.read_json(note)
        if not isinstance(earlier, list) or not all(map(_is_inside, earlier)):
            raise ValueError(f"{note} does not list results; name another --workdir")
        for name in earlier:
            (folder / name).unlink(missing_ok=True)
    files.write_json(note, list(names))


def _is_inside(name: Any) -> bool:
    """Whether it is the name of a file in a folder, as results have it."""
    path = pathlib.PurePosixPath(name) if isinstance(name, str) else None
    return path is not None and path.name != "" and not {"..", "/"} & {*path.parts}


def _has_results(path: epath.Path) -> bool:
    """Whether a run came so far as to write something there."""
    if path.is_dir():
        return any(path.iterdir())
    return path.name != "written.json" and path.stat().length > 0


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            inner = f"{name}.{key}" if name else key
            yield from _differences(old.get(key), new.get(key), inner)
    elif old != new:
        short = [str(value)[:40] for value in (old, new)]
        yield name or "config", f"{short[0]} there, {short[1]} here"
