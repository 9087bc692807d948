"""`longvision autotune`: measures how the Triton kernels run best on this GPU, and writes it down for later runs."""

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

from longvision_cli.arguments import ArgumentParser

if TYPE_CHECKING:
    from longvision.benchmark.autotune import Shape, Tried

TOLERANCES = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}  # as the kernels' tests have them


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="longvision autotune",
        description="Tries launch configurations of the Triton kernels on this GPU (an NVIDIA one), for every "
        "combination of the sizes given, and writes the fastest to a file that later runs read. One that fails or is "
        "not right is not timed. Minutes with the sizes it has by default; Ctrl-C keeps what is measured.",
    )
    parser.add_argument("--widths", default="384,768", help="inner channels, twice the model's (default: %(default)s)")
    parser.add_argument("--tokens", default="197,1025,6085,16385", help="of an image (default: %(default)s)")
    parser.add_argument("--batches", default="1,8,128", help="images at once (default: %(default)s)")
    parser.add_argument("--states", default="16", help="a channel (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(TOLERANCES), help="(default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="the file to write or add to (default: the one that is read)")
    options = parser.parse_args(arguments)
    names = ("batches", "tokens", "widths", "states")
    sizes = [_numbers(name, getattr(options, name)) for name in names]

    import torch

    if not torch.cuda.is_available():
        raise ValueError("there is no GPU to measure: torch sees no CUDA device; the kernels' own settings are used")
    if importlib.util.find_spec("triton") is None:
        raise ValueError("there are no kernels to measure: the package triton is not installed (pip install triton)")
    from longvision.benchmark.autotune import MOST_TOKENS, shapes
    from longvision.ops.kernels.triton.configurations import check_writable, measured_file

    fitting, too_large = shapes(*sizes)
    if not fitting:
        raise ValueError(
            f"--batches {options.batches} of --tokens {options.tokens} are all more than {MOST_TOKENS} tokens at once: "
            "give smaller ones"
        )
    path = Path(options.out) if options.out else measured_file()
    check_writable(path)  # says now what is wrong with it, not after minutes
    for shape in too_large:
        print(f"{_words(shape)}: left out, more than {MOST_TOKENS} tokens at once")
    if not any([_measure(shape, options.dtype, path) for shape in fitting]):
        raise ValueError("nothing could be measured: the lines above say why")
    print(path)
    return 0


def _measure(shape: "Shape", dtype: str, path: Path) -> bool:
    """-> whether there was something to add to the file."""
    import torch

    from longvision.benchmark.autotune import FAILURES, reason, seconds_of, tune
    from longvision.ops.kernels.triton.configurations import write_rows

    print(_words(shape))
    try:
        rows = tune(shape, getattr(torch, dtype), "cuda", TOLERANCES[dtype], seconds_of, _say)
    except FAILURES as error:
        print(f"  left out: {reason(error)}")
        return False
    if rows:
        write_rows(path, rows)
    return bool(rows)


def _say(tried: "Tried") -> None:
    from longvision.ops.kernels.triton.configurations import KERNELS

    settings = ", ".join(f"{name} {getattr(tried.chosen, name)}" for name in KERNELS[tried.kernel])
    took = f"{tried.seconds * 1e6:.0f} µs" if math.isfinite(tried.seconds) else f"wrong by {tried.off:.1g}: not timed"
    print(f"  {tried.kernel:<14} {settings}: {f'failed: {tried.failed}' if tried.failed else took}")


def _words(shape: "Shape") -> str:
    return ", ".join(f"{name} {value}" for name, value in shape._asdict().items())


def _numbers(name: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"--{name} {text}: expected whole numbers above 0 with commas between them, as 197,1025")
    return [int(word) for word in words]
