"""The modes `detect`, and those of `python -m reproduction`, as users run them."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics
from test_main import FASHION, _rows, _run
from test_main_evaluate import models  # noqa: F401, a fixture

from pixeldefend import attacks, detection
from pixeldefend.defences import base, drift, purification
from pixeldefend.density import likelihood
from pixeldefend.experiment import data, zoo
from pixeldefend.models import classifiers

pytestmark = pytest.mark.slow

COUNT = 6


def _options(folder, workdir, **more):
    chosen = {
        "pixelcnn.weights": str(folder / "density"),
        "classifier.weights": str(folder / "one8"),
        "detect.classifier": str(folder / "one8"),
        "evaluate.attacks": ("rand", "bim"),
        "evaluate.images": COUNT,
        "evaluate.batch": 2,
    } | more
    texts = [f"--config.{name}={value}" for name, value in chosen.items()]
    return [*texts, f"--workdir={workdir}"]


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):  # noqa: F811
    """The models of `evaluate`'s tests, the density model with reference scores."""
    folder = tmp_path_factory.mktemp("detect")
    for name in ("one8", "density"):
        shutil.copytree(models[name], folder / name)
    model, params, _ = zoo.load_released(str(folder / "density"))
    images = data.sample("fashion_mnist")[0][100:140]
    scores = jax.jit(likelihood.log_prob, static_argnums=0)(model, params, images)
    np.save(folder / "density" / "reference.npy", np.sort(scores))
    return folder


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    """One run of `detect`."""
    workdir = tmp_path_factory.mktemp("runs") / "detect"
    options = _options(folder, workdir)
    result = _run(f"{FASHION}:smoke", "detect", *options)
    assert result.returncode == 0, result.stderr
    with np.load(workdir / "detection.npz") as arrays:
        return workdir, dict(arrays), result.stdout


def test_rows_say_what_the_functions_and_scikit_learn_say(found, folder):
    workdir, arrays, printed = found
    rows = [row for row in _rows(workdir) if row["attack"] != "evade"]
    assert [(row["attack"], row["defence"]) for row in rows] == [
        (attack, defence)
        for attack in ("none", "rand", "bim")
        for defence in ("none", "purify")
    ]
    reference = arrays["reference"]
    model, params, _ = zoo.load_released(str(folder / "density"))
    clean = data.sample("fashion_mnist")[0][:COUNT]
    log_prob = jax.jit(likelihood.log_prob, static_argnums=0)
    np.testing.assert_allclose(
        arrays["8/none/none/log_probs"], log_prob(model, params, clean), rtol=1e-5
    )
    for row in rows:
        scores = arrays[f"8/{row['attack']}/{row['defence']}/log_probs"]
        truth = [0] * len(reference) + [1] * len(scores)
        area = metrics.roc_auc_score(truth, -np.concatenate([reference, scores]))
        assert row["auc"] == pytest.approx(area, abs=1e-4)
        ranks = np.asarray(detection.p_values(scores, reference))
        assert row["p_below_0.05"] == pytest.approx(np.mean(ranks < 0.05), abs=1e-4)
        assert row["p_above_0.95"] == pytest.approx(np.mean(ranks > 0.95), abs=1e-4)
        assert row["threat"] == ("grey-box" if row["attack"] == "bim" else None)
        bar = detection.threshold_for(arrays["calibration"], false_positive_rate=0.05)
        rejected = scores < float(bar)
        assert row["rejected"]["0.05"] == pytest.approx(np.mean(rejected), abs=1e-4)
        right = arrays[f"8/{row['attack']}/{row['defence']}/correct"]
        assert row["accuracy"] == pytest.approx(np.mean(right), abs=1e-4)
        passed = np.mean(~right & ~rejected)
        assert row["passed"]["0.05"] == pytest.approx(passed, abs=1e-4)
        # A random label is right for some of the rejected, and changes no other.
        guessed = row["random_label_accuracy"]["0.05"]
        kept = np.mean(right & ~rejected)
        assert kept - 1e-4 <= guessed <= kept + np.mean(rejected) + 1e-4
    assert "two-sided" in printed and "(white-box)" in printed


