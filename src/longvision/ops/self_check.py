"""Each kernel of a library against the reference, on one small case: compilers and processors have faults too."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import torch
from torch import Tensor

from longvision.ops.causal_conv1d import cpu as conv_cpu
from longvision.ops.causal_conv1d.inputs import ConvInputs
from longvision.ops.causal_conv1d.reference import causal_conv1d_reference
from longvision.ops.cross_scan import cpu as cross_cpu
from longvision.ops.cross_scan.inputs import CrossInputs
from longvision.ops.cross_scan.reference import DIRECTIONS, cross_scan_reference
from longvision.ops.kernels.cpp.library import Library
from longvision.ops.kernels.cpp.record import pack
from longvision.ops.mixer import cpu as mixer_cpu
from longvision.ops.mixer.inputs import MixerInputs, ScanDirection
from longvision.ops.mixer.reference import mixer_reference
from longvision.ops.rms_norm import cpu as norm_cpu
from longvision.ops.rms_norm.reference import rms_norm_reference
from longvision.ops.selective_scan import cpu as scan_cpu
from longvision.ops.selective_scan.inputs import ScanInputs
from longvision.ops.selective_scan.reference import selective_scan_reference

TOKENS, STATES, RANK, TAPS, EPS = 6, 3, 2, 4, 1e-5
BLOCK_TOKENS = 35  # more than a tile has rows
GRID = 2, 3
# Relative norms, ten times what was measured: what is at fault is off by far more.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.1}
# A kernel's name, what it returned, what the reference returns
Results = tuple[str, Sequence[Tensor | None], Sequence[Tensor]]


def faults(library: Library) -> dict[str, float]:
    """The relative error of each kernel that is off; the ops have to take this library for its dtype meanwhile."""
    # In a thread of its own, which knows nothing of the caller's modes: traced, on another device, without gradients.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_faults, library).result()


def _faults(library: Library) -> dict[str, float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # others would have to be started, for this thread alone
    try:
        return _found(library)
    finally:
        torch.set_num_threads(threads)


def _found(library: Library) -> dict[str, float]:
    found: dict[str, float] = {}
    for check in (_scan, _cross_scan, _conv, _norm, _matmul, _block):
        for name, got, truth in check(_Case(library)):
            error = max(_error(a, b) for a, b in zip(got, truth, strict=True))
            if not error <= TOLERANCE[library.dtype]:  # NaN too
                found[name] = max(error, found.get(name, 0.0))
    return found


def _error(got: Tensor | None, truth: Tensor) -> float:
    assert got is not None
    error = ((got.double() - truth).norm() / truth.norm()).item()
    return error if error == error else float("inf")


class _Case:
    """Random numbers as the kernels take them; an odd width, of two vectors and a bit."""

    def __init__(self, library: Library) -> None:
        self.library, self.lanes, self.width = library, library.lanes, 2 * library.lanes + 1
        self.dtype, self.real = library.dtype, library.real
        self.generator = torch.Generator("cpu").manual_seed(0)

    def tokens(self, width: int, count: int = TOKENS) -> Tensor:
        return self.normal(1, count, width).to(self.dtype)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=self.real, device="cpu")


def _doubled(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double().requires_grad_() for tensor in tensors]


def _scan(case: _Case) -> Iterator[Results]:
    """From the last token to the first, with an initial and a last state: by columns, then with contiguous tokens.
    Blocks have neither."""
    return chain(_one_scan(case, TOKENS, GRID), _one_scan(case, case.lanes + 2, None))


def _one_scan(case: _Case, tokens: int, grid: tuple[int, int] | None) -> Iterator[Results]:
    width = case.width
    of_tokens = [case.tokens(width, tokens) for _ in range(4)]
    if grid is None:
        of_tokens = [tensor.mT.contiguous().mT for tensor in of_tokens]
    (x, delta, z, grad), (B, C) = of_tokens, (case.tokens(STATES, tokens) for _ in range(2))
    A, D, bias = -case.normal(width, STATES).exp(), case.normal(width), case.normal(width)
    given = [x, delta, A, B, C, D, z, bias, case.normal(1, width, STATES)]
    inputs, grad_last = ScanInputs._make([*given, None, True, True, grid]), case.normal(1, width, STATES)
    states, last = (torch.empty(shape, dtype=case.real) for shape in (scan_cpu.states_shape(inputs), grad_last.shape))
    x, delta, A, B, C, D, z, bias, initial = leaves = _doubled(*given)
    truth = selective_scan_reference(x, delta, A, B, C, D, z, bias, True, True, None, initial, True, grid)
    yield "scans_forward", [scan_cpu.forward(inputs, states, last), last], truth
    true_grads = torch.autograd.grad(truth, leaves, [grad.double(), grad_last.double()])
    yield "scans_backward", scan_cpu.backward(grad, grad_last, states, inputs), true_grads


def _cross_scan(case: _Case) -> Iterator[Results]:
    """Four scans one after the other, each adding to what is there."""
    width, each = case.width, DIRECTIONS
    x, grad = case.tokens(width), case.tokens(width)
    delta, B, C = (case.normal(1, TOKENS, each, n).to(case.dtype) for n in (width, STATES, STATES))
    A, D, bias = -case.normal(each, width, STATES).exp(), case.normal(each, width), case.normal(each, width)
    inputs = CrossInputs(x, delta, A, B, C, D, bias, GRID, True)
    states = torch.empty(cross_cpu.states_shape(inputs), dtype=case.real)
    x, delta, A, B, C, D, bias = leaves = _doubled(x, delta, A, B, C, D, bias)
    truth = cross_scan_reference(x, delta, A, B, C, D, bias, GRID)
    yield "scans_forward", [cross_cpu.forward(inputs, states)], [truth]
    true_grads = torch.autograd.grad(truth, leaves, grad.double())
    yield "scans_backward", cross_cpu.backward(grad, states, inputs), true_grads


def _conv(case: _Case) -> Iterator[Results]:
    given = [case.tokens(case.width), case.normal(case.width, TAPS), case.normal(case.width)]
    inputs, grad = ConvInputs._make([*given, None, True, False]), case.tokens(case.width)
    x, weight, bias = leaves = _doubled(*given)
    truth = causal_conv1d_reference(x, weight, bias, silu=True)
    yield "conv_forward", [conv_cpu.forward(inputs)], [truth]
    yield "conv_backward", conv_cpu.backward(grad, inputs), torch.autograd.grad(truth, leaves, grad.double())


def _norm(case: _Case) -> Iterator[Results]:
    x, weight, grad = case.normal(1, TOKENS, case.width), case.normal(case.width), case.tokens(case.width)
    leaves = _doubled(x, weight)
    truth = rms_norm_reference(leaves[0], leaves[1], EPS)
    y, inverse = norm_cpu.forward(x, weight, EPS, case.dtype)
    yield "norm_forward", [y], [truth]
    got = norm_cpu.backward(grad, inverse, x, weight, EPS, case.dtype)
    yield "norm_backward", got, torch.autograd.grad(truth, leaves, grad.double())


def _matmul(case: _Case) -> Iterator[Results]:
    """`Matmul` of matmul.h, the second one transposed."""
    left, right = case.normal(13, case.width), case.normal(4 * case.lanes + 1, case.width).t()
    out = left.new_empty(len(left), right.shape[1])
    record = pack(
        *(*out.shape, case.width, 1),
        *(left.data_ptr(), *left.stride()),
        *(right.data_ptr(), *right.stride()),
        *(0, 0, out.data_ptr(), out.stride(0)),
    )
    case.library.matmul(record)
    yield "matmul", [out], [left.double() @ right.double()]


def _block(case: _Case) -> Iterator[Results]:
    """With norm and residual, in both directions."""
    width, channels = case.width, case.lanes + 1

    def direction(reverse: bool) -> ScanDirection:
        shapes = [
            (width, TAPS),
            (width,),
            (RANK + 2 * STATES, width),
            (width, RANK),
            (width,),
            (width, STATES),
            (width,),
        ]
        return ScanDirection._make([*(0.5 * case.normal(*shape) for shape in shapes), reverse])

    in_proj, out_proj = case.normal(2 * width, channels) / 4, case.normal(channels, width) / 4
    x, norm = case.normal(1, BLOCK_TOKENS, channels), case.normal(channels)
    directions = [direction(False), direction(True)]
    inputs = MixerInputs(x, directions, in_proj, out_proj, norm, None, True, EPS, case.dtype)
    grad = case.normal(1, BLOCK_TOKENS, channels)
    y, saved = mixer_cpu.forward(inputs, True)
    leaves = _doubled(*inputs.tensors())
    truth = mixer_reference(inputs.with_tensors(leaves)._replace(dtype=torch.float64))
    yield "blocks_forward", [y], [truth]
    yield "block_backward", mixer_cpu.backward(grad, saved, inputs), torch.autograd.grad(truth, leaves, grad.double())
