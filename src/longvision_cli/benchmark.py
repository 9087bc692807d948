"""`longvision benchmark`: speed and memory of models, or of the operator that Vim is made of."""

import argparse
import math
import shutil
import sys
import time
from collections.abc import Callable
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvision_cli.arguments import ArgumentParser

if TYPE_CHECKING:
    from longvision.benchmark.models import ModelBenchmark
    from longvision.benchmark.ops import OpsBenchmark

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
  longvision benchmark models --head fpn --sizes 512,1248
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
    options = _models_parser().parse_args(arguments)

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
        head=options.head,
    )
    benchmark = ModelBenchmark(plan)
    work = f"{plan.mode} with {plan.head}" if plan.head else plan.mode
    opening = [
        f"{work}, batch {plan.batch}, {plan.dtype}, {benchmark.device}; × is a multiple of {plan.yardstick()}",
        _cost(benchmark, f"{benchmark.steps} process starts of a few seconds each"),
    ]
    folder = _measure(benchmark, options.out, "models.csv", models_table, opening)
    if _is_measured(benchmark):
        _draw(benchmark.rows(), folder / "models.png")
    return _finish(benchmark, folder)


def _models_parser() -> ArgumentParser:
    # The default of --models stands below the options: there argparse does not break a line in the middle of a name.
    parser = _parser("models", MODELS_HELP, epilog=f"default models:\n  --models {MODELS}")
    parser.add_argument(
        "--models",
        default=MODELS,
        metavar="NAMES",
        help="any of timm's, separated by commas; NAME+materialised computes whole attention matrices, "
        "NAME+checkpoint recomputes activations in training (default: see below)",
    )
    parser.add_argument(
        "--sizes",
        default="224:2048",
        metavar="PIXELS",
        help="image sides separated by commas, or a range between two multiples of 16, which is filled with those of "
        "256, 384, 512, 768, 1024, 1248, 1536 and so on that are not close to an end: 224:1024 is 224,384,512,768,1024 "
        "(default: %(default)s)",
    )
    parser.add_argument("--mode", default="infer", help="infer, or train: forward, loss, backward (default: infer)")
    parser.add_argument(
        "--head",
        default="",
        help="fpn: an FPN that segments 150 classes; cascade: a Cascade Mask R-CNN of 80; on each model as a backbone "
        "(default: the models as classifiers)",
    )
    parser.add_argument("--batch", type=_whole_number, default=1, metavar="N", help="images a call (default: 1)")
    parser.add_argument(
        "--dtype", default="float32", help="float32, float64, or bfloat16 by autocast (default: float32)"
    )
    parser.add_argument("--baseline", metavar="NAME", help="the others are multiples of it (default: the first peer)")
    _common_options(parser, 60, "for each case, a model at a size; process starts, a few seconds each, come on top")
    return parser


def _ops(arguments: list[str]) -> int:
    options = _ops_parser().parse_args(arguments)
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
    opening = [
        f"{plan.mode}, batch {plan.batch}, {plan.channels} channels, {plan.dtype}, {benchmark.device}",
        _cost(benchmark, "the checks of the backends"),
    ]
    folder = _measure(benchmark, options.out, "ops.csv", ops_table, opening)
    return _finish(benchmark, folder) or int(benchmark.wrong)


def _ops_parser() -> ArgumentParser:
    parser = _parser("ops", OPS_HELP)
    parser.add_argument(
        "--tokens",
        default="197,1025,6085",
        metavar="NUMBERS",
        help="lengths of the sequence, separated by commas; Vim-Ti has 197 at 224 pixels, 1025 at 512, 6085 at 1248 "
        "(default: %(default)s)",
    )
    for name, default, meaning in (
        ("channels", 384, "width of the scan, an even number; Vim-Ti's is 384"),
        ("states", 16, "states of each channel; Vim's are 16"),
        ("batch", 1, "sequences a call"),
    ):
        parser.add_argument(
            f"--{name}", type=_whole_number, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    parser.add_argument(
        "--dtype",
        default="float32",
        help="float32, float64, bfloat16, or float16 where a backend takes it (default: float32)",
    )
    parser.add_argument("--mode", default="infer", help="infer, or train: forward and backward (default: infer)")
    _common_options(parser, 20, "for each case, a backend at a number of tokens; a check of each backend comes on top")
    return parser


def _parser(part: str, description: str, epilog: str | None = None) -> ArgumentParser:
    return ArgumentParser(
        prog=f"longvision benchmark {part}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _common_options(parser: ArgumentParser, budget: int, meaning: str) -> None:
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--budget", type=_seconds, default=budget, metavar="SECONDS", help=f"{meaning} (default: {budget})"
    )
    parser.add_argument("--out", metavar="FOLDER", help="a new one for the results (default: benchmarks-DATE-TIME)")


def _whole_number(text: str) -> int:
    if not _is_count(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0  # "²" is a digit, but not for int()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, such as 60")
    return seconds


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(option: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(map(_is_count, words)):
        raise ValueError(f"{option} {text!r}: expected whole numbers above 0, separated by commas, such as 197,1025")
    return sorted({int(word) for word in words})


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _cost(benchmark: "ModelBenchmark | OpsBenchmark", on_top: str) -> str:
    """How many cases there are, and what they take if each uses its budget up."""
    cases, budget = benchmark.cases, benchmark.plan.budget
    return (
        f"{cases} case{'s' * (cases > 1)} × {budget:g} s (--budget): at most {_duration(cases * budget)}; "
        f"on top come {on_top}, and calls that alone take longer than a budget"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else f"{math.ceil(seconds / 60)} min"


def _measure(
    benchmark: "ModelBenchmark | OpsBenchmark",
    out: str | None,
    name: str,
    table: Callable[[list[dict[str, Any]]], str],
    opening: list[str],
) -> Path:
    """-> the folder with the rows, written anew after each step; the table of what there is comes in any case."""
    from longvision.benchmark.folder import make_folder, write_csv

    was_there = out is not None and Path(out).exists()
    folder = make_folder(out)
    start, terminal = time.monotonic(), sys.stderr.isatty()
    try:
        # At once: whoever kills the process still wants to find the rows.
        print(*opening, f"results: {folder / name}", sep="\n", flush=True)
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


def _is_measured(benchmark: "ModelBenchmark | OpsBenchmark") -> bool:
    return any(result.measured for result in benchmark.results)


def _finish(benchmark: "ModelBenchmark | OpsBenchmark", folder: Path) -> int:
    """-> the exit code, 1 where there is not a single time."""
    print(folder)
    if _is_measured(benchmark):
        return 0
    print("nothing was measured, the table says why: raise --budget, or measure something smaller", file=sys.stderr)
    return 1


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    if find_spec("matplotlib") is None:
        print("no picture: it needs matplotlib (pip install matplotlib)", file=sys.stderr)
        return
    from longvision.benchmark.picture import draw_models

    draw_models(rows, path)
