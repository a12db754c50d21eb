import time

from pixeldefend.experiment import report


def test_time_left_counts_only_what_this_run_did(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = report.Progress("working", seconds_between_lines=0.0, start=0.5)
    now[0] += 30.0
    progress.update(0.6, "fast")
    # A tenth in half a minute: four tenths are two minutes.
    assert "60%  0:30 gone, 2:00 left  fast" in capsys.readouterr().out
