"""What longvision's blocks and models cost on an NVIDIA GPU, beside their peers: benchmarks/results/gpu.csv.

Tests and a memory check first, then times, memory, precision; at the end a table, and what became of each target.
Times are CUDA events around replays of a CUDA graph, the median and quartiles of up to 20. A block is called on several
inputs in turn, together larger than the L2 cache; a model's own activations are. A block's forward has its weights in
bfloat16 and the residual in float32; what is trained has its weights in float32, under bfloat16 autocast.

Run: python benchmarks/gpu.py [--out DIR] [--budget SECONDS] [--peers DIR] [--commit NAME]; DIR of --peers holds the
sources of mamba-ssm and causal-conv1d (see gpu_peers.py). A row is written after every measurement. What breaks the
device's context is ended with its process, and the next measurement gets a new one.
"""

import argparse
import csv
import functools
import gc
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import gpu_peers as peers
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from longvision.benchmark.build import Step
from longvision.benchmark.case import OUT_OF_MEMORY, Case, quantile, sentence, significant
from longvision.benchmark.memory import is_out_of_memory, measure_peak
from longvision.benchmark.provenance import device_name, provenance
from longvision.benchmark.table import align
from longvision.benchmark.timing import time_round
from longvision.layers import VimBlock
from longvision.ops.backends import BACKEND_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ("median_us", "q1_us", "q3_us", "peak_mb", "ratio", "baseline", "status")
ORIGIN = ("device", "driver", "torch", "triton", "cuda", "longvision", "timm", "commit", "date")
COLUMNS = ("what", "model", "size", "tokens", "batch", "dtype", "mode", "peer", *FIGURES, *ORIGIN)
Row = dict[str, str]

WIDTHS = {"block Ti": 192, "block S": 384}
VIM, DEIT = "vim_tiny_patch16_224", "deit_tiny_patch16_224"
SDPA: dict[str, list[SDPBackend]] = {"default": [], "cudnn": [SDPBackend.CUDNN_ATTENTION]}

