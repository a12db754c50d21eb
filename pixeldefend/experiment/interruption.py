"""The wish to stop: SIGTERM, as schedulers send it before they take a machine away.

Ctrl-C (SIGINT) is more than a wish: it ends what is being done, wherever that is.

Python hears of either only between two steps of its own, and a compilation is one step
of minutes. So a thread listens as well, and ends the process where nothing is lost.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

# What a run that stopped on request exits with: try again later (EX_TEMPFAIL of
# sysexits.h). Launch scripts hand it to their scheduler as "requeue me".
EXIT_CODE = 75
CTRL_C = 130  # as a shell has it

_wanted = threading.Event()
_interrupted = threading.Event()
_disposable = threading.Event()
_listening: list[threading.Thread] = []
_farewells: list[Callable[[], None]] = []


class Interrupted(Exception):
    """The run was asked to stop; all that was finished is kept.

    Attributes:
      code: to exit with; another process's, if that is why.
    """

    def __init__(self, code: int = EXIT_CODE):
        super().__init__(code)
        self.code = code


def listen(leave: Callable[[int], None]) -> None:
    """From now on SIGTERM is a wish, looked at between batches and steps.

    Args:
      leave: called with the exit code, from another thread, where a signal comes within
        what is `disposable`; has to end the process.
    """
    signal.signal(signal.SIGTERM, lambda *_: _wanted.set())
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        signal.signal(signal.SIGINT, _interrupt)
    if not _listening:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        _listening.append(
            threading.Thread(target=_watch, args=(reading, leave), daemon=True)
        )
        _listening[0].start()


def _watch(reading: int, leave: Callable[[int], None]) -> None:
    """Reads the signals of which the system writes at once; see `listen`."""
    codes: dict[int, int] = {signal.SIGTERM: EXIT_CODE}
    if signal.getsignal(signal.SIGINT) is _interrupt:
        codes[signal.SIGINT] = CTRL_C
    while True:
        for number in os.read(reading, 64):
            if number in codes:
                _disposable.wait()
                for farewell in _farewells:
                    farewell()
                leave(codes[number])


@contextlib.contextmanager
def disposable() -> Iterator[None]:
    """What is done in here, like compiling, is not worth being waited for."""
    _disposable.set()
    try:
        yield
    finally:
        _disposable.clear()


@contextlib.contextmanager
def farewell(last: Callable[[], None]) -> Iterator[None]:
    """Has `last` called where the process is left from within what is disposable."""
    _farewells.append(last)
    try:
        yield
    finally:
        _farewells.remove(last)


def _interrupt(*_: object) -> None:
    """Raises KeyboardInterrupt, which some packages keep to themselves: so, noted."""
    _interrupted.set()
    raise KeyboardInterrupt


def ask() -> None:
    """Wishes to stop from within."""
    _wanted.set()


def wanted() -> bool:
    """Whether this process was asked to stop; it raises where it was interrupted."""
    if _interrupted.is_set():
        raise KeyboardInterrupt
    return _wanted.is_set()
