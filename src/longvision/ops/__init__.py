"""What runs hot. Channels last, (B, M, E), everywhere; each op is one node for compile and export."""

from longvision.ops.causal_conv1d.op import causal_conv1d
from longvision.ops.selective_scan.op import selective_scan

__all__ = ["causal_conv1d", "selective_scan"]
