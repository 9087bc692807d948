"""The scan on Triton kernels against the equations in float64: output and every gradient."""

import pytest
import torch

from longvision.ops import selective_scan
from longvision.ops.common import choose_backend
from longvision.ops.selective_scan import op
from support.scan_cases import NAMES, PER_TOKEN, assert_identical, in_double, make, scan, value_and_grads
from support.triton_cases import TOLERANCE, assert_a_graph_repeats, assert_norms, launched, moved

pytestmark = pytest.mark.usefixtures("poison")

each_way = pytest.mark.parametrize("reverse", [False, True])
OVER_TOKENS = ("A", "D", "delta_bias")
PER_TOKEN_AND_Y = ("y", *PER_TOKEN)
ONE, MANY = 1, 1056  # segments, by the programs that are wanted


def run(device, tensors, grad, cu_seqlens=None, **options):
    cu_seqlens = None if cu_seqlens is None else torch.tensor(cu_seqlens, device=device)
    got = value_and_grads(moved(tensors, device), "triton", grad.to(device), cu_seqlens=cu_seqlens, **options)
    return moved(got, "cpu")


def truth_of(tensors, grad, cu_seqlens=None, **options):
    cu_seqlens = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    return value_and_grads(in_double(tensors), "reference", grad.double(), cu_seqlens=cu_seqlens, **options)


def check(device, tensors, softplus=True, **options):
    """-> output and gradients, which are the truth."""
    grad = torch.randn(tensors["x"].shape).to(tensors["x"].dtype)
    got = run(device, tensors, grad, delta_softplus=softplus, **options)
    truth = truth_of(tensors, grad, delta_softplus=softplus, **options)
    assert {name: t.dtype for name, t in got.items()} == {
        name: tensors["x" if name == "y" else name].dtype for name in truth
    }
    assert_norms(got, truth, TOLERANCE, sums=OVER_TOKENS)
    return got


# The equations


@each_way
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9])
def test_output_and_gradients(device, chunk, tokens, reverse):
    """Up to a chunk of two spans, and a token more."""
    chunk(8)
    check(device, make(1, tokens, 5, 3 if tokens in (1, 7) else 1, torch.float32), reverse=reverse)


@pytest.mark.slow
@each_way
def test_more_than_two_chunks(device, chunk, reverse):
    chunk(8)
    with launched(programs=ONE):
        check(device, make(1, 18, 3, 1, torch.float32), reverse=reverse)


@pytest.mark.slow
def test_chunks_of_their_own_length(device):
    check(device, make(1, 66, 3, 1, torch.float32), cu_seqlens=[0, 64, 66], reverse=True)


@pytest.mark.parametrize("width", [1, 32, 40])
def test_widths_and_batches(device, width):
    """A batch of two, and widths that do and do not fill tiles of 32 channels."""
    with launched():
        check(device, make(2, 5, width, 2, torch.float32))


@pytest.mark.parametrize("states", [1, 5, 16])
def test_states(device, states):
    check(device, make(1, 5, 5, states, torch.float32))


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids=str)
def test_without_the_optional_arguments(device, absent, softplus):
    check(device, make(1, 5, 5, 1, torch.float32, softplus=softplus) | dict.fromkeys(absent), softplus)


def test_without_softplus(device):
    check(device, make(1, 7, 5, 2, torch.float32, softplus=False), softplus=False)


@each_way
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_once(device, dtype, reverse):
    check(device, make(1, 7, 5, 2, dtype), reverse=reverse)


def test_each_tensor_in_its_own_precision(device):
    """What mixed precision hands in: tokens in half precision, parameters in float32."""
    tensors = make(1, 5, 5, 2, torch.bfloat16)
    tensors |= {name: tensors[name].float() for name in ("A", "D", "delta_bias", "B", "C")}
    check(device, tensors)


@pytest.mark.slow
@pytest.mark.parametrize("channels, span", [(32, 1), (64, 4), (64, 8), (128, 2)])
def test_every_launch_gives_the_truth(device, chunk, channels, span):
    chunk(8)
    with launched(channels=channels, span=span):
        check(device, make(1, 11, 40, 1, torch.float32), cu_seqlens=[0, 5, 8, 11])


# Packed sequences


@each_way
@pytest.mark.parametrize("boundaries", [[0, 1, 2, 5, 13], [0, 13]], ids=str)
def test_packed(device, boundaries, reverse):
    """In one chunk of several spans."""
    check(device, make(1, 13, 5, 1, torch.float32), cu_seqlens=boundaries, reverse=reverse)


