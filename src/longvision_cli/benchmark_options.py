"""The options of `longvision benchmark`, and what its help says."""

import argparse
import math

from longvision.benchmark.plan import DEVICES, DTYPES, HEADS, MODES, OPS_DTYPES, ModelsPlan, OpsPlan
from longvision.benchmark.sizes import is_count, parse_sizes
from longvision.errors import UserError
from longvision.names import did_you_mean
from longvision_cli.arguments import ArgumentParser

PARTS = ("models", "ops")
MODELS = "vim_tiny_patch16_224,deit_tiny_patch16_224,deit_tiny_patch16_224+materialised"
HELP = """\
usage: longvision benchmark {models,ops} [options]

longvision benchmark models    backbones against each other: time and memory over image sizes
longvision benchmark ops       backends of the selective scan against each other

examples:
  longvision benchmark models                        # Vim-Ti and DeiT-Ti from 224 to 2048 pixels, a batch of one
  longvision benchmark models --sizes 512,1248 --mode train --budget 20
  longvision benchmark models --models vim_small_patch16_224,swin_tiny_patch4_window7_224,resnet50 --batch 4
  longvision benchmark models --sizes 512,1248 --mode train --checkpoint
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


def parse(arguments: list[str]) -> tuple[ModelsPlan | OpsPlan, str | None]:
    """The words behind `longvision benchmark` -> what to measure, and the folder of --out. Raises UserError."""
    part, *rest = arguments
    if part not in PARTS:
        raise UserError(f"there is no benchmark {part!r}: {did_you_mean(part, PARTS)}")
    options = vars((_models_parser() if part == "models" else _ops_parser()).parse_args(rest))
    out = options.pop("out")
    return (ModelsPlan if part == "models" else OpsPlan)(**options), out


def _models_parser() -> ArgumentParser:
    # The default of --models stands below the options: there argparse does not break a line in the middle of a name.
    parser = _parser("models", MODELS_HELP, DTYPES, f"default models:\n  --models {MODELS}")
    add = parser.add_argument
    add(
        "--models",
        type=_words,
        default=_words(MODELS),
        metavar="NAMES",
        help="any of timm's, separated by commas; NAME+materialised computes whole attention matrices (default: below)",
    )
    add(
        "--sizes",
        type=_sizes,
        default="224:2048",
        metavar="PIXELS",
        help="image sides separated by commas, or a range between two multiples of 16, which is filled with those of "
        "256, 384, 512, 768, 1024, 1248, 1536 and so on that are not close to an end: 224:1024 is 224,384,512,768,1024 "
        "(default: %(default)s)",
    )
    add(
        "--head",
        choices=HEADS,
        default="",
        help="fpn: an FPN that segments 150 classes; cascade: a Cascade Mask R-CNN, detr: a DETR, of 80; on each model "
        "as a backbone (default: the models as classifiers)",
    )
    add("--batch", type=_count, default=1, metavar="N", help="images a call (default: 1)")
    add("--checkpoint", action="store_true", help="in training, recompute blocks in every model that can")
    add("--baseline", default="", metavar="NAME", help="the others are multiples of it (default: the first peer)")
    _add_budget(parser, 60, "for each case, a model at a size; process starts, a few seconds each, come on top")
    return parser


def _ops_parser() -> ArgumentParser:
    parser = _parser("ops", OPS_HELP, OPS_DTYPES)
    parser.add_argument(
        "--tokens",
        type=_counts,
        default="197,1025,6085",
        metavar="NUMBERS",
        help="lengths of the sequence, separated by commas; Vim-Ti has 197 at 224 pixels, 1025 at 512, 6085 at 1248 "
        "(default: %(default)s)",
    )
    numbers = {
        "channels": (384, "width of the scan, an even number; Vim-Ti's is 384"),
        "states": (16, "states of each channel; Vim's are 16"),
        "batch": (1, "sequences a call"),
    }
    for name, (default, meaning) in numbers.items():
        words = f"{meaning} (default: {default})"
        parser.add_argument(f"--{name}", type=_count, default=default, metavar="N", help=words)
    _add_budget(parser, 20, "for each case, a backend at a number of tokens; a check of each backend comes on top")
    return parser


def _parser(part: str, description: str, dtypes: tuple[str, ...], epilog: str | None = None) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"longvision benchmark {part}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    modes = "infer, or train: forward, loss, backward (default: infer)"
    parser.add_argument("--mode", choices=MODES, default="infer", help=modes)
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of the computation (default: float32)")
    parser.add_argument("--device", choices=DEVICES, default="", help="default: cuda where there is one")
    parser.add_argument("--out", metavar="FOLDER", help="a new one for the results (default: benchmarks-DATE-TIME)")
    return parser


def _add_budget(parser: ArgumentParser, default: int, meaning: str) -> None:
    words = f"{meaning} (default: {default})"
    parser.add_argument("--budget", type=_seconds, default=default, metavar="SECONDS", help=words)


def _count(text: str) -> int:
    if not is_count(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _sizes(text: str) -> list[int]:
    try:
        return parse_sizes(text)
    except UserError as error:  # argparse shows the words of its own errors only
        raise argparse.ArgumentTypeError(str(error)) from error


def _counts(text: str) -> list[int]:
    return sorted({_count(word) for word in text.split(",")})


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, such as 60")
    return seconds


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