def test_evading_images_get_past_what_they_were_made_for(found, folder):
    workdir, arrays, _ = found
    rows = [row for row in _rows(workdir) if row["attack"] == "evade"]
    assert {row["threat"] for row in rows} == {"white-box"}
    assert {row["through"] for row in rows} == {"detector+classifier"}
    assert len(rows) == 1 and rows[0]["n"] == 2
    model, variables, _ = zoo.load_released(str(folder / "one8"))
    density_model, params, _ = zoo.load_released(str(folder / "density"))
    bar = detection.threshold_for(arrays["calibration"], false_positive_rate=0.05)
    images, labels = (a[:2] for a in data.sample("fashion_mnist"))
    of_classifier = classifiers.logits_fn(model)
    expected, info = jax.jit(
        lambda variables, images, labels: attacks.evade(
            lambda v, x: of_classifier(v["classifier"], x),
            lambda v, x: likelihood.log_prob(density_model, v["params"], x),
            variables,
            images,
            labels,
            eps=8.0,
            threshold=bar,
            keep_failed=True,
        )
    )({"classifier": variables, "params": params}, images, labels)
    assert np.any(np.asarray(info.distance) > 0)
    assert rows[0]["passed"]["0.05"] == pytest.approx(
        float(np.mean(info.success)), abs=1e-4
    )
    (path,) = (workdir / "adversarial").glob("evade*.npz")
    with np.load(path) as made:
        np.testing.assert_array_equal(made["images"], expected)


def test_detect_tells_what_is_wrong(folder, models, tmp_path):  # noqa: F811
    for options, message in (
        ({"pixelcnn.weights": models["density"]}, "has no scores of training images"),
        ({"detect.false_positive_rates": (0.0,)}, "between 0 and 1: 0.0"),
        ({"evaluate.attacks": ("bim through=bpda",)}, "detect takes no through="),
        ({"detect.classifier": "a/b + purify"}, "takes no defences"),
        ({"detect.classifier": "a/b{eps}"}, "must be one network"),
        ({"evaluate.attacks": ("bim", "bim eps=4")}, "has bim twice"),
        ({"detect.evading_rate": 0.5}, "one of the false_positive_rates: 0.5"),
        ({"detect.examples": -1}, "detect.examples must not be negative"),
    ):
        given = _options(folder, tmp_path / "run", **options)
        result = _run(f"{FASHION}:smoke", "detect", *given)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert not (tmp_path / "run").exists()


def test_searches_are_kept_and_compared_with_greedy_decoding(folder, tmp_path):
    options = _options(folder, tmp_path / "run")
    result = _run(f"{FASHION}:smoke", "compare_purifiers", *options)
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "run/purifiers.npz") as file:
        arrays = dict(file)
    rows = {row["stage"]: row for row in _rows(tmp_path / "run")}
    model, params, _ = zoo.load_released(str(folder / "density"))
    classifier, variables, _ = zoo.load_released(str(folder / "one8"))
    images, labels = (a[:2] for a in data.sample("fashion_mnist"))
    attacked, _ = attacks.fgsm(
        classifiers.logits_fn(classifier),
        variables,
        images,
        labels,
        eps=8,
        keep_failed=True,
    )
    bits = jax.jit(likelihood.bits_per_dim, static_argnums=0)
    np.testing.assert_allclose(
        arrays["perturbed"], bits(model, params, attacked), rtol=1e-5
    )
    purified = jax.jit(purification.purify, static_argnums=0)(
        model, params, attacked, eps=32
    )
    np.testing.assert_allclose(
        arrays["purified"], bits(model, params, purified), rtol=1e-4
    )
    ended = [np.load(tmp_path / f"run/searches/{i}.npz")["images"] for i in range(2)]
    for i, its in enumerate(ended):
        assert its.shape == (3, 28, 28, 1) and its.dtype == np.uint8
        moved = np.abs(its.astype(int) - np.asarray(attacked)[i].astype(int))
        assert moved.max() <= 32
        np.testing.assert_allclose(
            arrays["lbfgs_b"][i], bits(model, params, its), rtol=1e-5
        )
    worse = np.mean(arrays["lbfgs_b"] > arrays["perturbed"][:, None])
    assert rows["lbfgs_b"]["less_likely_than_attacked"] == pytest.approx(
        worse, abs=1e-4
    )
    # Once more: nothing is searched again, and one that is damaged is.
    before = {p: p.read_bytes() for p in (tmp_path / "run/searches").iterdir()}
    (tmp_path / "run/searches/1.npz").write_bytes(b"damaged")
    again = _run(f"{FASHION}:smoke", "compare_purifiers", *options)
    assert again.returncode == 0, again.stderr
    with np.load(tmp_path / "run/searches/1.npz") as file:
        np.testing.assert_array_equal(file["images"], ended[1])
    first = tmp_path / "run/searches/0.npz"
    assert first.read_bytes() == before[first]


