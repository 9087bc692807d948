"""A mixer in chunks against the same in one: over every boundary between chunks, and how little memory it takes."""

import pytest
import torch

from longvision.ops.kernels.cpp import allocator
from longvision.ops.mixer import cpu
from support.mixer_cases import MAKERS, assert_near, make, make_block, make_direction
from support.scan_cases import needs_compiler

pytestmark = [pytest.mark.usefixtures("poison"), needs_compiler]

TOLERANCE = {torch.float64: 5e-14, torch.float32: 1e-5, torch.bfloat16: 4e-2}  # as in test_mixer.py

mixer_and_block = pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)


@pytest.fixture
def chunk(monkeypatch):
    """chunk(5): from now on, of five tokens, however few there are."""

    def of(tokens):
        monkeypatch.setattr(cpu, "CHUNK", tokens)
        monkeypatch.setattr(cpu, "LEAST", 1)

    return of


@pytest.fixture
def asked(monkeypatch):
    """Of each call of the kernel: the tokens of a chunk, 0 for all at once."""
    chunks = []

    class Call(cpu._Call):
        def __init__(self, *args):
            chunks.append(args[-1])
            super().__init__(*args)

    monkeypatch.setattr(cpu, "_Call", Call)
    return chunks


@mixer_and_block
@pytest.mark.parametrize("size, ways, batch", [
    (1, (False, True), 1), (2, (True, False), 2), (5, (False,), 2), (5, (False, True), 2), (16, (True,), 1),
    (16, (True, True), 2), (33, (False, True), 1),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_equals_the_reference(chunk, asked, maker, size, ways, dtype, batch):
    case = maker(batch, 33, ways=ways, dtype=dtype)
    chunk(size)
    got = case.call()
    assert asked == [size]
    assert got.dtype == case.x.dtype
    assert_near({"y": got}, {"y": case.changed(torch.Tensor.double).truth()}, TOLERANCE[dtype])


@mixer_and_block
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_same_bits_as_in_one(chunk, asked, maker, dtype, batch):
    """A sum over a row is made in the same order, wherever the row is."""
    case = maker(batch, 70, dtype=dtype)
    whole = case.call()
    chunk(16)
    assert torch.equal(case.call(), whole) and asked == [0, 16]


@pytest.mark.parametrize("taps", [1, 2, 8])
def test_a_filter_longer_than_a_chunk(chunk, taps):
    case = make(2, 33, taps=taps)
    whole = case.call()
    chunk(3)
    assert torch.equal(case.call(), whole)


def test_threads(chunk, threads):
    case = make(2, 70, 130, dtype=torch.float32)
    chunk(16)
    threads(1)
    alone = case.call()
    threads(2)
    assert torch.equal(case.call(), alone)


def test_not_where_a_backward_is_to_come_nor_packed(chunk, asked):
    chunk(5)
    make_block(1, 33).leaves().call()
    make_block(1, 33, cu_seqlens=[0, 7, 33]).call()
    assert asked == [0, 0]


def test_only_for_many_tokens(asked):
    case = make(1, cpu.LEAST, 8, (False,), torch.float32)
    case._replace(x=case.x[:, 1:]).call()
    case.call()
    assert asked == [0, cpu.CHUNK]


def test_opcheck(chunk):
    case = make(2, 33, dtype=torch.float32)
    chunk(16)
    torch.library.opcheck(torch.ops.longvision.mixer.default, case.of_the_op(save_for_backward=False))


@pytest.mark.skipif(allocator.ADVICE is None, reason="mapped on Linux only")
@mixer_and_block
def test_memory(monkeypatch, maker):
    """Beside the result: half of what the input projection gives, and chunks."""
    store = allocator._Store()
    monkeypatch.setattr(allocator, "_store", store)
    tokens, dim, width = 16 * cpu.CHUNK, 32, 64
    case = maker(1, 1, width, dtype=torch.float32)
    case = case._replace(
        x=torch.randn(1, tokens, dim),
        in_proj=torch.randn(2 * width, dim),
        out_proj=torch.randn(dim, width),
        directions=[make_direction(width, reverse=way, dtype=torch.float32) for way in (False, True)],
        norm_weight=None if case.norm_weight is None else torch.ones(dim),
    )
    assert case.call().shape == case.x.shape
    assert store.most <= 4 * (tokens * (width + dim) + 6 * cpu.CHUNK * width)
