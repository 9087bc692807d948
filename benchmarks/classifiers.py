"""All classifiers side by side: accuracy after the same images in the same recipe, time and memory over image sizes.

Accuracy: CIFAR-10 for one epoch with three seeds, ten classes of ImageNet at 128 pixels for two with one; a row a run
for benchmarks/results/classifiers.csv; runs whose row is there are not run again. Vim and ViT on CIFAR-10 are the
ablation's first and last (benchmarks/results/ablation.csv), which trains so too. Models of patches are of equal size,
about 170,000 parameters; the others are the smallest of their kind, and see CIFAR-10 at 64 pixels, as their last maps
have a 32nd or a 64th of an image's side.

Speed: rows of `longvision benchmark models`, taken over into benchmarks/results/classifiers_speed.csv. Both are drawn
in docs/images/classifiers.png.

Run: python benchmarks/classifiers.py train CIFAR10 IMAGENETTE [RUNS], with CIFAR-10 in Parquet files, the other in
folders, python benchmarks/classifiers.py speed FOLDER..., with the folders that the command made, and
python benchmarks/classifiers.py draw, which prints the tables of the documentation too.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

from ablation import DEIT, OPTIONS, SEEDS, VIM
from ablation import TABLE as ABLATION
from matplotlib.figure import Figure
from trainings import Training, run_all

from longvision.benchmark.rows import read_rows, write_rows

ROOT = Path(__file__).parent.parent
ACCURACY, SPEED = (ROOT / "benchmarks/results" / name for name in ("classifiers.csv", "classifiers_speed.csv"))
SHAPE = {name: value for name, value in DEIT.items() if name != "name"}
ABLATED = {"direction=ssm_conv, cls_token=middle": "Vim", "DeiT": "ViT"}
PATCHES = {
    "Vim": VIM,
    "ViT": DEIT,
    "DeepViT": {"name": "deepvit_16", **SHAPE},
    "NaViT": {"name": "navit_tiny_patch16", **SHAPE},
}
CONVOLUTIONS = {
    "MobileViT": {"name": "mobilevit_xxs"},
    "MobileViT v2": {"name": "mobilevitv2_050"},
    "EfficientViT": {"name": "efficientvit_m0"},
}
NAMED = {
    "vim_tiny_patch16_224": "Vim",
    "deit_tiny_patch16_224": "ViT",
    "deepvit_16": "DeepViT",
    "navit_tiny_patch16": "NaViT",
    "mobilevit_s": "MobileViT",
    "mobilevitv2_100": "MobileViT v2",
    "efficientvit_m2": "EfficientViT",
}
SIZES = (224, 512, 1024, 2048)
COLOURS = dict(
    zip(NAMED.values(), ("#2a7f4f", "#b3261e", "#d98200", "#7b3fa0", "#1f6fb4", "#55a8dd", "#666666"), strict=True)
)


def cifar10(path: str, seed: int) -> list[Training]:
    def training(name: str, args: dict[str, Any], size: int) -> Training:
        options = {**OPTIONS, "data.path": path, "data.size": size}
        return Training(name, args, "parquet", options, seed, {"data": "CIFAR-10", "size": size})

    patches = {name: args for name, args in PATCHES.items() if name not in ABLATED.values()}
    return [training(name, args, 32) for name, args in patches.items()] + [
        training(name, args, 64) for name, args in CONVOLUTIONS.items()
    ]


def imagenette(path: str, seed: int) -> list[Training]:
    options = {**OPTIONS, "trainer.max_epochs": 2, "data.path": path, "data.size": 128}
    models = {name: {**args, "patch_size": 16} for name, args in PATCHES.items()} | CONVOLUTIONS
    columns = {"data": "Imagenette", "size": 128}
    return [Training(name, args, "folder", options, seed, columns) for name, args in models.items()]


def train(cifar10_path: str, imagenette_path: str, runs: str = "runs") -> None:
    for seed in SEEDS:
        run_all(ACCURACY, cifar10(cifar10_path, seed), runs)
    run_all(ACCURACY, imagenette(imagenette_path, 0), runs)


def speed(*folders: str) -> None:
    """Of a model that was measured twice the first rows count."""
    rows = [row for folder in folders for row in read_rows(Path(folder) / "models.csv")]
    first = {(row["model"], row["form"], row["requested"]): row for row in reversed(rows)}
    write_rows(SPEED, [row for row in rows if row in first.values()])
    draw()


def draw() -> None:
    print_tables()
    figure = Figure(figsize=(12, 4), layout="constrained")
    accuracy, time, memory = figure.subplots(1, 3)
    draw_accuracy(accuracy)
    for axes, column, label in ((time, "ms_median", "milliseconds an image"), (memory, "peak_mb", "memory, MB")):
        for model, name in NAMED.items():
            points = sorted((size, float(row[column])) for size, row in measured(model).items())
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=COLOURS[name], label=model)
        axes.set(xscale="log", yscale="log", xlabel="image side, pixels", ylabel=label)
        axes.set_xticks(SIZES, [str(size) for size in SIZES], fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    memory.legend(frameon=False, fontsize=7, loc="lower right")
    figure.savefig(ROOT / "docs/images/classifiers.png", dpi=110)


def draw_accuracy(axes) -> None:
    """A bar from the lowest to the highest of the seeds, a point at their mean."""
    for place, name in enumerate(reversed(COLOURS)):
        values = accuracies("CIFAR-10", name)
        axes.plot([min(values), max(values)], [place, place], color=COLOURS[name], linewidth=5, alpha=0.4)
        axes.plot(statistics.mean(values), place, marker="o", color=COLOURS[name])
    axes.set_yticks(range(len(COLOURS)), list(reversed(COLOURS)))
    axes.set(xlabel="CIFAR-10 after one epoch, % right: three seeds")
    axes.grid(alpha=0.3, axis="x")


def print_tables() -> None:
    for name in COLOURS:
        values = accuracies("CIFAR-10", name)
        spread = f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
        print(f"| {name} | {spread} | {statistics.mean(accuracies('Imagenette', name)):.1f} |")
    for model in NAMED:
        rows = [measured(model).get(size) for size in SIZES]
        cells = [f"{float(row['ms_median']):,.0f} / {float(row['peak_mb']):,.0f}" if row else "–" for row in rows]
        print(f"| `{model}` | {' | '.join(cells)} |")


def accuracies(data: str, name: str) -> list[float]:
    """Of all seeds, in per cent."""
    rows = [row for row in read_rows(ACCURACY) if row["data"] == data]
    if data == "CIFAR-10":
        rows += [{**row, "model": ABLATED[row["model"]]} for row in read_rows(ABLATION) if row["model"] in ABLATED]
    return [100 * float(row["accuracy"]) for row in rows if row["model"] == name]


def measured(model: str) -> dict[int, dict[str, Any]]:
    """The rows of a model as timm makes it, by the image's side."""
    rows = [row for row in read_rows(SPEED) if row["model"] == model and not row["form"] and row["ms_median"]]
    return {int(row["requested"]): row for row in rows}


if __name__ == "__main__":
    {"train": train, "speed": speed, "draw": draw}[sys.argv[1]](*sys.argv[2:])
