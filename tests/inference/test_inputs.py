"""What callers hand in is one image, however they hold it, or is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from longvision.data.transforms.input_spec import InputSpec
from longvision.errors import UnreadableImage, UserError
from longvision.inference.inputs import to_image

COLOUR, GREY = InputSpec((8, 8)), InputSpec((8, 8), 1)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)


def encoded(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def sources(tmp_path):
    """One image in every form."""
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / "image.png")
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    return {
        "path": tmp_path / "image.png",
        "text": str(tmp_path / "image.png"),
        "bytes": encoded(image),
        "PIL": image,
        "array": PIXELS,
        "floats": PIXELS / 255,
        "float32": (PIXELS / 255).astype(np.float32),
        "turned array": np.asfortranarray(PIXELS),
        "tensor": tensor,
        "float tensor": tensor / 255,
        "gradient": (tensor / 255).requires_grad_(),
    }


@pytest.mark.parametrize("form", ["path", "text", "bytes", "PIL", "array", "floats", "float32",
                                  "turned array", "tensor", "float tensor", "gradient"])  # fmt: skip
def test_every_form_is_the_same_image(form, tmp_path):
    image = to_image(sources(tmp_path)[form], COLOUR, "that")
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("grey", [PIXELS[:, :, 0], PIXELS[:, :, :1], torch.from_numpy(PIXELS[None, :, :, 0])], ids=type)
def test_one_channel_is_grey(grey):
    assert np.array_equal(np.asarray(to_image(grey, GREY, "that")), PIXELS[:, :, 0])
    assert np.array_equal(np.asarray(to_image(grey, COLOUR, "that")), PIXELS[:, :, :1].repeat(3, 2))


def test_colours_are_red_green_and_blue():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    assert to_image(red, COLOUR, "that").getpixel((0, 0)) == (255, 0, 0)
    assert to_image(red, GREY, "that").getpixel((0, 0)) == 76  # 0.299 of it, as of files


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width(dtype):
    image = to_image(torch.ones(3, 2, 2, dtype=dtype), COLOUR, "that")
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_what_pillow_opened_is_turned_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    by_path = to_image(tmp_path / "turned.png", COLOUR, "that")
    assert by_path.size == (5, 8)
    for source in (Image.open(tmp_path / "turned.png"), (tmp_path / "turned.png").read_bytes()):
        assert np.array_equal(np.asarray(to_image(source, COLOUR, "that")), np.asarray(by_path))


@pytest.mark.parametrize(
    "source, said",
    [
        (PIXELS.astype(np.int64), "int64"),
        (PIXELS.astype(np.uint16), "uint16"),
        (PIXELS > 5, "bool"),
        (PIXELS.astype(np.float32), "0 to 1"),
        (PIXELS / 255 - 0.5, "0 to 1"),
        (np.full((2, 2), np.nan), "nan"),
        (PIXELS.transpose(2, 0, 1), "(3, 5, 8)"),
        (torch.from_numpy(PIXELS), "(5, 8, 3)"),
        (PIXELS[:, :, [0, 1, 2, 2]], "(5, 8, 4)"),
        (PIXELS[None], "list"),
        (torch.zeros(2, 3, 5, 8), "list"),
        (torch.zeros(5, 8), "(5, 8)"),
        (np.zeros((0, 4, 3), np.uint8), "(0, 4, 3)"),
        (np.zeros(4, np.uint8), "(4,)"),
        (torch.zeros(3, 2, 2, dtype=torch.int32), "int32"),
    ],
)
def test_what_is_not_certain_is_refused(source, said):
    with pytest.raises(UserError) as error:
        to_image(source, COLOUR, "that one")
    assert "that one" in str(error.value) and said in str(error.value)


def test_what_is_no_image():
    with pytest.raises(UnreadableImage, match="that one"):
        to_image(b"no image", COLOUR, "that one")
    with pytest.raises(TypeError, match="that one is int"):
        to_image(5, COLOUR, "that one")
