"""The kernels compiled for other processors, some emulated, against plain torch, as tests/ops holds this one's."""

import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from longvision.ops import causal_conv1d, cross_scan, rms_norm
from longvision.ops.causal_conv1d.reference import causal_conv1d_reference
from longvision.ops.cross_scan.reference import cross_scan_reference
from longvision.ops.kernels.cpp import compiler, library
from longvision.ops.kernels.cpp.record import pack
from longvision.ops.mixer import cpu
from longvision.ops.rms_norm.reference import rms_norm_reference
from support import convolution_cases, mixer_cases, scan_cases
from support.emulated import Addresses, Emulated

DRIVER = Path(__file__).parent / "driver.cpp"
FLAGS = [flag for flag in compiler.FLAGS if flag not in ("-shared", "-fPIC")]
AARCH64 = ["aarch64-linux-gnu-g++", "-static"]


class Target(NamedTuple):
    compiler: list[str]
    emulator: list[str]
    dtypes: tuple[torch.dtype, ...] = tuple(library.DEFINITIONS)
    features: str = ""  # of this machine's processor, where nothing emulates it

    def missing(self) -> str:
        """A tool or a feature that this machine does not have."""
        if self.features and (platform.machine() not in ("x86_64", "AMD64") or not self._has_features()):
            return f"a processor with {self.features}"
        return next((tool for tool in (self.compiler[0], *self.emulator[:1]) if not shutil.which(tool)), "")

    def _has_features(self) -> bool:
        found = compiler._processor_features().split()
        return all(feature in found for feature in self.features.split())


