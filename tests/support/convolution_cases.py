"""Tensors for the convolution's tests."""

import torch


def make(batch, tokens, width, taps, dtype=torch.float64):
    """-> x (B, M, E), weight (E, K) and bias (E,)."""
    return (
        torch.randn(batch, tokens, width, dtype=dtype),
        torch.randn(width, taps, dtype=dtype),
        torch.randn(width, dtype=dtype),
    )
