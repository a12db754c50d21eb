import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixeldefend.experiment import data, schedule

GREY = (28, 28, 1)


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(5, 60),
    size=st.integers(1, 5),
    step=st.integers(0, 40),
    seed=st.integers(0, 3),
)
def test_batches_resume_at_any_step(count, size, step, seed):
    batches = schedule.Batches(count, size, seed)
    whole = batches.from_step(0)
    for _ in range(step):
        next(whole)
    resumed = batches.from_step(step)
    for _ in range(3):
        np.testing.assert_array_equal(next(whole), next(resumed))


def test_an_epoch_visits_every_image_once_and_epochs_differ():
    batches = schedule.Batches(12, 4, seed=0).from_step(0)
    first, second = (np.concatenate([next(batches) for _ in range(3)]) for _ in "ab")
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second)
    other = np.concatenate([next(schedule.Batches(12, 4, seed=1).from_step(0))])
    assert list(other) != list(first[:4])


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(ValueError, match="batch must be between 1 and 3"):
        schedule.Batches(3, 4, 0)


@pytest.mark.parametrize("name", data.HEIGHT_WIDTH_CHANNELS)
def test_the_bundled_samples_are_real_images(name):
    images, labels = data.sample(name)
    assert images.shape == (256, *data.HEIGHT_WIDTH_CHANNELS[name])
    assert images.dtype == np.uint8 and labels.shape == (256,)
    assert set(labels) == set(range(10))
    # The first test labels in the order of TFDS.
    first = {
        "cifar10": [7, 0, 6, 9, 5],
        "fashion_mnist": [4, 4, 9, 7, 5],
        "mnist": [2, 0, 4, 8, 7],
    }
    assert list(labels[:5]) == first[name]


