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


def launch(mode: str, *options: str, processes: int = 1, devices: int = 1) -> list:
    """Starts `main.py`, as a launcher would; returns the processes."""
    command = [sys.executable, "main.py", f"--config={SMOKE}", f"--mode={mode}"]
    extra: list[dict[str, str]] = [{}]
    if processes > 1:
        command.append("--distributed")
        shared = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
            "JAX_NUM_PROCESSES": str(processes),
        }
        extra = [shared | {"JAX_PROCESS_ID": str(i)} for i in range(processes)]
    return [
        subprocess.Popen(
            [*command, *options],
            cwd=ROOT,
            env=environment(devices) | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for more in extra
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
    """Waits for processes, which must exit with `code`; returns what they wrote."""
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
