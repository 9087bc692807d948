"""A page of HTML: what is on it, and that nothing else is."""

import base64
import io
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from longvision.viz import page
from longvision.viz.plots import line_chart, ticks

NASTY = '<script>alert("a & b")</script>'


class Read(HTMLParser):
    """The texts, the tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def test_names_are_never_tags():
    counts_KK = np.array([[1, 2], [0, 3]])
    classes = [NASTY, 'a" onload="x']
    sections = {
        NASTY: page.tiles({NASTY: NASTY}) + page.facts({NASTY: NASTY}) + page.table([NASTY], [[NASTY]]),
        "b": page.confusion(counts_KK, classes)
        + page.class_rates(classes, [1, 3], [0, 3], [0, 3])
        + page.details(NASTY, NASTY),
        "c": page.images([page.Shown(Image.new("L", (8, 8)), [NASTY, 'a" onload="x'])]) + page.paragraphs(NASTY),
        "d": line_chart({NASTY: [(1, 1.0), (2, 2.0)]}, NASTY) + page.wide_image(Image.new("L", (8, 8)), 'a" onload="x'),
    }
    read = Read(page.page(NASTY, NASTY, sections))
    assert not read.count("script")
    assert not [attributes for _, attributes in read.tags if "onload" in attributes]
    assert read.texts.count(NASTY) > 10  # as they are, for a reader


def test_a_caption_breaks_at_folders_and_not_before_a_percent_sign():
    shown = page.images([page.Shown(Image.new("L", (8, 8)), ["dog (30 %)", "val/dog/1.jpg"])])
    assert "<b>dog (30&nbsp;%)</b><br>val/<wbr>dog/<wbr>1.jpg<" in shown


def test_the_only_tick_fits_beside_its_axis():
    assert ">9.924</text>" in line_chart({"a": [(1, 9.92416)]}, "loss")
    assert ">2.365</text>" in line_chart({"a": [(1, 2.351), (2, 2.369)]}, "loss")


def test_it_loads_nothing():
    read = Read(page.page("t", "b", {"a": page.images([page.Shown(Image.new("RGB", (300, 200)), ["x"])])}))
    assert not {"link", "iframe", "object", "script"} & {tag for tag, _ in read.tags}
    values = [item for _, attributes in read.tags for item in attributes.items()]
    addresses = [address for name, address in values if name in ("src", "href", "srcset")]
    assert addresses and all(address.startswith("data:image/") for address in addresses)


def test_names_that_are_no_text_can_be_written():
    assert page.text("a\udcff\nb").encode("utf-8") == rb"a\xff\nb"


@pytest.mark.parametrize("size, kind, expected", [((8, 6), "png", (8, 6)), ((900, 600), "jpeg", (256, 171))])
def test_an_image_inside_the_page(size, kind, expected):
    start, _, content = page.embedded(Image.new("RGB", size, (10, 200, 30))).partition(";base64,")
    assert start == f"data:image/{kind}"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == expected
        assert np.abs(np.asarray(image).astype(int) - (10, 200, 30)).max() <= 3


def test_empty_sections_have_no_heading():
    assert "<h2>" not in page.page("t", "b", {"nothing": ""})


def test_confusions_the_most_frequent_first():
    counts_KK = np.array([[8, 2, 0], [5, 5, 0], [0, 0, 4]])
    texts = Read(page.confusion(counts_KK, ["a", "b", "c"])).texts
    at = texts.index("of the class")
    assert texts[at + 1 : at + 9] == ["b", "a", "5", "50.0 %", "a", "b", "2", "20.0 %"]
    read = Read(page.confusion(counts_KK, ["a", "b", "c"]))
    shares = [attributes["style"] for tag, attributes in read.tags if "style" in attributes]
    assert shares[:2] == ["--share:0.800", "--share:0.200"] and len(shares) == 9
    large = page.confusion(np.eye(31, dtype=int), [str(n) for n in range(31)])
    assert "matrix" not in large and "no image is confused" in large


def test_recall_and_precision_with_a_dash_where_there_is_none():
    texts = Read(page.class_rates(["a", "b", "c"], [4, 0, 0], [3, 1, 0], [3, 0, 0])).texts
    assert texts[4:] == ["a", "4", "75.0 %", "100.0 %", "b", "0", "–", "0.0 %", "c", "0", "–", "–"]


def test_a_line_is_broken_where_nothing_was_measured():
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, 4.0)]
    read = Read(line_chart({"training": [(1, math.nan)], "validation": points}, "loss"))
    assert [tag for tag, attributes in read.tags if attributes.get("class") in ("line1", "dot1")] == ["path", "circle"]
    assert "validation" in read.texts and "training" not in read.texts
    assert "no loss was measured" in line_chart({"a": [(1, math.nan)]}, "loss")


def test_places_of_points():
    """The lowest value is on the axis, the highest on the uppermost line of the grid."""
    read = Read(line_chart({"a": [(1, 0.0), (3, 10.0)]}, "x"))
    (line,) = [attributes["d"] for _, attributes in read.tags if attributes.get("class") == "line0"]
    assert line == "M56.0 260.0L548.0 14.0"
    assert "dot0" in line_chart({"a": [(1, 5.0)]}, "x")  # a single epoch


@pytest.mark.parametrize(
    "low, high, whole, expected",
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.3, 2.29, False, [0, 0.5, 1, 1.5, 2, 2.5]),
        (1, 4, True, [1, 2, 3, 4]),
        (1, 300, True, [50, 100, 150, 200, 250, 300]),
        (5, 5, False, [5]),
    ],
)
def test_ticks(low, high, whole, expected):
    assert ticks(low, high, whole) == pytest.approx(expected)
