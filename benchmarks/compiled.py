"""What the compiler makes of the Triton kernels, for sm_90 and sm_80: registers, spills, instructions a state.

Run: python benchmarks/compiled.py [--out FILE] [--case NAME ...] [--architecture 90]

Counted without a GPU: the wrappers are called on tensors without memory, their launches are recorded instead of
started, and each is compiled ahead of time with the types, constants and alignments that Triton would have found. Then
the machine code is taken apart: which instructions are in which loop. Writes results/compiled.csv here.
"""

import argparse
import csv
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from compiled_cases import CASES, Case
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from longvision.benchmark.provenance import provenance
from longvision.ops.kernels.triton import launch as launching
from longvision.ops.kernels.triton.layout import CHUNK

TABLE = Path(__file__).parent / "results" / "compiled.csv"
ARCHITECTURES = (90, 80)
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}
LOADS_AND_STORES = ("LDG", "STG")
COUNTED = ("MUFU", "FFMA", "FMUL", "FADD", "SHFL", *LOADS_AND_STORES)
WAITING = ("SHFL", "BAR", "LDS", "STS", "WARPSYNC")  # what a time loop of the forward is to be free of


class Launch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    warps: int
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.__name__


class Loop(NamedTuple):
    """`own` counts the instructions that stand in it and in no loop inside it."""

    depth: int
    first: int
    last: int
    own: Counter


class Compiled(NamedTuple):
    registers: int
    shared: int
    spills: int
    loops: list[Loop]


