import contextlib
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from models import mostly_slow, tiny

from pixeldefend.defences import puvae
from pixeldefend.density import likelihood
from pixeldefend.experiment import data, files, zoo
from pixeldefend.experiment.checkpoints import Checkpoints
from pixeldefend.experiment.modes import evaluating, inputs
from pixeldefend.models import classifiers

SHAPE = (8, 8, 1)
# A restore that fails leaves tasks of orbax behind, which complain when collected.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "toy"
    model, params, images, _ = tiny(SHAPE)
    card = {"kind": "pixelcnn", "dataset": "toy", "image_shape": list(SHAPE)}
    zoo.save_released(folder, model, params, card, reference=[3.0, 1.0, 2.0])
    return folder, model, params


@pytest.fixture
def copy(released, tmp_path):
    shutil.copytree(released[0], tmp_path / "toy")
    return tmp_path / "toy"


def test_a_model_comes_back_as_it_was(released):
    folder, model, params = released
    loaded, found, card = zoo.load_released(str(folder))
    assert loaded == model and card["dataset"] == "toy"
    jax.tree.map(np.testing.assert_array_equal, found, params)
    np.testing.assert_array_equal(zoo.load_reference(str(folder)), [1, 2, 3])


def test_a_classifier_comes_back_with_its_batch_statistics(tmp_path):
    model = classifiers.VGG(divisor=16, dropout=0.3)
    init = jax.jit(classifiers.init, static_argnums=0)
    variables = init(model, jax.random.key(0), jnp.zeros((2, *SHAPE), jnp.uint8))
    variables = jax.tree.map(lambda a: a + 1, variables)
    card = {"kind": "classifier", "dataset": "toy", "image_shape": list(SHAPE)}
    # An axis belongs to the devices that trained it, not to the model.
    trained = model.clone(axis_name="devices")
    zoo.save_released(tmp_path / "toy", trained, variables, card)
    loaded, found, card = zoo.load_released(str(tmp_path / "toy"))
    assert loaded == model and card["model"]["architecture"] == "vgg"
    assert set(found) == {"params", "batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(FileNotFoundError, match="fashion_mnist/pixelcnn"):
        zoo.load_released("cifar10/nothing")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"model": {"features": 4, "depth": 1, "mixtures": 2, "channels": 1}},
            "weights",
        ),
        ({"model": {"width": 4}}, "does not fit"),
        ({"model": {"channels": 2}}, "channels must be 1 or 3"),
        ({"kind": "transformer"}, "not the card"),
        ({"image_shape": 8}, "not the card"),
        ({"image_shape": [8, 8, 10**9]}, "image_shape is not"),
        # Nothing that would take long to describe, or that is no field of a model.
        ({"model": {"depth": 100_000}}, "depth must be a whole number from 1 to 16"),
        ({"model": {"depth": True}}, "depth must be a whole number"),
        ({"model": {"features": 10**12}}, "features must be .* 1 to 4096: 10000"),
        ({"kind": "magnet", "model": {"name": "a"}}, "a model has no name"),
        ({"kind": "magnet", "model": {"copies": 10**9}}, "copies must be"),
        ({"kind": "puvae", "model": {"latents": 10**9}}, "latents must be"),
        ({"kind": "classifier", "model": {"architecture": []}}, "does not fit"),
        (
            {"kind": "classifier", "model": {"architecture": "cnn"}},
            "card.json does not fit",  # images of 8 x 8
        ),
        # Other types than modes read.
        ({"dataset": ["mnist"]}, "dataset must be str"),
        ({"training": None}, "training must be dict: None"),
        ({"training": {"training": 3}}, "training.training must be str: 3"),
        ({"training": {"delta": "8"}}, "training.delta must be int or float: '8'"),
        ({"validation": {"draws": 4}}, "validation.draws must be list: 4"),
        ({"adaptive": {"threshold": float("nan")}}, "threshold must be finite"),
        ({"model": []}, "model must be dict"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(copy, change, message):
    card = json.loads((copy / "card.json").read_text()) | change
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=message):
        zoo.load_released(str(copy))