@pytest.mark.parametrize(("programs", "boundaries", "reverse"), [
    (ONE, [0, 4, 12], False), (ONE, [0, 3, 4, 5, 9, 14], True),
    (MANY, [0, 4, 12], True), (MANY, [0, 3, 4, 5, 9, 14], False),
], ids=str)  # fmt: skip
def test_packed_over_many_chunks(device, chunk, programs, boundaries, reverse):
    chunk(4)
    with launched(programs=programs):
        check(device, make(1, boundaries[-1], 3, 1, torch.float32), cu_seqlens=boundaries, reverse=reverse)


# Groups of chunks side by side


@pytest.fixture
def segments(monkeypatch):
    """How many segments each pass is split into."""
    from longvision.ops.kernels.triton import scan as kernels

    seen, original = [], kernels.segmented
    monkeypatch.setattr(kernels, "segmented", lambda *a: (seen.append((found := original(*a))[1]), found)[1])
    return seen


@pytest.mark.slow
@each_way
def test_segments_of_the_chunks_that_are_saved(device, chunk, segments, reverse):
    chunk(8)
    check(device, make(1, 18, 3, 1, torch.float32), reverse=reverse)
    assert set(segments) == {3}


@pytest.mark.parametrize(("programs", "expected", "boundaries", "reverse"), [
    (ONE, 1, None, True), (3, 3, None, False), (MANY, 6, None, True), (3, 3, [0, 1, 5, 6, 11], True),
    (MANY, 6, [0, 2, 10, 11], False),
], ids=str)  # fmt: skip
def test_any_number_of_segments_gives_the_truth(device, chunk, segments, programs, expected, boundaries, reverse):
    """With 6 chunks of 2 tokens, the last of 1: segments of two chunks, and of one."""
    chunk(2)
    with launched(programs=programs):
        check(device, make(1, 11, 5, 1, torch.float32), reverse=reverse, cu_seqlens=boundaries)
    assert set(segments) == {expected}


@pytest.mark.slow
@pytest.mark.parametrize(("absent", "softplus"), [(("delta_bias",), True), (("D", "z"), False)], ids=str)
def test_segments_without_the_optional_arguments(device, chunk, absent, softplus):
    chunk(4)
    with launched(programs=MANY):
        check(device, make(2, 9, 3, 1, torch.float32, softplus=softplus) | dict.fromkeys(absent), softplus)


@pytest.mark.parametrize("tokens, programs, wanted, expected", [
    (64, 1, 1056, (64, 1)),
    (128, 1, 1056, (128, 1)),  # two are no gain
    (130, 1, 1056, (64, 3)),
    (6085, 12, 1056, (128, 48)),
    (6085, 12, 12, (6144, 1)),
    (6085, 512, 1056, (6144, 1)),
    (320, 2, 6, (128, 3)),
    (197, 264, 1056, (64, 4)),
    (197, 288, 1056, (256, 1)),  # three would be asked for, but whole chunks make two
])  # fmt: skip
def test_how_many_segments(monkeypatch, tokens, programs, wanted, expected):
    from longvision.ops.kernels.triton import scan as kernels

    monkeypatch.setattr(kernels, "PROGRAMS", wanted)
    assert kernels.segmented(tokens, programs) == expected


def test_there_are_never_two_segments():
    from longvision.ops.kernels.triton import scan as kernels

    for tokens in range(1, 1000, 7):
        for programs in range(1, 600, 13):
            segment_tokens, segments = kernels.segmented(tokens, programs)
            assert segments != 2 and (segments - 1) * segment_tokens < tokens <= segments * segment_tokens


# Extremes


@pytest.mark.slow
@pytest.mark.parametrize(("raw", "rate", "programs"), [
    (-30.0, -64.0, MANY), (30.0, -64.0, ONE), (-30.0, -1e-3, ONE), (30.0, -1e-3, MANY),
])  # fmt: skip
def test_extreme_steps_and_rates(device, chunk, raw, rate, programs):
    chunk(4)
    tensors = make(1, 9, 3, 1, torch.float32, bias=False)
    tensors["A"] = torch.full_like(tensors["A"], rate)
    tensors["delta"] = torch.where(torch.rand(1, 9, 3) < 0.5, raw, tensors["delta"])
    grad = torch.randn(1, 9, 3)
    with launched(programs=programs):
        got = run(device, tensors, grad, delta_softplus=True)
    # With slow decay and steps of 30 all tokens add up in the state.
    assert_norms(got, truth_of(tensors, grad, delta_softplus=True), {torch.float32: 1e-5})


