"""The page of `--mode=report`: all rows, who attacked, and nothing from elsewhere."""

import base64
import html.parser
import io
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from processes import ROOT, enter_anew, finish, launch

from configs import fashion_mnist
from pixeldefend import cli, detection
from pixeldefend.experiment import (
    data,
    files,
    modes,
    page,
    page_charts,
    page_images,
    page_rows,
    page_runs,
    pictures,
)
from pixeldefend.experiment.rows import read_rows
from pixeldefend.experiment.workdir import UserError, config_hash

_EVIL = "<script>alert(1)</script>\"'&"
_RESULTS = ROOT / "results"


class _Page(html.parser.HTMLParser):
    """What is on a page: tables by name, attributes, texts of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.attributes, self.code, self.images = {}, [], [], []
        self._table = self._cell = None
        self._tags, self._in_tag = [], False
        self._open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.attributes += attributes
        classes = (found.get("class") or "").split()
        if tag not in ("meta", "img", "input", "br", "polyline", "line"):
            self._open.append(tag)
        if tag == "table":
            self._table = self.tables.setdefault(found.get("id"), [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._cell = {"text": "", "tags": [], "class": classes}
            self._table[-1].append(self._cell)
        elif tag == "span" and "tag" in classes and self._cell is not None:
            self._in_tag = True
            self._cell["tags"].append("")
        elif tag == "img":
            self.images.append(found["src"])

    def handle_endtag(self, tag):
        assert tag in ("polyline", "line") or self._open.pop() == tag, tag
        if tag in ("td", "th"):
            self._cell = None
        if tag == "span":
            self._in_tag = False

    def handle_data(self, data):
        if self._open and self._open[-1] in ("script", "style"):
            self.code.append(data)
        elif self._cell is not None:
            self._cell["text"] += data
            if self._in_tag:
                self._cell["tags"][-1] += data


def _write(folder, rows, name="rows.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _config(source, **fields):
    config = fashion_mnist.get_config()
    config.report.input = str(source)
    for name, value in fields.items():
        config.report[name] = value
    return config


def _made(source, out, **fields):
    modes.start("report", _config(source, **fields), str(out))
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of `results/`."""
    return _made(_RESULTS, tmp_path_factory.mktemp("whole"))


def test_every_row_of_results_is_there_with_its_interval_and_who_attacked(whole):
    found = _Page(whole)
    accuracies = 0
    for path in sorted(_RESULTS.glob("*.jsonl")):
        rows = read_rows(path)
        name = page_runs.identifier(path.stem)
        shown = [
            line
            for table, lines in found.tables.items()
            if table and re.fullmatch(rf"{name}-table(-\d+)?", table)
            for line in lines[1:]  # less the head
        ]
        measured = [row for row in rows if page_rows.is_measured(row)]
        if measured:
            lines = found.tables[f"{name}-table"][1:]
            assert len(lines) == len(measured), path
            for row, line in zip(measured, lines, strict=True):
                (cell,) = (c for c in line if "a" in c["class"])
                percent = [f"{100 * row[k]:.1f}" for k in ("accuracy", "low", "high")]
                told = "{} % {} to {}".format(*percent)
                assert told in cell["text"], (path, row)
                clean = "clean" if row["attack"] == "none" else "no attacker"
                assert cell["tags"] == [row["threat"] or clean], (path, row)
                accuracies += 1
        alone = sum(
            len(group) == 1
            for group in _by_fields(r for r in rows if r not in measured)
        )
        assert len(shown) + alone == len(rows), path
    assert accuracies > 3000
    assert sum(map(len, found.tables[None])) // 2 > 10  # rows that stand alone


def _by_fields(rows):
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    return groups.values()


