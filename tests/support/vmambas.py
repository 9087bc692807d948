"""Small VMambas of both versions, and one from a file."""

import pytest
import timm

TINY = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_classes": 5}
V0 = {"version": "v0", "state": 4, "ssm_ratio": 2.0, "mlp_ratio": 0.0}
BOTH = pytest.mark.parametrize("options", [{}, V0], ids=["v05", "v0"])


def from_file(path, name="vmamba_tiny_s1l8_224", **options):
    overlay = {"file": str(path), "num_classes": 10}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
