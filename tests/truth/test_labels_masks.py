"""Masks whose values can mean several things: read right, or asked about with the option that says it."""

import json

import numpy as np
import pytest
from PIL import Image

from longvision.data.sources.mask_folder import MaskFolderSource
from longvision.errors import UserError

SIZE = 8
COLOURS = {"sky": (128, 128, 128), "road": (128, 64, 128), "tree": (128, 128, 0)}
TEXT = "\n".join(f"{name} {r} {g} {b}" for name, (r, g, b) in COLOURS.items())
GREYS = "cell 255 255 255\nbackground 0 0 0"


def rows(*values, dtype=np.uint8):
    """A mask with a row or more a value."""
    return np.resize(np.array(values, dtype), SIZE)[:, None].repeat(SIZE, 1)


def coloured(*numbers):
    return Image.fromarray(np.array(list(COLOURS.values()), np.uint8)[rows(*numbers)])


def with_palette(image, colours):
    image = Image.fromarray(image)
    image.putpalette([value for colour in colours for value in colour])
    return image


def folder(root, *masks, ending="png", classes=None, **options):
    """A set of these masks, of two images at least; arrays are saved as they are."""
    for number, mask in enumerate(masks if len(masks) > 1 else masks * 2):
        for name in ("images", "masks"):
            (root / name).mkdir(exist_ok=True)
        Image.new("RGB", (SIZE, SIZE)).save(root / f"images/{number}.png")
        image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        image.save(root / f"masks/{number}.{ending}", **({"quality": 85} if ending == "jpg" else {}))
    if classes is not None:
        (root / "classes.txt").write_text(classes)
        options["classes_file"] = str(root / "classes.txt")
    return MaskFolderSource(root, **options)


def read(source):
    """Every mask, in the order of their names: the classes that occur."""
    for split in ("train", "val"):
        source.check(split)
    found = {}
    for split in ("train", "val"):
        images = source.split(split)
        for (_, mask), row in zip(images.items, range(len(images)), strict=True):
            found[mask] = images[row][1]
    return [found[mask] for mask in sorted(found)]


ORDERS = [(0, 1, 2), (2, 0, 1), (1, 2, 0)]


@pytest.mark.parametrize("kinds", [["P", "P", "P"], ["RGB", "P", "P"], ["RGBA", "P", "RGB"], ["P", "RGB", "RGB"]])
def test_colours_win_over_the_order_of_a_palette(tmp_path, kinds):
    """DIGITS#1605: programs that make PNG smaller sort palettes by how often a colour occurs."""
    masks = []
    for kind, order in zip(kinds, ORDERS, strict=True):
        image = coloured(0, 1, 2).convert(kind) if kind != "P" else with_palette(
            np.argsort(order).astype(np.uint8)[rows(0, 1, 2)], [list(COLOURS.values())[k] for k in order]
        )  # fmt: skip
        masks.append(image)
    found = read(folder(tmp_path, *masks, classes=TEXT))
    assert all(np.array_equal(mask, rows(0, 1, 2)) for mask in found)


def test_a_file_of_one_grey_among_colours_is_read_by_its_colour(tmp_path):
    """A mask of sky alone becomes a grey file of the value 128; one of black would be class 0 by its number."""
    found = read(folder(tmp_path, coloured(0, 1, 2), rows(128), coloured(1, 2), classes=TEXT))
    assert np.unique(found[1]).tolist() == [0]
    source = folder(
        tmp_path, coloured(1, 2), rows(0), coloured(1, 2), classes="road 128 64 128\ntree 128 128 0\nvoid 0 0 0"
    )
    assert np.unique(read(source)[1]).tolist() == [2]


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_grey_colours_go_before_numbers(tmp_path, dtype):
    """The file says that cells are white: neither is 255 ignored, nor 0 the first class."""
    mask = rows(0, 255) if dtype == np.uint8 else rows(0, 1, dtype=bool)
    assert np.array_equal(read(folder(tmp_path, mask, classes=GREYS))[0], rows(1, 0))