def test_drift_is_told_and_kept_on_the_card(folder, tmp_path):
    card = folder / "density/card.json"
    before = card.read_text()
    options = _options(folder, tmp_path / "run", **{"drift.keep": True})
    result = _run(f"{FASHION}:smoke", "drift", *options)
    assert result.returncode == 0, result.stderr
    rows = {row["context"]: row for row in _rows(tmp_path / "run")}
    assert tuple(rows) == drift.CONTEXTS
    kept = zoo.load_card(folder / "density")["drift"]
    card.write_text(before)
    for name, row in rows.items():
        for field in ("bits_per_dim", "mended", "low", "high"):
            assert kept["contexts"][name][field] == row[field]
    assert kept["n"] == 4 and kept["attack"] == "bim" and kept["eps_attack"] == 8
    model, params, _ = zoo.load_released(str(folder / "density"))
    classifier, variables, _ = zoo.load_released(str(folder / "one8"))
    images, labels = (a[:4] for a in data.sample("fashion_mnist"))
    logits_fn = classifiers.logits_fn(classifier)
    attacked, _ = attacks.bim(
        logits_fn, variables, images, labels, eps=8, keep_failed=True
    )
    found = drift.drift(model, params, jnp.asarray(images), attacked, eps=32)
    for name, step in found.items():
        bits = float(np.mean(step.bits))
        assert rows[name]["bits_per_dim"] == pytest.approx(bits, abs=2e-3)
        right = attacks.predicted(logits_fn, variables, step.levels) == labels
        right = float(np.mean(np.asarray(right)))
        assert rows[name]["mended"] == pytest.approx(right, abs=1e-4)


def test_gradients_are_those_of_the_functions(folder, tmp_path):
    options = _options(folder, tmp_path / "run")
    result = _run(f"{FASHION}:smoke", "gradients", *options)
    assert result.returncode == 0, result.stderr
    rows = {row["slope"]: row for row in _rows(tmp_path / "run")}
    assert list(rows) == [None, *base.GRADIENTS]
    classifier, variables, _ = zoo.load_released(str(folder / "one8"))
    model, params, _ = zoo.load_released(str(folder / "density"))
    images, labels = (a[:4] for a in data.sample("fashion_mnist"))
    logits_fn = classifiers.logits_fn(classifier)
    purified = jax.jit(purification.purify, static_argnums=0)(
        model, params, images, eps=32
    )

    def loss(levels):
        log_probs = jax.nn.log_softmax(logits_fn(variables, levels))
        return -jnp.sum(jnp.take_along_axis(log_probs, labels[:, None], 1))

    for name, shown in ((None, images), ("bpda", purified)):
        slope = jax.grad(loss)(jnp.asarray(shown, jnp.float32))
        norms = np.linalg.norm(np.asarray(slope).reshape(4, -1), axis=-1)
        assert rows[name]["norm"] == pytest.approx(np.median(norms), rel=1e-3)
    assert rows[None]["cosine"] == 1 and rows[None]["same_sign"] == 1
    assert rows["bpda"]["cosine"] < 1
    assert all(row["n"] == 4 for row in rows.values())


def test_figures_are_drawn_from_what_detect_left(found, tmp_path):
    workdir, arrays, _ = found
    results = tmp_path / "results"
    (results / "arrays").mkdir(parents=True)
    shutil.copy(
        workdir / "detection.npz", results / "arrays/detection_fashion_mnist.npz"
    )
    to = tmp_path / "pictures"
    options = [f"--config.figures.results={results}", f"--config.figures.to={to}"]
    result = _run(f"{FASHION}:smoke", "figures", *options)
    assert result.returncode == 0, result.stderr
    names = sorted(path.name for path in to.iterdir())
    assert names == [
        f"figure_{number}_fashion_mnist.{ending}"
        for number in ("01", "02a", "02b", "03", "04", "06", "07")
        for ending in ("pdf", "png")
    ]
    for path in to.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 150 and pixels.std() > 5, path.name


def test_figures_without_arrays_say_where_they_come_from(tmp_path):
    options = [f"--config.figures.results={tmp_path}"]
    result = _run(f"{FASHION}:smoke", "figures", *options)
    assert result.returncode == 2 and "--mode=detect makes them" in result.stderr
