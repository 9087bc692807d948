"""What runs hot. Channels last, (B, M, E), everywhere; each op is one node for compile and export."""

from longvision.ops.causal_conv1d.op import causal_conv1d
from longvision.ops.common import check_cu_seqlens
from longvision.ops.cross_scan.op import cross_scan
from longvision.ops.kernels.cpp.allocator import release_memory
from longvision.ops.mixer.bound import BoundBlock, run_stack
from longvision.ops.mixer.inputs import ScanDirection
from longvision.ops.mixer.op import mixer
from longvision.ops.rms_norm.op import rms_norm
from longvision.ops.selective_scan.op import selective_scan

__all__ = [
    "BoundBlock",
    "ScanDirection",
    "causal_conv1d",
    "check_cu_seqlens",
    "cross_scan",
    "mixer",
    "release_memory",
    "rms_norm",
    "run_stack",
    "selective_scan",
]
