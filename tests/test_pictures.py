"""Pictures of images side by side."""

import numpy as np
from PIL import Image

from pixeldefend.experiment import pictures


def _pixels(rows):
    return np.asarray(pictures.grid(rows)).astype(int)


def test_images_lie_in_rows_enlarged(rng):
    images = rng.integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    pixels = _pixels([pictures.Row(images), pictures.Row(images[::-1])])
    assert pixels.shape == (4 + 2 * (15 + 4), 4 + 3 * (12 + 4), 3)
    np.testing.assert_array_equal(pixels[4:19:3, 20:32:3], images[1])
    np.testing.assert_array_equal(pixels[23:38:3, 4:16:3], images[2])


def test_right_and_wrong_differ_by_more_than_colour():
    images = np.full((2, 32, 32, 1), 255, np.uint8)
    row = pictures.Row(images, "purified,\neps 8", ["cat", "cat"], [True, False])
    grey = _pixels([row]).mean(-1) < 250
    half = (grey.shape[1] - 200) + np.arange(96)
    right, wrong = grey[:, half], grey[:, half + 100]
    assert right.any() and np.sum(right != wrong) > 20
    # Without the knowledge there is one line less, and without texts none.
    unknown = _pixels([pictures.Row(images, row.title, ["cat", "cat"])])
    bare = _pixels([pictures.Row(images, row.title)])
    assert grey.shape[0] > unknown.shape[0] > bare.shape[0]
    assert np.all(bare[:, -200:] == 255) and np.any(bare[:, :-200] < 250)


def test_differences_are_amplified_as_they_say(rng):
    others = rng.integers(40, 200, (2, 8, 8, 3), dtype=np.uint8)
    moves = rng.integers(-20, 21, others.shape)
    for most, wanted in ((20, 6), (1, 8), (0, 8)):
        moved = np.clip(moves, -most, most)
        images = (others + moved).astype(np.uint8)
        apart, times = pictures.difference(images, others)
        assert times == wanted and apart.dtype == np.uint8
        np.testing.assert_array_equal(apart, 128 + times * moved)
    far = np.full_like(others, 255)
    apart, times = pictures.difference(far, np.zeros_like(others))
    assert times == 1 and np.all(apart == 255)  # clipped


def test_a_picture_is_written_whole(tmp_path, rng):
    images = rng.integers(0, 256, (1, 5, 4, 1), dtype=np.uint8)
    pictures.save(pictures.grid([pictures.Row(images)]), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as found:
        levels = np.asarray(found)[4:19:3, 4:16:3, 0]
    np.testing.assert_array_equal(levels, images[0, ..., 0])