def test_one_token_and_one_state(device):
    check(device, make(1, 1, 3, 1, torch.float32))


@pytest.mark.parametrize("raw", [-80.0, -15.0, -1.0, 0.0, 1.0, 21.0])
def test_a_step_keeps_its_digits(device, raw):
    x = torch.ones(1, 1, 1, device=device)
    step = selective_scan(x, raw * x, -x[0], x, x, delta_softplus=True, backend="triton").double()
    truth = torch.tensor(raw, dtype=torch.float64).exp().log1p() if raw < 20 else torch.tensor(raw).double()
    # The argument of exp2 is rounded by 6e-8 of itself, which is what its result is then off by.
    assert abs(step.cpu() - truth) <= (3e-7 + 1e-7 * abs(raw)) * truth


@pytest.mark.slow
@pytest.mark.parametrize(("programs", "reverse"), [(ONE, False), (MANY, True)])
def test_not_a_number_stays_in_its_row(device, chunk, programs, reverse):
    chunk(4)
    with launched(programs=programs):
        one, other = spoiled(device, make(2, 9, 3, 1, torch.float32), 4, reverse=reverse)
    for got in (one, other):
        assert not torch.isfinite(got["y"][0]).all() and torch.isfinite(got["y"][1]).all()
    assert_identical(*({name: of[name][1] for name in PER_TOKEN_AND_Y} for of in (one, other)))


@pytest.mark.parametrize(("programs", "reverse"), [(ONE, True), pytest.param(MANY, False, marks=pytest.mark.slow)])
def test_not_a_number_stays_in_its_packed_sequence(device, chunk, programs, reverse):
    """The one in the middle of three."""
    chunk(4)
    with launched(programs=programs):
        tensors = make(1, 12, 3, 1, torch.float32)
        one, other = spoiled(device, tensors, 6, reverse=reverse, cu_seqlens=[0, 5, 9, 12])
    for got in (one, other):
        assert not torch.isfinite(got["y"][:, 5:9]).all()
    for rows in (slice(0, 5), slice(9, 12)):
        assert torch.isfinite(one["y"][:, rows]).all()
        assert_identical(*({name: of[name][:, rows] for name in PER_TOKEN_AND_Y} for of in (one, other)))


def spoiled(device, tensors, token, **options):
    """Output and gradients with one infinite x of the first image, and with one step that is no number: whatever
    these do not reach is the same in both, bit for bit (torch.equal takes no NaN for another)."""
    for name, bad in {"x": float("inf"), "delta": float("nan")}.items():
        changed = tensors[name].clone()
        changed[0, token, 1] = bad
        yield run(device, tensors | {name: changed}, torch.ones(tensors["x"].shape), delta_softplus=True, **options)


# Layouts, and the same bits again


