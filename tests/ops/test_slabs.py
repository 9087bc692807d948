"""A mixer in slabs against the same in one: over every border between slabs, and how little memory it takes."""

import pytest
import torch
from scan_cases import needs_compiler
from test_mamba_block import EPS, TOLERANCE, inputs_of
from test_mamba_inner import assert_near, make, make_walk

from longvision.ops import mamba_block, mamba_inner
from longvision.ops.kernels.cpp import memory
from longvision.ops.mamba_inner import slabs
from longvision.ops.mamba_inner.composed import composed
from longvision.ops.rms_norm.reference import rms_norm_reference

pytestmark = [pytest.mark.usefixtures("poison"), needs_compiler]


@pytest.fixture
def slab(monkeypatch):
    """slab(5): from now on, of five tokens, however few there are."""

    def of(tokens):
        monkeypatch.setattr(slabs, "SLAB", tokens)
        monkeypatch.setattr(slabs, "LEAST", 1)

    return of


@pytest.fixture
def runs(monkeypatch):
    """The numbers of tokens of the slabs that were run."""
    tokens, run = [], slabs.run
    monkeypatch.setattr(slabs, "run", lambda *args: (tokens.append(args[1].shape[1]), run(*args))[1])
    return tokens


@pytest.mark.parametrize("size", [1, 2, 5, 16, 33])
@pytest.mark.parametrize("ways", [(False,), (True,), (False, True), (True, True), (True, False)], ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_block_equals_the_ops_it_is_made_of(monkeypatch, slab, runs, size, ways, dtype, batch):
    x, norm_weight, mixer = inputs_of(33, ways, dtype, batch)
    slab(size)
    got = mamba_block(x, norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
    assert sorted(runs) == sorted([*[size] * (33 // size), *[33 % size] * (33 % size > 0)] * len(ways))
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "reference")
    double = mixer.changed(torch.Tensor.double)
    truth = composed(rms_norm_reference(x.double(), norm_weight.double(), EPS), *double[1:], None) + x.double()
    assert got.dtype == x.dtype
    assert_near({"y": got}, {"y": truth}, TOLERANCE[dtype])


@pytest.mark.parametrize("op", ["block", "inner"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_same_bits_as_in_one(slab, runs, op, dtype, batch):
    """A sum over a row is made in the same order, wherever the row is."""
    mixer = make(batch, 70, 19, (False, True), dtype)

    def call():
        if op == "inner":
            return mamba_inner(*mixer)
        return mamba_block(mixer.x, torch.ones(5, dtype=dtype), *mixer[1:])

    whole = call()
    slab(16)
    assert torch.equal(call(), whole) and len(runs) == 2 * 5


@pytest.mark.parametrize("taps", [1, 2, 8])
def test_a_filter_longer_than_a_slab(slab, taps):
    mixer = make(2, 33, 19, (False, True), torch.float64)
    mixer = mixer._replace(walks=[make_walk(19, taps=taps, reverse=way) for way in (False, True)])
    whole = mamba_inner(*mixer)
    slab(3)
    assert torch.equal(mamba_inner(*mixer), whole)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(slab, threads):
    mixer = make(2, 70, 130, (False, True), torch.float32)
    slab(16)
    before, alone = torch.get_num_threads(), mamba_inner(*mixer)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(mamba_inner(*mixer), alone)
    finally:
        torch.set_num_threads(before)


def test_not_where_a_backward_is_to_come_nor_without_projections(slab, runs):
    x, norm_weight, mixer = inputs_of(33, (False, True), batch=1)
    slab(5)
    mamba_block(x.clone().requires_grad_(), norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj)
    mamba_block(x, norm_weight, mixer.walks, mixer.in_proj, mixer.out_proj, torch.tensor([0, 7, 33]))
    mamba_inner(mixer.x, mixer.walks, mixer.in_proj)
    mamba_inner(torch.randn(1, 33, 38, dtype=torch.float64), mixer.walks, None, mixer.out_proj)
    assert runs == []


def test_only_for_many_tokens(runs):
    mixer = make(1, slabs.LEAST, 8, (False,), torch.float32)
    mamba_inner(mixer.x[:, 1:], *mixer[1:])
    assert runs == []
    mamba_inner(*mixer)
    assert runs == [slabs.SLAB] * (slabs.LEAST // slabs.SLAB)


def test_opcheck(slab):
    mixer = make(2, 33, 19, (False, True), torch.float32)
    slab(16)
    torch.library.opcheck(torch.ops.longvision.mamba_inner.default, mixer.of_the_op(None, keep=False))


@pytest.mark.skipif(memory.ADVICE is None, reason="mapped on Linux only")
@pytest.mark.parametrize("op", [mamba_block, mamba_inner])
def test_memory(monkeypatch, op):
    """Beside the result: half of what the input projection gives, and slabs."""
    store = memory._Store()
    monkeypatch.setattr(memory, "_store", store)
    tokens, dim, width = 16 * slabs.SLAB, 32, 64
    x, norm = torch.randn(1, tokens, dim), (torch.ones(dim),) if op is mamba_block else ()
    walks = [make_walk(width, reverse=way, dtype=torch.float32) for way in (False, True)]
    y = op(x, *norm, walks, torch.randn(2 * width, dim), torch.randn(dim, width))
    assert y.shape == x.shape
    assert store.most <= 4 * (tokens * (width + dim) + 6 * slabs.SLAB * width)