def test_nothing_comes_from_elsewhere(whole):
    found = _Page(whole)
    assert "http:" not in whole and "https:" not in whole
    for name, value in found.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:image/png;base64,", "#")), (name, value)
        assert name[:2] != "on" and name not in ("srcset", "action", "poster")
    assert len(found.code) == 2  # our style and our script
    assert not any(re.search(r"@import|url\(|fetch|eval", code) for code in found.code)
    assert "default-src 'none'" in whole and 'name="viewport"' in whole
    names = [value for name, value in found.attributes if name == "id"]
    assert len(names) == len(set(names))
    links = {value[1:] for name, value in found.attributes if name == "href"}
    assert links and links <= set(names)


def _attacked_rows(name):
    """Three rows with a name of somebody else's in every field that may have one."""
    rows = read_rows(_RESULTS / "purify_fashion_mnist.jsonl")
    for row in rows:
        row |= {"classifier": name, "dataset": name, "device": name, "input": name}
        row["source"] = name if row["source"] else None
    return rows


def test_what_comes_from_files_is_escaped(tmp_path):
    _write(tmp_path / "run", _attacked_rows(_EVIL))
    _write(tmp_path / "run", [{_EVIL: _EVIL, "b": [_EVIL] * 9}], f"{_EVIL[1:7]}.jsonl")
    (tmp_path / "run/config.json").write_text(
        json.dumps({"mode": _EVIL, "dataset": _EVIL, "purify": {"input": _EVIL}})
    )
    told = _made(tmp_path / "run", tmp_path / "out")
    assert "<script>alert" not in told and "alert(1)" in told
    assert len(_Page(told).code) == 2


def _detection(folder, rng):
    """Arrays as `--mode=detect` leaves them, and their rows."""
    rows = [
        row
        for row in read_rows(_RESULTS / "detection_fashion_mnist.jsonl")
        if row["table_eps"] == 8 and row["attack"] in ("none", "bim")
    ]
    shape = (3, 28, 28, 1)
    arrays = {"reference": np.sort(rng.normal(-1500, 200, 500)).astype(np.float32)}
    arrays |= {"examples/labels": np.array([0, 1, 2])}
    arrays["examples/clean"] = rng.integers(0, 256, shape, dtype=np.uint8)
    for attack, middle in (("none", -1500), ("bim", -2500)):
        for defence, moved in (("none", 0), ("purify", 900)):
            key = f"8/{attack}/{defence}"
            scores = rng.normal(middle + moved, 200, 100).astype(np.float32)
            arrays |= {f"{key}/log_probs": scores, f"{key}/correct": scores > 0}
            arrays[f"{key}/images"] = rng.integers(0, 256, shape, dtype=np.uint8)
            arrays[f"{key}/probabilities"] = np.eye(10)[[0, 1, 5]]
    _write(folder, rows)
    np.savez(folder / "detection.npz", **arrays)
    return arrays


def test_detection_is_drawn_with_who_attacked(tmp_path, rng):
    arrays = _detection(tmp_path / "run", rng)
    told = _made(tmp_path / "run", tmp_path / "out", images=2)
    scores = {d: arrays[f"8/bim/{d}/log_probs"] for d in ("none", "purify")}
    for one, word in (("none", "attacked"), ("purify", "purified")):
        area = float(detection.auc(arrays["reference"], scores[one]))
        tag = '<span class="tag grey-box">grey-box</span>'
        assert f"{area:.3f} {word} {tag}" in told
    assert told.count('role="img"') == 2 and told.count("<polyline") > 5
    images = _Page(told).images
    assert len(images) == 2 * 4  # clean, attacked, purified, difference
    for source, key in zip(
        images, ("none/none", "bim/none", "bim/purify"), strict=False
    ):
        png = io.BytesIO(base64.b64decode(source.partition(",")[2]))
        np.testing.assert_array_equal(
            Image.open(png), arrays[f"8/{key}/images"][0, ..., 0]
        )
    assert told.count("✓ t-shirt, right") == 3
    assert not _Page(_made(tmp_path / "run", tmp_path / "out", images=0)).images