SHARE = 1.0  # seconds for the samples of one measurement
TEST_LIMIT, SANITIZER_LIMIT = 200, 120  # most of it for compiling the kernels, on a fresh machine
JOB_LIMIT = 150.0  # seconds after which a measurement is ended with its process
GRACE = 30.0  # seconds beyond the budget for the measurement under way
SKIPPED = "skipped: budget"
BROKEN = 70  # exit code of a worker whose CUDA context has failed
BEGINS = "=> job "


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py measures an NVIDIA GPU, and torch sees no CUDA device here.", file=sys.stderr)
        return 1
    jobs, table = list_jobs(options), Table(options.out / "gpu.csv", origin(options.commit))
    if options.jobs is not None:
        return work([(number, jobs[number]) for number in options.jobs], table, options.until)
    table.start()
    with building(options.peers):
        supervise(jobs, worker_command(options), table, options.until)
    print(summary(table.rows))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder of gpu.csv")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds; what is left over then is skipped")
    parser.add_argument("--peers", type=Path, help="folder with the sources of mamba-ssm and causal-conv1d")
    parser.add_argument("--commit", default="", help="where git does not know it")
    parser.add_argument("--jobs", type=lambda text: [int(number) for number in text.split(",")], help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.until = options.until or time.time() + options.budget
    return options


# What is measured


class Job(NamedTuple):
    """A row to be: the columns that say what it is, and the measurement that gives the others."""

    columns: dict[str, Any]
    measure: Callable[[], dict[str, Any]]
    waits: bool = False  # for the authors' kernels to be built


def list_jobs(options: argparse.Namespace) -> list[Job]:
    """By importance, but what tells whether the rest can be believed first."""
    return [
        Job({"what": "tests", "model": "pytest -m gpu tests/ops"}, run_tests),
        Job({"what": "sanitizer", "model": "block", "mode": "train"}, run_sanitizer),
        Job({"what": "ceiling", "model": "copy on the device", "dtype": "bfloat16"}, measure_copy),
        Job({"what": "ceiling", "model": "matrix product 8192", "dtype": "bfloat16"}, measure_product),
        *block_jobs(None),
        *block_jobs(functools.cache(functools.partial(find_kernels, options.peers is not None))),
        *model_jobs(),
        *memory_jobs(),
        *precision_jobs(),
    ]


def block_jobs(kernels: Callable[[], Any] | None) -> Iterator[Job]:
    """Ours, or with `kernels` the peer's."""
    cases = [(224, 128, "infer"), (1248, 1, "infer"), (1248, 8, "infer"), (224, 128, "train"), (1248, 8, "train")]
    for size, batch, mode in cases:
        for name, width in WIDTHS.items():
            shape = {"size": size, "tokens": (size // 16) ** 2 + 1, "batch": batch, "dtype": "bfloat16", "mode": mode}
            measure = functools.partial(measure_block, width, shape["tokens"], batch, mode, kernels=kernels)
            peer = {} if kernels is None else {"peer": "peer"}
            yield Job({"what": "block", "model": name, **shape, **peer}, measure, waits=kernels is not None)


def model_jobs() -> Iterator[Job]:
    cases = [(size, batch, "infer") for size in (1536, 2048, 4096) for batch in (1, 8)]
    for size, batch, mode in [*cases, (2048, 1, "train")]:
        case = Case(VIM, "", mode, size, size, batch, "bfloat16", "cuda")
        yield Job(model_columns("model", case), functools.partial(measure_model, case))
        for name, backends in SDPA.items():
            of_deit = Case(DEIT, "", mode, size, size, batch, "bfloat16", "cuda")
            columns = {**model_columns("model", of_deit), "peer": f"sdpa: {name}"}
            yield Job(columns, functools.partial(measure_model, of_deit, backends))


def memory_jobs() -> Iterator[Job]:
    for name, variant in ((VIM, ""), (VIM, "checkpoint"), (DEIT, "")):
        case = Case(name, variant, "train", 1248, 1248, 8, "bfloat16", "cuda")
        peer = {"peer": "sdpa: default"} if name == DEIT else {}
        yield Job({**model_columns("memory per image", case), **peer}, functools.partial(measure_memory, case))


def model_columns(what: str, case: Case) -> dict[str, Any]:
    shape = {
        "size": case.size,
        "tokens": (case.size // 16) ** 2 + 1,
        "batch": case.batch,
        "dtype": case.dtype,
        "mode": case.mode,
    }
    return {"what": what, "model": case.label, **shape}


def precision_jobs() -> Iterator[Job]:
    for dtype in ("float32", "bfloat16"):
        for mode in ("output", "gradients"):
            columns = {"what": "error against float64", "model": "block", "tokens": 131, "batch": 2}
            yield Job({**columns, "dtype": dtype, "mode": mode}, functools.partial(measure_error, dtype, mode))
    for dtype, batch, tokens in (("float32", 2, 197), ("bfloat16", 8, 197), ("bfloat16", 2, 6085)):
        columns = {"what": "two runs", "model": "block Ti", "tokens": tokens, "batch": batch, "dtype": dtype}
        yield Job({**columns, "mode": "train"}, functools.partial(run_twice, 192, tokens, batch, dtype))


# Tests and the memory check


def run_tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/ops", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):  # kernels are then compiled side by side
        command += ["-n", "6"]
    code, out = run(command, TEST_LIMIT)
    words = {0: "ok", 5: "no test is marked gpu", None: f"ended after {TEST_LIMIT} s"}
    last = (out.strip().splitlines() or ["no output"])[-1]
    return {"status": f"{words.get(code, 'failed')}: {last}"[:200]}


SMALL_BLOCK = """
import torch
from longvision.layers import VimBlock
for dtype in (torch.float32, torch.bfloat16):
    block = VimBlock(32).cuda()
    x = torch.randn(2, 67, 32, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        block(x).square().sum().backward()
    torch.cuda.synchronize()
"""


def run_sanitizer() -> dict[str, Any]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"status": "skipped: no compute-sanitizer here"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", SMALL_BLOCK]
    run([sys.executable, "-c", SMALL_BLOCK], SANITIZER_LIMIT)  # compiles the kernels
    # Without the caching allocator a tensor's end is the end of its memory.
    code, out = run(command, SANITIZER_LIMIT, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    words = {0: "ok", 9: "errors found", None: f"ended after {SANITIZER_LIMIT} s"}
    lines = [line for line in out.splitlines() if line.startswith("=========")] or out.strip().splitlines() or [""]
    return {"status": f"{words.get(code, 'failed')}: {lines[-1].strip('= ')}"[:200]}


def run(command: Sequence[str], limit: float, **environment: str) -> tuple[int | None, str]:
    """-> exit code, None if it was ended, and what it wrote; the tail is printed."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path, **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True, **pipes) as process:
        ended = threading.Event()
        with after(limit, lambda: (ended.set(), end(process))):
            out = process.communicate()[0]
    print("\n".join(out.splitlines()[-12:]), flush=True)
    return (None if ended.is_set() else process.returncode), out


# Ceilings


def measure_copy(numbers: int = 2**31, device: str = "cuda") -> dict[str, Any]:
    source = torch.randn(numbers // 8, device=device).bfloat16().repeat(8)
    target = torch.empty_like(source)
    row = time_calls([lambda: target.copy_(source)], device)
    speed = 2 * source.nbytes / row["median_us"] / 1e6
    return {**row, "status": f"{row['status']}: {speed:.3g} TB/s, read and written"}


def measure_product(side: int = 8192, device: str = "cuda") -> dict[str, Any]:
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    row = time_calls([lambda: torch.mm(left, right, out=out)] * 4, device)
    return {**row, "status": f"{row['status']}: {2 * side**3 / row['median_us'] / 1e6:.3g} TFLOP/s"}


# Blocks


class Subject(NamedTuple):
    """A block as it is called: the residual stream x -> its inputs -> its outputs, whose sum is the new stream."""

    split: Callable[[Tensor], tuple[Tensor, ...]]
    call: Callable[..., tuple[Tensor, ...]]
    peer: str = ""
    note: str = ""


def measure_block(
    width: int,
    tokens: int,
    batch: int,
    mode: str,
    dtype: str = "bfloat16",
    device: str = "cuda",
    kernels: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """Ours, or with `kernels` the peer's: what these return are the authors' `Kernels`, or why there are none."""
    torch.manual_seed(0)
    block = make_block(width, mode, dtype, device)
    subject = ours(block) if kernels is None else peer_of(block, kernels(), getattr(torch, dtype))
    shape = batch, tokens, width
    wrong = difference(subject, block, torch.randn(shape, device=device), dtype)
    calls = list(block_calls(subject, block, shape, mode, dtype))
    calls[0]()
    _, peak = measure_peak(calls[0], device)
    row = {**time_calls(calls, device), "peak_mb": megabytes(peak), "peer": subject.peer}
    if not wrong <= (1e-4 if dtype == "float32" else 5e-2):  # the rounding of both; NaN is wrong, too
        row["status"] = f"wrong: {wrong:.2g} from longvision's block"
    elif subject.note:
        row["status"] += f" ({subject.note})"
    return row


def make_block(width: int, mode: str, dtype: str, device: str) -> VimBlock:
    block = VimBlock(width).to(device)
    return block.train() if mode == "train" else block.to(getattr(torch, dtype)).eval().requires_grad_(False)


def ours(block: VimBlock) -> Subject:
    return Subject(lambda x: (x,), lambda x: (block(x),))


def peer_of(block: VimBlock, kernels: Any, dtype: torch.dtype) -> Subject:
    if isinstance(kernels, str):
        call = functools.partial(peers.launch_sequence, block)
        return Subject(lambda x: (x,), lambda x: (call(x),), peers.STAND_IN, f"no {peers.AUTHORS}: {kernels}")

    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.randn_like(x).to(dtype)
        return hidden, x - hidden

    return Subject(split, functools.partial(peers.authors_block, kernels, block), kernels.label)


@torch.no_grad()
def difference(subject: Subject, block: VimBlock, x: Tensor, dtype: str) -> float:
    """Of what is added to the stream, relative to longvision's."""
    with autocast(x.device.type, dtype, block):
        branch = block(x) - x
        other = functools.reduce(torch.add, subject.call(*subject.split(x))) - x
    return float((other.float() - branch).norm() / branch.norm())


def block_calls(
    subject: Subject, block: VimBlock, shape: tuple[int, ...], mode: str, dtype: str
) -> Iterator[Callable[[], None]]:
    """The same call on inputs of its own each."""
    device = block.norm.weight.device
    for _ in range(sets_of(shape) if device.type == "cuda" else 2):
        inputs = [t.detach().requires_grad_(mode == "train") for t in subject.split(torch.randn(shape, device=device))]
        gradients = [torch.randn_like(t) for t in inputs]
        forward = functools.partial(infer, subject, inputs)
        yield forward if mode == "infer" else functools.partial(train, subject, block, inputs, gradients, dtype)


def sets_of(shape: Sequence[int]) -> int:
    """How many float32 tensors of that shape are more than any L2 cache holds."""
    size = 4 * functools.reduce(int.__mul__, shape)
    return min(16, max(2, 2**28 // size))


@torch.inference_mode()
def infer(subject: Subject, inputs: Sequence[Tensor]) -> None:
    subject.call(*inputs)


def train(
    subject: Subject, block: VimBlock, inputs: Sequence[Tensor], gradients: Sequence[Tensor], dtype: str
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """-> outputs, and the gradients of the inputs and the block's parameters."""
    with autocast(inputs[0].device.type, dtype, block):
        outputs = subject.call(*inputs)
    return outputs, torch.autograd.grad(outputs, [*inputs, *block.parameters()], gradients)


def autocast(device: str, dtype: str, block: VimBlock) -> torch.autocast:
    """For weights in float32; those in bfloat16 need none. Without its cache, which a graph would read too late."""
    wanted = dtype == "bfloat16" and block.norm.weight.dtype == torch.float32
    return torch.autocast(device, torch.bfloat16, enabled=wanted, cache_enabled=False)


def find_kernels(built: bool) -> Any:
    """The authors' kernels, or why there are none; waits for their build if there is one."""
    reason = wait_for_build() if built else ""
    try:
        return peers.load_kernels()
    except Exception as error:  # a package built for another torch fails with whatever it likes
        return reason or ("not installed" if isinstance(error, ModuleNotFoundError) else sentence(error))


# Models


def measure_model(case: Case, backends: Sequence[SDPBackend] = ()) -> dict[str, Any]:
    """A model in `longvision benchmark`'s form; `backends` of attention, by default torch's choice."""
    torch.manual_seed(0)
    step = Step(case)
    with attention(backends):
        step()
        step.clear()
        _, peak = measure_peak(step, case.device)
        step.clear()
        return {**time_calls([step], case.device), "peak_mb": megabytes(peak)}


def attention(backends: Sequence[SDPBackend]) -> AbstractContextManager[Any]:
    return sdpa_kernel(list(backends)) if backends else nullcontext()


def measure_memory(case: Case) -> dict[str, Any]:
    """Of a training step, per image."""
    step = Step(case)
    step()
    step.clear()
    _, peak = measure_peak(step, case.device)
    return {"peak_mb": megabytes(None if peak is None else peak / case.batch), "status": "ok"}


def megabytes(count: float | None) -> float | None:
    return None if count is None else round(count / 1e6, 1)


# Precision


def measure_error(dtype: str, mode: str, device: str = "cuda") -> dict[str, Any]:
    """In the column `ratio`: the error's norm over the truth's, in float64 by the equations; of tensors the worst."""
    errors = relative_errors(dtype, device)
    asked = [errors[name] for name in errors if (name == "output") == (mode == "output")]
    worst = max(asked, key=lambda error: float("inf") if error != error else error)  # NaN is the worst
    return {"ratio": float(f"{worst:.2e}"), "baseline": "float64, reference backend on the CPU", "status": "ok"}


@functools.cache
def relative_errors(dtype: str, device: str) -> dict[str, float]:
    torch.manual_seed(0)
    block = VimBlock(64)
    x, gradient = torch.randn(2, 131, 64), torch.randn(2, 131, 64)
    found = results(block.to(device), x.to(device), gradient.to(device), dtype)
    with environment(BACKEND_VARIABLE, "reference"):
        truth = results(block.cpu().double(), x.double(), gradient.double(), "float64")
    return {name: float((found[name].cpu().double() - value).norm() / value.norm()) for name, value in truth.items()}


def run_twice(width: int, tokens: int, batch: int, dtype: str, device: str = "cuda") -> dict[str, Any]:
    """In the column `ratio`: how many of output and gradients differ in any bit."""
    torch.manual_seed(0)
    block = VimBlock(width).to(device)
    x, gradient = torch.randn(2, batch, tokens, width, device=device)
    first, second = (results(block, x, gradient, dtype) for _ in range(2))
    differ = [name for name in first if not torch.equal(first[name], second[name])]
    return {"ratio": len(differ), "baseline": "first run", "status": f"ok: differ {differ}"[:200] if differ else "ok"}


def results(block: VimBlock, x: Tensor, gradient: Tensor, dtype: str) -> dict[str, Tensor]:
    """What is added to the stream, and every gradient."""
    x = x.detach().requires_grad_()
    (output,), grads = train(ours(block), block, [x], [gradient], dtype)
    names = ["x", *(name for name, _ in block.named_parameters())]
    return {"output": (output - x).detach(), **dict(zip(names, grads, strict=True))}


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


# Time


def time_calls(calls: Sequence[Callable[[], Any]], device: str) -> dict[str, Any]:
    """Microseconds a call, from replays of a graph of all of them."""
    run_all, note = captured(calls) if device == "cuda" else (functools.partial(each, calls), "")
    sample = functools.partial(stopwatch(device), run_all)
    timing = time_round(sample, sample(), SHARE)
    shares = {"median_us": 0.5, "q1_us": 0.25, "q3_us": 0.75}
    times = {name: significant(1e6 * quantile(timing.seconds, at) / len(calls)) for name, at in shares.items()}
    return {**times, "status": "ok" + note}


def each(calls: Iterable[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def captured(calls: Sequence[Callable[[], Any]]) -> tuple[Callable[[], None], str]:
    """-> what runs them all, and a note where that is no graph."""
    side = torch.cuda.Stream()  # compiles and tunes, as torch.cuda.graph wants it, away from the default stream
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        each([calls[0]] * 3)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            each(calls)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        torch.cuda.synchronize()
        return functools.partial(each, calls), f", without a graph: {sentence(error)}"
    return graph.replay, ""


def stopwatch(device: str) -> Callable[[Callable[[], None]], float]:
    return device_seconds if device == "cuda" else host_seconds


def device_seconds(call: Callable[[], None]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def host_seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# Rows


class Table:
    """Rows on disk, complete after each one; all as text, as they are read back."""

    def __init__(self, path: Path, origin: dict[str, str]) -> None:
        self.path, self.origin = path, origin
        rows = read(path)
        self.others = [row for row in rows if row["device"] != origin["device"]]
        self.rows = [row for row in rows if row["device"] == origin["device"]]

    def start(self) -> None:
        """Anew, with what was measured on other devices left as it is."""
        self.rows = []
        self._write()

    def add(self, row: dict[str, Any]) -> None:
        words = {**self.origin, **row}
        self.rows.append({name: "" if words.get(name) is None else str(words[name]) for name in COLUMNS})
        compare(self.rows)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(self.others + self.rows)
        part.replace(self.path)


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def compare(rows: list[Row]) -> None:
    """Each row of ours as a multiple of its peer's, of several the best."""
    for row in rows:
        column = "peak_mb" if row["what"] == "memory per image" else "median_us"
        if row["what"] not in ("block", "model", "memory per image") or row["peer"] or not is_ok(row):
            continue
        same = ("what", "size", "batch", "dtype", "mode", *(["model"] if row["what"] == "block" else []))
        rivals = [rival for rival in rows if rival["peer"] and is_ok(rival) and rival[column]]
        rivals = [rival for rival in rivals if all(rival[name] == row[name] for name in same)]
        if rivals and row[column]:
            best = min(rivals, key=lambda rival: float(rival[column]))
            row["ratio"] = str(significant(float(row[column]) / float(best[column]), 3))
            row["baseline"] = best["peer"] if row["what"] == "block" else f"{best['model']}, {best['peer']}"


def is_ok(row: Row) -> bool:
    return row["status"].startswith("ok")


def origin(commit: str) -> dict[str, str]:
    """The columns that close every row."""
    known = provenance()
    own = {"device": device_name("cuda"), "driver": driver(), "triton": triton_version(), "cuda": torch.version.cuda}
    return {name: str({**known, **own}.get(name) or "") for name in ORIGIN} | ({"commit": commit} if commit else {})


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip().splitlines()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return ""


def triton_version() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return triton.__version__


# One process measures, the other starts it again where a measurement has broken it


def work(jobs: list[tuple[int, Job]], table: Table, until: float) -> int:
    """Measures one after the other; -> exit code."""
    left = list(jobs)
    while left:
        # What waits for a build lets what does not go first.
        number, job = next((pair for pair in left if not pair[1].waits or not is_building()), left[0])
        left.remove((number, job))
        print(f"{BEGINS}{number}", flush=True)
        row = one_row(job, until)
        table.add(row)
        print(line(table.rows[-1]), flush=True)
        if not usable():
            return BROKEN
    return 0


def one_row(job: Job, until: float) -> dict[str, Any]:
    """Whatever goes wrong is in its status."""
    if time.time() >= until:
        return {**job.columns, "status": SKIPPED}
    try:
        return {**job.columns, **job.measure()}
    except Exception as error:
        status = OUT_OF_MEMORY if is_out_of_memory(error) else f"failed: {sentence(error)}"
    return {**job.columns, "status": status}


def usable() -> bool:
    """Whether the device still answers; what a measurement held is free afterwards."""
    if not torch.cuda.is_available():
        return True
    gc.collect()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def worker_command(options: argparse.Namespace) -> list[str]:
    """Without the numbers of its jobs, which come last."""
    words = ["--out", str(options.out), "--until", str(options.until), "--commit", options.commit]
    peer_words = [] if options.peers is None else ["--peers", str(options.peers)]
    return [sys.executable, str(Path(__file__).resolve()), *words, *peer_words, "--jobs"]


def supervise(jobs: list[Job], command: list[str], table: Table, until: float) -> None:
    """Has them all done, by as many workers as it takes."""
    left = list(range(len(jobs)))
    while left:
        begun, reason = watch([*command, ",".join(map(str, left))], until)
        written = read(table.path)
        table.rows = [row for row in written if row["device"] == table.origin["device"]]
        if not begun:
            table.add({"what": "worker", "status": f"failed before its first measurement: {reason}"})
            return
        if reason not in ("", f"exit code {BROKEN}"):  # which has written its row
            table.add({**jobs[begun[-1]].columns, "status": reason})
            print(line(table.rows[-1]), flush=True)
        left = [number for number in left if number not in begun] if reason else []


def watch(command: list[str], until: float) -> tuple[list[int], str]:
    """-> the jobs that the worker began, and why it ended before it was through ("" if it was)."""
    begun: list[int] = []
    too_long = threading.Event()
    pipes = {"stdout": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        text = BEGINS
        while text:
            limit = max(1.0, min(JOB_LIMIT, until + GRACE - time.time()))
            with after(limit, lambda: (too_long.set(), end(process))):
                for text in lines:
                    if text.startswith(BEGINS):
                        begun.append(int(text.removeprefix(BEGINS)))
                        break  # the clock starts again
                    print(text, end="", flush=True)
                else:
                    text = ""
        code = process.wait()
    if too_long.is_set():
        return begun, "killed: took too long"
    return begun, "" if code == 0 else f"killed (signal {-code})" if code < 0 else f"exit code {code}"


@contextmanager
def after(seconds: float, act: Callable[[], Any]) -> Iterator[None]:
    """`act`, unless what is inside ends sooner."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end(process: subprocess.Popen) -> None:
    """With all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


# The authors' kernels are built while other things are measured


@contextmanager
def building(folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    outcome = peers.BUILT / "outcome"
    outcome.unlink(missing_ok=True)
    peers.BUILT.mkdir(parents=True, exist_ok=True)
    (peers.BUILT / "started").write_text(str(time.time()))
    script = Path(__file__).resolve().parent / "gpu_peers.py"
    process = subprocess.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        (peers.BUILT / "started").unlink(missing_ok=True)


def is_building() -> bool:
    """Whether a build was started, has not ended, and still has time."""
    started = peers.BUILT / "started"
    if not started.exists() or (peers.BUILT / "outcome").exists():
        return False
    return time.time() < float(started.read_text()) + peers.BUILD_LIMIT + 15


def wait_for_build() -> str:
    """-> why it came to nothing, or ""."""
    while is_building():
        time.sleep(0.5)
    outcome = peers.BUILT / "outcome"
    return outcome.read_text() if outcome.exists() else "not built in time"


# What is printed at the end


class Target(NamedTuple):
    text: str
    where: dict[str, Any]
    column: str
    limit: float
    against: str = ""  # how the baseline is named


def targets() -> list[Target]:
    return [*block_targets(), *model_targets(), *precision_targets()]


def block_targets() -> Iterator[Target]:
    for name, limit in (("block Ti", 215.0), ("block S", 460.0)):
        where = {"what": "block", "model": name, "size": 224, "batch": 128, "mode": "infer"}
        yield Target(f"{name} forward, 224², batch 128, µs on an H200", where, "median_us", limit)
        if name == "block Ti":
            yield Target(f"{name} forward, 224², batch 128, of the authors'", where, "ratio", 0.5, peers.AUTHORS)
    for name in WIDTHS:
        for size, batch in ((224, 128), (1248, 8)):
            where = {"what": "block", "model": name, "size": size, "batch": batch, "mode": "train"}
            text = f"{name} forward+backward, {size}², batch {batch}, of the authors'"
            yield Target(text, where, "ratio", 0.55, peers.AUTHORS)


def model_targets() -> Iterator[Target]:
    for size, limit in ((1536, 1.0), (2048, 0.5), (4096, 0.25)):
        for batch in (1, 8):
            where = {"what": "model", "model": VIM, "size": size, "batch": batch, "mode": "infer"}
            yield Target(f"Vim-Ti forward, {size}², batch {batch}, of DeiT-Ti", where, "ratio", limit, DEIT)
    where = {"what": "model", "model": VIM, "size": 2048, "batch": 1, "mode": "train"}
    yield Target("Vim-Ti training step, 2048², batch 1, of DeiT-Ti", where, "ratio", 0.4, DEIT)
    for variant, limit in (("", 1.0), ("+checkpoint", 0.3)):
        where = {"what": "memory per image", "model": VIM + variant, "size": 1248}
        yield Target(f"Vim-Ti{variant} training memory, 1248², of DeiT-Ti", where, "ratio", limit, DEIT)


def precision_targets() -> Iterator[Target]:
    for dtype, limit in (("float32", 1e-5), ("bfloat16", 1e-2)):
        for mode in ("output", "gradients"):
            where = {"what": "error against float64", "dtype": dtype, "mode": mode}
            yield Target(f"{dtype} {mode}, error against float64", where, "ratio", limit)
    for dtype, tokens in (("float32", 197), ("bfloat16", 197), ("bfloat16", 6085)):
        where = {"what": "two runs", "dtype": dtype, "tokens": tokens}
        yield Target(f"two runs, {dtype}, {tokens} tokens: tensors that differ", where, "ratio", 0)


def verdict(target: Target, rows: Sequence[Row]) -> tuple[str, str]:
    """-> met, not met or not measured, and the figure or what there is instead."""
    found = [row for row in rows if not row["peer"] and all(row[k] == str(v) for k, v in target.where.items())]
    if not found:
        return "not measured", "no row"
    row = found[-1]
    if not is_ok(row):
        return "not measured", row["status"]
    if not row[target.column]:
        return "not measured", "no peer to compare with" if target.column == "ratio" else "no figure"
    figure = row[target.column]
    if not row["baseline"].startswith(target.against):
        return "not measured", f"{figure} of: {row['baseline']}"
    met = float(figure) <= target.limit
    on = f" on {row['device']}" if "µs" in target.text else ""
    return "met" if met else "not met", f"{figure}{on}"


def summary(rows: Sequence[Row]) -> str:
    header = ("what", "model", "size", "batch", "dtype", "mode", "peer", "µs", "MB", "ratio", "status")
    shown = ("what", "model", "size", "batch", "dtype", "mode", "peer", "median_us", "peak_mb", "ratio", "status")
    cells = [[row[name][:50] for name in shown] for row in rows]
    verdicts = [(target, *verdict(target, rows)) for target in targets()]
    lines = [(target.text, word, f"<= {target.limit:g}", figure[:70]) for target, word, figure in verdicts]
    return "\n".join(["", *align(header, cells, left=2), "", *align(("target", "", "limit", "figure"), lines, left=2)])


def line(row: Row) -> str:
    names = ("what", "model", "size", "batch", "dtype", "mode", "peer", "status")
    return "  ".join(filter(None, [*(row[name] for name in names), row["median_us"] and f"{row['median_us']} us"]))


if __name__ == "__main__":
    sys.exit(main())