TARGETS = {
    "armv8-a": Target([*AARCH64, "-march=armv8-a"], ["qemu-aarch64"]),
    "neoverse-v1": Target([*AARCH64, "-mcpu=neoverse-v1"], ["qemu-aarch64", "-cpu", "max"], (torch.float32,)),
    "x86-64-v2": Target(["g++", "-march=x86-64-v2"], [], features="sse4_2"),
    "x86-64-v3": Target(["g++", "-march=x86-64-v3"], [], (torch.float32, torch.bfloat16), features="avx2 fma"),
    "x86-64-v4": Target(["g++", "-march=x86-64-v4"], [], (torch.bfloat16,), features="avx512bw avx512vl"),
    "cooperlake": Target(["g++", "-march=cooperlake"], [], (torch.bfloat16,), features="avx512_bf16"),
    "sapphirerapids": Target(["g++", "-march=sapphirerapids"], [], (torch.bfloat16,), features="amx_bf16"),
}
EACH = [
    pytest.param((name, dtype), id=f"{name}-{dtype}".replace("torch.", ""))
    for name, target in TARGETS.items()
    for dtype in target.dtypes
]
pytestmark = [pytest.mark.targets, pytest.mark.usefixtures("poison")]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """Of all of xdist's workers, so that each driver is compiled once."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="module", params=EACH)
def driver(request, shared_folder) -> Iterator[Emulated]:
    name, dtype = request.param
    target = TARGETS[name]
    if target.missing():
        pytest.skip(f"{name} needs {target.missing()}")
    program = shared_folder / f"driver-{name}-{dtype}"
    definitions = [f"-D{definition}" for definition in library.DEFINITIONS[dtype]]
    command = [*target.compiler, *FLAGS, *definitions, f"-I{compiler.SOURCES}", str(DRIVER), "-o", str(program)]
    with open(f"{program}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            subprocess.run(command, check=True)
    emulated = Emulated(dtype, [*target.emulator, str(program)], Addresses())
    yield emulated
    emulated.close()


@pytest.fixture
def kernels(driver, monkeypatch) -> Iterator[Emulated]:
    """From now on, all kernels."""
    driver.addresses.watch(monkeypatch)
    monkeypatch.setattr(library, "kernels", lambda dtype: driver if dtype == driver.dtype else None)
    yield driver
    driver.addresses.storages.clear()


@pytest.fixture
def only(kernels) -> Callable[[torch.dtype], None]:
    """only(torch.float32, ...): the test is about these dtypes."""

    def dtypes(*wanted: torch.dtype) -> None:
        if kernels.dtype not in wanted:
            pytest.skip(f"nothing of its own in {kernels.dtype}")

    return dtypes


@pytest.mark.parametrize("batch, tokens, width, states, options", [
    (1, 1, 1, 1, {}),
    (2, 70, 19, 5, {"reverse": True}),
    (1, 85, 67, 16, {"cu_seqlens": [0, 1, 3, 20, 85], "reverse": True}),
    (1, 130, 64, 8, {"cu_seqlens": [0, 64, 130]}),
    (2, 33, 37, 3, {"D": False, "z": False, "bias": False}),
    (1, 33, 9, 4, {"softplus": False}),
], ids=str)  # fmt: skip
def test_scan(kernels, batch, tokens, width, states, options):
    inside = {name: options[name] for name in ("D", "z", "bias", "softplus") if name in options}
    tensors = scan_cases.make(batch, tokens, width, states, kernels.dtype, **inside)
    outside = {"reverse": options.get("reverse", False), "delta_softplus": options.get("softplus", True)}
    if "cu_seqlens" in options:
        outside["cu_seqlens"] = torch.tensor(options["cu_seqlens"], dtype=torch.int32)
    grad = torch.randn(batch, tokens, width, dtype=torch.float64).to(kernels.dtype)
    got = scan_cases.value_and_grads(tensors, "cpu", grad, **outside)
    scan_cases.assert_true(tensors, grad, got, **outside)


@pytest.mark.parametrize("grid, reverse", [(None, False), (None, True), ((13, 7), True)], ids=str)
def test_from_a_state_to_one(kernels, grid, reverse):
    """In two groups, by columns and by rows; these with contiguous tokens too, which are turned."""
    tensors = scan_cases.make(2, 91, 2 * 37, 4, kernels.dtype)
    tensors["B"] = torch.stack([tensors["B"], tensors["B"].flip(1)], dim=2)
    tensors["initial_state"] = torch.randn(2, 2 * 37, 4).to(kernels.real)
    grad, grad_last = torch.randn(2, 91, 2 * 37).to(kernels.dtype), torch.randn(2, 2 * 37, 4).to(kernels.real)
    options = {"delta_softplus": True, "reverse": reverse, "grid": grid}
    got = scan_cases.value_and_grads(tensors, "cpu", grad, grad_last, **options)
    scan_cases.assert_true(tensors, grad, got, grad_last, **options)
    if grid is None:
        for name in ("x", "delta", "z"):
            tensors[name] = tensors[name].mT.contiguous().mT
        got = scan_cases.value_and_grads(tensors, "cpu", grad.mT.contiguous().mT, grad_last, **options)
        assert got["y"].stride(1) == 1
        scan_cases.assert_true(tensors, grad, got, grad_last, **options)


@pytest.mark.parametrize("grid, width, states", [((13, 7), 37, 1), ((1, 70), 19, 4)], ids=str)
def test_cross_scan(kernels, grid, width, states):
    of_directions = [scan_cases.make(2, grid[0] * grid[1], width, states, z=False, seed=seed) for seed in range(4)]
    names = {"delta": 2, "A": 0, "B": 2, "C": 2, "D": 0, "delta_bias": 0}
    tensors = [of_directions[0]["x"]]
    tensors += [torch.stack([each[name] for each in of_directions], dim=dim) for name, dim in names.items()]
    tensors, grad = [t.to(kernels.dtype) for t in tensors], torch.randn_like(tensors[0]).to(kernels.dtype)
    leaves, true = (
        [t.detach().to(dtype).requires_grad_() for t in tensors] for dtype in (kernels.dtype, torch.float64)
    )
    y, truth = cross_scan(*leaves, grid), cross_scan_reference(*true, grid, True)
    y.backward(grad)
    truth.backward(grad.double())
    for got, expected in ((y, truth), *zip((t.grad for t in leaves), (t.grad for t in true), strict=True)):
        error = float((got.detach().double() - expected.detach()).norm() / expected.detach().norm())
        assert error <= scan_cases.SUMS * scan_cases.TOLERANCE[kernels.dtype]


def test_steps_beyond_the_range(kernels):
    """Decays of 2^-127 and less, which take the way with clamps."""
    tensors = scan_cases.make(1, 20, 19, 4, kernels.dtype)
    tensors["delta"][:, 5] = 300
    grad = torch.randn(1, 20, 19, dtype=torch.float64).to(kernels.dtype)
    got = scan_cases.value_and_grads(tensors, "cpu", grad, delta_softplus=True)
    scan_cases.assert_true(tensors, grad, got, delta_softplus=True)


# As in tests/ops: the largest difference as a part of the largest true value.
CONVOLUTION = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2**-7}
NORM = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2**-7}
MATMUL = {torch.float64: 1e-14, torch.float32: 2e-6}
MIXER = {torch.float64: 5e-14, torch.float32: 1e-5, torch.bfloat16: 4e-2}


def value_and_grads(function, tensors, grad):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    y = function(*leaves)
    y.backward(grad.to(y.dtype))
    return dict(zip(("y", "x", "weight", "bias"), [y.detach(), *(leaf.grad for leaf in leaves)]))


@pytest.mark.parametrize("tokens, width, taps, reverse, cu_seqlens", [
    (1, 1, 1, False, None), (33, 19, 4, True, None), (70, 37, 3, False, [0, 1, 3, 70]), (33, 64, 8, True, [0, 20, 33]),
], ids=str)  # fmt: skip
def test_convolution(kernels, tokens, width, taps, reverse, cu_seqlens):
    tensors = [t.to(kernels.dtype) for t in convolution_cases.make(1, tokens, width, taps)]
    grad = torch.randn(1, tokens, width, dtype=kernels.dtype)
    boundaries = None if cu_seqlens is None else torch.tensor(cu_seqlens, dtype=torch.int32)

    def of(function):
        return lambda *own: function(*own, True, reverse, boundaries)

    truth = value_and_grads(of(causal_conv1d_reference), [t.double() for t in tensors], grad)
    got = value_and_grads(of(causal_conv1d), tensors, grad)
    scan_cases.assert_close(got, truth, CONVOLUTION[kernels.dtype])


@pytest.mark.parametrize("rows, width", [(1, 2), (5, 19), (70, 64)])
def test_norm(kernels, rows, width):
    x = torch.randn(1, rows, width, dtype=kernels.real)
    weight = (torch.rand(width, dtype=torch.float64) + 0.5).to(kernels.dtype)
    grad = torch.randn(1, rows, width, dtype=torch.float64).to(kernels.dtype)
    truth = value_and_grads(partial(rms_norm_reference, eps=1e-5), (x.double(), weight.double()), grad.double())
    scan_cases.assert_close(value_and_grads(rms_norm, (x, weight), grad), truth, NORM[kernels.dtype])


@pytest.mark.parametrize("rows, columns, depth", [(1, 1, 1), (13, 33, 17), (25, 12, 300), (12, 16, 0), (7, 9, 2100)])
@pytest.mark.parametrize("transposed", [False, True])
def test_matmul(kernels, only, rows, columns, depth, transposed):
    only(*MATMUL)
    left, right = (torch.randn(shape, dtype=kernels.dtype) for shape in ((rows, depth), (depth, columns)))
    add, out = torch.randn(rows, columns, dtype=kernels.dtype), torch.empty(rows, columns, dtype=kernels.dtype)
    if transposed:
        left, right = (t.t().contiguous().t() for t in (left, right))
    record = pack(
        *(rows, columns, depth, 1, left.data_ptr(), *left.stride(), right.data_ptr(), *right.stride()),
        *(add.data_ptr(), columns, out.data_ptr(), columns),
    )
    kernels.matmul(record)
    scan_cases.assert_close({"y": out}, {"y": left.double() @ right.double() + add.double()}, MATMUL[kernels.dtype])


@pytest.mark.parametrize("maker", mixer_cases.MAKERS, ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("batch, tokens, width, options", [
    (2, 1, 19, {"states": 1, "rank": 1, "taps": 1}),
    (2, 70, 37, {"states": 5}),
    (1, 85, 64, {"ways": (True,), "states": 16, "rank": 12, "taps": 2, "cu_seqlens": [0, 1, 3, 20, 85]}),
], ids=str)  # fmt: skip
def test_block(kernels, maker, batch, tokens, width, options):
    case = maker(batch, tokens, width, dtype=kernels.dtype, **options)
    mixer_cases.assert_near(mixer_cases.value_and_grads(case), mixer_cases.truth_of(case), MIXER[kernels.dtype])


@pytest.mark.parametrize("size", [1, 16])
def test_block_in_chunks(kernels, monkeypatch, size):
    case = mixer_cases.make_block(2, 33, dtype=kernels.dtype)
    monkeypatch.setattr(cpu, "CHUNK", size)
    monkeypatch.setattr(cpu, "LEAST", 1)
    truth = case.changed(torch.Tensor.double).truth()
    mixer_cases.assert_near({"y": case.call()}, {"y": truth}, MIXER[kernels.dtype])


def test_functions_at_infinity_and_near_it(kernels):
    """As torch has them: softplus of infinity is infinity, SiLU of -infinity NaN and of -100 next to nothing."""
    infinity = torch.inf
    far = [infinity, -infinity, torch.nan, 0.0, -0.0, 100, -100, 1000, -1000, 88, -88, 87, -87, 30, -30]
    x = torch.cat([torch.tensor(far, dtype=kernels.real), torch.linspace(-20, 20, 1000, dtype=kernels.real)])
    out = torch.empty(4, len(x), dtype=kernels.real)
    assert kernels.call("functions_of_vectors", x.data_ptr(), out.data_ptr(), len(x)) == 0
    softplus, slope, silu, exp2 = out.double()
    x = x.double()
    unit = torch.finfo(kernels.real).eps / 2
    smallest = (
        8 * torch.finfo(kernels.real).tiny
    )  # what falls below the range of normal numbers, or beyond the largest power
    near = {"rtol": 12 * unit, "atol": 200 * smallest, "equal_nan": True}
    torch.testing.assert_close(softplus, torch.logaddexp(x, torch.zeros_like(x)), **near)
    torch.testing.assert_close(slope, torch.sigmoid(x), **near)
    torch.testing.assert_close(silu, F.silu(x), **near)
    truth = torch.exp2(x)
    truth[truth > torch.finfo(kernels.real).max] = infinity
    torch.testing.assert_close(
        exp2, truth, rtol=4e-7 if kernels.real == torch.float32 else 8 * unit, atol=smallest, equal_nan=True
    )
