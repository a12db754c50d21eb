"""Data sets of the user's own, in every layout."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from processes import ROOT, environment, rows

from pixeldefend.experiment import data, own_data

SPLITS = data.SPLITS


def _picture(path, level, *, size=(12, 8), grey=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if grey else (*size, 3)
    Image.fromarray(np.full(shape, level, np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Two classes of 20 and 10 pictures, each of one level that tells which it is."""
    for name, first, count in (("cat", 0, 20), ("dog", 100, 10)):
        for i in range(count):
            _picture(tmp_path / f"pets/{name}/{i:02d}.png", first + i)
    return tmp_path / "pets"


def _all(path, **options):
    return {split: own_data.load(path, split, **options) for split in SPLITS}


def test_folders_of_classes_are_cut_into_splits_of_like_shares(pictures, capsys):
    found = _all(pictures)
    assert (
        "30 images of 2 classes, split by name into 24 train, 3 validation, 3 test"
        in (capsys.readouterr().out)
    )
    levels = []
    for split, count in zip(SPLITS, (24, 3, 3), strict=True):
        images, labels = found[split]
        assert images.shape == (count, 12, 8, 3) and images.dtype == np.uint8
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, images[:, 0, 0, 0] >= 100)
        assert sum(labels) == count // 3  # a third of them are dogs
        levels += list(images[:, 0, 0, 0])
    assert sorted(levels) == [*range(20), *range(100, 110)]  # each image in one split
    again = _all(pictures)
    for split in SPLITS:
        np.testing.assert_array_equal(found[split][0], again[split][0])
    assert len(own_data.load(pictures, "test", held_out=0.3)[0]) == 9
    assert own_data.class_names(pictures) == ("cat", "dog")
    # Others that come later leave these where they are, but for one at most.
    _picture(pictures / "cat/newer.png", 50)
    (pictures / "cat/07.png").unlink()
    later = _all(pictures)
    for split in ("validation", "test"):
        before, after = (set(one[split][0][:, 0, 0, 0]) for one in (found, later))
        assert len(before - after) <= 1
    assert not set(later["test"][0][:, 0, 0, 0]) & set(found["train"][0][:, 0, 0, 0])
    assert own_data.name_of(pictures) == "pets"


def test_splits_that_there_are_stay_whole(pictures, tmp_path):
    (tmp_path / "cut").mkdir()
    pictures.rename(tmp_path / "cut/train")
    for i in range(2):
        _picture(tmp_path / f"cut/val/dog/{i}.png", 200 + i)
    found = _all(tmp_path / "cut")
    assert {split: len(images) for split, (images, _) in found.items()} == {
        "train": 27,
        "validation": 2,
        "test": 3,
    }
    assert found["validation"][1].tolist() == [1, 1]  # as in train, not the first here
    _picture(tmp_path / "cut/test/cat/a.png", 7)
    found = _all(tmp_path / "cut")
    assert len(found["train"][0]) == 30 and found["test"][1].tolist() == [0]
    _picture(tmp_path / "cut/test/cow/a.png", 7)
    with pytest.raises(ValueError, match="cow is beside class folders"):
        own_data.load(tmp_path / "cut", "test")


def test_pictures_without_folders_have_no_labels(pictures):
    images, labels = own_data.load(pictures / "cat", "train")
    assert images.shape == (16, 12, 8, 3) and labels is None
    assert own_data.class_names(pictures / "cat") == ()
    assert own_data.facts(pictures / "cat") == ((12, 8, 3), 0)
    assert own_data.facts(pictures, size=4) == ((4, 4, 3), 2)


def test_arrays_are_a_data_set_in_one_file_or_in_several(tmp_path, rng):
    images = rng.integers(0, 256, (30, 6, 5, 1), dtype=np.uint8)
    labels = np.arange(30) % 3
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    found = _all(tmp_path / "mine.npz")
    assert [len(found[split][0]) for split in SPLITS] == [24, 3, 3]
    rows = [np.flatnonzero((images == one).all((1, 2, 3))) for one in found["train"][0]]
    np.testing.assert_array_equal(labels[np.ravel(rows)], found["train"][1])
    assert own_data.name_of(tmp_path / "mine.npz") == "mine"
    (tmp_path / "set").mkdir()
    for split, part in (("train", slice(20)), ("test", slice(20, 30))):
        path = tmp_path / f"set/{split}.npz"
        np.savez(path, images=images[part], labels=labels[part])
    np.testing.assert_array_equal(
        own_data.load(tmp_path / "set", "test")[0], images[20:]
    )
    assert (
        len(own_data.load(tmp_path / "set", "train")[0]) == 17
    )  # less one of each class
    # By its name where data sets are, and by its path.
    for name, folder in (("set", tmp_path), (str(tmp_path / "set"), None)):
        given = data.read_input(name, "test", 0, (6, 5, 1), folder)
        np.testing.assert_array_equal(given.images, images[20:])
        assert given.names[3] == "test_00003" and not given.own


