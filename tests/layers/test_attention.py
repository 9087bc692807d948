"""Attention of packed images: a mask of all pairs says what it must be."""

from itertools import accumulate

import pytest
import torch
import torch.nn.attention.varlen
import torch.nn.functional as F

from longvision.layers import attention
from longvision.layers.attention import LayerNorm, TransformerBlock, _has_varlen, block_diagonal_attention

LENGTHS = [3, 1, 7, 2]
M, HEADS, WIDTH = sum(LENGTHS), 2, 4


def cu_seqlens(lengths=LENGTHS):
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def images_of(lengths):
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


def inputs(dtype=torch.float64, device="cpu"):
    return [torch.randn(M, HEADS, WIDTH * 2, dtype=dtype, device=device, requires_grad=True) for _ in range(3)]


def masked(q_NHd, k_MHd, v_MHd, asked=LENGTHS):
    """By a mask, and softmax written out."""
    others_NM = (images_of(asked)[:, None] != images_of(LENGTHS)).to(q_NHd.device)
    scores_HNM = torch.einsum("nhd,mhd->hnm", q_NHd, k_MHd) / q_NHd.shape[-1] ** 0.5
    scores_HNM = scores_HNM.masked_fill(others_NM, -torch.inf)
    return torch.einsum("hnm,mhd->nhd", scores_HNM.softmax(-1), v_MHd)


QUERIES = pytest.mark.parametrize("queries, asked", [(None, LENGTHS), (1, [1, 1, 1, 1])], ids=["as-keys", "one-each"])


@QUERIES
def test_each_attends_to_itself_alone(queries, asked):
    qkv = inputs()
    qkv[0] = qkv[0][: sum(asked)]
    got, truth = block_diagonal_attention(*qkv, cu_seqlens(), LENGTHS, queries), masked(*qkv, asked)
    torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(truth)
    for a, b in zip(torch.autograd.grad((got * weights).sum(), qkv), torch.autograd.grad((truth * weights).sum(), qkv)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@QUERIES
def test_what_torch_s_kernel_is_given(monkeypatch, queries, asked):
    """Its place is taken: on a CPU there is none."""

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
        assert query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and (max_q, max_k) == (max(asked), 7)
        assert cu_seq_q.tolist() == [0, *accumulate(asked)] and cu_seq_k.tolist() == [0, 3, 4, 11, 13]
        return masked(query, key, value, asked)

    q_MHd, k_MHd, v_MHd = torch.stack(inputs(torch.bfloat16), dim=1).unbind(1)
    given = q_MHd[: sum(asked)], k_MHd, v_MHd, cu_seqlens(), LENGTHS, queries
    truth = block_diagonal_attention(*given)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen_attn)
    monkeypatch.setattr(attention, "_has_varlen", lambda device, width: True)
    torch.testing.assert_close(block_diagonal_attention(*given), truth, rtol=0, atol=4e-2)


@pytest.mark.parametrize(
    "capability, has", [((7, 0), False), ((7, 5), False), ((8, 0), True), ((10, 0), True)], ids=str
)
def test_older_gpus_have_no_such_kernel(monkeypatch, capability, has):
    """V100 and T4, which train in 16-mixed."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert _has_varlen(torch.device("cuda"), 64) == has
    assert not _has_varlen(torch.device("cpu"), 64)


@pytest.mark.parametrize("width, has", [(4, False), (8, True), (12, False), (96, True), (256, True), (264, False)])
def test_widths_of_heads_that_its_kernel_takes(monkeypatch, width, has):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert _has_varlen(torch.device("cuda"), width) == has


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@QUERIES
def test_torch_s_kernel(queries, asked):
    qkv = inputs(torch.bfloat16, "cuda")
    qkv[0] = qkv[0][: sum(asked)]
    got = block_diagonal_attention(*qkv, cu_seqlens().cuda(), LENGTHS, queries)
    truth = masked(*(x.double() for x in qkv), asked)
    torch.testing.assert_close(got.double(), truth, rtol=0, atol=2e-2)  # bf16: 2**-8 of values up to four


@pytest.mark.parametrize("lengths", [LENGTHS, [M]], ids=str)
def test_a_block_of_packed_images(lengths):
    torch.manual_seed(0)
    block, x = TransformerBlock(16, 4).double(), torch.randn(1, M, 16, dtype=torch.float64)
    boundaries = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    alone = torch.cat([block(part) for part in x.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(block(x, boundaries, lengths), alone, rtol=1e-12, atol=1e-12)


def test_both_halves_are_dropped_image_by_image():
    block, lengths = TransformerBlock(8, 2, drop_path=0.5).double(), [2, 3, 1, 2] * 20
    x = torch.randn(1, sum(lengths), 8, dtype=torch.float64)
    boundaries = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    change = block.train()(x, boundaries, lengths) - x
    seen = set()
    for of_image, part in zip(change.split(lengths, dim=1), x.split(lengths, dim=1), strict=True):
        attended = part + 2 * block.attn(block.norm1(part))
        ways = {
            "neither": part,
            "attention": attended,
            "mlp": part + 2 * block.mlp(block.norm2(part)),
            "both": attended + 2 * block.mlp(block.norm2(attended)),
        }
        took = [name for name, way in ways.items() if torch.allclose(part + of_image, way, rtol=1e-9, atol=1e-9)]
        assert len(took) == 1
        seen.update(took)
    assert len(seen) == 4  # each of 80 images takes each way with probability 1/4


def test_low_precision_with_a_float32_residual():
    block, x = TransformerBlock(32, 4), torch.randn(2, 20, 32)
    truth = block(x) - x
    y = block.bfloat16()(x)
    assert y.dtype == torch.float32 and (y - x - truth).norm() < 10 * 2**-9 * truth.norm()


def test_the_norm_is_torch_s():
    norm, x = LayerNorm(6).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    assert torch.equal(norm(x), F.layer_norm(x, (6,), norm.weight, norm.bias, 1e-6))