@each_way
def test_strided_inputs_and_gradients(device, reverse):
    """Halves and thirds of one projection are what a mixer hands in."""
    tensors, grad = make(2, 5, 4, 2, torch.float32), torch.randn(2, 4, 5).transpose(1, 2)
    truth = run(device, tensors, grad.contiguous(), delta_softplus=True, reverse=reverse)
    here = moved(tensors, device)
    nans = torch.full_like(here["x"], torch.nan)
    x, _, z = torch.cat([here["x"], nans, here["z"]], -1).chunk(3, -1)
    B, C = torch.cat([here["B"], here["C"]], -1).chunk(2, -1)
    delta = here["delta"].transpose(0, 1).contiguous().transpose(0, 1)
    strided = {**here, "x": x, "z": z, "B": B, "C": C, "delta": delta, "A": here["A"].T.contiguous().T}
    assert not any(strided[name].is_contiguous() for name in ("x", "z", "B", "C", "delta", "A"))
    leaves = {name: t.detach().requires_grad_() for name, t in strided.items()}
    y = scan(leaves, "triton", delta_softplus=True, reverse=reverse)
    y.backward(grad.to(device))
    assert_identical(moved({"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}, "cpu"), truth)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x", "delta", "z"])
def test_channels_that_are_not_innermost(device, name):
    tensors, grad = make(2, 3, 4, 1, torch.float32), torch.randn(2, 3, 4)
    truth = run(device, tensors, grad, delta_softplus=True)
    tensors[name] = tensors[name].transpose(1, 2).contiguous().transpose(1, 2)
    assert_identical(run(device, tensors, grad, delta_softplus=True), truth)


def test_parameters_of_any_stride(device):
    tensors, grad = make(1, 3, 4, 1, torch.float32), torch.randn(1, 3, 4)
    truth = run(device, tensors, grad, delta_softplus=True)
    strided = moved(tensors, device)
    for name in ("D", "delta_bias"):
        strided[name] = torch.stack([strided[name], strided[name] + 1], 1)[:, 0]
    leaves = {name: t.detach().requires_grad_() for name, t in strided.items()}
    y = scan(leaves, "triton", delta_softplus=True)
    y.backward(grad.to(device))
    assert_identical(moved({"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}, "cpu"), truth)


def test_expanded_gradient(device):
    tensors = make(1, 5, 3, 1, torch.float32)
    ones = run(device, tensors, torch.ones(1, 5, 3), delta_softplus=True)
    assert_identical(run(device, tensors, torch.ones(1, 1, 1).expand(1, 5, 3), delta_softplus=True), ones)


@pytest.mark.slow
@pytest.mark.parametrize("programs", [ONE, MANY])
def test_the_same_bits_again(device, chunk, programs):
    chunk(2)
    tensors, grad = make(1, 5, 40, 1, torch.float32), torch.randn(1, 5, 40)
    with launched(programs=programs):
        first, second = (run(device, tensors, grad, delta_softplus=True) for _ in range(2))
    assert_identical(second, first)


def test_inputs_stay_as_they_were(device):
    tensors = moved(make(1, 5, 3, 1, torch.float32), device)
    before = {name: t.clone() for name, t in tensors.items()}
    value_and_grads(tensors, "triton", torch.ones(1, 5, 3, device=device), delta_softplus=True)
    assert_identical(tensors, before)


# One node


def op_arguments(tensors, device, boundaries=None, reverse=False, save_for_backward=True):
    boundaries = None if boundaries is None else torch.tensor(boundaries, device=device)
    tensors = [moved(tensors, device)[name] for name in NAMES]
    return *tensors, None, boundaries, True, reverse, None, "triton", False, save_for_backward


@pytest.mark.parametrize("options", [
    {"reverse": True, "absent": ("D", "z", "delta_bias")},
    pytest.param({"boundaries": [0, 2, 3], "dtype": torch.bfloat16}, marks=pytest.mark.slow),
], ids=str)  # fmt: skip
def test_opcheck(device, options):
    tensors = make(1, 3, 3, 1, options.get("dtype", torch.float32)) | dict.fromkeys(options.get("absent", ()))
    arguments = op_arguments(tensors, device, options.get("boundaries"), options.get("reverse", False))
    leaves = [
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments
    ]
    torch.library.opcheck(torch.ops.longvision.selective_scan, leaves)
    y, _, states = torch.ops.longvision.selective_scan(*arguments)
    grads = torch.ones_like(y), None, states
    torch.library.opcheck(torch.ops.longvision.selective_scan_backward, (*grads, *arguments[:-2]))


@pytest.mark.parametrize("tokens, boundaries", [(3, None), (8, None), (9, None), (5, [0, 1, 5])])
def test_what_is_saved(device, chunk, tokens, boundaries):
    """As the fake says; nothing where there is no backward; the output is the same."""
    chunk(8)
    tensors = make(1, tokens, 3, 1, torch.float32)
    y, last, states = op._selective_scan(*op_arguments(tensors, device, boundaries))
    fake = op._selective_scan(*op_arguments(tensors, "meta", boundaries))
    assert [(t.shape, t.dtype) for t in (y, last, states)] == [(t.shape, t.dtype) for t in fake]
    assert torch.isfinite(states).all()
    without, _, none = op._selective_scan(*op_arguments(tensors, device, boundaries, save_for_backward=False))
    assert none.numel() == 0 and torch.equal(without, y)


def test_autocast_changes_nothing_inside(device):
    tensors, grad = make(1, 5, 4, 2, torch.float32), torch.randn(1, 5, 4)
    truth = run(device, tensors, grad, delta_softplus=True)
    with torch.autocast(device, torch.bfloat16):
        assert_identical(run(device, tensors, grad, delta_softplus=True), truth)


# The choice


def test_what_is_refused(monkeypatch):
    """Without a GPU and without the interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    end = "it needs an NVIDIA GPU; without this choice the fastest that fits is taken"
    with pytest.raises(ValueError) as error:
        scan(make(1, 3, 2, 2, torch.float32), "triton")
    assert str(error.value) == f"backend='triton' cannot take torch.float32 on cpu: {end}"
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "triton")
    with pytest.raises(ValueError) as error:
        scan(make(1, 3, 2, 2, torch.float32), None)
    assert str(error.value) == f"LONGVISION_SCAN_BACKEND='triton' cannot take torch.float32 on cpu: {end}"


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_float64_is_refused(monkeypatch, device, interpret):
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    with pytest.raises(ValueError, match=f"^backend='triton' cannot take torch.float64 on {device}: it needs"):
        scan(moved(make(1, 3, 2, 2), device), "triton")


@pytest.mark.parametrize("interpret", [None, "0", "1"])
def test_the_default_on_a_cpu_is_not_the_interpreter(monkeypatch, interpret):
    monkeypatch.delenv("LONGVISION_SCAN_BACKEND", raising=False)
    if interpret is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setattr("longvision.ops.common.has_cpu_kernels", lambda device, dtype: device == "cpu")
    assert choose_backend(None, "cpu", torch.float32) == "cpu"
    monkeypatch.setattr("longvision.ops.common.has_cpu_kernels", lambda device, dtype: False)
    assert choose_backend(None, "cpu", torch.float32) == "chunked"


@pytest.mark.parametrize("dtype, expected", [
    *((dtype, "triton") for dtype in (torch.float32, torch.bfloat16, torch.float16)),
    (torch.float64, "chunked"),
], ids=str)  # fmt: skip
def test_the_default_on_a_gpu(monkeypatch, dtype, expected):
    monkeypatch.setattr("longvision.ops.kernels.triton._starts_kernels", lambda: True)  # as on a machine that has one
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.delenv("LONGVISION_SCAN_BACKEND", raising=False)
    assert choose_backend(None, "cuda", dtype) == expected


# On a GPU


@pytest.mark.gpu
@each_way
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
@pytest.mark.parametrize("batch, tokens, width", [
    (8, 197, 384), (8, 577, 384), (1, 1000, 768), (1, 6085, 384), (128, 197, 384),
])  # fmt: skip
def test_large(cuda, batch, tokens, width, dtype, tolerance, reverse):
    tensors, grad = make(batch, tokens, width, 16, dtype), torch.randn(batch, tokens, width).to(dtype)
    got, again = (run(cuda, tensors, grad, delta_softplus=True, reverse=reverse) for _ in range(2))
    assert_identical(again, got)
    # The equations in float64 on the GPU, two rows at a time: they keep every state.
    for rows in (slice(0, 2), slice(max(batch - 2, 0), batch)):
        part = {name: t[rows] if t.ndim == 3 else t for name, t in tensors.items()}
        truth = value_and_grads(
            moved(in_double(part), cuda), "chunked", grad[rows].double().to(cuda), delta_softplus=True, reverse=reverse
        )
        per_token = ("y", "x", "delta", "B", "C", "z")
        names = per_token if batch > 2 else tuple(truth)  # sums over tokens are sums over all rows
        ours = {name: got[name][rows] if name in per_token else got[name] for name in names}
        assert_norms(ours, {name: truth[name].cpu() for name in names}, {dtype: tolerance})


@pytest.mark.gpu
@each_way
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
def test_large_packed(cuda, dtype, tolerance, reverse):
    tensors, grad = make(1, 1000, 384, 16, dtype), torch.randn(1, 1000, 384).to(dtype)
    options = {"delta_softplus": True, "reverse": reverse, "cu_seqlens": [0, 1, 197, 256, 577, 1000]}
    assert_norms(run(cuda, tensors, grad, **options), truth_of(tensors, grad, **options), {dtype: tolerance})


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [197, 1000])
def test_a_cuda_graph_gives_what_eager_gives(cuda, tokens):
    tensors = moved(make(1, tokens, 384, 16, torch.float32), cuda)
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    grad = torch.randn(1, tokens, 384, device=cuda)

    def step():
        y = scan(leaves, "triton", delta_softplus=True)
        return y, *torch.autograd.grad(y, list(leaves.values()), grad)

    assert_a_graph_repeats(step, leaves["x"])


@pytest.mark.gpu
def test_on_another_device_than_the_current_one(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    tensors, grad = make(1, 197, 64, 16, torch.float32), torch.randn(1, 197, 64)
    first = run("cuda:0", tensors, grad, delta_softplus=True)
    assert_identical(run("cuda:1", tensors, grad, delta_softplus=True), first)
