"""A page of HTML that stands alone: what it shows is inside it, it runs no script and loads nothing."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from longvision.text import printable

MOST_CONFUSED, LARGEST_MATRIX = 10, 30  # pairs in the list, classes in the table
SMALL = 64  # an image up to this side is shown with its pixels visible
THUMBNAIL = 256

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1d1f21; --quiet: #5d6368; --line: #d9dcdf; --good: #2a7f4f;
  --other: #8a8f94; --box: #f5f6f7; }
@media (prefers-color-scheme: dark) { :root { --back: #16181a; --ink: #e6e8ea; --quiet: #9aa1a7; --line: #3a3f44;
  --good: #4fb27c; --other: #8a8f94; --box: #202327; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 36px 0 10px; }
p { margin: 6px 0; max-width: 80ch; }
.quiet { color: var(--quiet); }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 16px 0; }
.tiles div { background: var(--box); border: 1px solid var(--line); border-radius: 8px; padding: 8px 14px; }
.tiles b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px; }
figure { margin: 0; min-width: 0; }
.chart svg { width: 100%; height: auto; display: block; }
.chart text { fill: var(--quiet); font-size: 12px; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: 4px 16px; }
.chart i { display: inline-block; width: 18px; height: 3px; margin-right: 6px; vertical-align: middle; }
.grid { stroke: var(--line); fill: none; } .axis { stroke: var(--quiet); fill: none; }
.line0 { stroke: var(--other); fill: none; stroke-width: 2; stroke-dasharray: 5 3; }
.line1 { stroke: var(--good); fill: none; stroke-width: 2; }
.dot0 { fill: var(--other); } .dot1 { fill: var(--good); } .key0 { background: var(--other); }
.key1 { background: var(--good); }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; max-width: 42ch; overflow: hidden; text-overflow: ellipsis; }
thead th { font-weight: 600; color: var(--quiet); }
.facts td { white-space: normal; overflow-wrap: anywhere; text-align: left; }
.facts td:first-child { color: var(--quiet); white-space: nowrap; vertical-align: top; }
.matrix th, .matrix td { border: 1px solid var(--line); padding: 4px 6px; text-align: center; min-width: 34px; }
.matrix thead th { vertical-align: bottom; color: var(--ink); font-weight: 400; }
.matrix thead span { max-height: 14em; overflow: hidden; text-overflow: ellipsis; }
.matrix thead span.long { writing-mode: vertical-rl; transform: rotate(180deg); }
.matrix th:first-child { font-weight: 400; text-align: right; }
.matrix td { background: color-mix(in srgb, var(--good) calc(var(--share) * 70%), transparent); }
.beside { display: flex; flex-wrap: wrap; gap: 20px 40px; align-items: flex-start; }
.beside > * { min-width: 0; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 14px; }
.images figure { background: var(--box); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.images img { width: 100%; aspect-ratio: 1; object-fit: contain; display: block; background: #777; }
.images .small { image-rendering: pixelated; }
.images figcaption { padding: 6px 9px 8px; font-size: 13px; line-height: 1.4; overflow-wrap: anywhere; }
.wide { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 8px; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow-x: auto;
  font-size: 13px; }
summary { cursor: pointer; }
"""


@dataclass(frozen=True)
class Shown:
    """An image with lines of text below it, the first one in bold."""

    image: Image.Image
    lines: Sequence[str]


def page(title: str, below: str, sections: Mapping[str, str]) -> str:
    """The whole document: a heading, a line below it, and the sections that have content, HTML by their headings."""
    body = "".join(f"<section><h2>{text(name)}</h2>{inside}</section>" for name, inside in sections.items() if inside)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><main><h1>{text(title)}</h1>"
        f'<p class="quiet">{text(below)}</p>{body}</main></body></html>\n'
    )


def text(words: object) -> str:
    """As it is, whatever letters it has: a name is no tag."""
    return html.escape(printable(str(words)))


def percent(share: float) -> str:
    """With a dash for what nothing could be measured by."""
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def paragraphs(*lines: str) -> str:
    return "".join(f'<p class="quiet">{text(line)}</p>' for line in lines)


