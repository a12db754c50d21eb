"""The modes `evaluate` and `calibrate` of purify_adaptive, as a user runs them."""

import json
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import ROOT, environment
from test_main import FASHION, _command, _rows, _run, kill_once

from pixeldefend import attacks
from pixeldefend.defences import base, filters, purification
from pixeldefend.density import likelihood, pixelcnn
from pixeldefend.experiment import data, grid, parallel, store, zoo
from pixeldefend.experiment.tools import Tools
from pixeldefend.experiment.workbench import Workbench
from pixeldefend.models import classifiers

pytestmark = pytest.mark.slow

COUNT = 6
PROVENANCE = ("seconds", "table_seconds", "device", "config", "version")


SCORES = ("bits_per_dim", "half_width_95")


def save(folder, kind, model, seed):
    """A model with random weights, as a release has it."""
    images = jnp.asarray(data.sample("fashion_mnist")[0][:8])
    init = {"classifier": classifiers.init, "pixelcnn": pixelcnn.init}[kind]
    params = init(model, jax.random.key(seed), images)
    card = {
        "kind": kind,
        "dataset": "fashion_mnist",
        "image_shape": [28, 28, 1],
        "training": {"training": "normal"},
    }
    zoo.save_released(folder, model, params, card)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two classifiers and a density model; what they do does not matter here."""
    folder = tmp_path_factory.mktemp("models")
    cnn = classifiers.make("cnn", divisor=16)
    model = pixelcnn.PixelCNN(channels=1, features=4, depth=1, mixtures=2, dropout=0.0)
    return {
        "one8": save(folder / "one8", "classifier", cnn, 1),
        "two": save(folder / "two", "classifier", cnn, 2),
        "density": save(folder / "density", "pixelcnn", model, 0),
        "one": str(folder / "one"),
    }


def _options(models, workdir, **more):
    one, two = models["one"], models["two"]
    rows = (
        f"{one}{{eps}}",
        f"{two} + squeeze",
        f"{one}{{eps}} + purify + squeeze",
        f"{one}{{eps}} + purify_adaptive",
        f"{two} + purify",
    )
    chosen = {
        "evaluate.rows": rows,
        "evaluate.attacks": ("rand", "bim", "deepfool", "cw preset=code images=3"),
        "evaluate.sources": (two,),
        "evaluate.images": COUNT,
        "evaluate.batch": 2,
        "evaluate.threshold": 8.0,
        "pixelcnn.weights": models["density"],
    }
    options = {**chosen, **more}
    texts = [f"--config.{name}={value}" for name, value in options.items()]
    return [*texts, f"--workdir={workdir}"]


def _outcomes(folder):
    return [
        {name: value for name, value in row.items() if name not in PROVENANCE}
        for row in _rows(folder)
    ]


def _bytes(folder):
    return {
        (kind, path.name): np.load(path)["images"].tobytes()
        for kind in ("adversarial", "purified")
        for path in (folder / kind).glob("*.npz")
    }


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = _run(f"{FASHION}:smoke", "evaluate", *_options(models, folder))
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_evaluate_smoke(models, whole):
    folder, printed = whole
    assert "grey-box" in printed and "strongest" in printed
    assert "Transferred: made on" in printed and (folder / "table.md").exists()
    tex = (folder / "table.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") > 1
    assert r"Transferred: made on" in tex and "fashion_" not in tex
    rows = _rows(folder)
    assert not (folder / "parts").exists()
    # 5 rows: clean, 4 attacks, all of those but RAND made elsewhere (except for
    # the two rows of that classifier, of which the squeezed one is attacked through
    # its median), and what survives everything.
    by_attack = {}
    for row in rows:
        by_attack.setdefault((row["attack"], row["threat"]), []).append(row)
        assert row["n"] == (3 if row["attack"] in ("cw", "worst_per_image") else COUNT)
        assert row["eps_attack"] == (0.0 if row["attack"] == "none" else 8.0)
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    counts = {key: len(found) for key, found in by_attack.items()}
    assert counts[("none", None)] == counts[("rand", None)] == 5
    assert counts[("bim", "transfer")] == 3
    assert counts[("bim", "white-box")] == 1
    assert counts[("worst_per_image", "grey-box")] == 4
    squeezed = next(
        r
        for r in rows
        if r["defence"] == "squeeze"
        and r["attack"] == "bim"
        and r["through"] == "median+classifier"
    )
    assert squeezed["threat"] == "grey-box" and squeezed["eps_defend"] == 0
    adaptive = [r for r in rows if r["defence"] == "purify_adaptive"]
    assert all(r["threshold"] == 8.0 and r["eps_defend"] == 32 for r in adaptive)


def test_what_survives_every_attack_is_counted_image_by_image(models, whole):
    """Again from the attacked images, of the row without a defence."""
    folder, _ = whole
    model, variables, _ = zoo.load_released(models["one8"])
    labels = data.sample("fashion_mnist")[1][:3]
    survived = np.ones(3, bool)
    for name in ("rand-*", "bim-*one8-*", "deepfool-*eps8*one8-*", "cw-*eps8*one8-*"):
        (path,) = (
            path
            for path in (folder / "adversarial").glob(name)
            if "squeeze" not in path.name
        )
        with np.load(path) as file:
            logits = classifiers.logits(model, variables, file["images"][:3])
        survived &= np.argmax(logits, -1) == labels
    (worst,) = (
        row
        for row in _rows(folder)
        if row["attack"] == "worst_per_image" and row["defence"] == "none"
    )
    assert worst["correct"] == survived.sum() and worst["threat"] == "white-box"


def test_rows_are_what_the_functions_give_one_by_one(models, whole):
    """Purified, squeezed, classified here, without the workbench."""
    folder, _ = whole
    model, variables, _ = zoo.load_released(models["one8"])
    images, labels = (a[:COUNT] for a in data.sample("fashion_mnist"))
    density_model, params, _ = zoo.load_released(models["density"])

    def attacked(through):
        (path,) = (folder / "adversarial").glob(f"bim*one8{through}-????????.npz")
        with np.load(path) as file:
            found = file["images"]
        assert np.abs(found.astype(int) - images).max() == 8
        return found

    def purified(given):
        function = jax.jit(purification.purify, static_argnums=0)
        return function(density_model, params, given, eps=32)

    bare, median = attacked(""), attacked("-squeeze")
    assert not np.array_equal(bare, median)
    bits = likelihood.bits_per_dim(density_model, params, bare)
    alone = np.asarray(bits < 8.0)[:, None, None, None]
    shown = {
        "none": bare,
        "purify+squeeze": filters.squeeze_features(purified(median), colours=8),
        "purify_adaptive": np.where(alone, bare, purified(bare)),
    }
    found = {
        row["defence"]: row["correct"]
        for row in _rows(folder)
        if row["attack"] == "bim" and row["source"] == models["one8"]
    }
    assert set(found) >= set(shown)
    for defence, given in shown.items():
        guesses = np.argmax(classifiers.logits(model, variables, given), -1)
        right = np.sum(np.asarray(guesses) == labels)
        assert found[defence] == right, defence


def test_evaluate_killed_and_run_again_ends_with_the_same_rows(models, whole, tmp_path):
    folder = tmp_path / "run"
    options = _options(models, folder)
    command = _command(f"{FASHION}:smoke", "evaluate", *options)
    kill_once(command, "parts/purified/*/*/*.npz")
    assert not (folder / "rows.jsonl").exists(), "killed too late to prove anything"
    again = _run(f"{FASHION}:smoke", "evaluate", *options)
    assert again.returncode == 0, again.stderr
    assert _outcomes(folder) == _outcomes(whole[0])
    assert _bytes(folder) == _bytes(whole[0])
    # And a third time there is nothing left to do.
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.npz")}
    subprocess.run(command, cwd=ROOT, env=environment(), check=True)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*.npz")} == times


def test_evaluate_on_four_devices_gives_the_rows_of_one(models, tmp_path):
    for devices in (1, 4):
        place = tmp_path / str(devices)
        options = _options(models, place, **{"evaluate.batch": 1})
        found = _run(f"{FASHION}:smoke", "evaluate", *options, devices=devices)
        assert found.returncode == 0, found.stderr
    one, four = (_outcomes(tmp_path / name) for name in ("1", "4"))
    # Bytes are equal; float32 scores of them to their last digits.
    scores = [[[r.pop(n, 0) for n in SCORES] for r in rows] for rows in (one, four)]
    np.testing.assert_allclose(*scores, atol=2e-4)
    assert one == four
    assert _bytes(tmp_path / "1") == _bytes(tmp_path / "4")


def _workbench(folder, models, name="two", step=1):
    loaded = {models["two"]: zoo.load_released(models[name])}
    tools = Tools(loaded, {}, {}, seed=0, batch=1)
    given = data.read_input("fashion_mnist", "sample", 24, (28, 28, 1), None)
    given = given._replace(images=given.images[::step].copy())
    return Workbench(folder, given, tools)


def test_what_an_interrupted_run_made_is_not_made_again(models, tmp_path, monkeypatch):
    """Six batches; the third is lost while it is written, the fourth is begun."""
    bench = _workbench(tmp_path / "a", models)
    adversary = grid.adversary_for(
        grid.Pipeline(models["two"]), grid.column("fgsm"), 8.0
    )
    expected = bench.attacked(adversary)["images"]
    taken, begun = [], []
    add, given_rows = store.Unfinished.add, parallel.BatchMap._given

    def dies(self, rows, result, seconds):
        taken.append(len(result["images"]))
        if len(taken) == 3:
            raise KeyboardInterrupt
        add(self, rows, result, seconds)

    def counted(self, rows, arrays):
        begun.append(int(rows[0]))
        return given_rows(self, rows, arrays)

    monkeypatch.setattr(store.Unfinished, "add", dies)
    monkeypatch.setattr(parallel.BatchMap, "_given", counted)
    with pytest.raises(KeyboardInterrupt):
        _workbench(tmp_path / "b", models).attacked(adversary)
    found = _workbench(tmp_path / "b", models).attacked(adversary)["images"]
    np.testing.assert_array_equal(found, expected)
    assert len(taken) == 6 + 1
    # The first of each run's is to compile.
    assert begun == [0, 0, 4, 8, 12, 0, 8, 12, 16, 20]


def test_files_of_other_images_or_weights_are_made_anew(models, tmp_path):
    adversary = grid.adversary_for(
        grid.Pipeline(models["two"]), grid.column("fgsm"), 8.0
    )
    bench = _workbench(tmp_path, models)
    first = bench.attacked(adversary)["images"]
    turned = _workbench(tmp_path, models, step=-1)
    assert not np.array_equal(turned.attacked(adversary)["images"], first)
    (path,) = (tmp_path / "adversarial").glob("*.npz")
    path.write_bytes(b"damaged")
    np.testing.assert_array_equal(bench.attacked(adversary)["images"], first)
    other = _workbench(tmp_path, models, "one8")  # under the same name
    assert not np.array_equal(other.attacked(adversary)["images"], first)


def test_the_threshold_of_the_adaptive_defence(models, tmp_path):
    options = [
        "--config.calibrate.defences=('purify_adaptive',)",
        "--config.calibrate.images=4",
        f"--config.classifier.weights={models['one']}{{eps}}",
        f"--config.pixelcnn.weights={models['density']}",
        "--config.calibrate.keep=True",
        f"--workdir={tmp_path}/run",
    ]
    result = _run(f"{FASHION}:smoke", "calibrate", *options)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "run/threshold.json").read_text())
    curve = found["curve"]
    assert found["threshold"] in curve["threshold"] and found["n"] == 4
    assert set(curve["strongest"]) == {"8"} == set(curve["clean"])
    lengths = {len(curve["strongest"]["8"]), len(curve["clean"]["8"])}
    assert lengths == {len(curve["threshold"])}
    chosen = curve["threshold"].index(found["threshold"])
    strongest = np.array(curve["strongest"]["8"])
    assert np.all(strongest[: chosen + 1] >= strongest[0])
    _, _, card = zoo.load_released(models["density"])
    assert card["adaptive"] == found
    assert f"threshold {found['threshold']:.2f}" in result.stdout
    # The next run takes it from there, and finds what the curve says.
    same = {
        "evaluate.rows": (f"{models['one']}{{eps}} + purify_adaptive",),
        "evaluate.attacks": ("rand", "bim", "cw preset=code images=2"),
        "evaluate.sources": (),
        "evaluate.images": 4,
        "evaluate.batch": 4,
        "evaluate.threshold": -1.0,
    }
    options = _options(models, tmp_path / "next", **same)
    result = _run(f"{FASHION}:smoke", "evaluate", *options)
    assert result.returncode == 0, result.stderr
    rows = _rows(tmp_path / "next")
    assert {row["threshold"] for row in rows} == {found["threshold"]}
    by_attack = {row["attack"]: row["accuracy"] for row in rows}
    assert by_attack.pop("none") == curve["clean"]["8"][chosen]
    del by_attack["worst_per_image"]
    assert min(by_attack.values()) == strongest[chosen]


def test_an_attack_through_the_purifier_is_white_box(models, tmp_path):
    """What the workbench attacks is what the functions give, one by one."""
    one = models["one8"]
    rows = (f"{one} + purify", f"{one} + purify_adaptive")
    chosen = {
        "evaluate.rows": rows,
        "evaluate.attacks": ("bim", "bim through=bpda"),
        "evaluate.sources": (),
        "evaluate.images": 2,
        "evaluate.threshold": 5.5,
    }
    options = _options(models, tmp_path / "run", **chosen)
    result = _run(f"{FASHION}:smoke", "evaluate", *options)
    assert result.returncode == 0, result.stderr
    assert "bim (bpda)" in result.stdout
    through = {
        (row["defence"], row["through"]): row["threat"]
        for row in _rows(tmp_path / "run")
        if row["attack"] == "bim"
    }
    assert through == {
        ("purify", "classifier"): "grey-box",
        ("purify", "purify+classifier"): "white-box",
        ("purify_adaptive", "classifier"): "grey-box",
        ("purify_adaptive", "purify_adaptive+classifier"): "white-box",
    }
    worst = [r for r in _rows(tmp_path / "run") if r["attack"] == "worst_per_image"]
    assert {row["threat"] for row in worst} == {"white-box"}
    model, variables, _ = zoo.load_released(one)
    density_model, params, _ = zoo.load_released(models["density"])
    images, labels = (a[:2] for a in data.sample("fashion_mnist"))
    purify = purification.Purify(density_model)
    seen = base.behind((purify,), classifiers.logits_fn(model))
    its = {"params": params, "eps": jnp.int32(32)}
    given = {"classifier": variables, "defences": (its,)}
    expected, _ = jax.jit(attacks.named("bim"), static_argnums=0)(
        seen, given, images, labels, eps=8.0
    )
    (path,) = (tmp_path / "run/adversarial").glob("*-purify-bpda-????????.npz")
    with np.load(path) as file:
        np.testing.assert_array_equal(file["images"], expected)


def test_a_table_is_extended_where_it_lies(models, whole, tmp_path):
    """Another threshold and fewer rows: nothing is attacked or purified again."""
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    kinds = ("adversarial", "purified")
    before = {p: p.read_bytes() for k in kinds for p in (folder / k).iterdir()}
    rows = (f"{models['one']}{{eps}} + purify_adaptive",)
    options = {"evaluate.rows": rows, "evaluate.threshold": 0.0}
    result = _run(f"{FASHION}:smoke", "evaluate", *_options(models, folder, **options))
    assert result.returncode == 0, result.stderr
    assert {row["threshold"] for row in _rows(folder)} == {0.0}
    assert {p: p.read_bytes() for k in kinds for p in (folder / k).iterdir()} == before
