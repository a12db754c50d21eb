"""Figures of the thesis: what they show is what the rows and arrays say."""

import json

import matplotlib.text
import ml_collections
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from pixeldefend.experiment import data
from reproduction import figures, plots, schematics

DATASET = "fashion_mnist"  # with the longest names of classes
EPS = [round(2.55 * i, 2) for i in (2, 8, 15, 22, 30)]
ATTACKS = ("fgsm", "bim", "pgd")
PLAIN = ("none", "puvae", "magnet")
DETECTORS = ("reject_rmse+puvae", "reject_magnet+magnet", "reject_p_value+puvae")
FRAMED = plots.COLOURS[3].lower()
OF_ARRAYS = {"thesis_figure_01", "thesis_figure_06", "thesis_appendix"}
OF_ROWS = {"thesis_figure_07", "thesis_figure_08", "rejection"}
OF_NOTHING = {f"thesis_figure_0{i}" for i in range(2, 6)}


def _rows(rng):
    rows = []

    def add(defence, attack, eps, slope=None, fractional=True, classifier="a"):
        shares = rng.dirichlet([3, 1, 3]).round(4)
        right, wrong, rejected = map(float, shares)
        row = {"classifier": classifier, "defence": defence, "attack": attack}
        row["preset"] = None if attack in ("none", "evade") else "thesis"
        row |= {"slope": slope, "eps_attack": eps, "n": 100}
        if fractional and attack != "none":
            row["levels"] = "fractional"
        if defence in DETECTORS:
            row |= {"right": right, "wrong": wrong, "rejected": rejected}
            right += rejected if attack != "none" else 0
        low, high = max(right - 0.05, 0), min(right + 0.05, 1)
        rows.append(row | {"accuracy": right, "low": low, "high": high})

    for defence in (*PLAIN, *DETECTORS):
        add(defence, "none", 0)
        for attack in ATTACKS:
            for eps in EPS[::-1]:
                # What must not be drawn: whole levels, another classifier.
                add(defence, attack, eps, fractional=False)
                add(defence, attack, eps)
                add(defence, attack, eps, classifier="b")
                if "puvae" in defence:
                    add(defence, attack, eps, slope="straight_through")
    # An attack that knows detectors, with a larger eps than the others too.
    for eps in (EPS[2], EPS[-1], 100.0):
        add(DETECTORS[0], "evade", eps, slope="straight_through", fractional=False)
        add(DETECTORS[1], "evade", eps, fractional=False)
    return rows


def _arrays(rng, count=12):
    def levels(*shape):
        return rng.uniform(0, 255, (*shape, 28, 28, 1)).astype(np.float32)

    found = {"strengths/eps": np.float32(EPS)}
    found |= {f"strengths/{name}": levels(len(EPS)) for name in ("fgsm", "pgd")}
    found |= {"labels": rng.integers(0, 10, count), "eps": np.float32(EPS[-1])}
    for name in ("clean", "pgd"):
        found[f"given/{name}"] = levels(count)
        found[f"rebuilt/{name}"] = levels(count, 10).astype(np.uint8)
        found[f"distances/{name}"] = rng.uniform(5, 90, (count, 10)).astype(np.float32)
    found["given/clean"] = found["given/clean"].astype(np.uint8)
    return found


def _config(results, to):
    figures = {"results": str(results), "to": str(to)}
    return ml_collections.ConfigDict({"figures": figures})


def _drawn(results, rows=None, arrays=None):
    """The figures that the mode draws from these, by name."""
    (results / "arrays").mkdir(parents=True)
    if rows is not None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (results / f"sweep_{DATASET}.jsonl").write_text(text)
    if arrays is not None:
        np.savez(results / f"arrays/sweep_{DATASET}.npz", **arrays)
    kept = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", lambda figure, path: kept.update({path: figure}))
        figures.figures(_config(results, results / "pictures"), None)
    return {path.stem.removesuffix(f"_{DATASET}"): kept[path] for path in kept}


@pytest.fixture(scope="module")
def rows():
    return _rows(np.random.default_rng(0))


@pytest.fixture(scope="module")
def arrays():
    return _arrays(np.random.default_rng(1))


@pytest.fixture(scope="module")
def drawn(rows, arrays, tmp_path_factory):
    return _drawn(tmp_path_factory.mktemp("all") / "results", rows, arrays)


