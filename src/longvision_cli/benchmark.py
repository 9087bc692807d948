"""`longvision benchmark`: speed and memory of models, or of the operator that Vim is made of."""

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from longvision_cli.arguments import ArgumentParser

PARTS = ("models", "ops")
MODELS = "vim_tiny_patch16_224,deit_tiny_patch16_224,deit_tiny_patch16_224+materialised"
HELP = """\
longvision benchmark models    backbones against each other: time and memory over image sizes
longvision benchmark ops       backends of the selective scan against each other

examples:
  longvision benchmark models                        # Vim-Ti and DeiT-Ti from 224 to 2048 pixels, a batch of one
  longvision benchmark models --sizes 512,1248 --mode train --budget 20
  longvision benchmark models --models vim_small_patch16_224,swin_tiny_patch4_window7_224,resnet50 --batch 4
  longvision benchmark models --models vim_tiny_patch16_224,vim_tiny_patch16_224+checkpoint --mode train
  longvision benchmark ops --tokens 197,6085 --mode train

`longvision benchmark models --help` and `longvision benchmark ops --help` say more."""
MODELS_HELP = """\
Measures models against each other: time of a call, images a second, peak memory of a call, multiply-adds.
Each case runs in a process of its own, one at a time, and the models take turns. Random weights: nothing is
downloaded. Out of memory is a row of the table, and a larger size of that model is then skipped.
A model that does not take a size runs at the nearest smaller one it takes, and its row says so.
A folder gets models.csv, and models.png where matplotlib is installed. Set the number of threads with
OMP_NUM_THREADS. Ctrl-C keeps what is measured."""
OPS_HELP = """\
Measures the backends of the selective scan, one direction with bias, softplus and gate, beside the matrix products of
a whole Vim block on as many tokens, and beside mambapy where that is installed. A backend is first held against the
reference in float64, output and every gradient; one that is wrong is not timed, and the exit code is 1.
A folder gets ops.csv."""


def run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: longvision benchmark {{{','.join(PARTS)}}} [options]\n\n{HELP}")
        return 0
    part, *rest = arguments
    if part not in PARTS:
        near = get_close_matches(part, PARTS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(PARTS)}"
        raise ValueError(f"there is no benchmark {part!r}: {hint}")
    return _models(rest) if part == "models" else _ops(rest)


def _models(arguments: list[str]) -> int:
    parser = _parser("models", MODELS_HELP)
    parser.add_argument(
        "--models",
        default=MODELS,
        metavar="NAMES",
        help="any of timm's, separated by commas; NAME+materialised computes whole attention matrices, "
        "NAME+checkpoint recomputes activations in training (default: %(default)s)",
    )
    parser.add_argument(
        "--sizes", default="224:2048", metavar="PIXELS", help="224,512,1248 or a range (default: %(default)s)"
    )
    parser.add_argument("--mode", default="infer", help="infer, or train: forward, loss, backward (default: infer)")
    parser.add_argument("--batch", type=_whole_number, default=1, metavar="N", help="images a call (default: 1)")
    parser.add_argument("--dtype", default="float32", help="float32, or bfloat16 by autocast (default: float32)")
    parser.add_argument("--baseline", metavar="NAME", help="the others are multiples of it (default: the first peer)")
    _common_options(parser, budget=60)
    options = parser.parse_args(arguments)

    from longvision.benchmark.folder import check_folder
    from longvision.benchmark.models import ModelBenchmark, Plan
    from longvision.benchmark.sizes import parse_sizes
    from longvision.benchmark.table import models_table

    sizes = parse_sizes(options.sizes)
    check_folder(options.out)
    plan = Plan(
        labels=_words(options.models),
        sizes=sizes,
        mode=options.mode,
        batch=options.batch,
        dtype=options.dtype,
        device=options.device or _default_device(),
        budget=options.budget,
        baseline=options.baseline,
    )
    benchmark = ModelBenchmark(plan)
    print(f"{plan.mode}, batch {plan.batch}, {plan.dtype}, {benchmark.device}; × is a multiple of {plan.yardstick()}")
    folder = _measure(benchmark, options.out, "models.csv", models_table)
    _draw(benchmark.rows(), folder / "models.png")
    print(folder)
    return 0


