"""What types of values training images had, and how bright they were, is known; what is read otherwise is told."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tifffile")

from longvision.data.config import FolderData
from longvision.data.io.deep import DeepImage
from longvision.data.transforms.input_spec import InputSpec
from support.deep import I16, RAMP, U12, U16, tiff


@pytest.mark.parametrize(
    "values, range, seen, words",
    [
        (U12, None, (("uint8", 255, 255),), "some use 12 bits or fewer, and are almost black"),
        (U16, None, (("uint8", 255, 255),), "read from 0 to 65535"),
        (U12, (0, 65535), (("uint16", 65000, 40000),), "far darker than those of training"),
        ((RAMP * 255).astype(np.uint8), (0, 4095), (("uint16", 4000, 3000),), "uint8 values are read by 0 to 255"),
        (I16, (0, 4095), (("uint16", 4000, 3000),), "int16 values are read by data.range.*had uint16"),
        (U12, (0, 65535), (("uint16", 65000, 4000),), ""),  # some of training are as dark
        (U12, (0, 4095), (("uint16", 4000, 3000), ("uint8", 255, 255)), ""),
        ((RAMP * 255).astype(np.uint8), None, (("uint8", 255, 255),), ""),
        (I16, (-1000, 3000), (("int16", 3000, 2000),), ""),
        (np.full((4, 4), -900, np.int16), (-1000, 3000), (("int16", 3000, 2000),), "far darker"),
    ],
    ids=["12-in-8", "16-in-8", "12-in-16", "8-in-12", "signed", "dark", "mixed", "8", "signed-as-trained", "air-alone"],
)
def test_values_of_another_type_than_those_of_training_are_told(values, range, seen, words, recwarn):
    spec = InputSpec.from_dict(json.loads(json.dumps(asdict(InputSpec((8, 8), 1, range=range, seen=seen)))))
    assert spec.seen == seen
    image = Image.fromarray(values) if values.dtype == np.uint8 else DeepImage(values[:, :, None])
    spec.evaluated(image)
    told = [str(warning.message) for warning in recwarn if "images of" in str(warning.message)]
    assert len(told) == bool(words) and re.search(words, "".join(told))


def test_what_training_images_held_is_kept(tmp_path):
    for folder in ("train/a", "train/b", "val/a"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(4):
            (tmp_path / folder / f"{number}.tif").write_bytes(tiff(U12))
    config = FolderData(path=str(tmp_path), channels=1, size=16, workers=0)
    Image.fromarray((RAMP * 255).astype(np.uint8)).save(tmp_path / "train/a/flat.png")
    (tmp_path / "train/b/dark.tif").write_bytes(tiff((U12 // 100).astype(np.uint16)))
    data = config.build()
    data.setup("fit")
    assert data.input.seen == (("uint16", U12.max(), U12.max() // 100), ("uint8", 255, 255))
    again = config.build(seen=data.input.seen)
    assert again.input.seen == again.transforms.spec.seen == data.input.seen
