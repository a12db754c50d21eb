import numpy as np
import pytest

from pixeldefend.experiment import files
from pixeldefend.experiment.parts import Parts


def _batch(first, count):
    rows = np.arange(first, first + count)
    return rows, {"images": rows[:, None].astype(np.uint8), "log_prob": rows * 0.5}


def _joined(parts):
    return parts.collect(parts.done)["images"][:, 0]


def test_a_run_goes_on_with_what_is_missing(tmp_path):
    parts = Parts(tmp_path / "parts", "a")
    parts.add(*_batch(0, 3), 1.5)
    parts.add(*_batch(5, 3), 2.5)
    again = Parts(tmp_path / "parts", "a")
    assert (again.done, again.seconds) == (6, 2.5)
    np.testing.assert_array_equal(again.missing(9), [3, 4, 8])
    again.add(*_batch(3, 2), 1.0)
    again.add(*_batch(8, 1), 4.0)
    whole = Parts(tmp_path / "parts", "a")
    assert whole.seconds == 6.5 and whole.missing(9).size == 0
    np.testing.assert_array_equal(_joined(whole), np.arange(9))
    assert whole.results[0][1]["images"].dtype == np.uint8
    assert whole.results[0][1]["log_prob"].dtype == np.float64


def test_what_waits_is_written_together(tmp_path):
    parts = Parts(tmp_path / "parts", "a", pause=1e9)
    for first in (0, 2, 4):
        parts.add(*_batch(first, 2), 1.0)
    assert Parts(tmp_path / "parts", "a").done == 0
    parts.flush(2.0)
    assert len(list((tmp_path / "parts/a").iterdir())) == 1
    np.testing.assert_array_equal(_joined(Parts(tmp_path / "parts", "a")), range(6))


def test_another_run_begins_afresh(tmp_path):
    Parts(tmp_path / "parts", "a").add(*_batch(0, 2), 1.0)
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
def test_parts_that_are_lost_or_damaged_are_made_again(tmp_path, damage):
    parts = Parts(tmp_path / "parts", "a")
    for first in (0, 2, 4):
        parts.add(*_batch(first, 2), 1.0)
    middle = sorted((tmp_path / "parts/a").iterdir())[1]
    _damage(middle, damage)
    again = Parts(tmp_path / "parts", "a")
    np.testing.assert_array_equal(again.missing(6), [2, 3])
    again.add(*_batch(2, 2), 1.0)
    np.testing.assert_array_equal(_joined(Parts(tmp_path / "parts", "a")), range(6))


def test_rows_that_are_there_twice_are_taken_once(tmp_path):
    """A process thought lost may have written late."""
    parts = Parts(tmp_path / "parts", "a")
    parts.add(*_batch(0, 2), 1.0)
    parts.add(*_batch(1, 3), 1.0)
    again = Parts(tmp_path / "parts", "a")
    np.testing.assert_array_equal(again.missing(4), [2, 3])


def test_removing_leaves_nothing(tmp_path):
    parts = Parts(tmp_path / "parts", "a")
    parts.remove()
    parts.add(*_batch(0, 2), 1.0)
    parts.remove()
    assert not (tmp_path / "parts").exists()


def test_a_file_that_does_not_come_is_named(tmp_path):
    with pytest.raises(OSError, match="a.npz, which another process wrote"):
        files.patiently(lambda: None, tmp_path / "a.npz", seconds=0)
