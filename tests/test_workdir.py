import sys

import pytest

from pixeldefend.experiment import workdir


def test_a_command_is_told_without_this_machines_folders(monkeypatch):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "/x/main.py",
            "--config=configs/mnist.py",
            "--config.data_dir",
            "/secret",
            "--workdir",
            "/secret/w",
            "--mode=train",
            "-workdir=/secret",
        ],
    )
    expected = "python main.py --config=configs/mnist.py --config.data_dir=DATA_DIR"
    assert workdir.command_line() == f"{expected} --mode=train"


def test_a_folder_belongs_to_its_config(tmp_path):
    place = workdir.Workdir(tmp_path / "a", {"eps": 1, "in": {"x": 2}})
    assert not (tmp_path / "a").exists()
    place.open()
    workdir.Workdir(tmp_path / "a", {"eps": 1, "in": {"x": 2}})
    with pytest.raises(ValueError, match="in.x: 2 there, 3 here"):
        workdir.Workdir(tmp_path / "a", {"eps": 1, "in": {"x": 3}})
    (tmp_path / "a/config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        workdir.Workdir(tmp_path / "a", {})


def test_only_mistakes_become_user_errors():
    with pytest.raises(workdir.UserError, match="^a b$"), workdir.user_errors():
        raise ValueError("a\nb")
    with pytest.raises(RuntimeError), workdir.user_errors():
        raise RuntimeError


def test_what_is_read_must_not_lie_where_is_written(tmp_path):
    place = workdir.Workdir(tmp_path / "out", {"a": 1})
    place.check_outside(tmp_path / "in")
    for inner in ("out", "out/purified", "out/../out/purified"):
        with pytest.raises(ValueError, match="lies in the workdir"):
            place.check_outside(tmp_path / inner)


def test_files_of_somebody_else_are_not_taken_for_results(tmp_path):
    (tmp_path / "out/purified").mkdir(parents=True)
    place = workdir.Workdir(tmp_path / "out", {"a": 1})
    place.check_own("purified")  # empty
    (tmp_path / "out/purified/mine.png").write_text("mine")
    with pytest.raises(ValueError, match="not from here"):
        place.check_own("purified")
    place.open()
    place.check_own("purified")
