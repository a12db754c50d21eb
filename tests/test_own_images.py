"""Pictures are read as one sees them, or refused: nothing is dropped without a word."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, ImageOps

from pixeldefend.experiment import data

GREY, COLOUR = (28, 28, 1), (28, 28, 3)
TALL = (30, 20, 1)


def _exif(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg", "webp"])
def test_pictures_stand_as_their_orientation_says(tmp_path, orientation, suffix, rng):
    seen = rng.integers(0, 256, TALL[:2], dtype=np.uint8)
    if suffix in ("jpg", "webp"):  # lossy, and the second in colour only
        seen = np.repeat(np.arange(0, 240, 40, dtype=np.uint8), 100).reshape(30, 20)
    # How a camera that was turned stores what is seen, by the inverse of each.
    turned = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.T,
        6: np.rot90(seen),
        7: seen[::-1, ::-1].T,
        8: np.rot90(seen, -1),
    }[orientation]
    picture = Image.fromarray(np.ascontiguousarray(turned))
    shape = TALL
    if suffix == "webp":
        picture, shape = picture.convert("RGB"), (*TALL[:2], 3)
    options = {"quality": 100} | ({"lossless": True} if suffix == "webp" else {})
    picture.save(tmp_path / f"a.{suffix}", exif=_exif(orientation), **options)
    found, _, _ = data.read_images(tmp_path, shape)
    difference = np.abs(found[0, ..., 0].astype(int) - seen)
    assert difference.max() <= (3 if suffix == "jpg" else 0)
    # Sizes are compared as one sees them.
    sideways = (shape[1], shape[0], shape[2])
    with pytest.raises(
        ValueError, match=r"30 x 20 .*expected 20 x 30|20 x 30 .*30 x 20"
    ):
        data.read_images(tmp_path, sideways)


def _png_chunk(kind, content):
    head = struct.pack(">I", len(content)) + kind + content
    return head + struct.pack(">I", zlib.crc32(kind + content))


def _deep_png(depth):
    """A colour PNG of 28 x 28 with so many bits per channel."""
    header = struct.pack(">IIBBBBB", 28, 28, depth, 2, 0, 0, 0)
    row = bytes(1 + 28 * 3 * depth // 8)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", header)
        + _png_chunk(b"IDAT", zlib.compress(row * 28))
        + _png_chunk(b"IEND", b"")
    )


def _deep_tiff(bits):
    """A colour TIFF of 28 x 28, uncompressed, with so many bits per channel."""
    pixels = bytes(28 * 28 * 3 * bits // 8)
    end = 8 + len(pixels)
    tags = [(256, 4, 1, 28), (257, 4, 1, 28), (258, 3, 3, end), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3), (278, 4, 1, 28)]
    tags += [(279, 4, 1, len(pixels)), (339, 3, 3, end + 6)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    lists = struct.pack("<6H", *[bits] * 3, *[1] * 3)
    start = end + len(lists)
    return b"II*\0" + struct.pack("<I", start) + pixels + lists + directory


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.png", _deep_png(16), "16 bits per channel"),
        ("a.tiff", _deep_tiff(16), "16 bits per channel"),
        ("a.ppm", b"P6 28 28 65535\n" + bytes(28 * 28 * 6), "16 bits per channel"),
        ("a.pnm", b"P6 28 28 1023\n" + bytes(28 * 28 * 6), "10 bits per channel"),
        ("a.ppm", b"P3 28 28 4095\n" + b"0 " * 28 * 28 * 3, "12 bits per channel"),
    ],
)
def test_pictures_of_more_than_8_bits_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} has {message}.*to 8 bits first"):
        data.read_images(tmp_path, COLOUR)


def test_the_same_pictures_of_8_bits_are_read(tmp_path):
    (tmp_path / "a.png").write_bytes(_deep_png(8))
    (tmp_path / "b.tiff").write_bytes(_deep_tiff(8))
    (tmp_path / "c.ppm").write_bytes(b"P6 28 28 255\n" + bytes(28 * 28 * 3))
    # Fewer levels are stretched to all of 0..255, as they are meant.
    (tmp_path / "d.ppm").write_bytes(b"P6 28 28 15\n" + bytes([15] * 28 * 28 * 3))
    found, _, names = data.read_images(tmp_path, COLOUR)
    assert names == list("abcd")
    assert not found[:3].any() and (found[3] == 255).all()


def test_signed_levels_are_refused(tmp_path):
    picture, signed = Image.new("L", (28, 28), 255), {339: 2}
    picture.save(tmp_path / "a.tiff", tiffinfo=signed)
    with pytest.raises(ValueError, match="a.tiff has negative levels"):
        data.read_images(tmp_path, GREY)


@pytest.mark.parametrize("bits", [16, 32])
def test_deep_grey_pictures_are_refused(tmp_path, bits):
    kind = {16: np.uint16, 32: np.float32}[bits]
    Image.fromarray(np.zeros((28, 28), kind)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="8 bits: resize and convert"):
        data.read_images(tmp_path, GREY)


def test_every_known_ending_is_read(tmp_path):
    image = Image.new("RGB", (28, 28), (9, 9, 9))
    endings = "png jpg jpeg jfif bmp webp tif tiff ppm pnm"
    for i, ending in enumerate(endings.split()):
        kind = {"jfif": "JPEG", "pnm": "PPM"}.get(ending)
        image.save(tmp_path / f"{i}.{ending.upper()}", kind)
    found, _, names = data.read_images(tmp_path, COLOUR)
    assert len(names) == 10 and np.abs(found.astype(int) - 9).max() <= 2
    grey = tmp_path / "grey"
    grey.mkdir()
    Image.new("L", (28, 28), 9).save(grey / "a.pgm")
    Image.new("L", (28, 28), 9).save(grey / "b.gif", optimize=False)
    assert (data.read_images(grey, GREY)[0] == 9).all()


def test_what_is_not_read_of_a_folder_is_said(tmp_path, capsys):
    def folder(*names):
        inner = tmp_path / "-".join(names).replace("/", "_")
        inner.mkdir()
        Image.new("L", (28, 28)).save(inner / "a.png")
        for name in names:
            if name.endswith("/"):
                (inner / name).mkdir()
            else:
                (inner / name).write_text("")
        assert data.read_images(inner, GREY)[2] == ["a"]
        return inner, capsys.readouterr().out

    inner, said = folder("notes.txt")
    assert said == f"1 entry of {inner} was not read, such as notes.txt\n"
    inner, said = folder("cats/", "picture", "x.png/", ".hidden")
    assert said == f"3 entries of {inner} were not read, such as cats\n"
    assert folder(".DS_Store")[1] == ""


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff", "png"])
def test_pictures_of_several_frames_are_refused(tmp_path, suffix):
    kind, shape = ("L", GREY) if suffix in ("gif", "tiff") else ("RGB", COLOUR)
    frames = [Image.new(kind, (28, 28), level) for level in ("black", "white")]
    path = tmp_path / f"a.{suffix}"
    options = {"optimize": False} if suffix == "gif" else {}  # grey stays grey
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with pytest.raises(ValueError, match="several frames or pages"):
        data.read_images(tmp_path, shape)


@pytest.mark.parametrize("kind, shape", [("L", GREY), ("RGB", COLOUR)])
def test_a_transparent_colour_is_not_lost(tmp_path, kind, shape):
    clear = 0 if kind == "L" else (0, 0, 0)
    Image.new(kind, (28, 28)).save(tmp_path / "a.png", transparency=clear)
    with pytest.raises(ValueError, match="transparent colour.*flatten"):
        data.read_images(tmp_path, shape)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tiff", "pgm"])
def test_half_a_picture_is_refused(tmp_path, suffix, rng, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # of somebody else
    path = tmp_path / f"a.{suffix}"
    options = {"optimize": False} if suffix == "gif" else {}
    noise = rng.integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    assert len(data.read_images(tmp_path, GREY)[0]) == 1
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(ValueError, match=f"a.{suffix} is not a readable picture"):
        data.read_images(tmp_path, GREY)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path, rng):
    """Its sums are compared: the library itself lets some through."""
    path = tmp_path / "a.png"
    Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    for place in range(8, len(content) - 12, 29):  # but for the mark of its end
        changed = content.copy()
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"a\.png "):
            data.read_images(tmp_path, GREY)


def test_other_formats_in_a_known_name_are_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28)).save(buffer, "TGA")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="a.png is not a readable picture"):
        data.read_images(tmp_path, COLOUR)


def test_the_inverse_of_an_orientation_is_the_librarys(rng):
    """So that the test above turns the right way: 6 is shown turned to the right."""
    stored = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    picture = Image.fromarray(stored)
    picture.getexif()[ExifTags.Base.Orientation] = 6
    shown = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(shown, np.rot90(stored, -1))
