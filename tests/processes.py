"""main.py as whole processes, one or several that belong together."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from absl import flags

from pixeldefend import cli
from pixeldefend.experiment import modes

# Shells have what they put into the background ignore Ctrl-C, and what that starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = pathlib.Path(__file__).parent.parent
SMOKE = "configs/fashion_mnist.py:smoke"
# What rows say of their making, which is not compared.
MAKING = ("seconds", "table_seconds", "device", "config", "images_per_second")
PART = "parts/*/0*.npz"  # a finished batch of a result
# main.py, which stops itself (SIGSTOP) as soon as it has given a file a name that fits.
_HELD = """
import os, pathlib, runpy, signal, sys
_, pattern, *sys.argv = sys.argv

def holding(rename):
    def renamed(source, target, **options):
        rename(source, target, **options)
        if pathlib.PurePath(target).match(pattern):
            os.rename, os.replace = given
            os.kill(os.getpid(), signal.SIGSTOP)
    return renamed

given = os.rename, os.replace
os.rename, os.replace = map(holding, given)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def environment(devices: int = 1) -> dict[str, str]:
    """Of a process with so many virtual devices: one, as a user's machine has.

    As in conftest, LLVM takes compiling lightly.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    flags += " --xla_backend_optimization_level=0"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def held(command: list[str], pattern: str) -> list[str]:
    """The command of a `main.py` that waits at a file, until SIGCONT or its end.

    A test that is to come in between need not be quicker than the program.

    Args:
      command: begins with the interpreter.
      pattern: of the file's path, from its right.
    """
    return [command[0], "-c", _HELD, pattern, *command[1:]]


def wait_until_held(process: subprocess.Popen) -> None:
    """Waits until a process of `held` is at its file."""
    events = os.WSTOPPED | os.WEXITED | os.WNOWAIT
    seen = os.waitid(os.P_PID, process.pid, events)
    assert seen.si_code == os.CLD_STOPPED, "ended before it came so far"


def launch(
    mode: str, *options: str, processes: int = 1, devices: int = 1, hold: str = ""
) -> list:
    """Starts `main.py`, as a launcher would; returns the processes.

    Args:
      mode, options: of the command line.
      processes, devices: how many, and virtual devices of each.
      hold: the pattern of a file that the first one is held at, see `held`; or none.
    """
    command = [sys.executable, "main.py", f"--config={SMOKE}", f"--mode={mode}"]
    extra: list[dict[str, str]] = [{}]
    if processes > 1:
        command.append("--distributed")
        shared = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
            "JAX_NUM_PROCESSES": str(processes),
        }
        extra = [shared | {"JAX_PROCESS_ID": str(i)} for i in range(processes)]
    commands = [[*command, *options]] * processes
    if hold:
        commands[0] = held(commands[0], hold)
    return [
        subprocess.Popen(
            line,
            cwd=ROOT,
            env=environment(devices) | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line, more in zip(commands, extra, strict=True)
    ]


def enter_anew(
    arguments: list[str], known: Mapping[str, modes.Mode] = modes.MODES
) -> int:
    """The exit code of `main.py` in this process, entered as a shell would."""
    sys.argv = ["main.py", *arguments]  # config_flags looks there for overrides
    flags.FLAGS.unparse_flags()
    for name in list(flags.FLAGS):
        if name.startswith("config."):  # defined anew from every command line
            delattr(flags.FLAGS, name)
        else:
            flags.FLAGS[name].unparse()
    try:
        cli.parse(sys.argv)
        return cli.main(known)
    except SystemExit as stop:
        return stop.code


def finish(started: list, code: int = 0) -> list[tuple[str, str]]:
    """Waits for processes, which must exit with `code`; returns what they wrote.

    One that is held goes on.
    """
    for process in started:
        process.send_signal(signal.SIGCONT)
    told = [process.communicate(timeout=600) for process in started]
    for process, (_, errors) in zip(started, told, strict=True):
        assert process.returncode == code, errors[-3000:]
    return told


def wait_until(reached: Callable[[], object], started: list) -> None:
    """Waits until something is true, while all processes live."""
    while not reached():
        for process in started:
            if process.poll() is not None:
                kill(started)
                raise AssertionError(f"ended too early: {process.told[1][-3000:]}")
        time.sleep(0.01)


def wait_for(folder: pathlib.Path, pattern: str, started: list) -> None:
    """Waits until a file of that name is there, with something in it."""
    wait_until(lambda: any(p.stat().st_size for p in folder.glob(pattern)), started)


def kill(started: list, first: int = 0) -> None:
    """SIGKILL for one, and soon after for the others, as launchers do."""
    for process in (started[first], *started):
        process.kill()
        time.sleep(random.uniform(0, 0.2))
    for process in started:
        process.told = process.communicate()


def rows(path: pathlib.Path) -> list[dict]:
    """Lines of a file, without what tells of their making."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MAKING} for line in lines]