def test_what_tfds_prepared_is_a_data_set(tmp_path, rng):
    tfds = pytest.importorskip("tensorflow_datasets")
    images = rng.integers(0, 256, (20, 9, 7, 3), dtype=np.uint8)
    info = tfds.core.DatasetInfo

    class Dots(tfds.core.GeneratorBasedBuilder):
        """Random dots."""

        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["a", "b"])
            # Not an Image, which only TensorFlow can write; read the same way.
            image = tfds.features.Tensor(shape=(9, 7, 3), dtype=np.uint8)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return info(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(images):
                yield i, {"image": image, "label": i % 2}

    builder = Dots(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    for path in (tmp_path / "dots", tmp_path / "dots/1.2.0"):
        found = _all(path)
        assert [len(found[split][0]) for split in SPLITS] == [16, 2, 2]
        for one, label in zip(*found["train"], strict=True):
            (row,) = np.flatnonzero((images == one).all((1, 2, 3)))
            assert row % 2 == label
    assert own_data.name_of(tmp_path / "dots/1.2.0") == "dots"
    assert own_data.load(tmp_path / "dots", "train", size=4)[0].shape[1:] == (4, 4, 3)


def test_pictures_of_any_size_are_fitted(tmp_path):
    stripes = np.zeros((40, 100, 3), np.uint8)
    stripes[:, 30:70] = (10, 200, 90)  # the square in the middle
    for name in "abcdef":
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(stripes).save(tmp_path / f"set/{name}.png")
    images, _ = own_data.load(tmp_path / "set", "train", size=8)
    assert images.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(images, np.full((4, 8, 8, 3), (10, 200, 90)))
    _picture(tmp_path / "set/a.png", 77, size=(9, 9), grey=True)  # grey among colour
    found = np.concatenate(
        [images for images, _ in _all(tmp_path / "set", size=8).values()]
    )
    assert sorted(found[:, 0, 0, 0])[-1] == 77
    with pytest.raises(ValueError, match=r"9 x 9|40 x 100.*own.size"):
        _all(tmp_path / "set")
    # Likewise what is purified, if asked for.
    own = data.read_images(tmp_path / "set", (8, 8, 3), size=8)[0]
    assert own.shape == (6, 8, 8, 3) and (own[0] == 77).all()
    with pytest.raises(
        ValueError, match="own.size is 9, but the model takes .* 8 x 8 x 3"
    ):
        data.read_images(tmp_path / "set", (8, 8, 3), size=9)
    with pytest.raises(ValueError, match=r"RGB\); expected 8 x 8 \(L\)"):
        data.read_images(tmp_path / "set", (8, 8, 1), size=8)


def test_resizing_is_that_of_the_picture_library(rng):
    images = rng.integers(0, 256, (2, 20, 10, 3), dtype=np.uint8)
    found = own_data.fitted(images, 6)
    for one, image in zip(found, images, strict=True):
        square = Image.fromarray(image[5:15])
        expected = square.resize((6, 6), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(one, np.asarray(expected))
    assert own_data.fitted(images, 0) is images


def test_a_photograph_on_its_side_has_the_shape_it_is_shown_in(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turn it by a quarter
    (tmp_path / "set").mkdir()
    for i in range(4):
        picture = Image.fromarray(np.full((4, 12, 3), i, np.uint8))
        picture.save(tmp_path / f"set/{i}.jpg", exif=exif)
    assert own_data.load(tmp_path / "set", "train")[0].shape == (2, 12, 4, 3)


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        ({"a/0.png": 1, "b/0.png": 2}, {}, "1 images of class a, too few"),
        ({"a/0.png": 1, "notes.txt": None}, {}, "notes.txt is beside class folders"),
        ({"a/0.txt": None}, {}, "no pictures in"),
        ({"test/a/0.png": 1}, {}, "no folder train in .*, only test"),
        ({"test.npz": None}, {}, "no train.npz"),
        ({"train.npz": None}, {}, "cannot read numeric arrays"),
        ({"1.0.0/dataset_info.json": None}, {}, "damaged"),
        ({"1.0/dataset_info.json": 0, "2.0/dataset_info.json": 0}, {}, "2 versions"),
        ({"a/0.png": 1}, {"size": -1}, "own.size must be from 0 to 1024"),
        ({"a/0.png": 1}, {"held_out": 0.5}, "own.held_out must be between 0 and 0.5"),
    ],
)
def test_what_is_no_data_set_is_explained(tmp_path, made, options, message):
    for name, level in made.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            _picture(path, level)
        else:
            path.write_text(json.dumps({}) if level == 0 else "{")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        own_data.load(tmp_path / "set", "train", **options)


def test_unknown_names_and_other_files_are_explained(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'petz': neither one of ci"):
        data.load("petz", "train", tmp_path)
    with pytest.raises(ValueError, match="unknown data set ''"):
        data.load("", "train", tmp_path)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match="neither a folder nor an .npz"):
        data.load(str(tmp_path / "a.csv"), "train", None)
    with pytest.raises(ValueError, match="no sample of 'mine' is bundled"):
        data.sample("mine")


def test_labels_of_a_split_that_training_lacks_are_refused(tmp_path):
    images = np.zeros((9, 4, 4, 1), np.uint8)
    for split, most in (("train", 2), ("validation", 1), ("test", 3)):
        labels = np.arange(9) % (most + 1)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
    with pytest.raises(ValueError, match="test has labels up to 3, the training .* 2"):
        own_data.load(tmp_path, "train")
    np.savez(tmp_path / "test.npz", images=images)
    with pytest.raises(ValueError, match="labels for some of its splits only"):
        own_data.load(tmp_path, "train")
    np.savez(tmp_path / "gap.npz", images=images, labels=np.arange(9) % 3 * 2)
    with pytest.raises(ValueError, match="up to 4, but no training image of 1: number"):
        own_data.load(tmp_path / "gap.npz", "train")


def test_transparent_pictures_are_refused_for_that(tmp_path):
    (tmp_path / "set").mkdir()
    Image.new("RGBA", (64, 64)).save(tmp_path / "set/a.png")
    for size in (0, 8):
        with pytest.raises(ValueError, match=r"a.png has transparency \(RGBA\)"):
            data.read_images(tmp_path / "set", (64, 64, 3), size=size and 64)


@pytest.mark.slow
def test_from_pictures_to_a_table_in_four_commands(tmp_path, rng):
    """Those of docs/own_data.md, with models and steps for a test."""
    for name, level in (("dark", 60), ("light", 160), ("lighter", 220)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(12):
            noise = rng.normal(level, 20, (20 + i, 18, 3)).clip(0, 255)
            picture = Image.fromarray(noise.astype(np.uint8))
            picture.save(tmp_path / f"set/{name}/{i}.png")

    def run(mode, *options, fails=""):
        command = [sys.executable, "main.py", f"--mode={mode}"]
        command.append(f"--config=configs/custom.py:{tmp_path / 'set'}")
        command.append("--config.own.size=16")
        for kind in ("pixelcnn", "classifier"):
            command.append(f"--config.{kind}.weights={tmp_path / kind}")
            train = f"--config.{kind}.train"
            command += [f"{train}.{k}={v}" for k, v in _STEPS.items()]
        command.append("--config.pixelcnn.train.init_images=8")
        command += [
            "--config.pixelcnn.model.features=4",
            "--config.pixelcnn.model.resolutions=2",
            "--config.pixelcnn.model.mixtures=2",
            "--config.classifier.model.architecture=vgg",
            "--config.classifier.model.divisor=16",
            *options,
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == (2 if fails else 0), done.stderr[-3000:]
        assert fails in done.stderr
        return done.stdout

    told = run("train", f"--workdir={tmp_path / 'pixelcnn'}")
    assert "36 images of 3 classes, split by name into 30 train, 3 validation" in told
    run("train", "--config.train.model=classifier", f"--workdir={tmp_path}/classifier")
    released = tmp_path / "released/set/pixelcnn"
    run("release", f"--config.release.to={released}", f"--workdir={tmp_path}/r")
    rows_of = [str(tmp_path / "classifier"), f"{tmp_path / 'classifier'} + purify"]
    run(
        "evaluate",
        f"--workdir={tmp_path / 'table'}",
        f"--config.evaluate.rows={tuple(rows_of)}",
        "--config.evaluate.attacks=('fgsm',)",
    )
    card = json.loads((released / "card.json").read_text())
    assert card["dataset"] == "set" and card["image_shape"] == [16, 16, 3]
    assert card["name"] == "set/pixelcnn" and card["model"]["channels"] == 3
    assert set(card["figures"]) == {"train", "test"}
    command = card["figures"]["test"]["command"]
    assert f"custom.py:{tmp_path / 'set'} --config.own." in command
    assert " --config.own.size=16 " in command
    assert " --config.own.held_out=0.1 " in command
    assert f"--config.pixelcnn.weights={released} " in command
    assert len(np.load(released / "reference.npy")) == 30
    card = json.loads((tmp_path / "classifier/model/card.json").read_text())
    assert card["model"]["classes"] == 3
    table = rows(tmp_path / "table/rows.jsonl")
    assert {row["dataset"] for row in table} == {"set"}
    assert {row["n"] for row in table} == {3} and len(table) > 3
    # Pictures of any size are purified; a set of other sizes is refused before.
    picture = np.full((30, 50, 3), 90, np.uint8)
    (tmp_path / "others").mkdir()
    Image.fromarray(picture).save(tmp_path / "others/a.jpg")
    run(
        "purify",
        f"--config.purify.input={tmp_path / 'others'}",
        f"--workdir={tmp_path / 'purified'}",
    )
    with Image.open(next((tmp_path / "purified").glob("*/a.png"))) as found:
        assert found.size == (16, 16)
    run("train", "--config.own.size=15", fails="the next that are: 16 x 16")
    run("train", "--config.pixelcnn.train.on_sample=1", fails="no sample of")
    flat = f"--config.dataset={tmp_path / 'set/dark'}"
    run("train", "--config.train.model=classifier", flat, fails="has no labels: put")


_STEPS = {
    "steps": 4,
    "hours": 0.0,
    "batch": 4,
    "warmup": 2,
    "eval_images": 3,
    "log_every": 2,
    "eval_every": 2,
    "checkpoint_minutes": 0.0,
}
