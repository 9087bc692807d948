"""A part of a file as a file, and what is read of images inside files to know their sizes."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from longvision.data.io.windows import Window
from longvision.data.sources import shards
from longvision.data.sources.parquet import ParquetSource
from longvision.data.sources.parquet_images import Shards
from longvision.data.sources.regrouped import RegroupedSource
from longvision.data.sources.shards import ShardSource
from longvision.errors import UnreadableImage
from support.tars import write_tar

pytest.importorskip("lightning")
from longvision.data.ordering import shapes_of


@pytest.fixture
def window(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with Window(tmp_path / "file", 10, 50) as opened:
        yield opened


def test_a_window_has_its_bytes_alone(window):
    assert window.read() == bytes(range(10, 60)) and window.read() == b""
    for place, whence, told in ((3, os.SEEK_SET, 3), (2, os.SEEK_CUR, 5), (-4, os.SEEK_END, 46), (9, os.SEEK_END, 59)):
        assert window.seek(place, whence) == window.tell() == told
    assert window.read(5) == b""
    window.seek(48)
    assert io.BufferedReader(window).read(9) == bytes([58, 59])


def test_a_window_closes_its_file(window):
    window.close()
    assert window.closed and window._file.closed


def jpeg(turned, size=(64, 32)):
    """Its height and width stand behind 600 kB of a profile and a tag that may turn it; pixels take 300 kB."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] * 8, size[0] * 8, 3), dtype=np.uint8)
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6 if turned else 1
    Image.fromarray(pixels).save(content, "JPEG", quality=90, exif=exif, icc_profile=bytes(600_000))
    return content.getvalue()


SHAPES = [[256, 512], [512, 256]] * 5


def in_tar_files(root):
    write_tar(root / "train-000.tar", [
        {"__key__": str(number), "jpg": jpeg(number % 2), "cls": "ab"[number % 2]} for number in range(10)
    ])  # fmt: skip
    write_tar(root / "val-000.tar", [{"__key__": "v", "jpg": jpeg(False), "cls": "a"}])
    return ShardSource(root)


def in_parquet(root):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for split, count in {"train": 10, "val": 1}.items():
        rows = {
            "image": [jpeg(number % 2) for number in range(count)],
            "label": [number % 2 for number in range(count)],
        }
        pq.write_table(pa.table(rows), root / f"{split}.parquet")
    return ParquetSource(root)


@pytest.mark.parametrize("made", [in_tar_files, in_parquet])
@pytest.mark.parametrize("regrouped", [False, True], ids=["whole", "regrouped"])
def test_shapes_are_read_without_the_images(made, regrouped, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("an image is read whole")

    source = made(tmp_path)
    monkeypatch.setattr(shards, "_content", never)
    for name in ("file", "read"):
        monkeypatch.setattr(Shards, name, never)
    if regrouped:
        source = RegroupedSource(source, {"train": [("train", row) for row in range(10)]})
    assert shapes_of(source.split("train")).tolist() == SHAPES


def test_a_file_that_is_gone_has_no_shapes(tmp_path):
    images = in_tar_files(tmp_path).split("train")
    (tmp_path / "train-000.tar").unlink()
    with pytest.raises(UnreadableImage, match=r"0 of .*train-000\.tar cannot be read"):
        images.header_of(0)
    assert shapes_of(images).tolist() == [[1, 1]] * 10


def test_what_cannot_be_opened_can_be_closed(tmp_path):
    """As its finaliser does, which Python's development mode would tell of."""
    left = Window.__new__(Window)
    with pytest.raises(FileNotFoundError):
        left.__init__(tmp_path / "nosuch", 0, 1)
    left.close()
    assert left.closed
