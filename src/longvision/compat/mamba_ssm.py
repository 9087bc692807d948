"""What other code imports from mamba_ssm (state-spaces/mamba, and its forks) and causal_conv1d, by its names."""

from longvision.compat.convolution import (
    causal_conv1d_fn,
    causal_conv1d_ref,
    causal_conv1d_update,
    causal_conv1d_update_ref,
)
from longvision.compat.inner import (
    bimamba_inner_fn,
    bimamba_inner_ref,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    mamba_inner_ref,
)
from longvision.compat.module import Mamba
from longvision.compat.scan import selective_scan_fn, selective_scan_ref, selective_state_update

__all__ = [
    "Mamba",
    "bimamba_inner_fn",
    "bimamba_inner_ref",
    "causal_conv1d_fn",
    "causal_conv1d_ref",
    "causal_conv1d_update",
    "causal_conv1d_update_ref",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "selective_scan_fn",
    "selective_scan_ref",
    "selective_state_update",
]
