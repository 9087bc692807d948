"""What does not fit is refused: in C++ it would be read beyond its end, or at no address."""

import pytest
import torch
from scan_cases import needs_compiler

from longvision.layers import VimBlock
from longvision.ops import Walk, causal_conv1d, mamba_block, mamba_inner, rms_norm, selective_scan

ONE, TWO = torch.rand(2, 6, 4), torch.rand(2, 6, 2)
WALK = Walk(*(torch.rand(*shape) for shape in ((4, 3), (4,), (6, 4), (4, 2), (4,), (4, 2), (4,))), False)
SCAN = {"x": ONE, "delta": ONE, "A": -torch.rand(4, 2), "B": TWO, "C": TWO} | {
    "D": torch.rand(4),
    "z": ONE,
    "delta_bias": torch.rand(4),
}
CONV = {"x": ONE, "weight": torch.rand(4, 3), "bias": torch.rand(4)}
NORM = {"x": ONE, "weight": torch.rand(4)}
WALKS = {f"a walk's {name}": tensor for name, tensor in zip(Walk._fields, WALK.tensors())}
INNER = {"x": torch.rand(1, 6, 5), "in_proj": torch.rand(8, 5), "out_proj": torch.rand(5, 4)} | WALKS
BLOCK = INNER | {"norm_weight": torch.rand(5)}


def call(op, parts):
    if op in (mamba_inner, mamba_block):
        walk = Walk(*(parts[name] for name in WALKS), False)
        norm = (parts["norm_weight"],) if op is mamba_block else ()
        return op(parts["x"], *norm, [walk], parts["in_proj"], parts["out_proj"])
    return op(*parts.values())


CASES = [
    (op, parts, name)
    for op, parts in (
        *((selective_scan, SCAN), (causal_conv1d, CONV), (rms_norm, NORM)),
        *((mamba_inner, INNER), (mamba_block, BLOCK)),
    )
    for name in parts
]
IDS = [f"{op.__name__}-{name}" for op, _, name in CASES]


@pytest.mark.parametrize("op", [selective_scan, causal_conv1d, rms_norm, mamba_inner, mamba_block])
def test_what_fits_is_taken(op):
    parts = next(parts for other, parts, _ in CASES if other is op)
    assert torch.isfinite(call(op, parts)).all()


@pytest.mark.parametrize(("op", "parts", "name"), CASES, ids=IDS)
def test_another_size(op, parts, name):
    free = {
        "x": () if op is selective_scan else (0, 1),  # images, tokens
        "weight": (1,),  # taps
        "a walk's filter_EK": (1,),
        "out_proj": (0,) if op is mamba_inner else (),
    }
    for dim in set(range(parts[name].ndim)) - set(free.get(name, ())):
        for size in (0, 1, parts[name].shape[dim] + 3):
            shape = [*parts[name].shape]
            shape[dim] = size
            with pytest.raises(ValueError, match=f"^{op.__name__} got "):
                call(op, parts | {name: torch.rand(shape)})


@pytest.mark.parametrize("op", [selective_scan, causal_conv1d, mamba_inner, mamba_block])
def test_no_tokens(op):
    parts = next(parts for other, parts, _ in CASES if other is op)
    with pytest.raises(ValueError, match=f"^{op.__name__} got no tokens: x needs at least one"):
        call(op, parts | {"x": parts["x"][:, :0]})


@pytest.mark.parametrize(("op", "parts", "name"), CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_another_kind_of_number(op, parts, name, dtype):
    with pytest.raises(ValueError, match=f"^{op.__name__} got {name} of type {dtype}, expected a floating-point one"):
        call(op, parts | {name: parts[name].to(dtype)})


@pytest.mark.parametrize(("op", "parts", "name"), [case for case in CASES if case[2] != "x"], ids=lambda v: str(v)[:20])
def test_another_device(op, parts, name):
    with pytest.raises(ValueError, match=rf"{op.__name__} got {name} on meta and x on cpu: move one to the other"):
        call(op, parts | {name: parts[name].to("meta")})


@pytest.mark.parametrize(("op", "parts", "name"), CASES, ids=IDS)
def test_no_tensor(op, parts, name):
    with pytest.raises(TypeError, match=rf"{op.__name__} got {name} of type list, expected a torch\.Tensor"):
        call(op, parts | {name: parts[name].tolist()})


def test_a_block_has_both_projections():
    for name in ("in_proj", "out_proj"):
        with pytest.raises(TypeError, match=f"mamba_block got {name} of type NoneType, expected a"):
            call(mamba_block, BLOCK | {name: None})


def test_borders_that_are_a_list():
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
@pytest.mark.parametrize("op", [mamba_inner, mamba_block])
def test_a_step_of_no_rank(op):
    parts = INNER if op is mamba_inner else BLOCK
    none = {"a walk's dt_proj_ER": torch.rand(4, 0), "a walk's x_proj_PE": torch.rand(4, 4)}
    with pytest.raises(ValueError, match=rf"{op.__name__} got a walk's dt_proj_ER of shape \(4, 0\), expected two"):
        call(op, parts | none)


def test_x_and_z_of_an_odd_number():
    with pytest.raises(ValueError, match="mamba_inner got x of 9 channels without in_proj, expected x and z of"):
        mamba_inner(torch.rand(1, 6, 9), [WALK])
