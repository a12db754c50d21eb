"""Whatever a bit of damage makes of a file: the right values, or one line."""

import contextlib
import gc
import json
import random
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import tiny
from PIL import Image
from published import as_tensorflow

import pixeldefend
from pixeldefend.experiment import data, foreign_weights, lock, rows, workdir, zoo
from pixeldefend.experiment.checkpoints import Checkpoints
from pixeldefend.experiment.metrics import MetricsFile

pytestmark = [
    pytest.mark.slow,
    # A restore that fails leaves tasks of orbax behind.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SHAPE = (8, 8, 1)
ONE_LINE = (ValueError, TypeError, OSError, workdir.UserError)
SECONDS, KILOBYTES = 10, 2**20


@pytest.fixture(autouse=True)
def collected():
    """What a restore leaves complains here, and not within somebody's parser."""
    yield
    gc.collect()


def _flip(content, draw):
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 4))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(content, draw):
    return content[: draw.randrange(len(content))]


def _insert(content, draw):
    place = draw.randrange(len(content) + 1)
    return content[:place] + draw.randbytes(draw.randint(1, 40)) + content[place:]


def _double(content, draw):
    first, last = sorted(draw.randrange(len(content) + 1) for _ in "ab")
    return content[:last] + content[first:]


def _swap(content, draw):
    middle = draw.randrange(len(content) + 1)
    return content[middle:] + content[:middle]


def _number(content, draw):
    """Another number for one that is written out, as in JSON and in headers."""
    digits = [i for i, byte in enumerate(content) if 48 <= byte < 58]
    if not digits:
        return _flip(content, draw)
    place = draw.choice(digits)
    other = draw.choice((b"-1", b"0", b"1e999", b"NaN", b"9" * 30, b"1.5", b"null"))
    return content[:place] + other + content[place + 1 :]


BYTES = (_flip, _cut, _insert, _double, _swap, _number)


def _inner(value, draw):
    """A dictionary or list within a value of JSON, itself included."""
    while draw.random() < 0.7:
        parts = list(value.values() if isinstance(value, dict) else value)
        deeper = [part for part in parts if isinstance(part, dict | list) and part]
        if not deeper:
            break
        value = draw.choice(deeper)
    return value


def _json(content, draw):
    """Another value, no value, or one within many, somewhere in JSON."""
    value = json.loads(content.splitlines()[0] if b"}\n{" in content else content)
    place = _inner(value, draw)
    key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
    others = (0, -1, 1.5, 2**70, float("nan"), "", "a\0", "../..", None, True, [], {})
    change = draw.randrange(3)
    if change == 0:
        del place[key]
    elif change == 1:
        place[key] = draw.choice((*others, 100_000, [place[key]], {"a": place[key]}))
    else:
        deep = draw.choice((3, 500, 100_000))
        return b"[" * deep + json.dumps(value).encode() + b"]" * deep
    return json.dumps(value).encode()


