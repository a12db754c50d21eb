"""Of files that others made, none keeps us waiting or asks for memory it has not."""

import contextlib
import io
import json
import os
import shutil
import signal
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pixeldefend.experiment import checkpoints, data, lock, rows, workdir, zoo
from pixeldefend.experiment.metrics import MetricsFile

GREY = (28, 28, 1)
MODEL = "mnist/magnet"  # the smallest


@pytest.fixture(autouse=True)
def in_time():
    """A reader that waits for ever fails, and does not hang."""

    def late(*_):
        raise AssertionError("still waiting after 20 s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.fixture(params=["pipe", "device"])
def endless(request):
    """Puts a pipe, or a link to a device, in the place of a file."""

    def put(path):
        path.unlink(missing_ok=True)
        os.mkfifo(path) if request.param == "pipe" else path.symlink_to("/dev/zero")
        return path

    return put


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "folder/a.png"])
def test_own_images_that_never_end_are_refused(tmp_path, endless, name):
    (tmp_path / "folder").mkdir()
    path = endless(tmp_path / name)
    given = path.parent if name.startswith("folder") else path
    with pytest.raises(ValueError, match=f"{path} is not a regular file"):
        data.read_images(given, GREY)


def test_a_data_set_that_never_ends_is_refused(tmp_path, endless):
    (tmp_path / "mnist").mkdir()
    endless(tmp_path / "mnist/test.npz")
    with pytest.raises(ValueError, match="test.npz is not a regular file"):
        data.load("mnist", "test", tmp_path)
    (tmp_path / "mnist/test.npz").unlink()
    (tmp_path / "mnist/3.0.1").mkdir()
    endless(tmp_path / "mnist/3.0.1/dataset_info.json")
    with pytest.raises(ValueError, match="dataset_info.json is not a regular file"):
        data.load("mnist", "test", tmp_path)


@pytest.fixture
def model(tmp_path):
    """A copy of a released model, whose card tells of no files."""
    folder = tmp_path / "model"
    shutil.copytree(zoo.RELEASED / MODEL, folder)
    card = json.loads((folder / "card.json").read_text())
    card.pop("files", None)
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize("name", ["card.json", "weights/_METADATA", "weights/d/more"])
def test_a_model_that_never_ends_is_refused(model, endless, name):
    assert zoo.load_released(str(model)).card["kind"] == "magnet"
    endless(model / name)
    with pytest.raises(ValueError, match=f"{name} is not a regular file"):
        zoo.load_released(str(model))


@pytest.mark.parametrize("name", ["reference.npy", "validation.npy"])
def test_scores_that_never_end_are_refused(model, endless, name):
    card = json.loads((model / "card.json").read_text())
    (model / "card.json").write_text(json.dumps(card | {"kind": "pixelcnn"}))
    endless(model / name)
    load = zoo.load_reference if name == "reference.npy" else zoo.load_validation
    with pytest.raises(ValueError, match=f"{name} is not a regular file"):
        load(str(model))
    assert name not in zoo.file_hashes(model)


@pytest.mark.parametrize("name", ["config.json", "lock.json", "metrics.jsonl"])
def test_a_workdir_that_never_ends_is_refused(tmp_path, endless, name):
    (tmp_path / "config.json").write_text('{"mode": "score"}')
    endless(tmp_path / name)
    with pytest.raises((ValueError, workdir.UserError), match="damaged|not a regular"):
        workdir.Workdir(tmp_path, {"mode": "score"}).open()


def test_lines_that_never_end_are_refused(tmp_path, endless):
    with pytest.raises(ValueError, match="rows.jsonl is not a regular file"):
        rows.read_rows(endless(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match="metrics.jsonl is not a regular file"):
        MetricsFile(endless(tmp_path / "metrics.jsonl"), 3)
    endless(tmp_path / "written.json")
    with pytest.raises(workdir.UserError, match="written.json is not a regular file"):
        workdir.remove_results(tmp_path, [])


def test_a_checkpoint_that_never_ends_is_refused(tmp_path, endless):
    with contextlib.closing(checkpoints.Checkpoints(tmp_path)) as there:
        there.save(1, {"a": jnp.zeros(3)}, {"seconds": 1.0})
    endless(tmp_path / "1/state/more")
    with pytest.raises(checkpoints.UnreadableError, match="more is not a regular file"):
        checkpoints.Checkpoints(tmp_path)


def _archive(path, method=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                for piece in content:
                    file.write(piece)


def _header(shape, dtype="|u1", fortran=False):
    buffer = io.BytesIO()
    told = {"descr": dtype, "fortran_order": fortran, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, told)
    return buffer.getvalue()


_ZEROS = bytes(2**20)


@pytest.mark.parametrize(
    "head, message",
    [
        # As it is: images of another size, or another type.
        (_header((64, 1024, 1024)), "expected N x 28 x 28 x 1"),
        (_header((2**23,), "<f8"), "holds float64"),
        (_header((2**26,), "|V1"), "holds |V1|void"),
        # One that is larger than it says, and one that says what it has not.
        (_header((3, *GREY)), "claims 2352 bytes, but there are 67108864"),
        (_header((2**40, *GREY)), "claims .* bytes, but there are 67108864"),
        (_header((-1, *GREY)), "claims .* bytes"),
        # A header without an end.
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "not in numpy's format"),
        (b"\x93NUMPY\x01\x00", "not in numpy's format"),
    ],
)
def test_bombs_are_refused_by_their_headers(tmp_path, head, message):
    """Sixty-four megabytes of zeros in a thousandth of that."""
    path = tmp_path / "a.npz"
    _archive(path, images=[head, *[_ZEROS] * 64])
    assert path.stat().st_size < 10**5
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, TypeError), match=message):
            data.read_images(path, GREY)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_labels_that_are_a_bomb_are_refused_by_their_header(tmp_path):
    images = [_header((2, *GREY)), bytes(2 * 784)]
    labels = [_header((2**26,)), *[_ZEROS] * 64]
    _archive(tmp_path / "a.npz", images=images, labels=labels)
    with pytest.raises(ValueError, match=r"integers of shape \(2,\): uint8"):
        data.read_images(tmp_path / "a.npz", GREY)


