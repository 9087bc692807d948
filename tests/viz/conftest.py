"""What is written on a drawing, for the tests that ask whether it can be read."""

import pytest
from PIL import ImageDraw


@pytest.fixture
def written(monkeypatch):
    """Every text that is drawn, with its place, and whether it fits on what it is drawn on."""
    texts, draw_text = [], ImageDraw.ImageDraw.text

    def record(self, xy, text, fill, font):
        left, top, right, bottom = self.textbbox(xy, text, font=font)
        width, height = self.im.size
        inside = min(left, top) >= 0 and right <= width and bottom <= height
        texts.append({"text": text, "box": (left, top, right, bottom), "inside": inside, "size": font.size})
        draw_text(self, xy, text, fill, font)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return texts