def test_loading_explains_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist.*prepare_data\.sh"):
        data.load("mnist", "test", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no mnist data set.*prepare_data\.sh"):
        data.load("mnist", "test", tmp_path)
    with pytest.raises(ValueError, match="cifar10, fashion_mnist, mnist, nor a file"):
        data.load("cifar100", "test", tmp_path)
    with pytest.raises(ValueError, match="train, validation, test"):
        data.load("mnist", "valid", tmp_path)


@pytest.fixture
def plain(tmp_path, rng):
    """A data set as plain arrays: train and test."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for split, count in (("train", 5003), ("test", 4)):
        images = rng.integers(0, 256, (count, *GREY), dtype=np.uint8)
        np.savez(folder / f"{split}.npz", images=images, labels=np.arange(count) % 10)
    return tmp_path


def test_plain_arrays_are_a_data_set(plain):
    with np.load(plain / "mnist/train.npz") as file:
        images, labels = file["images"], file["labels"]
    train, validation = (data.load("mnist", s, plain) for s in ("train", "validation"))
    assert len(train[0]) == 3 and len(validation[0]) == data.VALIDATION
    for found, whole in ((0, images), (1, labels)):
        both = np.concatenate([train[found], validation[found]])
        np.testing.assert_array_equal(both, whole)
    assert train[0].dtype == np.uint8 and train[1].dtype == np.int32
    assert len(data.load("mnist", "test", str(plain))[0]) == 4
    given = data.read_input("mnist", "test", 2, GREY, plain)
    assert given.names == ["test_00000", "test_00001"] and not given.own


def test_own_validation_images_leave_the_training_images_whole(plain, rng):
    images = rng.integers(0, 256, (7, *GREY), dtype=np.uint8)
    np.savez(plain / "mnist/validation.npz", images=images, labels=np.zeros(7, int))
    found, labels = data.load("mnist", "validation", plain)
    np.testing.assert_array_equal(found, images)
    assert labels.tolist() == [0] * 7
    assert len(data.load("mnist", "train", plain)[0]) == 5003


def test_plain_arrays_that_do_not_fit_are_explained(plain, rng):
    folder = plain / "mnist"
    images = rng.integers(0, 256, (6, *GREY), dtype=np.uint8)
    np.savez(folder / "train.npz", images=images, labels=np.zeros(6, int))
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match="6 images.*put a validation.npz"):
            data.load("mnist", split, plain)
    np.savez(folder / "test.npz", images=images)
    with pytest.raises(ValueError, match="test.npz has no labels"):
        data.load("mnist", "test", plain)
    np.savez(folder / "test.npz", images=images, labels=np.full(6, 10))
    with pytest.raises(ValueError, match="labels up to 10, .* of the 10 classes"):
        data.load("mnist", "test", plain)
    np.savez(folder / "test.npz", images=images[:, :20], labels=np.zeros(6, int))
    with pytest.raises(ValueError, match=r"test.npz is 6 x 20 .* expected N x 28"):
        data.load("mnist", "test", plain)
    np.savez(folder / "test.npz", images=images / 255, labels=np.zeros(6, int))
    with pytest.raises(TypeError, match="levels 0..255"):
        data.load("mnist", "test", plain)
    (folder / "test.npz").unlink()
    with pytest.raises(FileNotFoundError, match="no test.npz in .*, only train.npz"):
        data.load("mnist", "test", plain)


def _png(array, path):
    Image.fromarray(array).save(path)


def test_folders_of_pictures_come_in_order_of_their_names(tmp_path, rng):
    images = rng.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for name, image in zip("bca", images, strict=True):
        _png(image, tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    found, labels, names = data.read_images(tmp_path, GREY)
    np.testing.assert_array_equal(found[..., 0], images[[2, 0, 1]])
    assert labels is None and names == ["a", "b", "c"]


def test_arrays_come_back_with_their_labels(tmp_path, rng):
    images = rng.integers(0, 256, (3, *GREY))  # any integer type within range
    np.savez(tmp_path / "some.npz", images=images, labels=np.arange(3))
    found, labels, names = data.read_images(tmp_path / "some.npz", GREY)
    np.testing.assert_array_equal(found, images)
    assert found.dtype == np.uint8 and list(labels) == [0, 1, 2]
    assert names[1] == "some_00001"
    np.save(tmp_path / "some.npy", images)
    assert data.read_images(tmp_path / "some.npy", GREY)[1] is None


@pytest.mark.parametrize(
    "images, error, message",
    [
        (np.zeros((2, 28, 28, 1), np.float32), TypeError, "uint8"),
        (np.zeros((2, 28, 28, 1)) + 0.5, TypeError, "levels 0..255"),
        (np.full((2, 28, 28, 1), 256), ValueError, "outside 0..255"),
        (np.full((2, 28, 28, 1), -1), ValueError, "outside 0..255"),
        (np.zeros((2, 32, 28, 1), np.uint8), ValueError, "expected N x 28 x 28 x 1"),
        (np.zeros((2, 28, 28, 3), np.uint8), ValueError, "expected N x 28 x 28 x 1"),
        (np.zeros((28, 28, 1), np.uint8), ValueError, "expected N x"),
        (np.zeros((0, 28, 28, 1), np.uint8), ValueError, "no image"),
        (np.zeros((2, 28, 28, 1), bool), TypeError, "uint8"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, images, error, message):
    np.savez(tmp_path / "bad.npz", images=images)
    with pytest.raises(error, match=message):
        data.read_images(tmp_path / "bad.npz", GREY)


def test_pictures_that_would_get_one_name_are_refused(tmp_path):
    for name in ("a.png", "A.bmp"):
        _png(np.zeros((28, 28), np.uint8), tmp_path / name)
    with pytest.raises(ValueError, match="same name"):
        data.read_images(tmp_path, GREY)


def test_a_huge_picture_is_refused_unread(tmp_path):
    Image.new("L", (12_000, 9_000)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"9000 x 12000 \(L\)"):
        data.read_images(tmp_path, GREY)


def test_labels_that_do_not_fit_a_byte_are_refused(tmp_path):
    images = np.zeros((2, *GREY), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([1, 256]))
    with pytest.raises(ValueError, match="between 0 and 255"):
        data.read_images(tmp_path / "a.npz", GREY)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_files_in_each_others_clothes_are_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    images = np.zeros((2, *GREY), np.uint8)
    with path.open("wb") as file:
        np.savez(file, x=images) if suffix == "npy" else np.save(file, images)
    with pytest.raises(ValueError, match="a single array|several arrays"):
        data.read_images(path, GREY)
    path.write_text("hello")
    with pytest.raises(ValueError, match="numpy's format"):
        data.read_images(path, GREY)


def test_own_input_is_taken_whole_and_named_after_its_place(tmp_path):
    folder = tmp_path / "my.pics"
    folder.mkdir()
    for name in "abc":
        _png(np.zeros((28, 28), np.uint8), folder / f"{name}.png")
    found = data.read_input("mnist", str(folder), 0, GREY, None)
    assert found.own and found.source == "my.pics" and len(found.images) == 3
    assert data.read_input("mnist", str(folder), 2, GREY, None).names == ["a", "b"]
    sample = data.read_input("mnist", "sample", 5, GREY, None)
    assert not sample.own and sample.names[4] == "sample_00004"
    with pytest.raises(ValueError, match="32 x 32 x 3"):
        data.read_input("mnist", "sample", 0, (32, 32, 3), None)


@pytest.mark.parametrize("damage", ["info", "records"])
def test_a_damaged_data_set_is_explained(tmp_path, damage):
    version = tmp_path / "mnist/3.0.1"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{" if damage == "info" else "{}")
    with pytest.raises(ValueError, match=r"cannot read the test split.*prepare_data"):
        data.load("mnist", "test", tmp_path)


def test_a_missing_package_is_no_damage(tmp_path, monkeypatch):
    import tensorflow_datasets

    def builder(*_, **__):  # it imports what reads the records late
        raise ModuleNotFoundError("No module named 'array_record'", name="array_record")

    monkeypatch.setattr(tensorflow_datasets, "builder_from_directory", builder)
    (tmp_path / "mnist/3.0.1").mkdir(parents=True)
    (tmp_path / "mnist/3.0.1/dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match="package array_record is missing: pip"):
        data.load("mnist", "test", tmp_path)


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "bad.npy", np.array([print, "x"], object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        data.read_images(tmp_path / "bad.npy", GREY)


def test_broken_files_are_refused(tmp_path, rng):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ValueError, match="cannot read"):
        data.read_images(tmp_path / "bad.npz", GREY)
    buffer = io.BytesIO()
    np.savez(buffer, pictures=np.zeros(3))
    (tmp_path / "other.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="no array called 'images'.*pictures"):
        data.read_images(tmp_path / "other.npz", GREY)
    np.savez(
        tmp_path / "labels.npz",
        images=np.zeros((2, *GREY), int),
        labels=np.zeros(3, int),
    )
    with pytest.raises(ValueError, match=r"labels in .* shape \(2,\)"):
        data.read_images(tmp_path / "labels.npz", GREY)
    with pytest.raises(FileNotFoundError):
        data.read_images(tmp_path / "absent", GREY)
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(ValueError, match="folder of pictures"):
        data.read_images(tmp_path / "text.txt", GREY)


def test_pictures_that_do_not_fit_are_refused(tmp_path, rng):
    folder = tmp_path / "a"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"no pictures in .*\)$"):
        data.read_images(folder, GREY)
    (folder / "cats").mkdir()
    with pytest.raises(ValueError, match="name one of its folders, such as cats$"):
        data.read_images(folder, GREY)
    (folder / "cats").rmdir()
    (folder / "x.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="x.png is not a readable picture"):
        data.read_images(folder, GREY)
    for shape in ((28, 27), (28, 28, 3), (28, 28, 4)):
        _png(np.zeros(shape, np.uint8), folder / "x.png")
        with pytest.raises(ValueError, match="resize and convert|has transparency"):
            data.read_images(folder, GREY)
    Image.fromarray(np.zeros((28, 28), np.uint8)).convert("P").save(folder / "x.png")
    with pytest.raises(ValueError, match=r"\(P\); expected 28"):
        data.read_images(folder, GREY)