def test_areas_and_curves_are_those_of_detection(rng):
    negatives = np.round(rng.normal(0, 2, 301)).astype(np.float32)  # with ties
    positives = np.round(rng.normal(-1, 2, 97)).astype(np.float32)
    (area,) = page_charts.areas(negatives, {"attacked": positives}).values()
    assert area == pytest.approx(float(detection.auc(negatives, positives)), abs=1e-6)
    rates, found = page_charts.curve(negatives, positives)
    wrong, right, _ = map(np.asarray, detection.roc(negatives, positives))
    for rate, share in zip(rates, found, strict=True):
        assert share == pytest.approx(right[wrong <= rate + 1e-6].max(), abs=1e-6)
    assert found[-1] == 1


def test_differences_are_shown_as_in_the_figures():
    clean = np.full((2, 4, 4, 1), 100, np.uint8)
    attacked = clean.astype(np.float32)  # as it may be before rounding
    attacked[0, 0, 0, 0], attacked[1, 0, 0, 0] = 108.4, 96
    stages = {"clean": clean, "attacked": attacked}
    strip = page_images.Strip("BIM", {}, stages, {}, None)
    text = page_images.cards(strip, 1)
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(found))))
        for found in re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    ]
    assert len(shown) == 3 and shown[1][0, 0] == 108
    wanted, times = pictures.difference(
        np.rint(attacked[:1]).astype(np.uint8), clean[:1]
    )
    np.testing.assert_array_equal(shown[2], wanted[0, ..., 0])
    assert times > 1 and f"attacked minus clean, ×{times} around" in text


def test_a_run_of_purify_shows_its_images(tmp_path, rng):
    rows = read_rows(_RESULTS / "purify_fashion_mnist.jsonl")
    _write(tmp_path / "run", rows)
    (tmp_path / "run/purified").mkdir()
    images = rng.integers(0, 256, (3, 5, 28, 28, 1), dtype=np.uint8)
    stages = dict(zip(("clean", "images", "purified"), images, strict=True))
    files.write_arrays(
        tmp_path / "run/purified/sample.npz", **stages, labels=np.arange(5)
    )
    files.write_arrays(
        tmp_path / "run/predictions.npz",
        clean=np.arange(5),
        perturbed=np.full(5, 9),
        purified=np.arange(5),
        names=np.array(list("abcde")),
    )
    told = _made(tmp_path / "run", tmp_path / "out", images=4)
    assert len(_Page(told).images) == 4 * 4
    assert told.count("✗ <b>boot, wrong</b>") == 4 and told.count(", right") == 8


def test_a_page_of_scores_needs_no_rows(tmp_path):
    (tmp_path / "run").mkdir()
    np.savez(tmp_path / "run/scores.npz", bits_per_dim=np.linspace(2, 4, 50))
    told = _made(tmp_path / "run", tmp_path / "out")
    assert "mean 3.000 bits/dim" in told and "<svg" in told


def test_attacks_are_named_with_all_that_they_saw():
    row = {"attack": "pgd", "preset": "athalye", "source": "a", "classifier": "b"}
    row |= {"through": "purify+classifier", "slope": "bpda", "eps_attack": None}
    cell = page_rows._attack(row).html
    assert "on a" in cell and "through purify+classifier, bpda" in cell
    assert page_rows.eps(row) == "no bound"
    assert page_rows.eps({"attack": "pgd_l2", "eps_attack": 64.0}) == "64 (L2)"
    assert page_rows.eps({"attack": "pgd", "eps_attack": 8.0}) == "8"


