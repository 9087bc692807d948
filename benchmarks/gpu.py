"""What longvision's blocks and models cost on an NVIDIA GPU, beside DeiT and the authors' kernels: rows of gpu.csv.

Run: python benchmarks/gpu.py [--out FOLDER] [--budget SECONDS] [--peers FOLDER] [--commit NAME] [--dry-run]

The most telling comes first: the tests on the GPU, blocks and models in bfloat16, the authors' kernels, float32. What
the budget leaves out is a row that says so. Each measurement has a process of its own: a crash costs one row. The
authors' kernels are the packages causal_conv1d and mamba_ssm, or Vim's fork of it, installed or built from --peers.

Times are of CUDA graphs, median and quartiles; memory is the peak of a call. A block is called on several inputs in
turn, together larger than the L2 cache. In inference its weights are in `dtype` and the residual in float32; models,
and all that is trained, have float32 weights under autocast.
"""

import argparse
import csv
import functools
import importlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.benchmark.build import Step
from longvision.benchmark.case import Case, milliseconds, sentence, significant
from longvision.benchmark.memory import measure_peak
from longvision.benchmark.provenance import provenance
from longvision.benchmark.timing import stopwatch, time_round
from longvision.errors import is_out_of_memory
from longvision.layers import VimBlock

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 240.0  # seconds of one measurement, and of building the authors' kernels
SETTING = ("what", "size", "batch", "dtype", "mode", "model")
MEASURED = ("ms_median", "ms_q1", "ms_q3", "peak_mb", "times_ours", "status")
ORIGIN = ("device", "driver", "cuda", "triton", "longvision", "torch", "timm", "python", "commit", "date")
Row = dict[str, Any]


class Job(NamedTuple):
    """A row to be: its setting, and the measurement that gives the rest."""

    setting: Row
    measure: Callable[[], Row]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out = os.environ.get("OUT", ROOT / "benchmarks/results")
    parser.add_argument("--out", type=Path, default=out, help="folder whose gpu.csv gets the rows")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds, after which nothing more is begun")
    parser.add_argument("--peers", type=Path, help="folder with a folder of sources for each package")
    parser.add_argument("--commit", default="", help="where git does not know it")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, to see that all of it runs")
    options = parser.parse_args(arguments)
    if not (card := {"device": "dry run"} if options.dry_run else describe_card()):
        print("benchmarks/gpu.py measures an NVIDIA GPU, and nvidia-smi finds none here.", file=sys.stderr)
        return 1
    origin = provenance() | card | ({"commit": options.commit} if options.commit else {})
    with tempfile.TemporaryDirectory() as folder:
        sys.path.append(folder)
        build = start_build(options.peers, Path(folder)) if options.peers else None
        write = functools.partial(append, options.out / "gpu.csv", origin)
        run_jobs(list_jobs(options.dry_run, build), write, options.budget)
    return 0


def describe_card() -> Row:
    """Empty where there is none. Asks nvidia-smi: a process that has started CUDA cannot be forked."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        name, driver = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0].split(", ")
    except (OSError, IndexError, ValueError):
        return {}
    return {"device": name, "driver": driver, "cuda": torch.version.cuda, "triton": version("triton")}


def append(path: Path, origin: Row, row: Row) -> None:
    """To the file, and printed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, [*SETTING, *MEASURED, *ORIGIN], restval="", lineterminator="\n")
        if file.tell() == 0:
            table.writeheader()
        table.writerow(row | origin)
    print("  ".join(f"{name}={row[name]}" for name in (*SETTING, *MEASURED) if name in row), flush=True)


def list_jobs(dry: bool, build: subprocess.Popen | None) -> Iterator[Job]:
    """The most telling first. Waits for the authors' kernels where they come."""
    yield Job({"what": "tests", "model": "longvision"}, functools.partial(run_tests, dry))
    yield from block_jobs(dry, "bfloat16")
    yield from model_jobs(dry, "bfloat16")
    if build is not None:
        with suppress(subprocess.TimeoutExpired):  # what is not there is then missing by name
            build.wait(LIMIT)
    yield from block_jobs(dry, "bfloat16", authors=True)
    yield from block_jobs(dry, "float32")
    yield from model_jobs(dry, "float32")


