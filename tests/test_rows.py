import json
import pathlib

import pytest

from pixeldefend.experiment import rows

RESULTS = pathlib.Path(__file__).parent.parent / "results"
# One of each kind, as the modes write them.
PURIFIED = {
    "dataset": "cifar10",
    "classifier": "cifar10/resnet",
    "training": "normal",
    "density_model": "cifar10/pixelcnn",
    "defence": "purify",
    "attack": "bim",
    "preset": "paper",
    "eps_attack": 8.0,
    "eps_defend": 16,
    "threshold": 0.0,
    "threat": "grey-box",
    "source": "cifar10/resnet",
    "through": "classifier",
    "classifier_sha256": "4dd7ed3a",
    "density_model_sha256": "0cdffd3c",
    "images": "90f3c34e",
    "n": 128,
    "correct": 18,
    "accuracy": 0.1406,
    "low": 0.0909,
    "high": 0.2112,
    "seconds": 11.182,
    "device": "1 x cpu",
    "config": "f6666399",
    "version": "0.1.0",
}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda p: p.stem)
def test_every_accuracy_that_is_published_is_a_row(path):
    for line in rows.read_rows(path):
        if "accuracy" in line and "attack" in line:
            rows.Row.read(line)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"colour": 1}, "no field 'colour'"),
        ({"n": 128.5}, "n of a row must be"),
        ({"own": 1}, "own of a row must be"),
        ({"correct": 200}, "200 of 128 images cannot be right"),
        ({"accuracy": 0.2}, "is not 18 of 128"),
        ({"high": 0.1}, "outside its interval"),
        # The label is what is claimed; it must be what was done.
        ({"threat": "white-box"}, "not white-box"),
        ({"through": "purify+classifier"}, "not grey-box"),
        ({"defence": "none"}, "not grey-box"),
        ({"source": "cifar10/vgg"}, "not grey-box"),
        ({"source": None}, "not grey-box"),
    ],
)
def test_what_is_no_row_is_not_written(changes, message, tmp_path):
    rows.write_rows(tmp_path / "rows.jsonl", [PURIFIED])
    with pytest.raises(ValueError, match=message):
        rows.write_rows(tmp_path / "rows.jsonl", [PURIFIED | changes])
    assert rows.read_rows(tmp_path / "rows.jsonl") == [PURIFIED]


def test_a_missing_field_is_named():
    for name in PURIFIED:
        line = {key: value for key, value in PURIFIED.items() if key != name}
        with pytest.raises(ValueError, match=f"lacks the field '{name}'"):
            rows.Row.read(line)


def test_a_detector_in_front_is_not_seen_by_who_sees_the_classifier():
    judged = PURIFIED | {"defence": "none", "auc": 0.9}
    rows.Row.read(judged)
    with pytest.raises(ValueError, match="not white-box"):
        rows.Row.read(judged | {"threat": "white-box"})
    rows.Row.read(judged | {"threat": "white-box", "through": "detector+classifier"})


def test_the_label_says_who_attacked():
    threat = rows.threat
    assert threat("a", "a", "none", "classifier") == "white-box"
    assert threat("a", "a", "purify", "classifier") == "grey-box"
    assert threat("a", "a", "squeeze", "median+classifier") == "grey-box"
    assert threat("a", "a", "purify+squeeze", "purify+classifier") == "grey-box"
    assert threat("a", "a", "purify", "purify+classifier") == "white-box"
    assert threat("a", "b", "none", "classifier") == "transfer"
    assert threat("a", None, "none", None) is None


def test_rows_are_read_as_they_were_written(tmp_path):
    rows.write_rows(tmp_path / "rows.jsonl", [PURIFIED, {"curve": [1.5]}])
    text = (tmp_path / "rows.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()][0] == PURIFIED
    (tmp_path / "rows.jsonl").write_text(text[:-20])
    with pytest.raises(ValueError, match="rows.jsonl cannot be read"):
        rows.read_rows(tmp_path / "rows.jsonl")