def test_the_command_repeats_the_run(monkeypatch):
    """It leads to the config that it was made from."""
    config = fashion_mnist.get_config()
    config.evaluate.rows = ("fashion_mnist/vgg", "fashion_mnist/vgg + purify")
    config.purify.grades = ((0.0, 8.0, 95.0),)
    started = []
    monkeypatch.setattr(
        cli.modes, "start", lambda name, c, *_: started.append((name, c))
    )
    monkeypatch.setattr(cli.interruption, "listen", lambda leave: None)
    monkeypatch.chdir(ROOT)
    for mode in ("evaluate", "purify", "detect"):
        told = modes._sections(mode, modes.MODES[mode], config)
        kept = json.loads(json.dumps(told))
        command = page_runs.command(kept, [])
        # As a shell reads it.
        script = command.replace("python main.py", "printf '%s\\0'", 1)
        words = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
        assert enter_anew(words.stdout.split("\0")[:-1]) == 0
        name, found = started.pop()
        again = modes._sections(name, modes.MODES[name], found)
        assert config_hash(again) == config_hash(told), mode
    row = {"input": "test"}
    assert "--config.data_dir=DATA_DIR" in page_runs.command(kept, [row])


def _line(**changed):
    return read_rows(_RESULTS / "purify_fashion_mnist.jsonl")[2] | changed


@pytest.mark.parametrize(
    "lines, told",
    [
        ("{", "rows.jsonl cannot be read"),
        ("[1]", "not every line is a JSON object"),
        (json.dumps(_line(threat="white-box")), "rows.jsonl, line 1: bim through"),
        (json.dumps(_line(n="many")), "rows.jsonl, line 1: n of a row must be"),
        ("", "has no rows"),
        ('{"attack": 3, "defence": "", "threat": ""}', "that no run wrote"),
    ],
)
def test_rows_that_cannot_be_read_are_told(tmp_path, lines, told):
    (tmp_path / "rows.jsonl").write_text(lines)
    with pytest.raises(UserError, match=told):
        modes.start("report", _config(tmp_path), str(tmp_path.parent / "never"))
    assert not (tmp_path.parent / "never").exists()