def test_an_older_card_has_levels_for_resolutions(copy):
    card = json.loads((copy / "card.json").read_text())
    wanted = zoo.load_released(str(copy)).model
    card["model"]["levels"] = card["model"].pop("resolutions")
    (copy / "card.json").write_text(json.dumps(card))
    assert zoo.load_released(str(copy)).model == wanted


def test_damaged_files_are_refused(copy):
    (copy / "reference.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="holds no scores"):
        zoo.load_reference(str(copy))
    for path in (copy / "weights").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot read the checkpoint"):
        zoo.load_released(str(copy))
    shutil.rmtree(copy / "weights")
    with pytest.raises(FileNotFoundError, match="no weights"):
        zoo.load_released(str(copy))
    (copy / "card.json").write_text("{")
    with pytest.raises(ValueError, match="not the card"):
        zoo.load_released(str(copy))


def test_one_flipped_byte_is_noticed(copy):
    largest = max((copy / "weights").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 64
    largest.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="cannot read the checkpoint"):
        zoo.load_released(str(copy))


@pytest.mark.parametrize("name", ["reference.npy", "validation.npy"])
def test_one_flipped_bit_of_scores_is_noticed(copy, name):
    """Most would load, as other numbers."""
    zoo.save_validation(copy, np.ones((2, 30)), {})
    load = zoo.load_reference if name == "reference.npy" else zoo.load_validation
    path = copy / name
    content = path.read_bytes()
    for place in range(len(content) - 40, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(ValueError, match="not the file that the card describes"):
            load(str(copy))
    path.write_bytes(content)
    assert load(str(copy)) is not None


def test_a_missing_file_of_which_the_card_tells_is_noticed(copy):
    (copy / "reference.npy").unlink()
    with pytest.raises(ValueError, match="reference.npy is missing"):
        zoo.load_reference(str(copy))


@pytest.mark.parametrize("told", [[], "x", None, {"weights": 1}])
def test_hashes_that_are_none_are_refused(copy, told):
    card = json.loads((copy / "card.json").read_text()) | {"files": told}
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="not the card of a model"):
        zoo.load_released(str(copy))


def test_every_released_model_has_hashes_of_its_files():
    cards = sorted(zoo.RELEASED.glob("*/*/card.json"))
    assert cards
    for path in cards:
        told = zoo.load_card(path.parent)["files"]
        assert told == zoo.file_hashes(path.parent), path.parent


def test_nothing_old_stays_beside_new_weights(released, copy):
    _, model, params = released
    card = {"kind": "pixelcnn", "dataset": "toy", "image_shape": list(SHAPE)}
    zoo.save_released(copy, model, params, card)
    assert zoo.load_reference(str(copy)) is None


def test_without_scores_of_training_images_it_is_said_that_there_are_no_p_values(
    released, copy, capsys
):
    config = ConfigDict({"pixelcnn": {"weights": str(copy)}})
    assert inputs.reference(config).shape == (3,) and capsys.readouterr().out == ""
    _, model, params = released
    card = {"kind": "pixelcnn", "dataset": "toy", "image_shape": list(SHAPE)}
    zoo.save_released(copy, model, params, card)
    assert inputs.reference(config) is None
    assert f"no p-values: {copy} has no scores of" in capsys.readouterr().out
    with pytest.raises(ValueError, match="cifar10/resnet is a classifier; only a dens"):
        zoo.load_reference("cifar10/resnet")


def test_validation_scores_come_back_and_are_told_of_in_the_card(copy):
    name = str(copy)
    before = json.loads((copy / "card.json").read_text())
    assert zoo.load_validation(name) is None
    scores = np.array([[3.0, -1.0, 2.0], [0.5, 0.25, 0.125]])
    zoo.save_validation(copy, scores, {"n": 3, "detector": "rmse"})
    found = zoo.load_validation(name)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, scores)  # in their order
    told = {"validation": {"n": 3, "detector": "rmse"}}
    digest = hashlib.sha256((copy / "validation.npy").read_bytes()).hexdigest()
    told["files"] = before["files"] | {"validation.npy": digest}
    assert json.loads((copy / "card.json").read_text()) == before | told
    assert zoo.load_released(name)[2] == before | told
    # Once more, in place of the first.
    zoo.save_validation(copy, scores[:1], {"n": 3})
    np.testing.assert_array_equal(zoo.load_validation(name), scores[:1])
    assert zoo.load_card(copy)["validation"] == {"n": 3}
    with pytest.raises(FileNotFoundError, match="no model"):
        zoo.load_validation(str(copy / "nothing"))