def block_jobs(dry: bool, dtype: str, authors: bool = False) -> Iterator[Job]:
    for size, batch in [(64, 2)] if dry else [(224, 128), (1248, 8), (1248, 1)]:
        for mode in ("infer", "train"):
            for name, width in {"nano": 16}.items() if dry else {"Ti": 192, "S": 384}.items():
                setting = {"what": f"block {name}", "size": size, "batch": batch, "dtype": dtype, "mode": mode}
                shape = batch, (size // 16) ** 2 + 1, width
                measure = functools.partial(measure_block, shape, dtype, mode, "cpu" if dry else "cuda", authors)
                yield Job({**setting, "model": "authors' kernels" if authors else "longvision"}, measure)


def model_jobs(dry: bool, dtype: str) -> Iterator[Job]:
    vim, deit = ("vim_nano_patch4_32", "test_vit") if dry else ("vim_tiny_patch16_224", "deit_tiny_patch16_224")
    for size, batch in [(32, 2)] if dry else [(224, 128), (1248, 8), (2048, 1), (4096, 1)]:
        for mode in ("infer", "train"):
            setting = {"what": "model", "size": size, "batch": batch, "dtype": dtype, "mode": mode}
            case = Case(vim, "", mode, size, size, batch, dtype, "cpu" if dry else "cuda")
            cases = {vim: case, deit: replace(case, model=deit)}
            if mode == "train":
                cases[f"{vim}, checkpointed"] = replace(case, checkpoint=True)
            for name, one in cases.items():
                yield Job({**setting, "model": name}, lambda one=one: measure_calls([Step(one)], one.device))


def run_jobs(
    jobs: Iterable[Job], write: Callable[[Row], object], budget: float, clock: Callable[[], float] = time.monotonic
) -> None:
    """One after the other. What goes wrong, and what is left out, says so in its row's status."""
    start, ours = clock(), {}
    for job in jobs:
        late = clock() - start >= budget
        row = job.setting | ({"status": f"left out: {budget:g} s are over"} if late else run_apart(job.measure))
        same = tuple(row.get(name) for name in SETTING if name != "model")
        if row["model"].startswith(("longvision", "vim")):
            ours.setdefault(same, row.get("ms_median"))
        if (median := row.get("ms_median")) and (own := ours.get(same)):
            row["times_ours"] = significant(median / own, 3)
        write(row)


def run_apart(measure: Callable[[], Row]) -> Row:
    """In a process of its own: what it breaks ends with it."""
    fork = multiprocessing.get_context("fork")  # torch takes seconds to be imported
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: sender.send(outcome(measure)))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(LIMIT) else {"status": f"ended after {LIMIT:g} s"}
    except EOFError:
        process.join()
        return {"status": f"crashed: exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def outcome(measure: Callable[[], Row]) -> Row:
    try:
        return measure()
    except Exception as error:
        return {"status": "out of memory" if is_out_of_memory(error) else f"failed: {sentence(error)}"}


def run_tests(dry: bool) -> Row:
    """The last line of pytest says whether the rest can be believed."""
    words = ["--version"] if dry else ["-m", "gpu", "tests", "-p", "no:cacheprovider"]
    words += ["-n", "6"] if importlib.util.find_spec("xdist") and not dry else []  # the kernels are compiled first
    run = functools.partial(subprocess.run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    done = run([sys.executable, "-m", "pytest", *words], timeout=LIMIT - 10)
    print(done.stdout[-4000:], flush=True)
    return {"status": f"{'failed' if done.returncode else 'ok'}: {done.stdout.splitlines()[-1]}"}


def measure_block(shape: tuple[int, int, int], dtype: str, mode: str, device: str, authors: bool) -> Row:
    """(B, M, D) through the block, or the authors' kernels with its weights, which have to compute the same."""
    torch.manual_seed(0)
    block, train = VimBlock(shape[-1]).to(device), mode == "train"
    if not train:
        block.to(getattr(torch, dtype)).requires_grad_(False)
    call = functools.partial(authors_block, *load_authors(), block) if authors else lambda x: (block(x),)
    autocast = torch.autocast(device, torch.bfloat16, train and dtype == "bfloat16", cache_enabled=False)

    def inputs() -> list[Tensor]:
        x = torch.randn(shape, device=device)
        branch = torch.randn(shape, device=device).to(getattr(torch, dtype))  # theirs is added inside, in the norm
        return [t.requires_grad_(train) for t in ([branch, x - branch] if authors else [x])]

    def run(given: list[Tensor]) -> None:
        with torch.set_grad_enabled(train), autocast:
            outputs = call(*given)
        if train:
            torch.autograd.grad(outputs, [*given, *block.parameters()], [torch.ones_like(y) for y in outputs])

    with torch.no_grad(), autocast:
        given = inputs()
        before, after = sum(given), sum(call(*given))
        wrong = float((after - block(before)).norm() / (block(before) - before).norm())
    if not wrong <= (1e-4 if dtype == "float32" else 5e-2):  # the rounding of both; NaN is wrong, too
        return {"status": f"wrong: {wrong:.2g} from longvision's block"}
    times = min(16, max(2, 2**28 // (4 * before.numel())))
    return measure_calls([functools.partial(run, inputs()) for _ in range(times)], device)


def measure_calls(calls: list[Callable[[], Any]], device: str) -> Row:
    """Milliseconds of one of them, and its peak of memory."""
    calls[0]()
    _, peak = measure_peak(calls[0], device)
    timed = stopwatch(captured(calls) if device == "cuda" else lambda: [call() for call in calls], device)
    seconds = time_round(timed, timed(), 1.0 if device == "cuda" else 0.0).seconds
    row = {**milliseconds([total / len(calls) for total in seconds]), "status": "ok"}
    return row if peak is None else {**row, "peak_mb": round(peak / 1e6, 1)}


def captured(calls: list[Callable[[], Any]]) -> Callable[[], None]:
    """A CUDA graph of them all: the host's time to start kernels is not measured."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # compiles and tunes away from the default stream, as torch.cuda.graph wants it
        for _ in range(3):
            calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


# The authors' kernels


def start_build(folder: Path, target: Path) -> subprocess.Popen:
    """Both packages, for the architectures that torch finds here: of those in their lists a new nvcc refuses some."""
    sources = [setup.parent for setup in sorted(folder.glob("*/setup.py"))]
    copies = [Path(shutil.copytree(source, target / source.name)) for source in sources]
    for setup in (copy / "setup.py" for copy in copies):
        setup.write_text(re.sub(r"""cc_flag\.append\((["'])(-gencode|arch=[^"']*)\1\)""", "pass", setup.read_text()))
    words = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target), *map(str, copies)]
    force = {"MAMBA_FORCE_BUILD": "TRUE", "CAUSAL_CONV1D_FORCE_BUILD": "TRUE"}  # instead of a download
    return subprocess.Popen(["nice", sys.executable, "-m", "pip", "install", *words], env=os.environ | force)


def load_authors() -> tuple[Callable[..., Any], ...]:
    """-> convolution, scan, norm; channels first: (B, E, M). Raises ImportError for what is not here."""
    conv = importlib.import_module("causal_conv1d").causal_conv1d_fn
    if spec := importlib.util.find_spec("mamba_ssm"):  # its own __init__ imports language models
        sys.modules["mamba_ssm"] = ModuleType("mamba_ssm")
        sys.modules["mamba_ssm"].__path__ = list(spec.submodule_search_locations or [])
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    file = "layer_norm" if importlib.util.find_spec("mamba_ssm.ops.triton.layer_norm") else "layernorm"  # in version 1
    return conv, scan, importlib.import_module(f"mamba_ssm.ops.triton.{file}").rms_norm_fn


def authors_block(
    convolve: Any, scan: Any, normalise: Any, block: VimBlock, branch_BMD: Tensor, x_BMD: Tensor
) -> tuple[Tensor, Tensor]:
    """What the mixer before gave, and the residual without it -> the same of this block, as in Vim's code."""
    mixer, norm, outputs = block.mixer, block.norm, []
    options = {"eps": norm.eps, "prenorm": True, "residual_in_fp32": True}
    normed_BMD, x_BMD = normalise(branch_BMD, norm.weight, None, residual=x_BMD, **options)
    xz_BFM = project(mixer.in_proj.weight, normed_BMD)
    for end in ("", "_b"):
        conv, x_proj, dt_proj, D_E = (getattr(mixer, name + end) for name in ("conv1d", "x_proj", "dt_proj", "D"))
        A_EN = -getattr(mixer, f"A{end}_log").float().exp()
        x_BEM, z_BEM = (xz_BFM.flip(-1) if end else xz_BFM).chunk(2, dim=1)
        x_BEM = convolve(x_BEM, conv.weight.squeeze(1), conv.bias, activation="silu")
        sizes = dt_proj.in_features, A_EN.shape[1], A_EN.shape[1]
        low_BMR, B_BMN, C_BMN = x_proj(x_BEM.transpose(1, 2)).split(sizes, dim=-1)
        B_BNM, C_BNM = (t_BMN.transpose(1, 2).contiguous() for t_BMN in (B_BMN, C_BMN))
        inputs = x_BEM, project(dt_proj.weight, low_BMR), A_EN, B_BNM, C_BNM, D_E.float(), z_BEM
        y_BEM = scan(*inputs, delta_bias=dt_proj.bias.float(), delta_softplus=True)
        outputs.append(y_BEM.flip(-1) if end else y_BEM)
    return F.linear(sum(outputs).transpose(1, 2) / 2, mixer.out_proj.weight), x_BMD


def project(weight_OI: Tensor, x_BMI: Tensor) -> Tensor:
    """(B, M, I) -> (B, O, M), the tokens of a channel side by side in memory, as the authors' kernels read them."""
    return (weight_OI @ x_BMI.flatten(0, 1).t()).unflatten(1, x_BMI.shape[:2]).transpose(0, 1)


if __name__ == "__main__":
    sys.exit(main())