@contextlib.contextmanager
def _bounded(what):
    """Lets mistakes of one line pass, within bounds of time and memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    try:
        yield
    except ONE_LINE as error:
        assert str(error), what
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert time.monotonic() - begun < SECONDS, what
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < KILOBYTES, what


def _mutate(path, count, kinds, read):
    """Reads a file again and again, changed each time in another way."""
    whole = path.read_bytes()
    read()
    for seed in range(count):
        draw = random.Random(f"{path.name} {seed}")
        kind = draw.choice(kinds)
        path.write_bytes(kind(whole, draw))
        with _bounded(f"{path.name}: {kind.__name__}, seed {seed}"):
            read()
    path.write_bytes(whole)
    read()


def _is_images(found, labels=None):
    assert found.dtype == np.uint8 and found.shape[1:] == SHAPE and len(found)
    assert labels is None or (labels.shape == found.shape[:1] and labels.min() >= 0)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, *SHAPE), dtype=np.uint8)


@pytest.mark.parametrize("name", ["stored.npz", "small.npz", "a.npy"])
def test_own_arrays(tmp_path, images, name):
    path = tmp_path / name
    save = {"a.npy": np.save, "small.npz": np.savez_compressed}.get(name, np.savez)
    if save is np.save:
        np.save(path, images)
    else:
        save(path, images=images, labels=np.arange(3))

    def read():
        found, labels, _ = data.read_images(path, SHAPE)
        _is_images(found, labels)
        if labels is not None:  # an archive has sums
            np.testing.assert_array_equal(found, images)
            assert labels.tolist() == [0, 1, 2]

    _mutate(path, 80, BYTES, read)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "gif", "pgm", "tiff", "webp"])
def test_pictures(tmp_path, images, ending):
    picture, shape = Image.fromarray(images[0, ..., 0]), SHAPE
    if ending == "webp":
        picture, shape = picture.convert("RGB"), (8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"optimize": False} if ending == "gif" else {}
    if ending in ("png", "jpg", "webp", "tiff"):
        options["exif"] = exif
    picture.save(tmp_path / f"a.{ending}", **options)
    expected = np.asarray(data.read_images(tmp_path, shape)[0])

    def read():
        found = data.read_images(tmp_path, shape)[0]
        assert found.dtype == np.uint8 and found.shape == (1, *shape)
        if ending == "png":  # has sums
            np.testing.assert_array_equal(found, expected)

    _mutate(tmp_path / f"a.{ending}", 40, BYTES, read)


def test_arrays_of_a_data_set(tmp_path, rng):
    (tmp_path / "mnist").mkdir()
    images = rng.integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    np.savez_compressed(tmp_path / "mnist/test.npz", images=images, labels=[1, 9])

    def read():
        found, labels = data.load("mnist", "test", tmp_path)
        np.testing.assert_array_equal(found, images)
        assert labels.tolist() == [1, 9]

    _mutate(tmp_path / "mnist/test.npz", 60, BYTES, read)


def test_published_weights(tmp_path):
    model, params, _, _ = tiny(SHAPE, conditionals="joint", dropout=0.5)
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, **as_tensorflow(model, params))

    def read():
        found, given = pixeldefend.import_pixelcnn(foreign_weights.read(path))
        assert found == model
        jax.tree.map(np.testing.assert_array_equal, given, params)

    _mutate(path, 40, BYTES, read)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "toy"
    model, params, _, _ = tiny(SHAPE)
    card = {"kind": "pixelcnn", "dataset": "toy", "image_shape": list(SHAPE)}
    card["training"] = {"seconds": 1.0, "images": 3, "before": [{"seconds": 2.0}]}
    zoo.save_released(folder, model, params, card, reference=np.arange(9.0))
    zoo.save_validation(folder, np.ones((2, 7)), {"detector": "a", "draws": [1, 0.5]})
    return folder


@pytest.fixture
def copy(released, tmp_path):
    shutil.copytree(released, tmp_path / "toy")
    return tmp_path / "toy"


def _without_hashes(folder):
    card = json.loads((folder / "card.json").read_text())
    del card["files"]
    (folder / "card.json").write_text(json.dumps(card))


def test_cards(copy):
    expected = zoo.load_card(copy)["model"]

    def read():
        # What a card asks for is compared with the weights that are there.
        found = zoo.load_released(str(copy))
        told = {k: v for k, v in found.card["model"].items() if k in expected}
        # Without effect on the weights.
        free = ("dropout", "dtype", "conditionals")
        assert all(told[k] == expected[k] for k in set(told) - {*free})

    _mutate(copy / "card.json", 60, (*BYTES, _json, _json, _json), read)


@pytest.mark.parametrize("hashes", [True, False], ids=["hashes", "none"])
@pytest.mark.parametrize("name", ["reference.npy", "validation.npy"])
def test_scores(copy, name, hashes):
    if not hashes:
        _without_hashes(copy)
    load = zoo.load_reference if name[0] == "r" else zoo.load_validation
    expected = load(str(copy))

    def read():
        found = load(str(copy))
        assert np.all(np.isfinite(found)) or name[0] == "r"
        if hashes:
            np.testing.assert_array_equal(found, expected)

    _mutate(copy / name, 50, BYTES, read)


def test_weights(copy):
    _without_hashes(copy)
    expected = zoo.load_released(str(copy)).params

    def read():
        found = zoo.load_released(str(copy)).params
        jax.tree.map(np.testing.assert_array_equal, found, expected)

    paths = sorted(path for path in (copy / "weights").rglob("*") if path.is_file())
    for path in filter(lambda path: path.stat().st_size, paths):
        _mutate(path, 40 // len(paths) + 1, BYTES, read)


def test_training_checkpoints(tmp_path):
    state = {"a": jnp.arange(50.0), "step": jnp.int32(3)}
    with contextlib.closing(Checkpoints(tmp_path)) as saving:
        saving.save(3, state, {"seconds": 1.5})

    def read():
        with contextlib.closing(Checkpoints(tmp_path)) as restoring:
            found = restoring.restore(state)
        if found is not None:  # there is none any more
            assert found[0] == 3 and found[2] == {"seconds": 1.5}
            jax.tree.map(np.testing.assert_array_equal, found[1], state)

    paths = sorted(path for path in (tmp_path / "3").rglob("*") if path.is_file())
    for path in filter(lambda path: path.stat().st_size, paths):
        _mutate(path, 40 // len(paths) + 1, BYTES, read)


def test_the_config_of_a_workdir(tmp_path):
    config = {"mode": "score", "seed": 0, "score": {"eps": [1.5, 2], "input": "a"}}
    with contextlib.closing(workdir.Workdir(tmp_path, config)) as place:
        place.open()
    (tmp_path / "rows.jsonl").write_text("{}\n")

    def read():
        place = workdir.Workdir(tmp_path, config)
        with contextlib.closing(place):
            # Numbers that are equal may be written in another way.
            assert json.loads((tmp_path / "config.json").read_text()) == config

    _mutate(tmp_path / "config.json", 80, (*BYTES, _json, _json, _json), read)


def test_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.0)
    path = tmp_path / "lock.json"
    dead = {"host": "h", "machine": lock._machine(), "process": 1, "started": "0"}
    path.write_text(json.dumps(dead | {"token": "t", "beat": 3}))
    whole = path.read_bytes()
    for seed in range(50):
        draw = random.Random(seed)
        path.write_bytes(draw.choice((*BYTES, _json, _json))(whole, draw))
        with _bounded(f"lock, seed {seed}"):
            mine = lock.Lock(path)
            mine.take()
            mine.release()
            assert not path.exists()


def test_lines(tmp_path):
    lines = [{"step": step, "loss": 0.5, "more": {"a": [step]}} for step in (1, 2, 3)]
    path = tmp_path / "rows.jsonl"
    rows.write_rows(path, lines)
    _mutate(path, 50, (*BYTES, _json), lambda: _are_objects(rows.read_rows(path)))
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def read():
        last = MetricsFile(path, 3).last
        assert last == {} or last["step"] <= 3

    _mutate(path, 50, (*BYTES, _json), read)


def _are_objects(found):
    assert all(isinstance(row, dict) for row in found)


def test_notes_of_results(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").write_text("mine")
    path = tmp_path / "run/written.json"
    path.write_text(json.dumps(["predictions.npz", "purified/a.png"]))
    whole = path.read_bytes()
    for seed in range(50):
        draw = random.Random(seed)
        path.write_bytes(draw.choice((*BYTES, _json, _json))(whole, draw))
        with _bounded(f"written.json, seed {seed}"):
            workdir.remove_results(tmp_path / "run", [])
        assert (tmp_path / "mine").exists()
