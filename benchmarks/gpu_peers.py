"""What benchmarks/gpu.py holds the block of Vim against: the authors' kernels, or where there are none a stand-in.

The authors' kernels are the packages mamba-ssm and causal-conv1d: their convolution, scan and normalisation, called in
the order of Vim's code and differentiated by autograd. (Vim's own fork, not in these packages, computes convolution and
step again in the backward; this does not, which takes less time.) The stand-in is the same launches as ops of torch,
with longvision's convolution and scan for a single direction in place of theirs; no row of it is named theirs.

Run: python benchmarks/gpu_peers.py DIR, to build the packages whose sources or wheels are in DIR; gpu.py does, too.
"""

import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.layers import VimBlock
from longvision.ops import ScanDirection, causal_conv1d, selective_scan
from longvision.ops.common import autocast_dtype

AUTHORS = "authors' kernels"
STAND_IN = "launch sequence in torch ops, scan: longvision, convolution: longvision"
BUILT = Path(tempfile.gettempdir()) / f"longvision-peers-torch-{torch.__version__}"
BUILD_LIMIT = 240.0  # seconds
SOURCES = {"causal_conv1d": "causal*conv1d*", "mamba_ssm": "mamba*ssm*"}  # package: how its files are named


def main(folder: Path) -> None:
    """Builds into `BUILT`, and leaves there how it went: "" for well."""
    BUILT.mkdir(parents=True, exist_ok=True)
    outcome = "" if kernels_are_there() else build(folder, BUILT, BUILD_LIMIT)
    temporary = BUILT / "outcome.part"
    temporary.write_text(outcome)
    temporary.replace(BUILT / "outcome")
    print(outcome or "built")


class Kernels(NamedTuple):
    """The authors' functions, channels first: (B, E, M)."""

    conv: Callable[..., Tensor]
    scan: Callable[..., Tensor]
    norm: Callable[..., tuple[Tensor, Tensor]]
    label: str


def authors_block(kernels: Kernels, block: VimBlock, hidden_BMD: Tensor, residual_BMD: Tensor) -> tuple[Tensor, Tensor]:
    """What the mixer before gave, and the residual without it -> the same of this block.

    Vim adds the two in the kernel that normalises, so that hidden + residual is what `VimBlock` takes and returns.
    """
    mixer, batch = block.mixer, len(hidden_BMD)
    normed_BMD, residual_BMD = kernels.norm(hidden_BMD, block.norm.weight, residual_BMD, block.norm.eps)
    xz_BFM = _project(mixer.in_proj.weight, normed_BMD.flatten(0, 1), batch)
    walks = mixer.scan_directions()
    y_BEM = sum(_authors_walk(kernels, xz_BFM, walk) for walk in walks) / len(walks)
    return F.linear(y_BEM.transpose(1, 2), mixer.out_proj.weight), residual_BMD


def _authors_walk(kernels: Kernels, xz_BFM: Tensor, walk: ScanDirection) -> Tensor:
    batch, rank, states = len(xz_BFM), walk.dt_proj_ER.shape[1], walk.A_log_EN.shape[1]
    turned_BFM = xz_BFM.flip(-1) if walk.reverse else xz_BFM
    x_BEM, z_BEM = turned_BFM.chunk(2, dim=1)
    x_BEM = kernels.conv(x_BEM, walk.filter_EK, walk.filter_bias_E, activation="silu")
    of_tokens_TP = F.linear(x_BEM.transpose(1, 2).flatten(0, 1), walk.x_proj_PE)
    low_TR, B_TN, C_TN = of_tokens_TP.split([rank, states, states], dim=-1)
    y_BEM = kernels.scan(
        x_BEM,
        _project(walk.dt_proj_ER, low_TR, batch),
        -torch.exp(walk.A_log_EN.float()),
        *(t_TN.unflatten(0, (batch, -1)).transpose(1, 2).contiguous() for t_TN in (B_TN, C_TN)),
        walk.D_E.float(),
        z=z_BEM,
        delta_bias=walk.dt_bias_E.float(),
        delta_softplus=True,
    )
    return y_BEM.flip(-1) if walk.reverse else y_BEM


def _project(weight_OI: Tensor, x_TI: Tensor, batch: int) -> Tensor:
    """(T, I) -> (B, O, M), the tokens of a channel side by side in memory, as the authors' kernels read them."""
    return (weight_OI @ x_TI.t()).unflatten(1, (batch, -1)).transpose(0, 1)


def launch_sequence(block: VimBlock, x_BMD: Tensor) -> Tensor:
    """`VimBlock`, step by step: each line reads and writes the tokens once or more."""
    mixer, weight_D = block.mixer, block.norm.weight
    normed_BMD = F.rms_norm(x_BMD, x_BMD.shape[-1:], weight_D.to(x_BMD.dtype), block.norm.eps)
    xz_BMF = mixer.in_proj(normed_BMD.to(autocast_dtype(weight_D)))
    walks = mixer.scan_directions()
    y_BME = sum(_launch_walk(xz_BMF, walk) for walk in walks) / len(walks)
    return x_BMD + mixer.out_proj(y_BME)


def _launch_walk(xz_BMF: Tensor, walk: ScanDirection) -> Tensor:
    rank, states = walk.dt_proj_ER.shape[1], walk.A_log_EN.shape[1]
    turned_BMF = xz_BMF.flip(1) if walk.reverse else xz_BMF
    x_BME, z_BME = turned_BMF.chunk(2, dim=-1)
    x_BME = causal_conv1d(x_BME, walk.filter_EK, walk.filter_bias_E, silu=True)
    low_BMR, B_BMN, C_BMN = F.linear(x_BME, walk.x_proj_PE).split([rank, states, states], dim=-1)
    delta_BME = F.linear(low_BMR, walk.dt_proj_ER)
    A_EN = -torch.exp(walk.A_log_EN.float())
    y_BME = selective_scan(x_BME, delta_BME, A_EN, B_BMN, C_BMN, walk.D_E, z_BME, walk.dt_bias_E, delta_softplus=True)
    return y_BME.flip(1) if walk.reverse else y_BME


