"""Multiply-adds against image size, Vim beside DeiT: benchmarks/results/cost.csv and docs/images/cost.png.

Counted, not timed (see longvision.models.cost): the same on every machine. Run: python benchmarks/cost.py
"""

import csv
from pathlib import Path

from matplotlib.figure import Figure

from longvision.benchmark.provenance import provenance
from longvision.models.cost import measure_cost

ROOT = Path(__file__).parent.parent
PAIRS = [("vim_tiny_patch16_224", "deit_tiny_patch16_224"), ("vim_small_patch16_224", "deit_small_patch16_224")]
SIZES = [224, 384, 512, 768, 1024, 1248, 1536, 2048]
COLOURS = {"vim": "#2a7f4f", "deit": "#b3261e"}


def main() -> None:
    names = [name for pair in PAIRS for name in pair]
    rows = [measure(name, size) for name in names for size in SIZES]
    with (ROOT / "benchmarks/results/cost.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    draw(rows, ROOT / "docs/images/cost.png")


def measure(name: str, size: int) -> dict[str, object]:
    cost = measure_cost(name, size, size)
    counted = {"gmacs": round(cost.macs / 1e9, 3), "scan_gmacs": round(cost.scan_macs / 1e9, 3)}
    origin = {name: provenance()[name] for name in ("longvision", "torch", "timm", "commit")}
    return {"model": name, "size": size, **counted, "device": "none: counted", **origin}


def draw(rows: list[dict[str, object]], path: Path) -> None:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, pair in zip(figure.subplots(1, 2), PAIRS, strict=True):
        for name in pair:
            values = [row["gmacs"] for row in rows if row["model"] == name]
            axes.plot(SIZES, values, marker="o", color=COLOURS[name.split("_")[0]], label=name)
        axes.set(xscale="log", yscale="log", xlabel="image side, pixels", ylabel="GMACs an image")
        axes.set_xticks(SIZES, [str(size) for size in SIZES], fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
