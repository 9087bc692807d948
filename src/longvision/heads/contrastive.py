"""CLIP's contrastive loss of image-text pairs (arXiv 2103.00020) over all ranks, a chunk of its rows at a time."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def contrastive_loss(image_BE: Tensor, text_BE: Tensor, scale: Tensor | float, chunk: int = 1024) -> Tensor:
    """Mean cross-entropy of each image's own text among all texts, and of each text's own image among all images.

    The N x N similarities are never there at once, neither in the backward pass: a rank holds `chunk` x N of them.
    NaViT (arXiv 2307.06304) trains so too.

    Where training is distributed, N is what there is on all ranks, which may differ in their number of pairs, and all
    return the same loss; the gradient, averaged over ranks as DDP does, is that of one process with all pairs.

    Args:
        image_BE: an embedding of each image, of length one as `torch.nn.functional.normalize` gives.
        text_BE: of each image's text.
        scale: what similarities are multiplied by, one over the temperature; CLIP learns its logarithm.
        chunk: rows that are compared at once.

    Raises:
        ValueError: not as many texts as images, widths that differ, no pairs, or no rows in a chunk.
    """
    if image_BE.ndim != 2 or image_BE.shape != text_BE.shape or not image_BE.shape[0]:
        raise ValueError(
            f"embeddings of shapes {tuple(image_BE.shape)} and {tuple(text_BE.shape)}: expected (pairs, width) of "
            "both, with at least one pair"
        )
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: expected at least one row")
    dtype = torch.promote_types(image_BE.dtype, torch.float32)
    scale = torch.as_tensor(scale, dtype=dtype, device=image_BE.device)
    with torch.autocast(image_BE.device.type, enabled=False):
        return _ContrastiveLoss.apply(image_BE.to(dtype), text_BE.to(dtype), scale, chunk)


class _ContrastiveLoss(torch.autograd.Function):
    """With P_ij and Q_ij the softmax of s * a_i b_j over texts and over images, the gradient for image a_i is
    s / 2N * (sum_j (P_ij + Q_ij) b_j - 2 b_i), and the same turned round for text b_j."""

    @staticmethod
    def forward(ctx: Any, a_BE: Tensor, b_BE: Tensor, scale: Tensor, chunk: int) -> Tensor:
        a_NE, b_NE = _from_all_ranks(a_BE), _from_all_ranks(b_BE)
        lse_a_B, lse_b_B = _logsumexp(a_BE, b_NE, scale, chunk), _logsumexp(b_BE, a_NE, scale, chunk)
        lse_a_N, lse_b_N = _from_all_ranks(lse_a_B), _from_all_ranks(lse_b_B)
        ctx.save_for_backward(a_BE, b_BE, scale, a_NE, b_NE, lse_a_B, lse_b_B, lse_a_N, lse_b_N)
        ctx.chunk = chunk
        own_N = (a_NE * b_NE).sum(dim=1) * scale
        return ((lse_a_N + lse_b_N) / 2 - own_N).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        a_BE, b_BE, scale, a_NE, b_NE, lse_a_B, lse_b_B, lse_a_N, lse_b_N = ctx.saved_tensors
        pull_a_BE = _weighted_sum(a_BE, b_NE, scale, lse_a_B, lse_b_N, ctx.chunk) - 2 * b_BE
        pull_b_BE = _weighted_sum(b_BE, a_NE, scale, lse_b_B, lse_a_N, ctx.chunk) - 2 * a_BE
        share = grad * _ranks() / (2 * len(a_NE))  # gradients are averaged over ranks, and this is one rank's addend
        return share * scale * pull_a_BE, share * scale * pull_b_BE, share * (a_BE * pull_a_BE).sum(), None


def _logsumexp(rows_BE: Tensor, columns_NE: Tensor, scale: Tensor, chunk: int) -> Tensor:
    """(B,)"""
    return torch.cat([_logits(rows_CE, columns_NE, scale).logsumexp(1) for rows_CE in rows_BE.split(chunk)])


def _logits(rows_CE: Tensor, columns_NE: Tensor, scale: Tensor) -> Tensor:
    """(C, N). Scaled last: a pair's are the same, whichever of the two is the row."""
    return (rows_CE @ columns_NE.mT).mul_(scale)


def _weighted_sum(
    rows_BE: Tensor, columns_NE: Tensor, scale: Tensor, lse_rows_B: Tensor, lse_columns_N: Tensor, chunk: int
) -> Tensor:
    """(B, E): of the columns, weighted by their softmax in the row, plus the row's in their column."""
    sums = []
    for rows_CE, lse_C in zip(rows_BE.split(chunk), lse_rows_B.split(chunk)):
        logits_CN = _logits(rows_CE, columns_NE, scale)
        weights_CN = (logits_CN - lse_C[:, None]).exp_()
        weights_CN += logits_CN.sub_(lse_columns_N).exp_()
        sums.append(weights_CN @ columns_NE)
    return torch.cat(sums)


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _from_all_ranks(own: Tensor) -> Tensor:
    """(B, ...) -> (N, ...), rank by rank; each may have another B."""
    if _ranks() == 1:
        return own
    count = torch.tensor([len(own)], device=own.device)
    counts = [torch.empty_like(count) for _ in range(_ranks())]
    dist.all_gather(counts, count)
    lengths = [int(length) for length in counts]
    padded = own.new_zeros(max(lengths), *own.shape[1:])
    padded[: len(own)] = own
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:length] for part, length in zip(gathered, lengths)])
