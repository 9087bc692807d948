"""Kinds of torch's operators, and the time that a model spends in each."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

from longvision.explain.operators import kind_of, measure_operators, operator_times


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
    *((f"aten::upsample_{way}", "reshape and copy") for way in ("bilinear2d", "linear1d", "nearest2d")),
    *((f"aten::{name}", "matrix products") for name in ("bilinear", "mkldnn_linear", "baddbmm")),
    *((f"aten::{name}", "element-wise") for name in (
        "addcmul_", "addcdiv", "rsub", "glu", "elu", "celu", "reciprocal", "minimum", "maximum", "log1p", "eq", "round",
    )),
    ("aten::max", "pooling and sums"), ("aten::cumsum", "pooling and sums"),
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


def test_the_profiler_s_setting_is_left_as_it_was(monkeypatch):
    for given in (None, "2"):
        monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
        if given is not None:
            monkeypatch.setenv("KINETO_LOG_LEVEL", given)
        measure_operators(nn.Linear(2, 2), torch.randn(1, 2))
        assert os.environ.get("KINETO_LOG_LEVEL") == given


def event(key, device, cpu_us, gpu_us, count=10):
    """As `profile.key_averages()` has them."""
    return SimpleNamespace(
        key=key, device_type=device, self_cpu_time_total=cpu_us, self_device_time_total=gpu_us, count=count
    )


@pytest.mark.parametrize("on_gpu, expected", [
    (True, {"aten::addmm": 8.0, "aten::gelu": 2.0}), (False, {"aten::gelu": 0.5, "aten::addmm": 0.2, "aten::t": 0.02}),
])  # fmt: skip
def test_kernels_are_not_counted_beside_their_operators(on_gpu, expected):
    """An operator has its kernels' time on a GPU, and they are events of their own, whose names may have :: too."""
    events = [
        event("aten::addmm", DeviceType.CPU, 1000, 40_000),
        event("aten::t", DeviceType.CPU, 100, 0),
        event("aten::gelu", DeviceType.CPU, 2500, 10_000),
        event("cudaLaunchKernel", DeviceType.CPU, 700, 0),
        event("void at::native::vectorized_elementwise_kernel<4, at::native::gelu>", DeviceType.CUDA, 0, 10_000),
        event("void cutlass::Kernel2<gemm>(cutlass::Params)", DeviceType.CUDA, 0, 40_000),
    ]
    found = operator_times(events, on_gpu)
    assert {one.name: one.ms for one in found} == pytest.approx(expected)
    assert [one.name for one in found] == list(expected) and found[0].calls == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_each_kernel_s_time_is_counted_once():
    """The sum is no more than the time that the device was at work between two events around the calls."""
    model, x = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(4))).cuda(), torch.randn(4096, 2048, device="cuda")
    found = measure_operators(model, x)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.inference_mode():
        begin.record()
        for _ in range(20):
            model(x)
        end.record()
    torch.cuda.synchronize()
    assert all(one.name.startswith("aten::") for one in found)
    assert sum(one.ms for one in found) < 1.5 * begin.elapsed_time(end) / 20