def kernels_are_there() -> bool:
    _look_into_built()
    return all(importlib.util.find_spec(name) for name in (*SOURCES, "selective_scan_cuda"))


def load_kernels() -> Kernels:
    """Raises ImportError where they are not installed."""
    _look_into_built()
    _skip_init("mamba_ssm")
    conv = importlib.import_module("causal_conv1d").causal_conv1d_fn
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    label = f"{AUTHORS} ({', '.join(f'{name} {_version(name)}' for name in SOURCES)})"
    return Kernels(conv, scan, _fused_norm() or plain_norm, label)


def _look_into_built() -> None:
    if str(BUILT) not in sys.path:
        sys.path.append(str(BUILT))
    importlib.invalidate_caches()


def _skip_init(package: str) -> None:
    """Its own __init__ imports language models, and what they need; the modules inside do not."""
    spec = importlib.util.find_spec(package) if package not in sys.modules else None
    if spec is not None and spec.submodule_search_locations is not None:
        module = ModuleType(package)
        module.__path__ = list(spec.submodule_search_locations)
        sys.modules[package] = module


def _fused_norm() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The authors' sum and normalisation in one kernel, by the names that it had in versions 2 and 1."""
    for name in ("layer_norm", "layernorm"):
        with contextlib.suppress(ImportError, AttributeError):
            function = importlib.import_module(f"mamba_ssm.ops.triton.{name}").rms_norm_fn
            return lambda hidden, weight, residual, eps: function(
                hidden, weight, None, residual=residual, eps=eps, prenorm=True, residual_in_fp32=True
            )
    return None


def plain_norm(hidden_BMD: Tensor, weight_D: Tensor, residual_BMD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """-> what goes into the mixer, and the sum."""
    sum_BMD = residual_BMD + hidden_BMD
    normed_BMD = F.rms_norm(sum_BMD, sum_BMD.shape[-1:], weight_D.to(sum_BMD.dtype), eps)
    return normed_BMD.to(hidden_BMD.dtype), sum_BMD


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def build(folder: Path, target: Path, limit: float) -> str:
    """Installs both packages from `folder` into `target`, side by side; -> "", or why it came to nothing."""
    until = time.monotonic() + limit
    found = {package: find_source(folder, pattern) for package, pattern in SOURCES.items()}
    missing = [package for package, source in found.items() if source is None]
    if missing:
        return f"no sources of {' and '.join(missing)} in the folder given"
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as at_the_end:
        builds = {}
        for package, source in found.items():
            log = Path(scratch, f"{package}.log")
            command = [*_nicely(), *_pip(target), str(_prepare(source, Path(scratch, package)))]
            with log.open("w") as out:
                process = subprocess.Popen(
                    command, stdout=out, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True
                )
            at_the_end.callback(_end, process)
            builds[package] = process, log
        return "; ".join(filter(None, (_outcome(name, *pair, until) for name, pair in builds.items())))


def find_source(folder: Path, pattern: str) -> Path | None:
    """A wheel, an archive, or a folder that setup.py stands in."""
    kinds = [
        sorted(folder.glob(f"{pattern}.whl")),
        sorted(folder.glob(f"{pattern}.tar.gz")),
        [path.parent for path in sorted(folder.glob(f"{pattern}/setup.py"))],
    ]
    return next((paths[-1] for paths in kinds if paths), None)


def _prepare(source: Path, scratch: Path) -> Path:
    """-> what to hand to pip: the wheel, or a copy of the sources that is built for this device alone."""
    if source.suffix == ".whl":
        return source
    if source.is_dir():
        copy = Path(shutil.copytree(source, scratch))
    else:
        with tarfile.open(source) as archive:
            archive.extractall(scratch, filter="data")
        copy = next(path.parent for path in sorted(scratch.glob("*/setup.py")))
    setup = copy / "setup.py"
    setup.write_text(for_this_device(setup.read_text()))
    return copy


def for_this_device(setup: str) -> str:
    """The script without its list of architectures, some of which a new nvcc refuses; torch then takes its own."""
    return re.sub(r"""cc_flag\.append\((["'])(-gencode|arch=[^"']*)\1\)""", "pass", setup)


def _pip(target: Path) -> Sequence[str]:
    alone = ["--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    return [sys.executable, "-m", "pip", "install", *alone, "--target", str(target)]


def _nicely() -> Sequence[str]:
    """What is measured meanwhile comes first."""
    return ["nice", "-n", "15"] if shutil.which("nice") else []


def _environment() -> dict[str, str]:
    own = {"MAX_JOBS": str(max(1, (os.cpu_count() or 2) - 2))}
    own |= {"MAMBA_FORCE_BUILD": "TRUE", "CAUSAL_CONV1D_FORCE_BUILD": "TRUE"}  # instead of a download
    if torch.cuda.is_available():
        own["TORCH_CUDA_ARCH_LIST"] = ".".join(map(str, torch.cuda.get_device_capability()))
    return {**own, **os.environ}


def _outcome(package: str, process: Any, log: Path, until: float) -> str:
    try:
        code = process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return f"{package}: not built in time"
    lines = [line for line in log.read_text(errors="replace").splitlines() if "error" in line.lower()]
    return f"{package}: {lines[0].strip()[:150] if lines else f'exit code {code}'}" if code else ""


def _end(process: Any) -> None:
    """With the compilers that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the compilers are ended, too
    main(Path(sys.argv[1]))
