"""Each number in the tables of docs/benchmarks.md, and of the backbones' measured ones, stands in a row of
benchmarks/results."""

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def rows(name):
    with (ROOT / "benchmarks/results" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def cells(header):
    """The lines of all tables whose header begins so, as lists of words; `~` marks ratios of first calls."""
    text = (ROOT / "docs/benchmarks.md").read_text()
    tables = re.findall(rf"^\| {re.escape(header)}.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()]
    return [[cell.strip(" `~").replace(",", "") for cell in line.strip("|").split("|")] for line in lines]


def table_of(page, first):
    """The lines of a backbone's table whose header begins so, the header too, as lists of words."""
    text = (ROOT / "docs/backbones" / page).read_text()
    match = re.search(rf"^\| {re.escape(first)}.*\n\|[-|]+\n(?:\|.*\n)+", text, re.MULTILINE)
    lines = [line for line in match[0].splitlines() if not line.startswith("|-")]
    return [[cell.strip().replace(",", "") for cell in line.strip("|").split("|")] for line in lines]


def test_models():
    measured = {
        (
            int(row["requested"]),
            row["model"] + (f"+{row['form']}" if row["form"] else "") + ("` checkpointed" if row["checkpoint"] else ""),
            round(float(row["ms_median"])),
            *(float(row[name]) for name in ("time_ratio", "peak_mb", "memory_ratio")),
        )
        for row in rows("models.csv")
    }
    found = cells("image | model")
    assert len(found) > 30
    for size, model, ms, time_ratio, memory, memory_ratio in found:
        line = int(size.strip("²")), model, int(ms), float(time_ratio), float(memory), float(memory_ratio)
        assert line in measured, line


def test_models_under_a_head():
    words = {"FPN": "fpn", "Cascade Mask R-CNN": "cascade", "inference": "infer", "training step": "train"}
    by_key = {(row["head"], row["mode"], row["requested"], row["model"]): row for row in rows("models.csv")}
    text = (ROOT / "docs/benchmarks.md").read_text()
    found = re.findall(
        r"^\| (.+), (.+), (\d+)² \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE
    )
    assert len(found) == 7
    for head, mode, size, vim_ms, deit_ms, time_ratio, memory_ratio in found:
        vim, deit = (
            by_key[words[head], words[mode], size, name] for name in ("vim_tiny_patch16_224", "deit_tiny_patch16_224")
        )
        for row, ms in ((vim, vim_ms), (deit, deit_ms)):
            assert round(float(row["ms_median"])) == int(ms.replace(",", ""))
        for column, ratio in (("ms_median", time_ratio), ("peak_mb", memory_ratio)):
            assert f"{float(vim[column]) / float(deit[column]):.2f}" == ratio


def test_operators():
    measured = {
        (row["tokens"], row["backend"], *(float(row[name]) for name in ("products_ratio", "reference_ratio"))): float(
            row["ms_median"]
        )
        for row in rows("ops.csv")
        if row["ms_median"]
    }
    found = cells("tokens | backend")
    assert len(found) > 10
    for tokens, backend, ms, products_ratio, reference_ratio in found:
        assert f"{measured[tokens, backend, float(products_ratio), float(reference_ratio)]:.3g}" == ms


def test_accuracies():
    """Of three seeds the mean and the range, in per cent."""
    by_model = {}
    for row in rows("ablation.csv") + [row for row in rows("classifiers.csv") if row["data"] == "CIFAR-10"]:
        by_model.setdefault(row["model"], []).append(100 * float(row["accuracy"]))
    assert {len(values) for values in by_model.values()} == {3}
    spreads = {f"{sum(values) / 3:.1f} ({min(values):.1f} to {max(values):.1f})" for values in by_model.values()}
    pages = [(ROOT / "docs" / page).read_text() for page in ("models.md", "benchmarks.md")]
    found = [re.findall(r"\| ([\d.]+ \([\d.]+ to [\d.]+\)) \|", page) for page in pages]
    assert [len(of_page) for of_page in found] == [9, 7]
    assert {spread for of_page in found for spread in of_page} == spreads


def test_accuracies_on_imagenette():
    on_imagenette = [row for row in rows("classifiers.csv") if row["data"] == "Imagenette"]
    measured = {row["model"]: f"{100 * float(row['accuracy']):.1f}" for row in on_imagenette}
    text = (ROOT / "docs/benchmarks.md").read_text()
    found = re.findall(r"^\| (\w[\w ]*) \| [\d.]+ \([\d.]+ to [\d.]+\) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert dict(found) == measured and len(found) == 7


def test_classifiers():
    measured = {
        (row["model"], f"{float(row['ms_median']):,.0f} / {float(row['peak_mb']):,.0f}")
        for row in rows("classifiers_speed.csv")
        if row["ms_median"] and not row["form"]
    }
    found = re.findall(r"^\| `(\w+)` \| (.* / .*) \|$", (ROOT / "docs/benchmarks.md").read_text(), re.MULTILINE)
    told = {(model, cell) for model, line in found for cell in line.split(" | ") if cell != "–"}
    assert len(told) == 27 and told == measured


def test_mambas_side_by_side():
    measured = {
        (row["model"], f"{float(row['ms_median']):,.0f} / {float(row['peak_mb']):,.0f}")
        for row in rows("mamba_backbones.csv")
        if row["baseline"] == "deit_small_patch16_224"
    }
    text = (ROOT / "docs/backbones/index.md").read_text()
    found = re.findall(r"^\| `(\w+)` \|.*\|((?: [\d,]+ / [\d,]+ \|){3})$", text, re.MULTILINE)
    told = {(model, cell) for model, line in found for cell in line.strip(" |").split(" | ")}
    assert len(told) == 48 and told == measured


def test_vmamba():
    """Beside the authors' own file and ConvNeXt-T."""
    by_size = {}
    for row in rows("vmamba.csv"):
        by_size.setdefault(int(row["size"]), []).append(float(row["ms_median"]))
    text = (ROOT / "docs/backbones/vmamba.md").read_text()
    found = re.findall(r"^\| (\d+)² \| (.+) \|$", text, re.MULTILINE)
    assert len(found) == len(by_size) == 3
    for size, line in found:
        ours, convnext, theirs = by_size[int(size)]
        cells = f"{ours:,.0f} | {theirs:,.0f} | {theirs / ours:.1f} | {convnext:,.0f} | {ours / convnext:.2f}"
        assert line == cells


def test_accuracies_over_tokens():
    measured = {(row["model"], row["tokens"]): f"{100 * float(row['accuracy']):.1f}" for row in rows("tokens.csv")}
    (header, *lines) = table_of("navit.md", "accuracy, %")
    told = {(name, tokens): cell for name, *cells in lines for tokens, cell in zip(header[1:], cells, strict=True)}
    assert len(told) == 18 and told == measured


def test_pruned_models():
    measured = {
        (
            "(whole)" if row["keep"] == "1.0" else row["keep"],
            row["parameters"],
            *(f"{100 * float(row[name]):.0f} %" for name in ("queries and keys", "values", "MLPs")),
            f"{100 * float(row['accuracy']):.1f} %",
        )
        for row in rows("pruning.csv")
    }
    _, *lines = table_of("efficientvit.md", "`--keep`")
    assert len(lines) == 4 and {tuple(line) for line in lines} == measured