def _ops(arguments: list[str]) -> int:
    parser = _parser("ops", OPS_HELP)
    parser.add_argument("--tokens", default="197,1025,6085", metavar="NUMBERS", help="(default: %(default)s)")
    for name, default in {"channels": 384, "states": 16, "batch": 1}.items():
        parser.add_argument(f"--{name}", type=_whole_number, default=default, metavar="N", help=f"(default: {default})")
    parser.add_argument("--dtype", default="float32", help="float32, float64 or bfloat16 (default: float32)")
    parser.add_argument("--mode", default="infer", help="infer, or train: forward and backward (default: infer)")
    _common_options(parser, budget=20)
    options = parser.parse_args(arguments)
    tokens = _numbers("--tokens", options.tokens)

    from longvision.benchmark.folder import check_folder
    from longvision.benchmark.ops import OpsBenchmark, OpsPlan
    from longvision.benchmark.table import ops_table

    check_folder(options.out)
    plan = OpsPlan(
        tokens=tokens,
        channels=options.channels,
        states=options.states,
        batch=options.batch,
        dtype=options.dtype,
        mode=options.mode,
        device=options.device or _default_device(),
        budget=options.budget,
    )
    benchmark = OpsBenchmark(plan)
    print(f"{plan.mode}, batch {plan.batch}, {plan.channels} channels, {plan.dtype}, {benchmark.device}")
    folder = _measure(benchmark, options.out, "ops.csv", ops_table)
    print(folder)
    return 1 if benchmark.wrong else 0


def _parser(part: str, description: str) -> ArgumentParser:
    return ArgumentParser(
        prog=f"longvision benchmark {part}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _common_options(parser: ArgumentParser, budget: float) -> None:
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--budget", type=float, default=budget, metavar="SECONDS", help=f"for each case (default: {budget})"
    )
    parser.add_argument("--out", metavar="FOLDER", help="a new one for the results (default: benchmarks-DATE-TIME)")


def _whole_number(text: str) -> int:
    if not text.removeprefix("-").isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(option: str, text: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdigit() for word in words):
        raise ValueError(f"{option} {text!r}: expected whole numbers separated by commas, such as 197,1025")
    return sorted({int(word) for word in words})


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _measure(benchmark: Any, out: str | None, name: str, table: Callable[[list[dict[str, Any]]], str]) -> Path:
    """-> the folder with the rows, written anew after each step; the table of what there is comes in any case."""
    from longvision.benchmark.folder import make_folder, write_csv

    was_there = out is not None and Path(out).exists()
    folder = make_folder(out)
    start, terminal = time.monotonic(), sys.stderr.isatty()
    try:
        for done, news in benchmark.run():
            write_csv(folder / name, benchmark.rows())
            minutes, seconds = divmod(int(time.monotonic() - start), 60)
            _say(f"[{done}/{benchmark.steps}] {minutes}:{seconds:02}  {news}", terminal)
    finally:
        if terminal:
            _say("", terminal)
        if rows := benchmark.rows():
            print(table(rows))
        elif not was_there:
            folder.rmdir()
    return folder


def _say(line: str, terminal: bool) -> None:
    """On a terminal one line that changes, elsewhere one after the other."""
    if terminal:
        line = f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}"
    print(line, end="" if terminal else "\n", file=sys.stderr, flush=True)


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    if find_spec("matplotlib") is None:
        print("no picture: it needs matplotlib (pip install matplotlib)", file=sys.stderr)
        return
    from longvision.benchmark.picture import draw_models

    draw_models(rows, path)
