"""Reading pictures: finding them, every format, mode and orientation, resizing."""

import contextlib
import errno
import os
import struct
import zlib
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from cifar_jax.data import photos
from cifar_jax.errors import UserError

SHAPE = (32, 32, 3)
RESIZES = ("crop", "squeeze")


def scene(height=40, width=60):
    """Colours that change along both axes: every rotation and mirror image looks different."""
    y, x = np.mgrid[:height, :width]
    channels = (255 * x / width, 255 * y / height, 255 * (x + y) / (height + width))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def read(path, shape=SHAPE, **options):
    return photos.fit(photos.read_picture(str(path)), shape, **options)


def difference(one, other):
    return np.abs(one.astype(int) - other.astype(int)).max()


def bomb(path, width=60_000, height=60_000):
    """Writes a PNG whose header announces far more pixels than it has."""

    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm", "ico"])
def test_all_formats_give_the_same_picture(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    picture = scene(64, 64)
    picture.save(path, **{"sizes": [(64, 64)]} if kind == "ico" else {})
    expected = photos.fit(picture, SHAPE)
    assert difference(read(path), expected) <= {"gif": 40, "jpg": 30, "webp": 30}.get(kind, 0)


def test_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "green")]
    for name in ("x.gif", "x.webp", "x.tiff"):
        lossless = {"lossless": True} if name == "x.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **lossless)
        assert (read(tmp_path / name) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
def test_a_rotated_photograph_is_turned_upright(tmp_path, orientation, kind):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = scene()
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    exact = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
    stored.save(tmp_path / f"x.{kind}", exif=exif, **exact.get(kind, {}))
    found = photos.read_picture(str(tmp_path / f"x.{kind}"))
    assert found.size == upright.size
    assert difference(np.asarray(found), np.asarray(upright)) <= (8 if kind == "jpg" else 0)


def test_a_damaged_exif_orientation_is_ignored(tmp_path):
    scene().save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12broken")
    assert photos.read_picture(str(tmp_path / "x.jpg")).size == (60, 40)


def test_depths_and_colour_models(tmp_path):
    path = tmp_path / "x.png"
    for dtype, white in ((np.uint16, 65535), (np.uint8, 255)):
        Image.fromarray(np.array([[0, white // 2, white]], dtype)).save(path)
        found = np.asarray(photos.read_picture(str(path)))
        assert np.abs(found.astype(int) - [[0, 127, 255]]).max() <= 1
    Image.fromarray(np.array([[0, 20_000]], np.uint16)).save(path)  # dark, and stays so
    assert np.asarray(photos.read_picture(str(path))).tolist() == [[0, 78]]
    for white in (1.0, 200.0, 60000.0, 1e9):
        Image.fromarray(np.array([[0, white / 2, white]], np.float32)).save(tmp_path / "x.tiff")
        scale = {200.0: 200, 60000.0: 60000 / 257}.get(white, 255)
        found = np.asarray(photos.read_picture(str(tmp_path / "x.tiff")))
        np.testing.assert_allclose(found, [[0, scale / 2, scale]], atol=1)
    wild = np.array([[np.nan, np.inf, -np.inf, -1, 0.5, 1]], np.float32)
    Image.fromarray(wild).save(tmp_path / "x.tiff")
    assert photos.read_picture(str(tmp_path / "x.tiff")).size == (6, 1)
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "x.tiff")
    assert (np.asarray(photos.read_picture(str(tmp_path / "x.tiff"))) == 0).all()
    for dtype, white in ((np.int32, 255), (np.int32, 4095), (np.uint16, 255), (np.uint16, 4095)):
        Image.fromarray(np.array([[0, white // 5, white]], dtype)).save(tmp_path / "x.tiff")
        found = np.asarray(photos.read_picture(str(tmp_path / "x.tiff")))
        np.testing.assert_allclose(found, [[0, 51, 255]], atol=0 if white == 255 else 1)
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "x.tiff")
    assert np.asarray(photos.read_picture(str(tmp_path / "x.tiff"))).tolist() == [[0, 255]]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg")
    assert difference(read(tmp_path / "x.jpg"), np.array([255, 0, 0])) <= 10
    Image.new("1", (8, 8), 1).save(path)
    assert (read(path) == 255).all()


def test_transparent_parts_become_white(tmp_path):
    path = tmp_path / "x.png"
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    half.putpixel((1, 0), (255, 0, 0, 0))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    keyed = Image.new("RGB", (2, 1), (255, 0, 0))
    keyed.putpixel((1, 0), (0, 0, 9))
    for picture, options in (
        (half, {}),
        (palette, {"transparency": 1}),
        (palette, {"transparency": b"\xff\0"}),
        (keyed, {"transparency": (0, 0, 9)}),
    ):
        picture.save(path, **options)
        assert np.asarray(photos.read_picture(str(path))).tolist() == [
            [[255, 0, 0], [255, 255, 255]]
        ]
    Image.new("LA", (1, 1), (0, 128)).save(path)
    assert np.asarray(photos.read_picture(str(path))).tolist() == [[[127] * 3]]


def test_grey_stays_grey_and_colours_become_grey_for_a_grey_model(tmp_path):
    Image.new("L", (50, 50), 77).save(tmp_path / "x.png")
    assert (read(tmp_path / "x.png") == 77).all()
    scene().save(tmp_path / "x.png")
    found = read(tmp_path / "x.png", (28, 28, 1))
    assert found.shape == (28, 28, 1)
    expected = photos.fit(scene().convert("L"), (28, 28, 1))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("resize", RESIZES)
def test_a_picture_of_the_right_size_keeps_its_bits(tmp_path, resize):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read(tmp_path / "x.png", resize=resize), noise)


@pytest.mark.parametrize("resize", RESIZES)
def test_shrinking_averages(resize):
    y, x = np.mgrid[:320, :320]
    ramp = np.stack([x, y, x + y], axis=-1) * (255 / 640)
    found = photos.fit(Image.fromarray(ramp.astype(np.uint8)), SHAPE, resize)
    boxes = ramp.reshape(32, 10, 32, 10, 3).mean(axis=(1, 3))
    assert np.abs(found - boxes)[2:-2, 2:-2].max() < 1.5
    # A fine checkerboard becomes grey, which it would not if every tenth pixel were taken.
    board = Image.fromarray((255 * ((x + y) % 2)).astype(np.uint8))
    assert np.abs(photos.fit(board, SHAPE, resize).astype(int) - 128).max() <= 2


def test_a_crop_takes_the_middle_and_a_squeeze_takes_all():
    wide = np.zeros((30, 90, 3), np.uint8)
    wide[:, 30:60] = 200
    wide = Image.fromarray(wide)
    assert (photos.fit(wide, (30, 30, 3)) == 200).all()
    squeezed = photos.fit(wide, (30, 30, 3), "squeeze")
    assert (squeezed[:, 13:17] == 200).all()
    assert (squeezed[:, :7] == 0).all()
    tall = wide.transpose(Image.Transpose.ROTATE_90)
    assert (photos.fit(tall, (30, 30, 3)) == 200).all()
    assert photos.fit(wide, (20, 44, 3)).shape == (20, 44, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_extreme_sizes(tmp_path, size):
    Image.new("RGB", size, (9, 99, 199)).save(tmp_path / "x.png")
    for resize in RESIZES:
        assert (read(tmp_path / "x.png", resize=resize) == (9, 99, 199)).all()


def test_files_that_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {
        "empty.png": b"",
        "text.png": b"Dear reader, this is not a picture.",
        "magic.png": b"\x89PNG\r\n\x1a\n",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "svg.jpg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in ("cut.jpg", "cut.png", "cut.gif", "cut.webp", "cut.bmp", "cut.tiff"):
        scene(300, 300).save(name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    bomb(tmp_path / "bomb.png")
    bomb(tmp_path / "large.png", 12_000, 11_000)  # below Pillow's own limit
    os.mkfifo("fifo.png")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dead.jpg").symlink_to("nowhere")
    parts = {
        **dict.fromkeys(("text.png", "script.eps", "svg.jpg"), "not a picture of a known format"),
        **{"empty.png": "is empty", "dead.jpg": "is a broken link", "none": "cannot be read"},
        **dict.fromkeys(("fifo.png", "folder.jpg"), "is not a file"),
        **dict.fromkeys(("bomb.png", "large.png"), "more than 128 million pixels"),
    }
    names = {path.name for path in tmp_path.iterdir()} | {"none", "x" * 300}
    for name in sorted(names):
        with pytest.raises(UserError) as found:
            photos.read_picture(name)
        line = str(found.value)
        assert line.startswith(f"{name} ")
        assert parts.get(name, "") in line
        assert "\n" not in line
        assert len(line) < 450


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    scene().save(tmp_path / "x.png")
    (tmp_path / "x.png").chmod(0)
    if not os.geteuid():  # root may read everything
        error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        monkeypatch.setattr(photos.Path, "open", mock.Mock(side_effect=error))
    with pytest.raises(UserError, match=r"x\.png cannot be read \(Permission denied\)"):
        photos.read_picture(str(tmp_path / "x.png"))


def test_random_damage_gives_a_picture_or_a_clear_error(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "x"
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        scene().save(path, kind)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(25):
            data = whole.copy()
            places = random.integers(0, min(len(data), 200), 4)
            data[places] = random.integers(0, 256, 4)
            path.write_bytes(data.tobytes())
            with contextlib.suppress(UserError):
                assert read(path).shape == SHAPE


def test_transparency_is_kept_for_a_model_with_four_channels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    for name in ("x.png", "x.tiff", "x.webp"):
        more = {"lossless": True, "exact": True} if name == "x.webp" else {}
        Image.fromarray(pixels).save(tmp_path / name, **more)
        picture = photos.read_picture(str(tmp_path / name), channels=4)
        np.testing.assert_array_equal(photos.fit(picture, (4, 5, 4)), pixels)
    Image.new("LA", (1, 1), (30, 0)).save(tmp_path / "x.png")
    picture = photos.read_picture(str(tmp_path / "x.png"), channels=4)
    assert picture.getpixel((0, 0)) == (30, 30, 30, 0)


def test_the_background_and_the_inversion_can_be_chosen(tmp_path):
    path = str(tmp_path / "x.png")
    Image.new("RGBA", (1, 1), (9, 9, 9, 0)).save(path)
    assert photos.read_picture(path).getpixel((0, 0)) == (255, 255, 255)
    assert photos.read_picture(path, background="#102030").getpixel((0, 0)) == (16, 32, 48)
    assert photos.read_picture(path, background="black", invert=True).getpixel((0, 0)) == (255,) * 3
    found = photos.read_picture(path, channels=4, invert=True).getpixel((0, 0))
    assert found == (246, 246, 246, 0)
    Image.new("L", (1, 1), 10).save(path)
    assert photos.read_picture(path, invert=True).getpixel((0, 0)) == 245
    with pytest.raises(UserError, match="--background: unknown color specifier: 'whit'"):
        photos.check_background("whit")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "IMG_1.HEIC"
    picture = scene(64, 64)
    pillow_heif.from_pillow(picture).save(path, quality=-1)  # without loss
    assert photos.is_picture_name(str(path))
    assert difference(read(path), photos.fit(picture, SHAPE)) <= 3  # its colours are YCbCr
    path.rename(tmp_path / "IMG_1")  # known by its content
    assert difference(read(tmp_path / "IMG_1"), photos.fit(picture, SHAPE)) <= 3


def test_without_pillow_heif_it_is_named_as_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "_add_heic", lambda: False)
    monkeypatch.setattr(photos, "_formats", lambda: ["PNG", "JPEG"])
    path = tmp_path / "IMG_1.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(
        UserError, match=r"IMG_1\.HEIC is not read by Pillow alone: pip install pil"
    ):
        read(path)
    path.write_bytes(b"\0\0\0\x18ftypisom" + bytes(100))
    with pytest.raises(UserError, match="is not a picture of a known format"):
        read(path)
