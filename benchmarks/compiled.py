"""What the compiler makes of the Triton kernels, for sm_90 and sm_80: results/compiled.csv here.

Counted in machine code, not timed: it needs no GPU (see longvision.benchmark.compiled).

Run: python benchmarks/compiled.py [--out FILE] [--case NAME] [--architecture 90]
"""

import argparse
import csv
from pathlib import Path

import triton

from longvision.benchmark.compiled import rows
from longvision.benchmark.compiled_cases import CASES
from longvision.benchmark.provenance import provenance

TABLE = Path(__file__).parent / "results" / "compiled.csv"
ARCHITECTURES = (90, 80)


def main(out: Path, part: str, architectures: tuple[int, ...]) -> None:
    cases = tuple(case for case in CASES if part == case.name) or tuple(case for case in CASES if part in case.name)
    if not cases:
        raise SystemExit(f"no case has {part!r} in its name: there are {'; '.join(case.name for case in CASES)}")
    origin = {"device": "none: compiled", "triton": triton.__version__, **provenance()}
    found = [{**row, **origin} for row in rows(architectures, cases)]
    with out.open("w", newline="") as file:
        table = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(found)
    print(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TABLE, help="the table to write (default: %(default)s)")
    parser.add_argument("--case", default="", help="only the case of this name, or those with this in theirs")
    parser.add_argument("--architecture", type=int, nargs="+", default=ARCHITECTURES, help="compute capability, as 90")
    options = parser.parse_args()
    main(options.out, options.case, tuple(options.architecture))
