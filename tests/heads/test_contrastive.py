"""The contrastive loss in chunks and over ranks: what the whole matrix gives in one process."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from longvision.heads.contrastive import contrastive_loss


def pairs(count, width=6, dtype=torch.float64):
    a, b = (F.normalize(torch.randn(count, width, dtype=dtype), dim=1).requires_grad_() for _ in range(2))
    return a, b, torch.tensor(9.0, dtype=dtype, requires_grad=True)


def full(a, b, scale):
    logits, own = scale * a @ b.mT, torch.arange(len(a))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.mT, own)) / 2


def with_gradients(loss, inputs):
    return [loss.detach(), *torch.autograd.grad(3 * loss, inputs)]


@pytest.mark.parametrize("count, chunk", [(1, 1), (7, 1), (7, 3), (7, 7), (40, 16), (7, 100)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_in_chunks_it_is_the_full_one(count, chunk, dtype, tolerance):
    """Values and gradients, also those of the scale; sums in another order."""
    inputs = pairs(count, dtype=dtype)
    got = with_gradients(contrastive_loss(*inputs, chunk), inputs)
    for found, expected in zip(got, with_gradients(full(*inputs), inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_a_large_scale_does_not_overflow():
    a, b, _ = pairs(30, dtype=torch.float32)
    inputs = a, b, torch.tensor(1000.0, requires_grad=True)
    got = with_gradients(contrastive_loss(*inputs, 8), inputs)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    for found, expected in zip(got, with_gradients(full(*wide), wide), strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)  # logits of 1000: 2**-14 each


def test_half_precision_is_computed_in_float32():
    a, b, scale = pairs(20, dtype=torch.float32)
    halves = a.bfloat16(), b.bfloat16()
    truth = full(*(x.float() for x in halves), scale)
    with torch.autocast("cpu", torch.bfloat16):
        got = contrastive_loss(*halves, scale)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, truth, rtol=1e-6, atol=1e-6)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


@pytest.mark.parametrize("chunk", [5, 10, 20])
def test_nothing_is_larger_than_a_chunk_of_rows(chunk):
    inputs = pairs(200, width=4)
    with Largest() as largest:
        contrastive_loss(*inputs, chunk).backward()
    assert largest.numbers == chunk * 200


@pytest.mark.parametrize(
    "a, b, chunk, named",
    [
        ((3, 4), (2, 4), 8, r"\(2, 4\)"),
        ((3, 4), (3, 5), 8, r"\(3, 5\)"),
        ((0, 4), (0, 4), 8, r"\(0, 4\)"),
        ((3, 4), (3, 4), 0, "chunk=0"),
    ],
    ids=str,
)
def test_what_does_not_fit(a, b, chunk, named):
    with pytest.raises(ValueError, match=named):
        contrastive_loss(torch.zeros(a), torch.zeros(b), 1.0, chunk)


# Each rank has its part of the pairs, embedded by one shared layer, whose gradient is averaged over ranks.
PROGRAM = """
import json, sys
import torch, torch.distributed as dist
from longvision.heads.contrastive import contrastive_loss
torch.set_num_threads(1)
rank, found = int(sys.argv[1]), []
dist.init_process_group("gloo", f"file://{sys.argv[2]}", rank=rank, world_size=2)
for counts in json.loads(sys.argv[3]):
    torch.manual_seed(0)
    x, y, weight = (torch.randn(*shape, dtype=torch.float64) for shape in ((sum(counts), 5), (sum(counts), 5), (5, 3)))
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(x[own] @ weight.requires_grad_(), y[own] @ weight, scale, 2)
    loss.backward()
    for p in (weight, scale):
        dist.all_reduce(p.grad)
    found.append([loss.item(), (weight.grad / 2).tolist(), scale.grad.item() / 2])
print(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_over_two_processes_it_is_that_of_one(tmp_path):
    """On each the loss of all pairs, and the gradient that DDP's average makes of theirs, to rounding."""
    shared = [[4, 4], [5, 2]]
    started = []
    for rank in ("0", "1"):
        command = [sys.executable, "-c", PROGRAM, rank, str(tmp_path / "meet"), json.dumps(shared)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    done = [process.communicate(timeout=300) for process in started]
    assert all(process.returncode == 0 for process in started), done
    for i, counts in enumerate(shared):
        torch.manual_seed(0)
        shapes = (sum(counts), 5), (sum(counts), 5), (5, 3)
        x, y, weight = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
        scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
        loss = full(x @ weight.requires_grad_(), y @ weight, scale)
        loss.backward()
        for out, _ in done:
            value, of_weight, of_scale = json.loads(out.splitlines()[-1])[i]
            assert (value, of_scale) == pytest.approx((loss.item(), scale.grad.item()), rel=1e-9)
            of_weight = torch.tensor(of_weight, dtype=torch.float64)
            torch.testing.assert_close(of_weight, weight.grad, rtol=1e-10, atol=1e-12)