def test_numbers_under_grey_colours(tmp_path):
    classes = "background 0 0 0\ncell 255 255 255"
    assert np.array_equal(read(folder(tmp_path, rows(0, 1), classes=classes))[0], rows(0, 1))
    with pytest.raises(UserError, match="colours of other classes than its numbers"):
        read(folder(tmp_path, rows(0, 1), classes=GREYS))


def test_numbers_of_a_palette_whose_colours_are_not_the_classes(tmp_path):
    mask = with_palette(rows(0, 1, 2), [(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    source = folder(tmp_path, mask, classes=TEXT)
    assert np.array_equal(read(source)[0], rows(0, 1, 2))
    assert any("their numbers count" in note for note in source.notes)


def test_a_palette_in_the_order_of_the_classes_with_an_edge_to_ignore(tmp_path):
    palette = [*COLOURS.values(), *[(0, 0, 0)] * 252, (224, 224, 192)]
    assert np.array_equal(
        read(folder(tmp_path, with_palette(rows(0, 1, 2, 255), palette), classes=TEXT))[0], rows(0, 1, 2, 255)
    )


def test_grey_numbers_stay_numbers_where_no_mask_is_in_colour(tmp_path):
    """CamVid's trainannot beside the colours of its classes."""
    assert np.array_equal(read(folder(tmp_path, rows(0, 1, 2), classes=TEXT))[0], rows(0, 1, 2))


@pytest.mark.parametrize(
    ("masks", "classes", "values"),
    [
        pytest.param([rows(0, 255)], None, rows(0, 1), id="0 and 255"),
        pytest.param([rows(0, 1, dtype=bool)], None, rows(0, 1), id="one bit"),
        pytest.param([rows(0, 255), rows(0, 1, dtype=bool)], None, rows(0, 1), id="0 and 255 beside one bit"),
        pytest.param([rows(0, 1), rows(0, 1, dtype=bool)], None, rows(0, 1), id="0 and 1 beside one bit"),
        pytest.param(
            [rows(0, 1, 2, 255), rows(0, 255), rows(0, 1, 2, 255)], None, rows(0, 1, 2, 255), id="255 beside numbers"
        ),
        pytest.param([rows(7, 8, 11)], "7: road\n8: sidewalk\n11: building", rows(0, 1, 2), id="Cityscapes' numbers"),
        pytest.param([rows(0, 255)], "0 background\n255 person", rows(0, 1), id="255 is a class by the file"),
        pytest.param([rows(1, 2, 3)], "1 wall\n2 building\n3 sky", rows(0, 1, 2), id="numbers from 1"),
        pytest.param([rows(300, 1000, dtype=np.uint16)], "300 a\n1000 b", rows(0, 1), id="16 bits by the file"),
        pytest.param([rows(0, 1, 2), rows(0, 2)], "a\nb\nc", rows(0, 1, 2), id="names"),
    ],
)
def test_values_that_are_certain(tmp_path, masks, classes, values):
    found = read(folder(tmp_path, *masks, classes=classes))
    assert np.array_equal(found[0], values)


def between():
    """Two colours and some that are nearly one of them."""
    pixels = np.array(coloured(0, 1))
    return Image.fromarray(pixels + np.eye(SIZE, dtype=np.uint8)[..., None])


RED, GREEN = [(0, 0, 0), (9, 0, 0)], [(0, 0, 0), (0, 9, 0)]


def ramp():
    return np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE) * 4


def transparent(mode):
    colour = Image.new("RGB" if mode == "RGBA" else "L", (SIZE, SIZE), 255 if mode == "LA" else (255, 255, 255))
    colour.putalpha(Image.fromarray(rows(0, 255)))
    return colour


@pytest.mark.parametrize(
    ("masks", "classes", "words"),
    [
        pytest.param([ramp()], None, ["no 1", "classes_file", '"binary": true'], id="smooth edges"),
        pytest.param([rows(0, 50, 100)], None, ["0, 50, 100", "no 1", "classes_file"], id="gaps"),
        pytest.param([rows(0, 1, 2), rows(0, 4)], None, ["no 3", "classes_file"], id="a gap over all files"),
        pytest.param([rows(1, 2, 3)], None, ["no 0", "data.reduce_zero_label"], id="numbers from 1"),
        pytest.param(
            [rows(0, 255), rows(0, 1)], None, ["data.ignore 255", "0.png", "1.png"], id="255 in some, 1 in others"
        ),
        pytest.param(
            [rows(0, 255), rows(0, 1, 2)], "a\nb\nc", ["data.ignore 255", "0.png", "1.png"], id="255 under names"
        ),
        pytest.param([rows(0, 1000, 1001, dtype=np.uint16)], None, ["0, 1000, 1001"], id="ids of 16 bits"),
        pytest.param(
            [rows(0, 26001, dtype=np.uint16)], "a\nb", ["26001", "expected 0 to 1"], id="ids of 16 bits under names"
        ),
        pytest.param(
            [rows(0, 1, 2, 3, 4), rows(0, 1, 2), rows(0, 1), rows(0, 1, 2, 3)],
            None,
            ["number objects", "classes_file"],
            id="objects",
        ),
        pytest.param(
            [rows(1, 2, 3, 4), rows(1, 2), rows(1, 2, 3), rows(0)],
            None,
            ["number objects"],
            id="objects without background",
        ),
        pytest.param(
            [with_palette(rows(0, 1), RED), with_palette(rows(0, 1), GREEN)],
            None,
            ["number 1", "(9, 0, 0) in", "(0, 9, 0) in", "classes_file"],
            id="palettes of other orders",
        ),
        pytest.param(
            [with_palette(rows(0, 1), RED), rows(0, 1)],
            None,
            ["number 1", "0.png", "1.png"],
            id="a palette beside grey",
        ),
        pytest.param(
            [rows(0, 1, 2), rows(0, 1, dtype=bool)], None, ["1.png is black and white"], id="one bit beside numbers"
        ),
        pytest.param([coloured(0, 1, 2), rows(0, 1)], TEXT, ["1.png"], id="numbers beside colours"),
        pytest.param(
            [coloured(0, 1, 2), rows(0, 1, 2), rows(128)],
            TEXT + "\nvoid 0 0 0\nx 1 1 1\ny 2 2 2",
            [],
            id="greys that are colours",
        ),
        pytest.param([coloured(0, 1)], None, ["is in colour", "classes_file"], id="colours without a class file"),
        pytest.param([transparent("RGBA")], None, ["transparency"], id="a mask in the transparency"),
        pytest.param([transparent("LA")], None, ["transparency"], id="a mask in the transparency of grey"),
        pytest.param([transparent("RGBA")], GREYS, ["transparency"], id="a mask in the transparency under colours"),
        pytest.param([rows(0, 1, dtype=np.float32)], None, [".tif", "floats", "whole numbers"], id="floats"),
        pytest.param([between()], TEXT, ["colours", '"ignore"'], id="colours between"),
        pytest.param(
            [with_palette(rows(0, 1, 2), [*list(COLOURS.values())[1:], (1, 2, 3)])],
            TEXT,
            ["other classes than its numbers"],
            id="half a palette",
        ),
        pytest.param([rows(0, 3)], "0 a\n1 b\n2 c", ["the value 3", "expected 0 to 2"], id="a value beyond the file"),
        pytest.param(
            [rows(0, 1)], "1 wall\n2 building", ["the value 0", "expected 1 to 2"], id="0 under numbers from 1"
        ),
    ],
)
def test_values_that_are_asked_about(tmp_path, masks, classes, words):
    if not words:
        assert read(folder(tmp_path, *masks, classes=classes))[1].max() == 5
        return
    ending = "tif" if isinstance(masks[0], np.ndarray) and masks[0].dtype == np.float32 else "png"
    with pytest.raises(UserError) as caught:
        read(folder(tmp_path, *masks, classes=classes, ending=ending))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_what_does_not_count_is_told_with_its_share(tmp_path):
    source = folder(tmp_path, rows(0, 255, 1, 1), rows(0, 1, 1, 1))
    read(source)
    notes = [note for note in source.notes if "255" in note]
    assert len(notes) == 1 and "1 of 1 mask" in notes[0] and "25.0%" in notes[0]
    told = MaskFolderSource(tmp_path, ignore=255)
    read(told)
    assert told.notes == []


def save_pages(path, pages):
    Image.fromarray(pages[0]).save(path, save_all=True, append_images=[Image.fromarray(page) for page in pages[1:]])


@pytest.mark.parametrize("ending", ["tif", "gif", "png"])
def test_masks_of_several_pages_are_refused(tmp_path, ending):
    """The first was taken without a word."""
    folder(tmp_path, rows(0, 1), rows(0, 1))
    for name in ("0", "1"):
        (tmp_path / f"masks/{name}.png").unlink()
        save_pages(tmp_path / f"masks/{name}.{ending}", [rows(0, 1), rows(1, 0), rows(1, 1)])
    with pytest.raises(UserError, match=rf"\.{ending} has 3 pages"):
        read(MaskFolderSource(tmp_path))


def test_the_smaller_copies_of_a_geotiff_are_no_pages(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    folder(tmp_path, rows(0, 1), rows(0, 1))
    for name in ("0", "1"):
        (tmp_path / f"masks/{name}.png").unlink()
        with tifffile.TiffWriter(tmp_path / f"masks/{name}.tif") as file:
            file.write(rows(0, 1))
            file.write(rows(0, 1)[::2, ::2], subfiletype=1)
    assert np.array_equal(read(MaskFolderSource(tmp_path))[0], rows(0, 1))


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_masks_compressed_with_loss(tmp_path, ending):
    """glasses-detector#23: 0 and 255 became hundreds of classes."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[2:5, 3:7] = 255
    with pytest.raises(UserError, match=r'compressed with loss.*"binary": true'):
        folder(tmp_path, mask, ending=ending)
    with pytest.raises(UserError, match=r'compressed with loss.*"binary": true'):
        read(folder(tmp_path, mask, ending=ending, classes="a\nb"))
    (tmp_path / "classes.json").write_text('{"classes": ["background", "vessel"], "binary": true}')
    found = read(MaskFolderSource(tmp_path, classes_file=str(tmp_path / "classes.json")))
    assert set(np.unique(found[0])) == {0, 1} and (found[0] == (mask > 0)).mean() > 0.9


def test_nearly_black_jpeg_is_black(tmp_path):
    """Its values 0 and 1 are noise, not a class."""
    (tmp_path / "classes.json").write_text('{"classes": ["background", "vessel"], "binary": true}')
    folder_of = [rows(0, 1), rows(0, 255), rows(255, 0)]
    for number, mask in enumerate(folder_of):
        for name in ("images", "masks"):
            (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / f"images/{number}.png")
        Image.fromarray(mask).save(tmp_path / f"masks/{number}.jpg", quality=100)
    assert read(MaskFolderSource(tmp_path, classes_file=str(tmp_path / "classes.json")))[0].max() == 0


def test_the_option_answers_the_question(tmp_path):
    source = folder(tmp_path, rows(0, 255), rows(0, 1), rows(0, 1), ignore=255)
    assert source.classes == ["class 0", "class 1"] and np.array_equal(read(source)[0], rows(0, 255))
    source = folder(tmp_path, rows(1, 2, 3), rows(0, 3), rows(1, 2), reduce_zero_label=True)
    assert np.array_equal(read(source)[0], rows(0, 1, 2))


def test_supervisely_numbers_no_class_in_masks(tmp_path):
    """Its machine masks count from 1; the file has the colours of the others alone."""
    classes = [{"title": name, "shape": "polygon", "color": hex} for name, hex in (("a", "#FF0000"), ("b", "#00FF00"))]
    meta = json.dumps({"classes": classes})
    with pytest.raises(UserError, match="expected the colours"):
        read(folder(tmp_path, rows(0, 1), classes=meta))
    colours = Image.fromarray(np.array([(0, 255, 0), (255, 0, 0)], np.uint8)[rows(0, 1)])
    assert np.array_equal(read(folder(tmp_path, colours, classes=meta))[0], rows(1, 0))