def test_new_weights_leave_no_validation_scores_of_old_ones(released, copy):
    _, model, params = released
    zoo.save_validation(copy, np.ones((1, 3)), {"n": 3})
    card = {"kind": "pixelcnn", "dataset": "toy", "image_shape": list(SHAPE)}
    zoo.save_released(copy, model, params, card)
    assert zoo.load_validation(str(copy)) is None
    assert "validation" not in zoo.load_card(copy)


@pytest.mark.parametrize(
    "scores",
    [
        np.ones(3, np.float32),
        np.ones((1, 2, 3), np.float32),
        np.ones((2, 3), np.int32),
        np.zeros((2, 0), np.float32),
        np.array([[1, np.nan]], np.float32),
        np.array([[1, -np.inf]], np.float32),
        np.array([["a"]], object),
    ],
)
def test_validation_scores_that_are_none_are_refused(copy, scores):
    np.save(copy / "validation.npy", scores)
    with pytest.raises(ValueError, match="validation.npy holds no scores"):
        zoo.load_validation(str(copy))


@pytest.mark.parametrize("keep", [0, 6, 100, -4])
def test_a_cut_file_of_validation_scores_is_refused(copy, keep):
    zoo.save_validation(copy, np.ones((2, 30)), {})
    path = copy / "validation.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="validation.npy holds no scores"):
        zoo.load_validation(str(copy))


def test_a_puvae_comes_back_as_it_was(tmp_path):
    model = puvae.PuVAE(divisor=32, shape=SHAPE, latents=4, classes=3)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype),
        zoo.abstract_params("puvae", model, SHAPE),
    )
    card = {"kind": "puvae", "dataset": "toy", "image_shape": list(SHAPE)}
    zoo.save_released(tmp_path / "toy", model, params, card)
    loaded, found, card = zoo.load_released(str(tmp_path / "toy"))
    assert loaded == model and card["model"]["latents"] == 4
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_object_store_paths_stay_as_they_are():
    assert str(files.absolute("gs://bucket/run")) == "gs://bucket/run"
    assert files.absolute("run").is_absolute()


def test_a_damaged_training_checkpoint_is_refused(tmp_path):
    state = {"a": jnp.arange(100.0)}
    saving = Checkpoints(tmp_path)
    saving.save(3, state, {"seconds": 1.5})
    saving.close()
    step, found, extra = Checkpoints(tmp_path).restore(state)
    assert step == 3 and extra == {"seconds": 1.5}
    np.testing.assert_array_equal(found["a"], state["a"])
    with pytest.raises(ValueError, match="another model"):
        Checkpoints(tmp_path).restore({"b": jnp.arange(7.0)})
    for path in (tmp_path / "3").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(ValueError, match="damaged"):
        Checkpoints(tmp_path).restore(state)