def test_arrays_of_something_else_are_told(tmp_path):
    _write(tmp_path / "run", [_line()])
    np.savez(tmp_path / "run/detection.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="holds no arrays of --mode=detect"):
        modes.start("report", _config(tmp_path / "run"), str(tmp_path / "out"))


def test_a_report_does_not_go_into_the_folder_of_the_run(tmp_path):
    _write(tmp_path / "run", [_line()])
    (tmp_path / "run/config.json").write_text('{"mode": "purify"}')
    with pytest.raises(UserError, match="belongs to another mode"):
        modes.start("report", _config(tmp_path / "run"), str(tmp_path / "run"))
    _made(tmp_path / "run", tmp_path / "out")
    _write(tmp_path / "run", [_line(), _line()])  # it went on: the page is made anew
    assert "2 rows" in _made(tmp_path / "run", tmp_path / "out", images=3)
    _write(tmp_path / "other", [_line()])
    with pytest.raises(UserError, match="belongs to another config .*report.input"):
        modes.start("report", _config(tmp_path / "other"), str(tmp_path / "out"))


@pytest.mark.parametrize("low, high", [(0.5, 6.1), (-3.0, 3.0), (1e-7, 3e-7), (2, 2.4)])
def test_axes_have_round_numbers_inside(low, high):
    found = page_charts.round_numbers(low, high)
    assert 2 <= len(found) <= 11 and min(found) >= low and max(found) <= high
    assert all(len(f"{v:g}".strip("-").replace(".", "")) <= 6 for v in found)


@pytest.mark.slow
def test_runs_of_evaluate_and_of_attack_show_their_images(tmp_path):
    for mode, options in (
        ("attack", []),
        (
            "evaluate",
            [
                "--config.evaluate.rows=('fashion_mnist/vgg', "
                "'fashion_mnist/vgg + purify')",
                "--config.evaluate.attacks=('fgsm',)",
            ],
        ),
    ):
        run = tmp_path / mode
        finish(launch(mode, f"--workdir={run}", *options))
        told = _made(run, tmp_path / f"{mode}-page", images=3)
        found = _Page(told).images
        images, labels = data.sample("fashion_mnist")
        each = {"attack": 3, "evaluate": 4}[mode]  # clean, attacked, purified, apart
        assert len(found) == 3 * each
        for source, image in zip(found[::each], images, strict=False):
            png = io.BytesIO(base64.b64decode(source.partition(",")[2]))
            np.testing.assert_array_equal(Image.open(png), image[..., 0])
        guesses = len(re.findall("[✓✗] ", told))
        assert guesses == 3 * (each - 1)
        rows = read_rows(run / "rows.jsonl")
        threats = [row["threat"] for row in rows if row["attack"] == "fgsm"]
        if mode == "evaluate":
            assert threats == ["white-box", "grey-box"]
            name = data.CLASS_NAMES["fashion_mnist"][labels[0]]
            assert f"image 1: {name}" in told


_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_HARNESS = """<body style="margin:0">
<iframe style="width:1280px;height:900px" src="report.html"></iframe>
<iframe style="width:390px;height:800px" src="report.html"></iframe>
<pre id="found"></pre>
<script>
addEventListener('load', () => {
  const found = [...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const of = page.getElementById('rows-table') ?? page.querySelector('table[id]');
    const heads = [...of.tHead.rows[0].cells];
    const i = heads.findIndex(h => h.textContent.startsWith('accuracy'));
    const read = () => [...of.tBodies[0].rows].map(r => Number(r.cells[i].dataset.v));
    const sorts = [];
    for (let turn = 0; turn < 2; turn++) {
      heads[i].querySelector('button').click();
      sorts.push([heads[i].getAttribute('aria-sort'), read()]);
    }
    const box = page.querySelector('input[type=search]');
    let left = null;
    if (box) {
      box.value = 'white-box';
      box.dispatchEvent(new Event('input', {bubbles: true}));
      const shown = page.getElementById(box.dataset.of).tBodies[0].rows;
      const rest = [...shown].filter(row => !row.hidden);
      left = rest.every(row => row.textContent.includes('white-box'));
    }
    return {wide: root.scrollWidth, window: root.clientWidth, sorts, left};
  });
  document.getElementById('found').textContent = JSON.stringify(found);
});
</script>"""


def _browser():
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    return found or pytest.skip(f"no browser: one of {', '.join(_BROWSERS)}")


def _browse(browser, url, *options):
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += ["--hide-scrollbars", "--allow-file-access-from-files", *options, url]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True
    ).stdout


@pytest.mark.slow
@pytest.mark.parametrize("source", ["results", "detect"])
def test_in_a_browser_it_sorts_and_is_no_wider_than_the_window(source, tmp_path, rng):
    browser = _browser()
    folder = _RESULTS
    if source == "detect":
        folder = tmp_path / "run"
        _detection(folder, rng)
    out = tmp_path / "out"
    _made(folder, out)
    (out / "harness.html").write_text(_HARNESS)
    url = pathlib.Path(out / "harness.html").as_uri()
    dumped = _browse(browser, url, "--virtual-time-budget=20000", "--dump-dom")
    told = re.search(r'<pre id="found">(.*?)</pre>', dumped, re.S).group(1)
    desktop, phone = json.loads(told)
    for found, width in ((desktop, 1280), (phone, 390)):
        assert found["window"] == width and found["wide"] <= width
        (rising, up), (falling, down) = found["sorts"]
        assert (rising, falling) == ("ascending", "descending")
        assert up == sorted(up) and down == sorted(up, reverse=True) and len(up) > 3
        assert found["left"] in (True, None)
    for width in (1280, 500):  # a window of fewer pixels there is not
        picture = out / f"{width}.png"
        options = (f"--window-size={width},1200", f"--screenshot={picture}")
        _browse(browser, (out / "report.html").as_uri(), *options)
        with Image.open(picture) as image:
            assert image.size == (width, 1200)
            assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_numbers_of_a_table_stay_whole():
    assert page.number(63763906560).html == "63763906560"
    assert page.number(0.1234567).html == "0.123457"
