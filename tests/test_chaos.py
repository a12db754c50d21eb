"""Runs that are killed again and again, at random moments."""

import os
import random
import time

import numpy as np
import pytest
from processes import finish, kill, launch, rows

from pixeldefend.experiment import checkpoints, zoo

pytestmark = pytest.mark.slow

# For a thorough look: PIXELDEFEND_KILLS=50 python -m pytest tests/test_chaos.py
KILLS = int(os.environ.get("PIXELDEFEND_KILLS", "5"))
SEED = int(os.environ.get("PIXELDEFEND_SEED", str(random.randrange(10**6))))


def _undisturbed(mode, folder, *options):
    """Runs twice in two folders; returns the seconds without compilation."""
    finish(launch(mode, f"--workdir={folder / 'first'}", *options))
    begun = time.monotonic()
    finish(launch(mode, f"--workdir={folder / 'whole'}", *options))
    return folder / "whole", time.monotonic() - begun


def _killed(mode, folder, kills, seconds, layouts, *options):
    """Kills a run so many times, anywhere from its start to its end, and ends it."""
    draw = random.Random(SEED)
    print(f"PIXELDEFEND_SEED={SEED}")
    for _ in range(kills):
        layout = draw.choice(layouts)
        started = launch(mode, f"--workdir={folder / 'killed'}", *options, **layout)
        time.sleep(draw.uniform(0.3, 1.1) * seconds)
        kill(started, draw.randrange(len(started)))
    layout = draw.choice(layouts)
    finish(launch(mode, f"--workdir={folder / 'killed'}", *options, **layout))
    return folder / "killed"


def _state(folder):
    """The arrays of the newest checkpoint, by name."""
    import orbax.checkpoint as ocp

    steps = [int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")]
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder / f"checkpoints/{max(steps)}/state")
    return max(steps), checkpoints.flat(tree)


def test_training_survives(tmp_path):
    kills = KILLS - KILLS // 2
    whole, seconds = _undisturbed("train", tmp_path)
    killed = _killed("train", tmp_path, kills, seconds, [{}])
    assert rows(whole / "metrics.jsonl") == rows(killed / "metrics.jsonl")
    (step, expected), (other, found) = _state(whole), _state(killed)
    assert step == other and expected.keys() == found.keys() and len(expected) > 50
    for name, leaf in expected.items():
        np.testing.assert_array_equal(leaf, found[name], err_msg=name)
    cards = [zoo.load_card(folder / "model") for folder in (whole, killed)]
    assert cards[0]["sha256"] == cards[1]["sha256"]


@pytest.mark.parametrize("mode", ["evaluate"])
def test_evaluation_survives(tmp_path, mode):
    """With another number of processes or devices each time."""
    options = ["--config.evaluate.images=8", "--config.evaluate.batch=1"]
    whole, seconds = _undisturbed(mode, tmp_path, *options)
    layouts = [{}, {"devices": 2}, {"processes": 2}]
    killed = _killed(mode, tmp_path, KILLS // 2, seconds, layouts, *options)
    assert rows(whole / "rows.jsonl") == rows(killed / "rows.jsonl")
    left = {path.name for path in killed.rglob("*") if path.is_file()}
    assert left == {path.name for path in whole.rglob("*") if path.is_file()}