def test_one_flipped_bit_of_a_checkpoint_leads_to_the_older_one(tmp_path, capsys):
    state = {"a": np.random.default_rng(0).normal(size=8000).astype(np.float32)}
    for place in range(0, 31_000, 3_100):
        folder = tmp_path / f"{place}"
        with contextlib.closing(Checkpoints(folder)) as saving:
            saving.save(1, state, {"seconds": 1.0})
            saving.save(2, {"a": state["a"] + 1}, {"seconds": 2.0})
        inner = [p for p in (folder / "2").rglob("*") if p.is_file()]
        largest = max(inner, key=lambda p: p.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[place % len(content)] ^= 1
        largest.write_bytes(bytes(content))
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            step, found, extra = checkpoints.restore(state)
            assert step == 1 and extra == {"seconds": 1.0}
            np.testing.assert_array_equal(found["a"], state["a"])
            assert "resuming from step 1" in capsys.readouterr().out
            checkpoints.save(2, state, {})  # in place of the damaged one
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            assert checkpoints.restore(state)[0] == 2


def test_files_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a" / "file.json"
    files.write_json(target, {"x": 1})
    with pytest.raises(RuntimeError):
        with files.whole_file(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert json.loads(target.read_text()) == {"x": 1}
    assert [path.name for path in target.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize(
    "name", mostly_slow(["fashion_mnist/pixelcnn", "cifar10/pixelcnn"], 1)
)
def test_released_models_score_the_sample_as_their_cards_say(name):
    model, params, card = zoo.load_released(name)
    images, _ = data.sample(card["dataset"])
    few = jax.jit(likelihood.bits_per_dim, static_argnums=0)(model, params, images[:32])
    figures = card["figures"]["sample"]
    assert figures["n"] == 256
    whole = figures["bits_per_dim"]
    assert abs(float(np.mean(few)) - whole) < 0.5, "not the model of this card"
    np.testing.assert_allclose(
        few[:4], figures["first_bits_per_dim"], atol=2e-3, rtol=0
    )
    reference = zoo.load_reference(name)
    assert len(reference) == card["figures"]["train"]["n"]
    assert np.all(np.diff(reference) >= 0)


def _released_classifiers():
    cards = sorted(zoo.RELEASED.glob("*/*/card.json"))
    return [
        f"{card.parent.parent.name}/{card.parent.name}"
        for card in cards
        if json.loads(card.read_text())["kind"] == "classifier"
    ]


@pytest.mark.parametrize("name", _released_classifiers())
@pytest.mark.slow
def test_released_classifiers_get_the_sample_right_as_their_cards_say(name):
    model, variables, card = zoo.load_released(name)
    assert card["name"] == name
    images, labels = data.sample(card["dataset"])
    logits = jax.jit(classifiers.logits, static_argnums=0)(model, variables, images)
    figures = card["figures"]["sample"]["clean"]
    assert figures["n"] == 256
    # Another batch size may turn a near-tie.
    correct = int(np.sum(np.argmax(logits, -1) == labels))
    assert abs(correct - figures["correct"]) <= 2
    assert card["figures"]["test"]["clean"]["n"] == 10_000


def test_what_a_kill_left_of_a_checkpoint_is_removed(tmp_path):
    for step in (1, 2):
        with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
            checkpoints.save(step, {"a": np.arange(3.0, dtype=np.float32)}, {})
    (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        step, state, _ = checkpoints.restore({"a": np.zeros(3, np.float32)})
    assert step == 1 and state["a"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize("detector", ["reject_rmse", "reject_magnet"])
def test_thresholds_without_what_they_are_of_are_refused(tmp_path, detector):
    kind = {"reject_rmse": "puvae", "reject_magnet": "magnet"}[detector]
    shutil.copytree(zoo.RELEASED / f"mnist/{kind}", tmp_path / kind)
    card = json.loads((tmp_path / kind / "card.json").read_text())
    card.pop("files", None)
    del card["validation"]
    if kind == "magnet":  # whose detectors for colour ask a classifier
        card["model"]["autoencoders"] = ["plain"]
    (tmp_path / kind / "card.json").write_text(json.dumps(card))
    np.save(tmp_path / kind / "validation.npy", np.ones((2, 5), np.float32))
    weights = {"weights": str(tmp_path / kind), "samples": 1, "noise": 0.0}
    config = ConfigDict({kind: weights, "puvae": weights})
    with pytest.raises(ValueError, match="not recorded"):
        evaluating._validation_scores(config, detector, "cifar10/resnet")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'\n",
        b"\x93NUMPY\x01\x00\x08\x00((((((((",
    ],
)
@pytest.mark.parametrize("name", ["reference.npy", "validation.npy"])
def test_scores_in_no_format_of_numpys_are_refused(copy, name, content):
    card = json.loads((copy / "card.json").read_text())
    del card["files"]
    (copy / "card.json").write_text(json.dumps(card))
    (copy / name).write_bytes(content)
    load = zoo.load_reference if name == "reference.npy" else zoo.load_validation
    with pytest.raises(ValueError, match=f"{name} holds no scores"):
        load(str(copy))
    with (copy / name).open("wb") as file:
        np.savez(file, scores=np.ones(3))
    with pytest.raises(ValueError, match=f"{name} holds no scores.*name it .npz"):
        load(str(copy))
