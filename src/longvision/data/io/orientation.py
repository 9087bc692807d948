"""Which way up an image is: the orientation tag of EXIF or XMP, obeyed once."""

from PIL import ExifTags, Image

from longvision.data.io.decoding import DECODE_ERRORS

IMAGE_WIDTH, IMAGE_LENGTH = 256, 257  # tags of TIFF
SIDEWAYS = (5, 6, 7, 8)  # the EXIF orientations of an image lying on its side
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what makes an image of each EXIF orientation upright


def upright(image: Image.Image) -> Image.Image:
    """Turn a loaded image as its orientation tag says, if that was not done: some versions of Pillow turn a TIFF when
    they load it, and take the tag away."""
    move = TURNS.get(orientation_of(image))
    return image if move is None else image.transpose(move)


def orientation_of(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODE_ERRORS:  # a damaged EXIF block turns nothing
        return 1
    return found if found in range(1, 9) else 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in the file. Some versions of Pillow call a TIFF's size the one to which it will be turned."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(IMAGE_WIDTH, image.width), tags.get(IMAGE_LENGTH, image.height)