def tiles(values: Mapping[str, str]) -> str:
    """Numbers that are read first."""
    return f'<div class="tiles">{"".join(f"<div><b>{text(v)}</b>{text(k)}</div>" for k, v in values.items())}</div>'


def facts(rows: Mapping[str, object]) -> str:
    """A table of names and what they are."""
    lines = "".join(f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>" for name, value in rows.items())
    return f'<div class="scroll"><table class="facts">{lines}</table></div>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    heads = "".join(f"<th>{text(name)}</th>" for name in header)
    lines = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'


def details(summary: str, content: str) -> str:
    """Text as it stands in a file, folded away."""
    escaped = "\n".join(text(line) for line in content.splitlines())
    return f"<details><summary>{text(summary)}</summary><pre>{escaped}</pre></details>"


def images(shown: Sequence[Shown]) -> str:
    """A grid of images."""
    figures = []
    for one in shown:
        first, *others = map(text, one.lines)
        small = ' class="small"' if max(one.image.size) <= SMALL else ""
        lines = "<br>".join([f"<b>{_wrapping(first)}</b>", *map(_wrapping, others)])
        figures.append(
            f'<figure><img{small} src="{embedded(one.image)}" alt="{first}"><figcaption>{lines}</figcaption></figure>'
        )
    return f'<div class="images">{"".join(figures)}</div>' if figures else ""


def _wrapping(line: str) -> str:
    """Text of which a line ends at a folder of a path, and not before a percent sign; elsewhere only in a long word."""
    return line.replace(" %", "&nbsp;%").replace("/", "/<wbr>")


def wide_image(image: Image.Image, name: str) -> str:
    """One image over the width of the page."""
    return f'<img class="wide" src="{embedded(image, 2000)}" alt="{text(name)}">'


def embedded(image: Image.Image, largest: int = THUMBNAIL) -> str:
    """The address of an image that holds the image itself."""
    image = image.convert("RGB")
    image.thumbnail((largest, largest))
    kind = "png" if max(image.size) <= SMALL else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def confusion(counts_KK: Any, classes: Sequence[str]) -> str:
    """The matrix, rows true, where it is small enough to be read, and which classes are confused most often."""
    of_class_K = counts_KK.sum(1)
    pairs = sorted(
        (
            (int(counts_KK[true, found]), true, found)
            for true, found in zip(*counts_KK.nonzero(), strict=True)
            if true != found
        ),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    rows = [
        (classes[true], classes[found], count, percent(count / of_class_K[true]))
        for count, true, found in pairs[:MOST_CONFUSED]
    ]
    most = table(["true class", "taken for", "images", "of the class"], rows) if rows else "<p>no image is confused</p>"
    matrix = _matrix(counts_KK, classes) if len(classes) <= LARGEST_MATRIX else ""
    return f'<div class="beside">{matrix}{most}</div>'


def _matrix(counts_KK: Any, classes: Sequence[str]) -> str:
    long = ' class="long"' if max(map(len, classes)) > 4 else ""
    heads = "".join(f"<th><span{long}>{text(name)}</span></th>" for name in classes)
    lines = []
    for name, row_K in zip(classes, counts_KK, strict=True):
        total = max(1, int(row_K.sum()))
        cells = "".join(f'<td style="--share:{count / total:.3f}">{count or ""}</td>' for count in row_K.tolist())
        lines.append(f"<tr><th>{text(name)}</th>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="matrix"><thead><tr><th></th>{heads}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table><p class="quiet">rows: true classes; columns: what the model says</p>'
        "</div>"
    )


def class_rates(classes: Sequence[str], images_K: Any, said_K: Any, right_K: Any) -> str:
    """A line a class: its images, how many of them are found, and how many of those that are said to be of it are."""
    rows = []
    for name, images, said, right in zip(classes, images_K, said_K, right_K, strict=True):
        shares = [right / total if total else math.nan for total in (images, said)]
        rows.append([name, images, *map(percent, shares)])
    return table(["class", "images", "recall", "precision"], rows)
