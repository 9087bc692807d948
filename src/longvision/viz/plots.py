"""Line charts as SVG inside a page, in the page's own colours and letters."""

import html
import math
from collections.abc import Mapping, Sequence

from longvision.text import printable

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 14, 40
STEPS = (1, 2, 2.5, 5, 10)

Points = Sequence[tuple[float, float]]


def line_chart(lines: Mapping[str, Points], label: str, across: str = "epoch") -> str:
    """An SVG element. A line is broken where a value is NaN or infinite; a point between two such is a dot.

    Args:
        lines: name -> (x, y) in the order of x.
        label: of the upward axis.
        across: label of the other one.
    """
    known = {name: [point for point in points if math.isfinite(point[1])] for name, points in lines.items()}
    everything = [point for points in known.values() for point in points]
    if not everything:
        return f'<p class="quiet">no {html.escape(label)} was measured</p>'
    xs, ys = zip(*everything, strict=True)
    x_ticks, y_ticks = ticks(min(xs), max(xs), whole=True), ticks(min(ys), max(ys))
    x_range = (min(*xs, x_ticks[0]), max(*xs, x_ticks[-1]))
    y_range = (min(*ys, y_ticks[0]), max(*ys, y_ticks[-1]))

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * _share(x, x_range)
        return across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(y, y_range)

    parts = []
    digits = 6 if len(y_ticks) > 1 else 4  # the only one is no round number
    for value in y_ticks:
        y = at(x_range[0], value)[1]
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.{digits}g}</text>')
    for value in x_ticks:
        x = at(value, y_range[0])[0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(across)}</text>')
    for number, points in enumerate(lines.values()):
        for run in _unbroken(points):
            places = [at(*point) for point in run]
            if len(places) == 1:
                parts.append(f'<circle class="dot{number}" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3"/>')
            else:
                d = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
                parts.append(f'<path class="line{number}" d="M{d}"/>')
    legend = "".join(
        f'<span><i class="key{number}"></i>{html.escape(printable(name))}</span>'
        for number, name in enumerate(lines)
        if known[name]
    )
    words = html.escape(printable(label))
    return (
        f'<figure class="chart"><figcaption><b>{words}</b>{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">{"".join(parts)}</svg></figure>'
    )


def ticks(low: float, high: float, whole: bool = False, most: int = 6) -> list[float]:
    """Round numbers that begin and end at or within a step of the range."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * one for one in STEPS if scale * one >= rough * (1 - 1e-9))
    step = max(1, math.ceil(step)) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if not whole:  # the line stays between the lowest and the highest number
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)] or [low]


def _share(value: float, span: tuple[float, float]) -> float:
    return (value - span[0]) / (span[1] - span[0]) if span[1] > span[0] else 0.5


def _unbroken(points: Points) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
