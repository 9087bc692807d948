"""The same numbers (B, M, C), laid out in memory as callers lay them: shared by the tests of the ops."""

import torch

LAYOUTS = ("slice", "permuted", "expanded", "expanded channels")


def laid_out(x, layout):
    """x as a slice of more channels (NaN beside it) or with tokens contiguous; its first image for all, or its first
    channel, as the gradient of a sum over them lies."""
    if layout == "slice":
        beside = torch.full_like(x, torch.nan)
        out = torch.cat([beside, x, beside], -1)[..., x.shape[-1] : -x.shape[-1]]
    elif layout == "permuted":
        out = x.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "expanded":
        out = x[:1].expand(x.shape)
    else:
        out = x[..., :1].contiguous().expand(x.shape)
    assert not out.is_contiguous()
    return out
