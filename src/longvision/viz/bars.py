"""What a classifier says of an image: the image beside bars for its likeliest classes."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from longvision.viz.sheets import INK, WHITE, fitted, font_of, line_height, short, side_by_side, viewable

LARGEST_IMAGE, BARS_WIDTH = 384, 420  # pixels
MOST_LIKELY, OTHERS = (42, 127, 79), (150, 150, 150)


def draw_classes(image: Image.Image, title: str, top: Sequence[tuple[str, float]], chosen: int = 1) -> Image.Image:
    """The image under its title, and a bar for each of `top`: (class, probability), most likely first; the first
    `chosen` in green."""
    shown = viewable(image, LARGEST_IMAGE)
    bars = _bars(top, max(shown.height, len(top) * 2 * line_height(font_of(16))), chosen)
    panel = Image.new("RGB", (shown.width + bars.width, bars.height), WHITE)
    panel.paste(shown, (0, (bars.height - shown.height) // 2))
    panel.paste(bars, (shown.width, 0))
    return side_by_side({short(title): panel}, [])


def _bars(top: Sequence[tuple[str, float]], height: int, chosen: int) -> Image.Image:
    """Names over their bars, as long as the probability."""
    font = font_of(16)
    drawn = Image.new("RGB", (BARS_WIDTH, height), WHITE)
    draw = ImageDraw.Draw(drawn)
    left, full = 16, BARS_WIDTH - 32
    for number, (name, share) in enumerate(top):
        y = number * height // len(top)
        percent = f"{100 * share:.1f} %"
        draw.text((left, y), fitted(short(name), full - font.getlength(f"  {percent}"), font), INK, font)
        draw.text((left + full - round(font.getlength(percent)), y), percent, INK, font)
        bar = y + line_height(font)
        box = (left, bar, left + max(1, round(share * full)), bar + line_height(font) // 2)
        draw.rectangle(box, OTHERS if number >= chosen else MOST_LIKELY)
    return drawn
