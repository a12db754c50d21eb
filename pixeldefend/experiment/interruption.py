"""The wish to stop: SIGTERM, as schedulers send it before they take a machine away.

Ctrl-C (SIGINT) is more than a wish: it ends what is being done, wherever that is.
"""

import signal
import threading

# What a run that stopped on request exits with: try again later (EX_TEMPFAIL of
# sysexits.h). Launch scripts hand it to their scheduler as "requeue me".
EXIT_CODE = 75

_wanted = threading.Event()
_interrupted = threading.Event()


class Interrupted(Exception):
    """The run was asked to stop; all that was finished is kept.

    Attributes:
      code: to exit with; another process's, if that is why.
    """

    def __init__(self, code: int = EXIT_CODE):
        super().__init__(code)
        self.code = code


def listen() -> None:
    """From now on SIGTERM is a wish, looked at between batches and steps."""
    signal.signal(signal.SIGTERM, lambda *_: _wanted.set())
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        signal.signal(signal.SIGINT, _interrupt)


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