def test_a_file_that_ends_early_or_goes_on_is_refused(tmp_path):
    whole = _header((2, *GREY)) + bytes(2 * 784)
    path = tmp_path / "a.npy"
    path.write_bytes(whole)
    assert data.read_images(path, GREY)[0].shape == (2, *GREY)
    for content in (whole[:-1], whole + b"x", whole + whole, whole[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.npy: (its header|it is not in)"):
            data.read_images(path, GREY)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_are_compressed_as_numpy_does_it(tmp_path, method):
    images = [_header((2, *GREY)), bytes(2 * 784)]
    _archive(tmp_path / "a.npz", method, images=images)
    with pytest.raises(
        ValueError, match="compressed by a method that numpy never uses"
    ):
        data.read_images(tmp_path / "a.npz", GREY)


def test_arrays_come_back_in_every_order_and_type(tmp_path, rng):
    images = rng.integers(0, 256, (40, *GREY))
    ways = (np.uint8, ">i4", "<i8", np.uint16)
    for i, array in enumerate([*map(images.astype, ways), np.asfortranarray(images)]):
        for save in (np.save, np.savez, np.savez_compressed):
            path = tmp_path / f"{i}.np{'y' if save is np.save else 'z'}"
            save(path, array) if save is np.save else save(path, images=array)
            found, _, _ = data.read_images(path, GREY)
            np.testing.assert_array_equal(found, images)


def test_a_folder_of_pictures_may_hold_links(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "b.png")
    (tmp_path / "a/c.png").symlink_to(tmp_path / "b.png")
    assert data.read_images(tmp_path / "a", GREY)[2] == ["c"]
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match="c.png"):
        data.read_images(tmp_path / "a", GREY)


def test_a_note_of_results_leads_nowhere_else(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("mine", "run/old"):
        (tmp_path / name).write_text("mine")
    for name in ("../mine", str(tmp_path / "mine"), "a/../../mine", "", ".", 5, None):
        (run / "written.json").write_text(json.dumps(["old", name]))
        with pytest.raises(
            workdir.UserError, match="written.json does not list results"
        ):
            workdir.remove_results(run, ["new"])
    assert (tmp_path / "mine").exists() and (run / "old").exists()
    (run / "written.json").write_text('["old", "purified/gone.png"]')
    workdir.remove_results(run, ["new"])
    assert not (run / "old").exists()
    assert json.loads((run / "written.json").read_text()) == ["new"]


_DEEP = "[" * 100_000


def test_json_beyond_all_depth_is_one_line(tmp_path, model):
    for text in (_DEEP, '{"a":' * 100_000):
        (model / "card.json").write_text(text)
        with pytest.raises(ValueError, match="card.json.*nested too deeply"):
            zoo.load_released(str(model))
        (tmp_path / "rows.jsonl").write_text(text)
        with pytest.raises(ValueError, match="rows.jsonl cannot be read.*deeply"):
            rows.read_rows(tmp_path / "rows.jsonl")
        (tmp_path / "written.json").write_text(text)
        with pytest.raises(workdir.UserError, match="written.json.*deeply"):
            workdir.remove_results(tmp_path, [])
        (tmp_path / "lock.json").write_text(text)
        assert lock.Lock(tmp_path / "lock.json").holder() is None
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 1}\n' + text)
        assert MetricsFile(path, 5).last == {"step": 1}
        assert path.read_text() == '{"step": 1}\n'
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json is damaged"):
            workdir.Workdir(tmp_path, {})


@pytest.mark.parametrize("line", ["3", "[]", "{}", '{"step": "a"}', "null", "\\xff"])
def test_metrics_end_at_a_line_that_is_none(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line.encode() + b'\n{"step": 2}\n')
    assert MetricsFile(path, 5).last == {"step": 1}
    assert path.read_text() == '{"step": 1}\n'


def test_rows_are_objects(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n[1]\n")
    with pytest.raises(ValueError, match="not every line is a JSON object"):
        rows.read_rows(tmp_path / "rows.jsonl")


def test_json_of_a_gigabyte_is_not_read(model):
    with (model / "card.json").open("r+") as file:
        file.truncate(2**30)  # of holes
    with pytest.raises(ValueError, match="card.json has 1073741824 bytes"):
        zoo.load_card(model)
