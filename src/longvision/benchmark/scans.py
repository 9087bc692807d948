"""What computes the selective scan, ours and others', and the gate that each has to pass before it is timed."""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.benchmark.case import OK, REFERENCE, sentence
from longvision.ops import selective_scan
from longvision.ops.common import BACKENDS

# Largest error that passes, as a part of the largest true value: some roundings of float64 and float32; results in
# bfloat16 and float16 are rounded once, by 2**-8 and 2**-11 at most.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-3, torch.float16: 6e-4}

ARGUMENTS = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias")  # of selective_scan, in its order
Inputs = dict[str, Tensor]  # by these names
PARAMETERS = ("A", "D", "delta_bias")  # float32 in mixed precision too, as in the mixer


class Scan(NamedTuple):
    """Something that computes the scan, and what of it."""

    run: Callable[[Inputs, bool, Tensor | None], Tensor]
    backward_direction: bool = True
    packed: bool = True


class GateCase(NamedTuple):
    """Small and awkward: odd lengths, a width that no vector divides, packed sequences that end inside a chunk."""

    batch: int
    tokens: int
    channels: int
    reverse: bool
    cu_seqlens: tuple[int, ...] | None = None


GATE = (
    *(GateCase(*shape, reverse) for reverse in (False, True) for shape in ((2, 1, 5), (2, 17, 19), (1, 63, 33))),
    *(GateCase(1, 63, 19, reverse, (0, 1, 17, 18, 40, 63)) for reverse in (False, True)),
)


def scans() -> dict[str, Scan]:
    """Our backends, and peers that are installed."""
    ours = {name: Scan(_backend(name)) for name in BACKENDS}
    peers = {"mambapy": Scan(_mambapy, backward_direction=False, packed=False)}
    return ours | {name: scan for name, scan in peers.items() if importlib.util.find_spec(name)}


def _backend(name: str) -> Callable[[Inputs, bool, Tensor | None], Tensor]:
    def run(inputs: Inputs, reverse: bool, cu_seqlens: Tensor | None) -> Tensor:
        x, delta, A, B, C, D, z, bias = (inputs[argument] for argument in ARGUMENTS)
        return selective_scan(x, delta, A, B, C, D, z, bias, True, reverse, cu_seqlens, backend=name)

    return run


def _mambapy(inputs: Inputs, reverse: bool, cu_seqlens: Tensor | None) -> Tensor:
    """The parallel scan of mambapy, from the first token on, with softplus and gate where its block takes them."""
    from mambapy.mamba import MambaBlock

    assert not reverse and cu_seqlens is None
    dtype = torch.promote_types(inputs["x"].dtype, torch.float32)
    wide = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    delta = F.softplus(wide["delta"] + wide["delta_bias"])
    y = MambaBlock.selective_scan(None, wide["x"], delta, *(wide[name] for name in "ABCD"))  # reads nothing of itself
    return (y * F.silu(wide["z"])).to(inputs["x"].dtype)


def make_inputs(batch: int, tokens: int, channels: int, states: int, dtype: torch.dtype, device: str) -> Inputs:
    """Steps of 0.01 to 1 and decay rates of 0.1 to 2, as in a trained model; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    normal = {
        "x": (batch, tokens, channels),
        "delta": (batch, tokens, channels),
        "B": (batch, tokens, states),
        "C": (batch, tokens, states),
        "D": (channels,),
        "z": (batch, tokens, channels),
        "delta_bias": (channels,),
    }
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in normal.items()}
    inputs["delta"] -= 1
    inputs["A"] = -0.1 - 1.9 * torch.rand(channels, states, generator=generator)
    parameters = torch.promote_types(dtype, torch.float32)
    return {name: t.to(device, parameters if name in PARAMETERS else dtype) for name, t in inputs.items()}


def check(scan: Scan, states: int, dtype: torch.dtype, device: str) -> str:
    """Output and every gradient against the reference in float64: "ok", or what is wrong, or why it is not here."""
    for case in GATE:
        if (case.reverse and not scan.backward_direction) or (case.cu_seqlens and not scan.packed):
            continue
        inputs = make_inputs(case.batch, case.tokens, case.channels, states, dtype, device)
        cu_seqlens = None if case.cu_seqlens is None else torch.tensor(case.cu_seqlens, device=device)
        try:
            got = value_and_gradients(scan, inputs, case.reverse, cu_seqlens)
        except (ImportError, NotImplementedError, OSError, ValueError) as error:
            return f"not available: {sentence(error)}"
        except Exception as error:
            return f"failed: {sentence(error)}"
        double = {name: tensor.double() for name, tensor in inputs.items()}
        truth = value_and_gradients(Scan(_backend(REFERENCE)), double, case.reverse, cu_seqlens)
        for name, expected in truth.items():
            far = distance(got[name], expected)
            if not far <= TOLERANCE[dtype]:
                return f"wrong: {name} off by {far:.2g} ({_describe(case)})"
    return OK


def value_and_gradients(scan: Scan, inputs: Inputs, reverse: bool, cu_seqlens: Tensor | None) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    y = scan.run(leaves, reverse, cu_seqlens)
    y.backward(_direction_like(y))
    gradients = {
        f"gradient of {name}": torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
    return {"output": y.detach(), **gradients}


def _direction_like(y: Tensor) -> Tensor:
    """A gradient that is exact in every dtype, so that all are held against the same truth."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-4, 5, y.shape, generator=generator).to(y)


def distance(got: Tensor, truth: Tensor) -> float:
    """Largest difference, as a part of the largest true value; NaN stays NaN."""
    largest = truth.abs().max().clamp(min=1e-300)
    return ((got.double() - truth).abs().max() / largest).item()


def _describe(case: GateCase) -> str:
    words = [f"{case.tokens} token{'s' * (case.tokens > 1)}", f"{case.channels} channels"]
    if case.reverse:
        words.append("backward direction")
    if case.cu_seqlens:
        words.append("packed")
    return ", ".join(words)
