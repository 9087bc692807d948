"""Every way in which a file says which side is up: obeyed once, and alike by images, sizes, masks and boxes."""

import io
import json

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, features

from longvision.data.config import CocoData, MaskFolderData
from longvision.data.io.headers import read_header
from longvision.data.io.images import read_image
from longvision.data.io.masks import read_mask
from longvision.errors import UserError

UPRIGHT = np.kron(np.array([[10, 90, 170], [210, 130, 50]], np.uint8), np.ones((16, 16), np.uint8))  # 32 high, 48 wide
STORED = {  # what a file holds that shows UPRIGHT when its tag is obeyed
    1: UPRIGHT, 2: np.fliplr(UPRIGHT), 3: np.rot90(UPRIGHT, 2), 4: np.flipud(UPRIGHT), 5: UPRIGHT.T,
    6: np.rot90(UPRIGHT, 1), 7: np.rot90(UPRIGHT, 2).T, 8: np.rot90(UPRIGHT, 3),
}  # fmt: skip
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description {}/></rdf:RDF></x:xmpmeta>'


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def xmp(orientation):
    return XMP.format(f'tiff:Orientation="{orientation}"').encode()


def png_with_exif_behind_the_pixels(image, orientation):
    """As some tools append it."""
    plain = encoded(image, "PNG")
    chunk = encoded(image, "PNG", exif=exif(orientation))
    start = chunk.index(b"eXIf") - 4
    length = int.from_bytes(chunk[start : start + 4], "big") + 12
    end = plain.index(b"IEND") - 4
    return plain[:end] + chunk[start : start + length] + plain[end:]


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_with_xmp(image, orientation):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
    return encoded(image, "PNG", pnginfo=info)


WAYS = {
    "jpeg-exif": lambda i, o: encoded(i, "JPEG", quality=95, exif=exif(o)),
    "jpeg-xmp": lambda i, o: encoded(i, "JPEG", quality=95, xmp=xmp(o)),
    "jpeg-exif-over-xmp": lambda i, o: encoded(i, "JPEG", quality=95, exif=exif(o), xmp=xmp(o % 8 + 1)),
    "png-exif": lambda i, o: encoded(i, "PNG", exif=exif(o)),
    "png-exif-behind": png_with_exif_behind_the_pixels,
    "png-xmp": png_with_xmp,
    "webp-exif": lambda i, o: encoded(i.convert("RGB"), "WEBP", lossless=True, exif=exif(o)),
    "webp-xmp": lambda i, o: encoded(i.convert("RGB"), "WEBP", lossless=True, xmp=xmp(o)),
    "tiff-pillow-7381": lambda i, o: encoded(i, "TIFF", tiffinfo={274: o}),
    "tiff-lzw-pillow-8390": lambda i, o: encoded(i, "TIFF", tiffinfo={274: o}, compression="tiff_lzw"),
    "mpo": lambda i, o: encoded(i, "MPO", quality=95, save_all=True, append_images=[i], exif=exif(o)),
    "avif": lambda i, o: encoded(i.convert("RGB"), "AVIF", quality=95, exif=exif(o)),
}


@pytest.mark.parametrize("orientation", [1, 2, 3, 5, 6, 8])
@pytest.mark.parametrize("way", WAYS)
def test_an_image_is_turned_once_and_its_size_with_it(tmp_path, way, orientation):
    if way == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / "image"
    path.write_bytes(WAYS[way](Image.fromarray(np.ascontiguousarray(STORED[orientation])), orientation))
    read = np.asarray(read_image(path, 1)).astype(int)
    assert read.shape == UPRIGHT.shape == read_header(path).size
    assert np.abs(read - UPRIGHT).max() < 25  # lossy formats; a block that lies elsewhere is 40 off
    with Image.open(path) as opened:  # what a caller has opened
        assert np.array_equal(np.asarray(read_image(opened, 1)), read)
    if way not in ("webp-exif", "webp-xmp", "avif", "mpo"):  # a mask has one page
        values = read_mask(path).values
        assert np.abs(values.astype(int) - UPRIGHT).max() < 25


