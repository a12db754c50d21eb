import time

import numpy as np

from pixeldefend.experiment import parallel, report
from pixeldefend.experiment.parts import Parts


def test_time_left_counts_only_what_this_run_did(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = report.Progress("working", seconds_between_lines=0.0, start=0.5)
    now[0] += 30.0
    progress.update(0.6, "fast")
    # A tenth in half a minute: four tenths are two minutes.
    assert "60%  0:30 gone, 2:00 left  fast" in capsys.readouterr().out


def test_batches_go_on_where_the_parts_end(tmp_path):
    values = np.arange(10, dtype=np.float32)
    seen = []

    def run(variables, kept):
        mapped = parallel.BatchMap(lambda v, x: {"y": v * x}, 1)
        return report.run_batches(
            mapped,
            "working",
            variables,
            values,
            parts=kept,
            each=lambda rows, result: seen.append((rows[0], len(result["y"]))),
        )

    early = Parts(tmp_path, "a", pause=0.0)
    early.add(np.arange(4), {"y": -values[:4]}, 7.0)
    result, seconds = run(np.float32(2), Parts(tmp_path, "a", pause=0.0))
    np.testing.assert_array_equal(result["y"], [*-values[:4], *2 * values[4:]])
    assert seen == [(4, 4), (8, 2)] and seconds > 7
    # All is there: nothing is computed again.
    seen.clear()
    again, _ = run(np.float32(3), Parts(tmp_path, "a", pause=0.0))
    np.testing.assert_array_equal(again["y"], result["y"])
    assert seen == []
