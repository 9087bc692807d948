"""What is printed at the end: a table of the rows, and what became of each target."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gpu_peers as peers
from gpu_rows import DEIT, VIM, WIDTHS, Row, is_ok

from longvision.benchmark.table import align


class Target(NamedTuple):
    text: str
    where: dict[str, Any]
    column: str
    limit: float
    against: str = ""  # how the baseline is named


def summary(rows: Sequence[Row]) -> str:
    header = ("what", "model", "size", "batch", "dtype", "mode", "peer", "µs", "MB", "ratio", "status")
    shown = ("what", "model", "size", "batch", "dtype", "mode", "peer", "median_us", "peak_mb", "ratio", "status")
    cells = [[row[name][:50] for name in shown] for row in rows]
    verdicts = [(target, *verdict(target, rows)) for target in targets()]
    lines = [(target.text, word, f"<= {target.limit:g}", figure[:70]) for target, word, figure in verdicts]
    return "\n".join(["", *align(header, cells, left=2), "", *align(("target", "", "limit", "figure"), lines, left=2)])


def verdict(target: Target, rows: Sequence[Row]) -> tuple[str, str]:
    """-> met, not met or not measured, and the figure or what there is instead."""
    found = [row for row in rows if not row["peer"] and all(row[k] == str(v) for k, v in target.where.items())]
    if not found:
        return "not measured", "no row"
    row = found[-1]
    if not is_ok(row):
        return "not measured", row["status"]
    if not row[target.column]:
        return "not measured", "no peer to compare with" if target.column == "ratio" else "no figure"
    figure = row[target.column]
    if not row["baseline"].startswith(target.against):
        return "not measured", f"{figure} of: {row['baseline']}"
    met = float(figure) <= target.limit
    on = f" on {row['device']}" if "µs" in target.text else ""
    return "met" if met else "not met", f"{figure}{on}"


def targets() -> list[Target]:
    return [*block_targets(), *model_targets(), *precision_targets()]


def block_targets() -> Iterator[Target]:
    for name, limit in (("block Ti", 215.0), ("block S", 460.0)):
        where = {"what": "block", "model": name, "size": 224, "batch": 128, "mode": "infer"}
        yield Target(f"{name} forward, 224², batch 128, µs on an H200", where, "median_us", limit)
        if name == "block Ti":
            yield Target(f"{name} forward, 224², batch 128, of the authors'", where, "ratio", 0.5, peers.AUTHORS)
    for name in WIDTHS:
        for size, batch in ((224, 128), (1248, 8)):
            where = {"what": "block", "model": name, "size": size, "batch": batch, "mode": "train"}
            text = f"{name} forward+backward, {size}², batch {batch}, of the authors'"
            yield Target(text, where, "ratio", 0.55, peers.AUTHORS)


def model_targets() -> Iterator[Target]:
    for size, limit in ((1536, 1.0), (2048, 0.5), (4096, 0.25)):
        for batch in (1, 8):
            where = {"what": "model", "model": VIM, "size": size, "batch": batch, "mode": "infer"}
            yield Target(f"Vim-Ti forward, {size}², batch {batch}, of DeiT-Ti", where, "ratio", limit, DEIT)
    where = {"what": "model", "model": VIM, "size": 2048, "batch": 1, "mode": "train"}
    yield Target("Vim-Ti training step, 2048², batch 1, of DeiT-Ti", where, "ratio", 0.4, DEIT)
    for variant, limit in (("", 1.0), ("+checkpoint", 0.3)):
        where = {"what": "memory per image", "model": VIM + variant, "size": 1248}
        yield Target(f"Vim-Ti{variant} training memory, 1248², of DeiT-Ti", where, "ratio", limit, DEIT)


def precision_targets() -> Iterator[Target]:
    for dtype, limit in (("float32", 1e-5), ("bfloat16", 1e-2)):
        for mode in ("output", "gradients"):
            where = {"what": "error against float64", "dtype": dtype, "mode": mode}
            yield Target(f"{dtype} {mode}, error against float64", where, "ratio", limit)
    for dtype, tokens in (("float32", 197), ("bfloat16", 197), ("bfloat16", 6085)):
        where = {"what": "two runs", "dtype": dtype, "tokens": tokens}
        yield Target(f"two runs, {dtype}, {tokens} tokens: tensors that differ", where, "ratio", 0)