def launches(case: Case) -> list[Launch]:
    """In the order in which they are started."""
    with recorded() as found:
        case.call()
    return found


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Inside, kernels are written down instead of started."""
    found: list[Launch] = []
    before = launching.run
    launching.run = lambda *launch: found.append(Launch(*launch))
    try:
        yield found
    finally:
        launching.run = before


def compiled(launch: Launch, architecture: int) -> Compiled:
    """For CUDA of that compute capability, as 90."""
    signature, constants, attributes = _specialised(launch)
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.warps, **launching.OPTIONS}
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    usage, code = _disassembled(kernel.asm["cubin"])
    instructions, labels = _parsed(code)
    spills = sum(op.startswith(("STL", "LDL")) for op, _ in instructions)
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, usage
    return Compiled(int(registers[1]), kernel.metadata.shared, spills, _loops(instructions, labels))


def _specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[Any, list]]:
    """Types, constants and alignments as Triton finds them when it is handed these arguments."""
    signature: dict[str, str] = {}
    constants = dict(launch.constants)
    attributes: dict[Any, list] = {}
    aligned = [["tt.divisibility", 16]]
    for i, (name, value) in enumerate(zip(launch.kernel.arg_names, launch.arguments)):
        if isinstance(value, Tensor):
            signature[name], attributes[(i,)] = f"*{TYPES[value.dtype]}", aligned
        elif value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, int):
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(i,)] = aligned
        else:
            signature[name] = "fp32"
    signature |= dict.fromkeys(launch.constants, "constexpr")
    return signature, constants, attributes


def _disassembled(binary: bytes) -> tuple[str, str]:
    """-> resource usage and machine code, by the tools that Triton brings."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return tuple(  # type: ignore[return-value]
            subprocess.run([tools / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )


def _parsed(code: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """-> instructions with their operands, and before which of them each label stands."""
    instructions: list[tuple[str, str]] = []
    labels = {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
            instructions.append((found[1], found[2]))
    return instructions, labels


def _loops(instructions: list[tuple[str, str]], labels: dict[str, int]) -> list[Loop]:
    """A branch back to a label before it closes a loop."""
    spans: dict[int, int] = {}
    for i, (operation, operands) in enumerate(instructions):
        target = re.search(r"\.L_x_\d+", operands) if operation.startswith("BRA") else None
        if target and labels.get(target[0], i) < i:
            spans[labels[target[0]]] = max(i, spans.get(labels[target[0]], 0))
    loops = []
    for first, last in sorted(spans.items()):
        around = sum(f <= first and last <= t for f, t in spans.items())
        inside = [(f, t) for f, t in spans.items() if first <= f and t <= last and (f, t) != (first, last)]
        alone = [i for i in range(first, last + 1) if not any(f <= i <= t for f, t in inside)]
        loops.append(Loop(around, first, last, Counter(instructions[i][0].split(".")[0] for i in alone)))
    return loops


def tokens_of_loops(launch: Launch) -> tuple[int, ...] | None:
    """How many tokens a turn of a loop takes, by its depth; None for kernels that have no states."""
    return {
        "scan_forward": (CHUNK, 1),
        "scan_ends": (1,),
        "scan_backward": (CHUNK, launch.constants.get("SPAN", 0), 1),
    }.get(launch.name)


def instructions_per_state(launch: Launch, code: Compiled) -> Counter:
    """Instructions of a warp for 32 states of one token, by name; "all" is their sum. The loops alone: what comes
    before and after them is paid once a sequence."""
    tokens = tokens_of_loops(launch)
    total: Counter = Counter()
    if tokens is None:
        return total
    # A sequence that fits into one chunk, or one group into one chunk, has no outer loop.
    deepest = max(loop.depth for loop in code.loops)
    tokens = tokens[len(tokens) - deepest :]
    states_of_a_lane = launch.constants["CHANNELS"] * launch.constants["N"] / (32 * launch.warps)
    for loop in code.loops:
        turns = _unrolled(loop, tokens[loop.depth - 1], states_of_a_lane)
        for name, count in loop.own.items():
            total[name] += count / (tokens[loop.depth - 1] * states_of_a_lane * turns)
    total["all"] = sum(total.values())
    return total


def _unrolled(loop: Loop, tokens: int, states_of_a_lane: float) -> int:
    """How often the compiler wrote the loop's body: a state of a token takes one exponential."""
    return max(1, round(loop.own["MUFU"] / (tokens * states_of_a_lane)))


def waits_in_time_loop(launch: Launch, code: Compiled) -> int:
    """Shuffles, barriers and accesses to shared memory in the innermost loops."""
    deepest = max(loop.depth for loop in code.loops)
    return sum(loop.own[name] for loop in code.loops if loop.depth == deepest for name in WAITING)


def row(case: Case, launch: Launch, architecture: int) -> dict[str, object]:
    """A row of the table: what was compiled, and what came of it."""
    code = compiled(launch, architecture)
    counts = instructions_per_state(launch, code)
    chosen = {name.lower(): launch.constants.get(name, "") for name in ("CHANNELS", "SPAN", "REVERSE")}
    return {
        "case": case.name,
        "kernel": launch.name,
        "architecture": f"sm_{architecture}",
        "grid": "x".join(map(str, launch.grid)),
        "warps": launch.warps,
        **chosen,
        "registers": code.registers,
        "shared_bytes": code.shared,
        "spills": code.spills,
        "per_state": round(counts["all"], 2) if counts else "",
        **{name.lower(): round(counts[name], 3) if counts else "" for name in COUNTED},
        "waits": waits_in_time_loop(launch, code) if counts else "",
    }


def rows(architectures: tuple[int, ...], cases: tuple[Case, ...], say: Callable[[str], None] = print) -> list:
    """Of every kernel of every case, each once a case."""
    found = []
    for case in cases:
        seen = set()
        for launch in launches(case):
            given = [argument is None for argument in launch.arguments]
            key = launch.name, str(sorted(launch.constants.items())), str(given)
            if key in seen:
                continue
            seen.add(key)
            for architecture in architectures:
                found.append(row(case, launch, architecture))
                say(" ".join(f"{name}={value}" for name, value in found[-1].items() if value != ""))
    return found


def named(part: str) -> tuple[Case, ...]:
    """The case of this name, or those with this in theirs."""
    cases = tuple(case for case in CASES if part == case.name) or tuple(case for case in CASES if part in case.name)
    if not cases:
        raise SystemExit(f"no case has {part!r} in its name: there are {'; '.join(case.name for case in CASES)}")
    return cases


def main(out: Path, parts: list[str], architectures: tuple[int, ...]) -> None:
    cases = tuple(dict.fromkeys(case for part in parts for case in named(part)))
    origin = {"device": "none: compiled", "triton": triton.__version__, **provenance()}
    found = [{**row, **origin} for row in rows(architectures, cases)]
    with out.open("w", newline="") as file:
        table = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(found)
    print(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=TABLE, help="the table to write (default: %(default)s)")
    parser.add_argument(
        "--case", nargs="+", default=[""], help="only the case of this name, or those with it in theirs"
    )
    parser.add_argument("--architecture", type=int, nargs="+", default=ARCHITECTURES, help="compute capability, as 90")
    options = parser.parse_args()
    main(options.out, options.case, tuple(options.architecture))
