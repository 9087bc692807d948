import numpy as np
import pytest
from PIL import Image

from longvision.data.io.mask_reader import MaskReader
from longvision.data.io.masks import BadMask, read_mask

RED, GREEN, BLACK = (200, 0, 0), (0, 200, 0), (0, 0, 0)


def saved(folder, values, mode=None, name="mask.png", palette=None):
    image = Image.fromarray(np.asarray(values)) if mode is None else Image.new(mode, np.shape(values)[::-1])
    if mode == "P":
        image.putdata(np.ravel(values).tolist())
        image.putpalette(palette or [])
    image.save(folder / name)
    return folder / name


def grey(*values):
    return np.array([values], np.uint8)


def read(path, classes=3, **more):
    mask = MaskReader(classes, **more).read(path)
    assert mask.dtype == np.uint8 and mask.ndim == 2
    return mask[0].tolist()


def test_grey_values_are_class_numbers_and_255_does_not_count(tmp_path):
    assert read(saved(tmp_path, grey(0, 1, 2, 255))) == [0, 1, 2, 255]


def test_palette_indices_are_class_numbers_where_no_colours_are_given(tmp_path):
    path = saved(tmp_path, [[0, 2, 1, 255]], "P", palette=[9, 9, 9, *RED, *BLACK, *[7] * 759])
    assert Image.open(path).mode == "P"
    assert read(path) == [0, 2, 1, 255]
    assert read(path, palette=((1, 0, 0), (2, 0, 0), (3, 0, 0))) == [0, 2, 1, 255]  # none of the palette's
    with pytest.raises(BadMask, match="colours of other classes than its numbers say"):
        read(path, palette=(RED, GREEN, BLACK))


def test_a_palette_with_transparency_is_read_as_indices_too(tmp_path):
    image = Image.new("P", (3, 1))
    image.putdata([0, 1, 2])
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "mask.png", transparency=1)
    assert read(tmp_path / "mask.png") == [0, 1, 2]


def test_colours(tmp_path):
    path = saved(tmp_path, np.array([[RED, BLACK, GREEN, RED]], np.uint8))
    assert read(path, 2, palette=(GREEN, RED), ignore=(BLACK,)) == [1, 255, 0, 1]


def test_colours_of_which_some_are_no_class(tmp_path):
    path = saved(tmp_path, np.array([[RED, BLACK, GREEN, (1, 2, 3)]], np.uint8))
    with pytest.raises(BadMask, match=r"mask.png has the colours \(0, 0, 0\), \(1, 2, 3\): expected the colours of"):
        read(path, 2, palette=(GREEN, RED))


def test_colours_without_a_class_file(tmp_path):
    path = saved(tmp_path, np.array([[RED, GREEN]], np.uint8))
    with pytest.raises(BadMask, match="is in colour: give a classes_file"):
        read(path)


def test_grey_saved_as_colour(tmp_path):
    assert read(saved(tmp_path, np.repeat(grey(0, 2, 1)[..., None], 3, 2))) == [0, 2, 1]


def test_one_bit(tmp_path):
    assert read(saved(tmp_path, np.array([[True, False, True]]))) == [1, 0, 1]
    assert read(saved(tmp_path, np.array([[True, False, True]])), 2, binary=True) == [1, 0, 1]


def test_binary(tmp_path):
    assert read(saved(tmp_path, grey(0, 127, 128, 255)), 2, binary=True) == [0, 0, 1, 1]
    assert read(saved(tmp_path, grey(0, 1, 0)), 2, binary=True) == [0, 1, 0]
    assert read(saved(tmp_path, grey(0, 0)), 2, binary=True) == [0, 0]
    assert read(saved(tmp_path, np.array([[RED, BLACK]], np.uint8)), 2, binary=True) == [1, 0]


@pytest.mark.parametrize("name", ["mask.png", "mask.tif"])
def test_sixteen_bits(tmp_path, name):
    path = saved(tmp_path, np.array([[0, 2, 1000, 255]], np.uint16), name=name)
    assert read(path, ignore=(1000,)) == [0, 2, 255, 255]
    with pytest.raises(BadMask, match="the value 1000: expected 0 to 2, or 255"):
        read(path)


def test_thirty_two_bits(tmp_path):
    path = saved(tmp_path, np.array([[0, 2, -1, 70000]], np.int32), name="mask.tif")
    with pytest.raises(BadMask, match="the values -1, 70000"):
        read(path)


def test_zero_does_not_count_and_the_rest_moves_down(tmp_path):
    path = saved(tmp_path, grey(0, 1, 3, 255))
    assert read(path, reduce_zero_label=True) == [255, 0, 2, 255]
    assert read(path, 2, reduce_zero_label=True, ignore=(3,)) == [255, 0, 255, 255]
    with pytest.raises(BadMask, match="the value 3: expected 1 to 2, or 255"):
        read(path, 2, reduce_zero_label=True)


def test_one_class_fewer_fits_where_zero_does_not_count(tmp_path):
    path = saved(tmp_path, grey(0, 1, 254, 255))
    assert read(path, 254, reduce_zero_label=True) == [255, 0, 253, 255]
    assert read(path, 255) == [0, 1, 254, 255]
    with pytest.raises(ValueError, match=r"^255 classes with reduce_zero_label: expected 254 at most"):
        read(path, 255, reduce_zero_label=True)


def test_values_that_do_not_count_are_those_of_the_file(tmp_path):
    assert read(saved(tmp_path, grey(0, 1, 11)), ignore=(11, 0)) == [255, 1, 255]


def test_values_that_may_be_there_are_named_those_that_do_not_count_too(tmp_path):
    with pytest.raises(BadMask, match="the value 77: expected 0 to 2, or 5 or 255 for pixels to ignore"):
        read(saved(tmp_path, grey(0, 5, 77)), ignore=(5,))


def test_values_beyond_the_classes_are_named(tmp_path):
    path = saved(tmp_path, grey(*range(12)))
    with pytest.raises(BadMask, match=r"mask.png has the values 3, 4, 5, 6, 7, 8, 9, 10, 11: expected 0 to 2, or 255"):
        read(path)


def test_all_255_classes(tmp_path):
    assert read(saved(tmp_path, grey(*range(256))), 255) == [*range(255), 255]


def test_what_is_no_mask(tmp_path):
    with pytest.raises(BadMask, match="does not exist"):
        read(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(BadMask, match=r"text.png is not an image"):
        read(tmp_path / "text.png")
    whole = saved(tmp_path, np.random.default_rng(0).integers(0, 255, (50, 50), np.uint8)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadMask, match=r"half.png cannot be read"):
        read(tmp_path / "half.png")
    Image.new("CMYK", (2, 2)).save(tmp_path / "cmyk.tif")
    with pytest.raises(BadMask, match="is an image of mode CMYK: save it"):
        read(tmp_path / "cmyk.tif")


def test_transparency_is_left_out(tmp_path):
    both = np.array([[(1, 0), (2, 255)]], np.uint8)
    Image.merge("LA", [Image.fromarray(both[..., 0]), Image.fromarray(both[..., 1])]).save(tmp_path / "la.png")
    assert read_mask(tmp_path / "la.png").values.tolist() == [[1, 2]]
    Image.fromarray(np.array([[(*RED, 0)]], np.uint8)).save(tmp_path / "rgba.png")
    assert read_mask(tmp_path / "rgba.png").values.tolist() == [[[*RED]]]
