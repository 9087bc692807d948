"""What the kernels are not written for is said, or done another way."""

import pytest
import torch

pytest.importorskip("triton.language")


from longvision.layers import VimBlock
from longvision.ops import selective_scan
from longvision.ops.kernels import triton as kernels
from longvision.ops.kernels.triton import scan
from support.scan_cases import assert_true, make, value_and_grads
from support.triton_cases import recorded


def test_more_states_than_a_backward_kernel_takes(device):
    """Its states come in slices, and their gradients together: 37 are slices of 16, 16 and 5."""
    tensors = {name: tensor.to(device) for name, tensor in make(1, 3, 3, 37, torch.float32).items()}
    grad = torch.randn(1, 3, 3, device=device)
    got = value_and_grads(tensors, "triton", grad, delta_softplus=True)
    truth = {name: tensor.cpu() for name, tensor in tensors.items()}
    assert_true(truth, grad.cpu(), {name: tensor.cpu() for name, tensor in got.items()}, delta_softplus=True)


def test_slices_are_at_most_so_many_states(device, monkeypatch):
    asked = []
    monkeypatch.setattr(scan, "_backward", lambda call, *rest: asked.append(call.states) or pytest.skip("seen"))
    tensors = {name: tensor.to(device) for name, tensor in make(1, 3, 2, 17, torch.float32).items()}
    try:
        value_and_grads(tensors, "triton", torch.ones(1, 3, 2, device=device), delta_softplus=True)
    except pytest.skip.Exception:
        assert asked == [16]
    else:
        pytest.fail("no slice was asked for")


def test_no_images(device):
    tensors = [None if t is None else t.to(device) for t in make(0, 4, 8, 2, torch.float32).values()]
    assert selective_scan(*tensors, backend="triton").shape == (0, 4, 8)


@pytest.mark.slow
def test_a_residual_that_lies_the_other_way_round(device, monkeypatch):
    """As a patch embedding without a class token gives it: the op's output is contiguous all the same."""
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "triton")
    block = VimBlock(4, state=1).to(device)
    x = torch.randn(2, 4, 4, device=device).transpose(1, 2)
    assert block(x).is_contiguous()
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x), rtol=0, atol=0)


def test_more_images_than_a_grid_takes():
    x = torch.empty(65_536, 1, 1, device="meta")
    with (
        recorded(),
        pytest.raises(ValueError, match=r"65536 images, .* 65535"),
    ):
        scan.forward(of_a_scan(x))


def test_a_row_longer_than_an_offset_of_32_bits():
    x = torch.empty(1, 2**21, 1024, device="meta")
    with recorded(), pytest.raises(ValueError, match=r"2097152 tokens in a row, 1024 numbers each, are more than the"):
        scan.forward(of_a_scan(x))


def test_a_row_is_as_long_as_it_lies_in_memory():
    """x is the half of x and z: its tokens are twice its width apart."""
    x, _ = torch.empty(1, 2**21, 1024, device="meta").chunk(2, dim=-1)
    with recorded(), pytest.raises(ValueError, match=r"2097152 tokens in a row, 1024 numbers each, are more than the"):
        scan.forward(of_a_scan(x))


def test_a_row_of_many_groups():
    """B and C of 64 groups with 16 states."""
    scanned = of_a_scan(torch.empty(1, 2**21, 64, device="meta"))
    pairs, rates = torch.empty(1, 2**21, 64, 16, 2, device="meta"), torch.empty(64, 16, device="meta")
    with recorded(), pytest.raises(ValueError, match=r"2097152 tokens in a row, 1024 numbers each, are more than the"):
        scan.forward(scanned._replace(BC_BMN2=pairs, A_EN=rates))


def test_images_are_as_far_apart_as_they_like():
    """Offsets of images are numbers of 64 bits: the longest rows that there may be, seven of them."""
    x, _ = torch.empty(7, 2**21 - 1, 1024, device="meta").chunk(2, dim=-1)
    with recorded() as found:
        scan.forward(of_a_scan(x))
    assert found[-1][0] == "scan_forward" and found[-1][1][-1] == 7


def of_a_scan(x):
    """Without memory."""
    pairs = torch.empty(*x.shape[:2], 2, 2, device="meta")
    rates = torch.empty(x.shape[2], 2, device="meta")
    return scan.Scan(x, x, pairs, rates, None, None, None, softplus="none", log_decay=False, reverse=False)


def test_a_gpu_without_what_starts_kernels_falls_back(monkeypatch, caplog):
    """On a machine without a C compiler Triton cannot start any: plain torch computes, and one line says so."""
    from triton.runtime import driver

    class Broken:
        def get_current_target(self):
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(driver, "_active", Broken(), raising=False)
    monkeypatch.setattr(type(driver), "active", Broken(), raising=False)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    kernels._starts_kernels.cache_clear()
    try:
        assert not kernels.available("cuda", torch.float32) and not kernels.available("cuda", torch.bfloat16)
    finally:
        kernels._starts_kernels.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "no Triton kernels on this GPU, plain torch computes the same more slowly: Failed to find C compiler"
    ]


def test_another_maker_s_gpu_gets_plain_torch(monkeypatch):
    monkeypatch.setattr(kernels, "_starts_kernels", lambda: True)
    for version, available in (("13.0", True), (None, False)):  # torch calls them all "cuda"
        monkeypatch.setattr("torch.version.cuda", version)
        assert kernels.available("cuda", torch.float32) == available
