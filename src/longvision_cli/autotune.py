"""`longvision autotune`: measures how the Triton kernels run best on this GPU, and writes it down for later runs."""

from pathlib import Path

from longvision_cli.arguments import ArgumentParser

TOLERANCES = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}  # as the kernels' tests have them


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="longvision autotune",
        description="Tries launch configurations of the Triton kernels on this GPU (an NVIDIA one), for every "
        "combination of the sizes given, and writes the fastest to a file that later runs read. One whose result is "
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
    from longvision.benchmark.autotune import Tried, seconds_of, shapes, tune
    from longvision.ops.triton.configurations import measured_file, read_rows, write_rows

    path = Path(options.out) if options.out else measured_file()
    read_rows(path)  # says now what is wrong with it, not after minutes
    dtype, tolerance = getattr(torch, options.dtype), TOLERANCES[options.dtype]

    def say(tried: Tried) -> None:
        settings = ", ".join(f"{name} {value}" for name, value in tried.chosen._asdict().items())
        took = f"{tried.seconds * 1e6:.0f} µs" if tried.off <= tolerance else f"wrong by {tried.off:.1g}: not timed"
        print(f"  {tried.kernel:<14} {settings}: {took}")

    for shape in shapes(*sizes):
        print(", ".join(f"{name} {value}" for name, value in shape._asdict().items()))
        write_rows(path, tune(shape, dtype, "cuda", tolerance, seconds_of, say))
    print(path)
    return 0


def _numbers(name: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"--{name} {text}: expected whole numbers above 0 with commas between them, as 197,1025")
    return [int(word) for word in words]
