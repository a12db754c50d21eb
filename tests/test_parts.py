import numpy as np
import pytest

from pixeldefend.parts import Parts


def _batch(first, count):
    rows = np.arange(first, first + count)
    return {"images": rows[:, None].astype(np.uint8), "log_prob": rows * 0.5}


def _joined(parts):
    return np.concatenate([part["images"] for part in parts.results])[:, 0]


def test_a_run_goes_on_after_what_was_written(tmp_path):
    parts = Parts(tmp_path / "parts", "a", pause=0.0)
    parts.add(_batch(0, 3), 1.5, last=False)
    parts.add(_batch(3, 3), 2.5, last=False)
    again = Parts(tmp_path / "parts", "a", pause=0.0)
    assert (again.done, again.seconds) == (6, 2.5)
    again.add(_batch(6, 1), 4.0, last=True)
    whole = Parts(tmp_path / "parts", "a")
    np.testing.assert_array_equal(_joined(whole), np.arange(7))
    assert whole.results[0]["images"].dtype == np.uint8
    assert whole.results[0]["log_prob"].dtype == np.float64


def test_what_waits_is_written_together_and_at_the_latest_with_the_last(tmp_path):
    parts = Parts(tmp_path / "parts", "a", pause=1e9)
    for first in (0, 2):
        parts.add(_batch(first, 2), 1.0, last=False)
    assert Parts(tmp_path / "parts", "a").done == 0
    parts.add(_batch(4, 2), 2.0, last=True)
    assert len(list((tmp_path / "parts/a").iterdir())) == 1
    np.testing.assert_array_equal(_joined(Parts(tmp_path / "parts", "a")), range(6))


def test_another_run_begins_afresh(tmp_path):
    Parts(tmp_path / "parts", "a", pause=0.0).add(_batch(0, 2), 1.0, last=True)
    assert Parts(tmp_path / "parts", "b").done == 0
    assert Parts(tmp_path / "parts", "a").done == 2


def _damage(path, kind):
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "flipped":
        middle = len(whole) // 3
        path.write_bytes(
            whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        )
    elif kind == "another file":
        with path.open("wb") as file:
            np.savez(file, images=np.zeros((2, 1), np.uint8))
    else:
        path.write_bytes(whole[: {"cut": 40, "empty": 0}[kind]])


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "flipped", "missing", "another file"]
)
def test_parts_after_a_gap_or_damage_are_made_again(tmp_path, damage):
    parts = Parts(tmp_path / "parts", "a", pause=0.0)
    for first in (0, 2, 4):
        parts.add(_batch(first, 2), 1.0, last=False)
    middle = sorted((tmp_path / "parts/a").iterdir())[1]
    _damage(middle, damage)
    again = Parts(tmp_path / "parts", "a", pause=0.0)
    assert again.done == 2
    again.add(_batch(2, 4), 1.0, last=True)
    np.testing.assert_array_equal(_joined(Parts(tmp_path / "parts", "a")), range(6))


def test_removing_leaves_nothing(tmp_path):
    parts = Parts(tmp_path / "parts", "a", pause=0.0)
    parts.remove()
    parts.add(_batch(0, 2), 1.0, last=True)
    parts.remove()
    assert not (tmp_path / "parts").exists()
