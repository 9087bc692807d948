"""Every kind of image file a folder of images can hold, against pixel values that are known."""

import io
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from longvision.data.io import images
from longvision.data.io.images import find_images, read_image
from longvision.errors import UnreadableImage, UserError

RED, GREY, WHITE, BLACK = (255, 0, 0), (90, 90, 90), (255, 255, 255), (0, 0, 0)


def pixels(image):
    return np.asarray(image).tolist()


def saved(image, tmp_path, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_rgb_and_its_luma():
    image = encoded(Image.new("RGB", (2, 1), RED))
    assert read_image(image).mode == "RGB"
    assert pixels(read_image(image)) == [[[*RED], [*RED]]]
    assert read_image(image, channels=1).mode == "L"
    assert pixels(read_image(image, channels=1)) == [[76, 76]]


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("L", 90, GREY),
        ("1", 1, WHITE),
        ("LA", (90, 255), GREY),
        ("LA", (90, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
    ],
)
def test_png_modes(mode, colour, expected):
    assert read_image(encoded(Image.new(mode, (1, 1), colour))).getpixel((0, 0)) == expected


def test_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLACK])
    image.putpixel((1, 0), 1)
    assert pixels(read_image(encoded(image))) == [[[*RED], [*BLACK]]]
    assert pixels(read_image(encoded(image, transparency=1))) == [[[*RED], [*WHITE]]]


def test_transparent_grey_value():
    image = Image.fromarray(np.array([[90, 10]], dtype=np.uint8))
    assert pixels(read_image(encoded(image, transparency=10), channels=1)) == [[90, 255]]


def test_cmyk_jpeg_is_not_inverted():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = np.asarray(read_image(encoded(image, "JPEG", quality=100)))
    assert np.abs(red.astype(int) - RED).max() < 8  # lossy


# stored pixels that show [[10, 20, 30], [40, 50, 60]] when the tag is obeyed
TURNED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a, 3),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, kind):
    upright = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert pixels(read_image(encoded(stored, kind, exif=exif), channels=1)) == upright.tolist()


def test_damaged_exif_leaves_the_pixels():
    image = encoded(Image.new("RGB", (8, 8), RED), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert read_image(image).size == (8, 8)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (1, 1), colour) for colour in (RED, BLACK)]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(read_image(animation)) == [[[*RED]]]


def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"hello, this is a text file", "not an image"),
        (encoded(photo())[:3000], "truncated"),
        (encoded(photo(), "JPEG")[:1500], "truncated"),
        (encoded(photo(), "TIFF")[:1500], "cannot be read"),
        (encoded(photo(), "WEBP")[:1500], "cannot be read|not an image"),
        (encoded(photo())[:20], "cannot be read|not an image"),
    ],
)
def test_unreadable_bytes(tmp_path, content, reason):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnreadableImage, match=r"^row 7 .*"):
        read_image(content, name="row 7")


def test_decompression_bomb():
    with pytest.raises(UnreadableImage, match=r"bomb.ppm has 60000x60000 .* LONGVISION_MAX_PIXELS"):
        read_image(b"P6 60000 60000 255\n", name="bomb.ppm")


def test_a_broken_byte_is_an_unreadable_image_or_none_at_all():
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TGA", "ICO"):
        whole = encoded(photo().resize((16, 16)), kind)
        for _ in range(60):
            damaged = bytearray(whole)
            for place in random.integers(0, min(len(whole), 80), 3):
                damaged[place] = random.integers(256)
            with suppress(UnreadableImage):
                assert read_image(bytes(damaged)).mode == "RGB"


@pytest.mark.parametrize("bug", [TypeError, MemoryError, ValueError, RuntimeError, KeyError])
def test_a_bug_of_ours_is_no_unreadable_image(monkeypatch, bug):
    """Or up to 1 % of a set would be left out of training by it."""

    def broken(image, channels, name):
        raise bug("a bug")

    monkeypatch.setattr(images, "as_channels", broken)
    with pytest.raises(bug) as caught:
        read_image(encoded(Image.fromarray(np.array([[0, 257]], dtype=np.uint16))))
    assert not isinstance(caught.value, UserError)


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png does not exist"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(UnreadableImage, match="is a folder"):
        read_image(str(tmp_path))


def test_find_images(tmp_path):
    for name in ("b/2.png", "b/1.png", "a/deep/3.png", ".hidden/4.png", "b/.5.png", "b/Thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    given = tmp_path / "b" / "2.png"
    found = [path.relative_to(tmp_path).as_posix() for path in find_images([given, tmp_path])]
    assert found == ["b/2.png", "a/deep/3.png", "b/1.png", "b/2.png"]
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_images([str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no files"):
        find_images([tmp_path / "empty"])


def test_what_pillow_has_opened_is_read_as_its_file_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # orientation: turn it by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        read = read_image(opened, 1)
    assert read.size == (5, 8) and read.mode == "L"
    assert np.array_equal(np.asarray(read), np.asarray(read_image(tmp_path / "turned.png", 1)))


def test_what_pillow_has_opened_may_be_cut_short(tmp_path):
    Image.new("RGB", (50, 50), "red").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:80])
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(UnreadableImage, match="that one"):
        read_image(opened, name="that one")
