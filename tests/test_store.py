import numpy as np
import pytest

from pixeldefend.experiment import files, parallel
from pixeldefend.experiment.store import Store


def _batch(first, count):
    rows = np.arange(first, first + count)
    return rows, {"images": rows[:, None].astype(np.uint8), "log_prob": rows * 0.5}


def _joined(parts):
    return parts.collect(parts.done)["images"][:, 0]


def test_a_run_goes_on_with_what_is_missing(tmp_path):
    parts = Store(tmp_path).unfinished("a")
    parts.add(*_batch(0, 3), 1.5)
    parts.add(*_batch(5, 3), 2.5)
    again = Store(tmp_path).unfinished("a")
    assert (again.done, again.seconds) == (6, 2.5)
    np.testing.assert_array_equal(again.missing(9), [3, 4, 8])
    again.add(*_batch(3, 2), 1.0)
    again.add(*_batch(8, 1), 4.0)
    whole = Store(tmp_path).unfinished("a")
    assert whole.seconds == 6.5 and whole.missing(9).size == 0
    np.testing.assert_array_equal(_joined(whole), np.arange(9))
    assert whole.results[0][1]["images"].dtype == np.uint8
    assert whole.results[0][1]["log_prob"].dtype == np.float64


def test_what_waits_is_written_together(tmp_path):
    parts = Store(tmp_path).unfinished("a", pause=1e9)
    for first in (0, 2, 4):
        parts.add(*_batch(first, 2), 1.0)
    assert Store(tmp_path).unfinished("a").done == 0
    parts.flush(2.0)
    assert len(list((tmp_path / "parts/a").iterdir())) == 1
    np.testing.assert_array_equal(_joined(Store(tmp_path).unfinished("a")), range(6))


def test_another_run_begins_afresh(tmp_path):
    Store(tmp_path).unfinished("a").add(*_batch(0, 2), 1.0)
    assert Store(tmp_path).unfinished("b").done == 0
    assert Store(tmp_path).unfinished("a").done == 2


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
    parts = Store(tmp_path).unfinished("a")
    for first in (0, 2, 4):
        parts.add(*_batch(first, 2), 1.0)
    middle = sorted((tmp_path / "parts/a").iterdir())[1]
    _damage(middle, damage)
    again = Store(tmp_path).unfinished("a")
    np.testing.assert_array_equal(again.missing(6), [2, 3])
    again.add(*_batch(2, 2), 1.0)
    np.testing.assert_array_equal(_joined(Store(tmp_path).unfinished("a")), range(6))


def test_rows_that_are_there_twice_are_taken_once(tmp_path):
    """A process thought lost may have written late."""
    parts = Store(tmp_path).unfinished("a")
    parts.add(*_batch(0, 2), 1.0)
    parts.add(*_batch(1, 3), 1.0)
    again = Store(tmp_path).unfinished("a")
    np.testing.assert_array_equal(again.missing(4), [2, 3])


def test_tidying_leaves_nothing_but_what_others_put_there(tmp_path):
    store = Store(tmp_path)
    store.tidy()
    assert not list(tmp_path.iterdir())
    for inner in ("", "purified/sample"):
        store.unfinished("a", inner).add(*_batch(0, 2), 1.0)
    store.tidy()
    assert not (tmp_path / "parts").exists()
    foreign = ["notes.txt", "a/000000000000.npz.bak", "a/7.npz", "b/.x.partial.npz"]
    for name in foreign:
        (tmp_path / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "parts" / name).write_text("mine")
    store.unfinished("a").add(*_batch(0, 2), 1.0)
    assert Store(tmp_path).unfinished("a").done == 2
    store.tidy()
    left = [path for path in (tmp_path / "parts").rglob("*") if path.is_file()]
    assert sorted(str(p.relative_to(tmp_path / "parts")) for p in left) == sorted(
        foreign
    )


def test_batches_go_on_where_the_parts_end(tmp_path, capsys):
    values = np.arange(10, dtype=np.float32)
    seen = []

    def run(variables):
        mapped = parallel.BatchMap(lambda v, x: {"y": v * x}, 1)
        return (
            Store(tmp_path)
            .unfinished("a")
            .run(
                mapped,
                "working",
                variables,
                values,
                each=lambda rows, result: seen.append((rows[0], len(result["y"]))),
            )
        )

    early = Store(tmp_path).unfinished("a")
    early.add(np.arange(4), {"y": -values[:4]}, 7.0)
    result, seconds = run(np.float32(2))
    np.testing.assert_array_equal(result["y"], [*-values[:4], *2 * values[4:]])
    assert seen == [(0, 4), (4, 4), (8, 2)] and seconds > 7
    assert "working: resuming after 4 of 10 images" in capsys.readouterr().out
    # All is there: nothing is computed again.
    again, _ = run(np.float32(3))
    np.testing.assert_array_equal(again["y"], result["y"])


def test_a_file_that_does_not_come_is_named(tmp_path):
    with pytest.raises(OSError, match="a.npz, which another process wrote"):
        files.patiently(lambda: None, tmp_path / "a.npz", seconds=0)
