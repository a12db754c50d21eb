import time

from pixeldefend.experiment import report


def test_time_left_counts_only_what_this_run_did(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = report.Progress("working", seconds_between_lines=0.0, start=0.5)
    now[0] += 30.0
    progress.update(0.6, "fast")
    # A tenth in half a minute: four tenths are two minutes.
    assert "60%  0:30 elapsed, 2:00 left  fast" in capsys.readouterr().out


def test_a_long_compilation_is_told(capsys):
    with report.compiling("scoring", patience=0.01):
        time.sleep(0.2)
    assert capsys.readouterr().out.startswith("scoring: compiling, which can take")
    with report.compiling("scoring", patience=1.0):
        pass
    time.sleep(1.2)
    assert not capsys.readouterr().out


def test_a_wide_table_goes_on_below_with_its_first_column():
    header = ["row", "a\nb", "c", "d", "e"]
    rows = [["x\n  y", "1\n22", "3", "4", "5"], ["z", "6", "7", "", ""]]
    assert report.table(header, rows).splitlines() == [
        *("row   a  c  d  e", "      b"),
        *("-" * 16, "x     1  3  4  5", "  y  22", "z     6  7"),
    ]
    first, second = report.table(header, rows, together=2, width=13).split("\n\n")
    assert first.splitlines()[3:] == ["x     1  3", "  y  22", "z     6  7"]
    # What has nothing there is left out; what does not fit stands by itself.
    assert second.splitlines() == ["row  d  e", "---------", "x    4  5", "  y"]
    narrow = report.table(header, rows, width=1).split("\n\n")
    assert [block.split()[1] for block in narrow] == ["a", "c", "d", "e"]


def test_latex_has_its_signs():
    found = report.latex_table(["", "a_b"], [["x & y", "50 %"], ["#", "1 ± 2"]])
    assert found.splitlines()[2:6] == [
        r" & a\_b \\",
        r"\midrule",
        r"x \& y & 50 \% \\",
        r"\# & 1 $\pm$ 2 \\",
    ]
