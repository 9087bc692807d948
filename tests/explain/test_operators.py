"""Kinds of torch's operators, and the time that a model spends in each."""

import pytest
import torch
from torch import nn

from longvision.explain.operators import kind_of, measure_operators


@pytest.mark.parametrize("operator, kind", [
    ("aten::addmm", "matrix products"), ("aten::bmm", "matrix products"), ("aten::linear", "matrix products"),
    ("aten::_scaled_dot_product_flash_attention_for_cpu", "matrix products"),
    ("aten::mkldnn_convolution", "convolutions"), ("aten::_slow_conv2d_forward", "convolutions"),
    ("longvision::causal_conv1d", "convolutions"), ("longvision::mixer", "scans"),
    ("longvision::rms_norm", "normalisation"),
    ("aten::native_layer_norm", "normalisation"), ("aten::_softmax", "softmax"),
    ("aten::add_", "element-wise"), ("aten::silu_", "element-wise"), ("aten::hardswish", "element-wise"),
    ("aten::copy_", "reshape and copy"), ("aten::_reshape_alias", "reshape and copy"), ("aten::t", "reshape and copy"),
    ("aten::max_pool2d_with_indices", "pooling and sums"), ("aten::mean", "pooling and sums"),
    ("aten::fft_fft2", "other"),
])  # fmt: skip
def test_kinds(operator, kind):
    assert kind_of(operator) == kind


def test_each_operator_s_own_time():
    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 4)).train()
    found = {one.name: one for one in measure_operators(model, torch.randn(2, 8))}
    assert found["aten::addmm"].calls == 2 and found["aten::gelu"].calls == 1  # of one call of the model
    assert found["aten::addmm"].bound == "compute" and found["aten::gelu"].bound == "memory"
    assert all(one.ms > 0 for one in found.values())
    assert not model.training
