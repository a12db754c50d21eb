"""Runs that are killed again and again, at random moments."""

import json
import os
import random
import time

import numpy as np
import pytest
from processes import MAKING, finish, kill, launch, rows

from pixeldefend.experiment import checkpoints, zoo

pytestmark = pytest.mark.slow

# For a thorough look: PIXELDEFEND_KILLS=200 python -m pytest tests/test_chaos.py
THOROUGH = "PIXELDEFEND_KILLS" in os.environ
KILLS = int(os.environ.get("PIXELDEFEND_KILLS", "5"))
SEED = int(os.environ.get("PIXELDEFEND_SEED", str(random.randrange(10**6))))

# Another number of devices or processes after each kill, where bits do not depend on
# it; the sums of a training step do.
LAYOUTS = ({}, {"devices": 2}, {"devices": 3}, {"processes": 2})
MODES = {
    "purify": ["--config.purify.count=8", "--config.purify.batch=1"],
    "attack": ["--config.attack.batch=1"],
    "evaluate": ["--config.evaluate.images=8", "--config.evaluate.batch=1"],
    # The attack that evades takes minutes unoptimised; the sweep has one, too.
    "detect": ["--config.evaluate.batch=1", "--config.detect.evading_images=0"],
    "sweep": ["--config.evaluate.batch=1"],
}
KINDS = ("pixelcnn", "classifier", "puvae", "magnet")
# All of them take half an hour; one of each otherwise.
TRIED = list(MODES) if THOROUGH else ["evaluate"]
TRAINED = KINDS if THOROUGH else KINDS[:1]
EACH = max(1, KILLS // (len(TRIED) + len(TRAINED)))


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
        until = time.monotonic() + draw.uniform(0.3, 1.1) * seconds
        while time.monotonic() < until and any(p.poll() is None for p in started):
            time.sleep(0.02)
        kill(started, draw.randrange(len(started)))
    layout = draw.choice(layouts)
    finish(launch(mode, f"--workdir={folder / 'killed'}", *options, **layout))
    return folder / "killed"


def _without_making(value):
    """What JSON says but for how it was made."""
    if isinstance(value, dict):
        return {k: _without_making(v) for k, v in value.items() if k not in MAKING}
    return list(map(_without_making, value)) if isinstance(value, list) else value


def _assert_same_results(found, expected):
    """The same files, and in them the same but for how long it took."""
    names = [
        sorted(str(p.relative_to(at)) for p in at.rglob("*") if p.is_file())
        for at in (found, expected)
    ]
    # Parts are of as many batches as a run came to before it was stopped.
    parts = [[n for n in of if not n.startswith("parts/")] for of in names]
    assert parts[0] == parts[1] and parts[0]
    for name in parts[0]:
        first, second = found / name, expected / name
        if name.endswith(".jsonl"):
            assert rows(first) == rows(second), name
        elif name.endswith(".json"):
            both = [json.loads(path.read_text()) for path in (first, second)]
            assert _without_making(both[0]) == _without_making(both[1]), name
        elif name.endswith((".npz", ".npy")):
            with np.load(first) as one, np.load(second) as other:
                assert set(one) == set(other), name
                for key in set(one) - {*MAKING, "mark"}:
                    _assert_same(one[key], other[key], f"{name} {key}")
        elif not name.endswith(".md"):  # tables are made of rows, and tell the seconds
            assert first.read_bytes() == second.read_bytes(), name


def _assert_same(found, expected, name):
    """Levels to the bit; what a search found before it was rounded, nearly."""
    if np.issubdtype(found.dtype, np.floating):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2, err_msg=name)
    else:
        np.testing.assert_array_equal(found, expected, err_msg=name)


def _state(folder):
    """The arrays of the newest checkpoint, by name."""
    import orbax.checkpoint as ocp

    steps = [int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")]
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder / f"checkpoints/{max(steps)}/state")
    return max(steps), checkpoints.flat(tree)


@pytest.mark.parametrize("kind", TRAINED)
def test_training_survives(tmp_path, kind):
    option = f"--config.train.model={kind}"
    whole, seconds = _undisturbed("train", tmp_path, option)
    killed = _killed("train", tmp_path, EACH, seconds, [{}], option)
    assert rows(whole / "metrics.jsonl") == rows(killed / "metrics.jsonl")
    (step, expected), (other, found) = _state(whole), _state(killed)
    assert step == other and expected.keys() == found.keys() and len(expected) > 10
    for name, leaf in expected.items():
        np.testing.assert_array_equal(leaf, found[name], err_msg=name)
    cards = [zoo.load_card(folder / "model") for folder in (whole, killed)]
    assert cards[0]["sha256"] == cards[1]["sha256"]


@pytest.mark.parametrize("mode", TRIED)
def test_results_survive(tmp_path, mode):
    whole, seconds = _undisturbed(mode, tmp_path, *MODES[mode])
    killed = _killed(mode, tmp_path, EACH, seconds, LAYOUTS, *MODES[mode])
    _assert_same_results(killed, whole)