def _curve(rows, defence, attack, slope=None):
    """The rows that are to be drawn, by rising eps."""
    wanted = {"classifier": "a", "defence": defence, "attack": attack, "slope": slope}
    wanted["levels"] = "fractional"
    found = [row for row in rows if wanted.items() <= row.items()]
    return sorted(found, key=lambda row: row["eps_attack"])


def _values(curve, field):
    return 100 * np.array([row[field] for row in curve])


def _lines(axis, curve, field):
    """The lines of an axis that show a field of a curve."""
    eps = np.array([row["eps_attack"] for row in curve]) / 255
    found = []
    for line in axis.lines:
        x, y = line.get_data()
        if len(x) == len(eps) and np.allclose(y, _values(curve, field), rtol=1e-6):
            np.testing.assert_allclose(x, eps, rtol=1e-6)
            found.append(line)
    return found


def _diamonds(axis):
    return {
        to_hex(line.get_color()): tuple(np.ravel(line.get_data()))
        for line in axis.lines
        if line.get_marker() == "D"
    }


def _images(axis):
    return np.asarray(axis.images[0].get_array())


def _framed(axis):
    return to_hex(axis.spines["left"].get_edgecolor()) == FRAMED


def _saved(figure, path, monkeypatch):
    """The picture's pixels, and all texts that are in it with their places."""
    found = {}
    draw = matplotlib.text.Text.draw

    def noting(self, renderer, *args, **options):
        if self.get_visible() and self.get_text().strip():
            found[self] = self.get_window_extent(renderer)
        return draw(self, renderer, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(matplotlib.text.Text, "draw", noting)
        plots.save(figure, path)
    return np.asarray(Image.open(path).convert("L")), found


def test_every_figure_is_drawn(drawn):
    assert set(drawn) == OF_ARRAYS | OF_ROWS | OF_NOTHING


@pytest.mark.parametrize("name", sorted(OF_ARRAYS | OF_ROWS | OF_NOTHING))
def test_no_text_is_cut_or_covers_another(drawn, name, tmp_path, monkeypatch):
    pixels, found = _saved(drawn[name], tmp_path / "picture.png", monkeypatch)
    high, wide = pixels.shape
    assert 880 <= wide <= 1000 and pixels.std() > 5
    boxes = list(found.items())
    assert len(boxes) > 5
    for i, (text, box) in enumerate(boxes):
        # A pixel is left for what the renderer rounds.
        assert -1 <= box.x0 and box.x1 <= wide + 1, text
        assert -1 <= box.y0 and box.y1 <= high + 1, text
        for other, second in boxes[i + 1 :]:
            across = min(box.x1, second.x1) - max(box.x0, second.x0)
            up = min(box.y1, second.y1) - max(box.y0, second.y0)
            assert min(across, up) <= 1, (text, other)


def test_parts_that_are_missing_are_left_out(rows, rng, tmp_path):
    arrays = _arrays(rng, 2)
    assert set(_drawn(tmp_path / "rows", rows)) == OF_ROWS | OF_NOTHING
    assert set(_drawn(tmp_path / "arrays", None, arrays)) == OF_ARRAYS | OF_NOTHING
    some = {k: v for k, v in arrays.items() if k != "distances/pgd"}
    del some["strengths/fgsm"]
    some_rows = [r for r in rows if r["attack"] != "bim" and r["defence"] in PLAIN]
    found = _drawn(tmp_path / "some", some_rows, some)
    assert set(found) == OF_ARRAYS | OF_NOTHING | {"thesis_figure_07"}
    assert len(found["thesis_figure_01"].axes) == len(EPS)
    assert len(found["thesis_figure_06"].axes) == 11
    panels = found["thesis_figure_07"].axes
    assert [axis.get_title() for axis in panels] == ["FGSM", "PGD"]
    assert not any(_diamonds(axis) for axis in panels)
    nothing = {"labels": arrays["labels"]}
    clean = [row for row in rows if row["attack"] == "none"]
    results = tmp_path / "nothing"
    with pytest.raises(Exception, match="--mode=sweep as sweep.npz"):
        _drawn(results, clean, nothing)


def test_accuracies_are_those_of_the_rows(drawn, rows):
    panels = drawn["thesis_figure_07"].axes
    assert [axis.get_title() for axis in panels] == ["FGSM", "BIM", "PGD"]
    for axis, attack in zip(panels, ATTACKS, strict=True):
        for defence in ("none", "puvae", DETECTORS[0]):
            curve = _curve(rows, defence, attack)
            (line,) = _lines(axis, curve, "accuracy")
            assert line.get_linestyle() == "-"
            assert (line.get_linewidth() < 1) == (defence == "none")
            white = _curve(rows, defence, attack, "straight_through")
            if white:
                (dashed,) = _lines(axis, white, "accuracy")
                assert dashed.get_linestyle() == "--"
                assert dashed.get_color() == line.get_color()
        # Five curves and a diamond; nothing of other classifiers or whole levels.
        assert len(axis.lines) == 6 and len(axis.collections) == 5
        ends = {
            tuple(np.round(np.unique(band.get_paths()[0].vertices[:, 1]), 6))
            for band in axis.collections
        }
        curve = _curve(rows, DETECTORS[0], attack)
        both = np.concatenate([_values(curve, "low"), _values(curve, "high")])
        assert tuple(np.round(np.unique(both), 6)) in ends


def test_diamonds_are_where_the_detector_is_least_accurate(drawn, rows):
    every = {}
    for axis, attack in zip(drawn["thesis_figure_07"].axes, ATTACKS, strict=True):
        curve = _curve(rows, DETECTORS[0], attack)
        every[attack] = least = min(curve, key=lambda row: row["accuracy"])
        (line,) = _lines(axis, curve, "accuracy")
        at = least["eps_attack"] / 255, 100 * least["accuracy"]
        marks = _diamonds(axis)
        assert list(marks) == [to_hex(line.get_color())]
        np.testing.assert_allclose(list(marks.values())[0], at, rtol=1e-6)
    (axis,) = drawn["thesis_figure_08"].axes
    marks = _diamonds(axis)
    for attack, least in every.items():
        (line,) = _lines(axis, _curve(rows, DETECTORS[0], attack), "rejected")
        at = least["eps_attack"] / 255, 100 * least["rejected"]
        np.testing.assert_allclose(marks[to_hex(line.get_color())], at, rtol=1e-6)
    assert len(marks) == 3


def test_rejected_shares_are_those_of_the_rows(drawn, rows):
    (axis,) = drawn["thesis_figure_08"].axes
    for attack in ATTACKS:
        for slope, dash in ((None, "-"), ("straight_through", "--")):
            curve = _curve(rows, DETECTORS[0], attack, slope)
            (line,) = _lines(axis, curve, "rejected")
            assert line.get_linestyle() == dash
    assert len(axis.lines) == 9


def test_bars_are_those_of_the_largest_eps(drawn, rows):
    panels = drawn["rejection"].axes
    evading = [["EVADE"], ["EVADE"], []]
    for axis, defence, more in zip(panels, DETECTORS, evading, strict=True):
        titles = [tick.get_text() for tick in axis.get_xticklabels()]
        assert titles == ["clean", "FGSM", "BIM", "PGD", *more]
        heights = [bar.get_height() for bar in axis.patches]
        expected = []
        for attack in ("none", *ATTACKS, *map(str.lower, more)):
            (row,) = [
                row
                for row in rows
                if (row["classifier"], row["defence"]) == ("a", defence)
                and row["attack"] == attack
                and row["eps_attack"] == (0 if attack == "none" else EPS[-1])
                and (row["slope"] is None or attack == "evade")
                and (row.get("levels") or attack not in ATTACKS)
            ]
            expected += [100 * row[of] for of in ("right", "rejected", "wrong")]
        np.testing.assert_allclose(heights, expected)


def test_images_of_rising_eps_are_those_of_the_arrays(drawn, arrays):
    axes = np.reshape(drawn["thesis_figure_01"].axes, (2, len(EPS)))
    for own, attack in zip(axes, ("fgsm", "pgd"), strict=True):
        assert own[0].get_ylabel() == attack.upper()
        texts = [axis.get_xlabel() for axis in own]
        assert texts == ["0.02", "0.08", "0.15", "0.22", "0.30"]
        for axis, image in zip(own, arrays[f"strengths/{attack}"], strict=True):
            np.testing.assert_array_equal(_images(axis), image[..., 0].round())


def test_the_nearest_reconstruction_is_framed(drawn, arrays):
    axes = np.reshape(drawn["thesis_figure_06"].axes, (2, 11))
    for (given, *own), name in zip(axes, ("clean", "pgd"), strict=True):
        distances = arrays[f"distances/{name}"][0]
        first = arrays[f"given/{name}"][0, ..., 0]
        np.testing.assert_array_equal(_images(given), first.round())
        assert [k for k in range(10) if _framed(own[k])] == [distances.argmin()]
        for k, axis in enumerate(own):
            image = arrays[f"rebuilt/{name}"][0, k, ..., 0]
            np.testing.assert_array_equal(_images(axis), image)
            assert axis.get_xlabel() == f"{distances[k] / 255:.3f}"


def test_reconstructions_are_the_nearest_and_framed_where_of_another_label(
    drawn, arrays
):
    names = data.CLASS_NAMES[DATASET]
    # Twelve images: ten, and two in a second block.
    axes = np.reshape(drawn["thesis_appendix"].axes, (2, 4, 10))
    assert not axes[1, :, 2:].any() or not any(a.images for a in axes[1, :, 2:].flat)
    for i, label in enumerate(arrays["labels"]):
        own = axes[i // 10, :, i % 10]
        assert own[0].get_title() == names[label]
        for (given, rebuilt), name in zip(
            (own[:2], own[2:]), ("clean", "pgd"), strict=True
        ):
            nearest = arrays[f"distances/{name}"][i].argmin()
            whole = arrays[f"given/{name}"][i, ..., 0].round()
            np.testing.assert_array_equal(_images(given), whole)
            image = arrays[f"rebuilt/{name}"][i, nearest, ..., 0]
            np.testing.assert_array_equal(_images(rebuilt), image)
            assert rebuilt.get_xlabel() == names[nearest]
            assert _framed(rebuilt) == (nearest != label)


def test_slopes_are_those_of_the_loss(rng):
    points = rng.uniform(-1.5, 1.5, (20, 2))
    slopes = schematics.gradient(points)
    for axis, step in enumerate(1e-5 * np.eye(2)):
        rise = schematics.loss(points + step) - schematics.loss(points - step)
        np.testing.assert_allclose(slopes[:, axis], rise / 2e-5, atol=1e-6)


def test_paths_are_those_of_the_attacks(drawn):
    paths = schematics.paths()
    assert len(paths["fgsm"]) == 2
    np.testing.assert_array_equal(np.abs(paths["fgsm"][1]), 1)
    for name in ("fgsm", "bim"):
        np.testing.assert_array_equal(paths[name][0], 0)
    assert np.abs(paths["pgd"][0]).min() > 0.1
    for name in ("bim", "pgd"):
        points = paths[name]
        assert np.abs(points).max() == 1  # at the edge, and not past it
        moved = points[:-1] + 0.15 * np.sign(schematics.gradient(points[:-1]))
        np.testing.assert_allclose(points[1:], np.clip(moved, -1, 1))
    ends = [schematics.loss(paths[name][-1]) for name in ATTACKS]
    assert ends == sorted(ends)
    for axis, name in zip(drawn["thesis_figure_02"].axes, ATTACKS, strict=False):
        np.testing.assert_array_equal(
            np.stack(axis.lines[0].get_data(), -1), paths[name]
        )
        (square,) = axis.patches
        assert square.get_bbox().extents.tolist() == [-1, -1, 1, 1]
        assert axis.get_xlabel().endswith(f"{schematics.loss(paths[name][-1]):.2f}")


def test_only_the_boundary_with_a_margin_leaves_every_ball_whole(drawn):
    across = np.linspace(-1, 1, 81)
    ball = np.stack(np.meshgrid(across, across), -1).reshape(-1, 2)
    left, _ = drawn["thesis_figure_03"].axes
    squares = [patch.get_bbox().extents for patch in left.patches]
    cut = {}
    for radius in (0.0, (squares[0][2] - squares[0][0]) / 2):
        weights = schematics.boundary(radius)
        cut[bool(radius)] = 0
        for i, (x0, y0, x1, y1) in enumerate(squares):
            centre, half = np.array([x0 + x1, y0 + y1]) / 2, (x1 - x0) / 2
            first = i < len(squares) // 2
            assert (schematics.side(weights, centre) > 0) == first
            sides = schematics.side(weights, centre + half * ball) > 0
            cut[bool(radius)] += np.any(sides != first)
    assert cut[False] >= 3 and cut[True] == 0


def test_only_the_second_scheme_rejects(drawn):
    texts = [
        {text.get_text() for text in drawn[f"thesis_figure_{n}"].axes[0].texts}
        for n in ("04", "05")
    ]
    assert texts[1] - texts[0] == {"RMSE\nabove $t$?", "rejected as\nattacked"} | {
        "yes",
        "no",
    }