@pytest.mark.parametrize("tag", [0, 9, 255, (6, 6)], ids=str)
def test_a_tag_that_means_nothing_turns_nothing(tmp_path, tag):
    tags = Image.Exif()
    tags[274] = tag
    path = tmp_path / "a.png"
    Image.fromarray(UPRIGHT).save(path, exif=tags)
    read = np.asarray(read_image(path, 1))
    assert read.shape == read_header(path).size
    assert tag == (6, 6) or np.array_equal(read, UPRIGHT)


def masks(tmp_path, orientation, mask, **options):
    for n in range(4):
        for folder, array, tags in (("images", STORED[orientation], exif(orientation)), ("masks", mask, None)):
            (tmp_path / folder).mkdir(exist_ok=True)
            save = {"exif": tags} if tags else options
            Image.fromarray(np.ascontiguousarray(array)).save(tmp_path / folder / f"{n}.png", **save)
    data = MaskFolderData(path=str(tmp_path), size=32, workers=0, channels=1).build()
    data.setup()
    return data


LABELS = (UPRIGHT > 100).astype(np.uint8)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_mask_on_the_upright_image_fits(tmp_path, orientation):
    image, label = masks(tmp_path, orientation, LABELS).images("train")[0]
    assert np.array_equal(label, LABELS) and np.array_equal(np.asarray(image) > 100, LABELS.astype(bool))


def test_a_mask_with_the_tag_of_its_photograph_is_turned_as_it_is(tmp_path):
    data = masks(tmp_path, 6, np.rot90(LABELS), exif=exif(6))
    assert np.array_equal(data.images("train")[0][1], LABELS) and not data.source.notes


def test_a_mask_drawn_before_the_turn_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"48 wide and 32 high, its mask 32 wide and 48 high.* tag \(6\) .*exiftool"):
        masks(tmp_path, 6, np.rot90(LABELS))


def test_where_the_size_cannot_tell_it_is_told(tmp_path):
    (note,) = masks(tmp_path, 3, LABELS).source.notes[:1]
    assert "3 of the images" in note and "upright" in note


def coco(tmp_path, orientation, height, width):
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(
            tmp_path / split / "a.jpg", exif=exif(orientation)
        )
        one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 16, 16], "iscrowd": 0, "area": 256}
        labels = {
            "images": [{"id": 1, "file_name": "a.jpg", "height": height, "width": width}],
            "annotations": [one],
            "categories": [{"id": 1, "name": "a"}],
        }
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(labels))
    data = CocoData(path=str(tmp_path), size=32, workers=0).build()
    data.setup("fit")
    return data


def test_boxes_on_the_upright_image_fit(tmp_path):
    data = coco(tmp_path, 6, 32, 48)
    image, target = data.images("train")[0]
    assert image.size == (48, 32) and target.boxes.tolist() == [[0, 0, 16, 16]] and not data.source.notes


def test_boxes_drawn_before_the_turn_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"a\.jpg is 48 wide and 32 high, not 32 wide.*tag 6 turns it.*exiftool"):
        coco(tmp_path, 6, 48, 32)


def test_boxes_of_an_image_on_its_head_are_told(tmp_path):
    (note,) = coco(tmp_path, 3, 32, 48).source.notes[:1]
    assert "1 of the images" in note and "a.jpg" in note


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_that_its_loader_leaves_as_it_is_is_turned(monkeypatch, tmp_path, compression):
    """As older versions of Pillow do; newer ones turn the pixels and take the tag away."""
    stored = Image.fromarray(np.ascontiguousarray(STORED[6]))
    stored.save(tmp_path / "a.tif", tiffinfo={274: 6}, compression=compression)

    def load_end(self):
        self.getexif()
        self._size = self._tile_size

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load_end", load_end)
    assert np.array_equal(read_image(tmp_path / "a.tif", 1), UPRIGHT)
    assert read_header(tmp_path / "a.tif").size == UPRIGHT.shape


def test_an_image_of_the_callers_keeps_its_file_name(tmp_path):
    Image.new("RGB", (4, 6)).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        read_image(image)
        assert image.filename == str(tmp_path / "a.tif") or image.filename == tmp_path / "a.tif"
