"""What runs hot. Channels last, (B, M, E), everywhere; each op is one node for compile and export."""

from longvision.ops.causal_conv1d.op import causal_conv1d
from longvision.ops.kernels.cpp import release_memory
from longvision.ops.mamba_block.op import mamba_block
from longvision.ops.mamba_inner.op import mamba_inner
from longvision.ops.mamba_inner.walk import Walk
from longvision.ops.rms_norm.op import add_rms_norm, rms_norm
from longvision.ops.selective_scan.op import selective_scan

__all__ = [
    "Walk",
    "add_rms_norm",
    "causal_conv1d",
    "mamba_block",
    "mamba_inner",
    "release_memory",
    "rms_norm",
    "selective_scan",
]
