"""What does not fit is refused: in C++ it would be read beyond its end, or at no address."""

import pytest
import torch

from longvision.layers import VimBlock
from longvision.ops import ScanDirection, causal_conv1d, mixer, rms_norm, selective_scan
from support.scan_cases import needs_compiler

ONE, TWO = torch.rand(2, 6, 4), torch.rand(2, 6, 2)
OWN = ScanDirection(*(torch.rand(*shape) for shape in ((4, 3), (4,), (6, 4), (4, 2), (4,), (4, 2), (4,))), False)
SCAN = {"x": ONE, "delta": ONE, "A": -torch.rand(4, 2), "B": TWO, "C": TWO} | {
    "D": torch.rand(4),
    "z": ONE,
    "delta_bias": torch.rand(4),
}
CONV = {"x": ONE, "weight": torch.rand(4, 3), "bias": torch.rand(4)}
NORM = {"x": ONE, "weight": torch.rand(4)}
DIRECTION = {f"a direction's {name}": tensor for name, tensor in zip(ScanDirection._fields, OWN.tensors())}
MIXER = {"x": torch.rand(1, 6, 5), "in_proj": torch.rand(8, 5), "out_proj": torch.rand(5, 4)}
MIXER |= {"norm_weight": torch.rand(5)} | DIRECTION


def call(op, parts):
    if op is mixer:
        own = ScanDirection(*(parts[name] for name in DIRECTION), False)
        return mixer(parts["x"], [own], parts["in_proj"], parts["out_proj"], parts["norm_weight"], residual=True)
    return op(*parts.values())


CASES = [
    (op, parts, name)
    for op, parts in (*((selective_scan, SCAN), (causal_conv1d, CONV), (rms_norm, NORM), (mixer, MIXER)),)
    for name in parts
]
IDS = [f"{op.__name__}-{name}" for op, _, name in CASES]


@pytest.mark.parametrize("op", [selective_scan, causal_conv1d, rms_norm, mixer])
def test_what_fits_is_taken(op):
    parts = next(parts for other, parts, _ in CASES if other is op)
    assert torch.isfinite(call(op, parts)).all()


@pytest.mark.parametrize(("op", "parts", "name"), CASES, ids=IDS)
def test_another_size(op, parts, name):
    free = {
        "x": () if op is selective_scan else (0, 1),  # images, tokens
        "weight": (1,),  # taps
        "a direction's filter_EK": (1,),
    }
    for dim in set(range(parts[name].ndim)) - set(free.get(name, ())):
        for size in (0, 1, parts[name].shape[dim] + 3):
            shape = [*parts[name].shape]
            shape[dim] = size
            with pytest.raises(ValueError, match=f"^{op.__name__} got "):
                call(op, parts | {name: torch.rand(shape)})


@pytest.mark.parametrize("op", [selective_scan, causal_conv1d, mixer])
@pytest.mark.parametrize("name, part", [("tokens", (slice(None), slice(0))), ("channels", (..., slice(0)))])
def test_no_tokens_or_channels(op, name, part):
    parts = next(parts for other, parts, _ in CASES if other is op)
    with pytest.raises(ValueError, match=f"^{op.__name__} got no {name}: x needs at least one"):
        call(op, parts | {"x": parts["x"][part]})


@pytest.mark.parametrize(("op", "parts", "name"), CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_another_kind_of_number(op, parts, name, dtype):
    with pytest.raises(ValueError, match=f"^{op.__name__} got {name} of type {dtype}, expected a floating-point one"):
        call(op, parts | {name: parts[name].to(dtype)})


@pytest.mark.parametrize(
    ("op", "parts", "name"),
    [case for case in CASES if case[2] != "x"],
    ids=[name for name, case in zip(IDS, CASES) if case[2] != "x"],
)
def test_another_device(op, parts, name):
    with pytest.raises(ValueError, match=rf"{op.__name__} got {name} on meta and x on cpu: move one to the other"):
        call(op, parts | {name: parts[name].to("meta")})


@pytest.mark.parametrize(("op", "parts", "name"), CASES, ids=IDS)
def test_no_tensor(op, parts, name):
    with pytest.raises(TypeError, match=rf"{op.__name__} got {name} of type list, expected a torch\.Tensor"):
        call(op, parts | {name: parts[name].tolist()})


def test_a_mixer_has_both_projections():
    for name in ("in_proj", "out_proj"):
        with pytest.raises(TypeError, match=f"mixer got {name} of type NoneType, expected a"):
            call(mixer, MIXER | {name: None})


def test_cu_seqlens_that_are_a_list():
    with pytest.raises(TypeError, match=r"cu_seqlens of type list, expected a torch\.Tensor of integers"):
        selective_scan(*SCAN.values(), cu_seqlens=[0, 6])


def test_channels_in_the_middle():
    with pytest.raises(
        ValueError, match=r"got A of shape \(4, 2\), expected \(6, 2\), since x is \(2, 4, 6\): channels come last"
    ):
        selective_scan(ONE.mT, ONE.mT, *list(SCAN.values())[2:])


@needs_compiler
def test_a_block_of_another_width():
    with pytest.raises(ValueError, match=r"got in_proj of shape \(64, 16\), expected \(64, 17\), since x is"):
        VimBlock(16)(torch.randn(2, 10, 17))


@needs_compiler
def test_a_step_of_no_rank():
    none = {"a direction's dt_proj_ER": torch.rand(4, 0), "a direction's x_proj_PE": torch.rand(4, 4)}
    with pytest.raises(ValueError, match=r"mixer got a direction's dt_proj_ER of shape \(4, 0\), expected two"):
        call(mixer, MIXER | none)
