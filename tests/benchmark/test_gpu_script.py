"""benchmarks/gpu.py as far as it goes without a GPU: a rehearsal, its budget, its peers' arithmetic."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longvision.layers import VimBlock
from longvision.ops import causal_conv1d, selective_scan

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.py"
linux = pytest.mark.skipif(not hasattr(os, "fork"), reason="measurements are forked")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu

    return gpu


def test_without_a_card_it_says_so(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.main(["--out", str(tmp_path / "out")]) == 1
    assert "nvidia-smi" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
@linux
def test_a_rehearsal_writes_every_row(tmp_path):
    command = [sys.executable, SCRIPT, "--dry-run", "--out", tmp_path, "--commit", "abc", "--budget", "1e6"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "gpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["device"], row["commit"]) for row in rows} == {("dry run", "abc")}
    tests, *others = rows
    assert tests["what"] == "tests" and tests["status"].startswith("ok: pytest")
    theirs = [row for row in others if row["model"] == "authors' kernels"]
    assert len(theirs) == 2 and all("causal_conv1d" in row["status"] for row in theirs)
    ours = [row for row in others if row["model"] != "authors' kernels"]
    assert {row["status"] for row in ours} == {"ok"} and all(float(row["ms_median"]) > 0 for row in ours)
    assert {(row["what"], row["dtype"], row["mode"]) for row in ours} == {
        (what, dtype, mode)
        for what in ("block nano", "model")
        for dtype in ("float32", "bfloat16")
        for mode in ("infer", "train")
    }
    assert all(row["times_ours"] == "1.0" for row in ours if row["model"] in ("longvision", "vim_nano_patch4_32"))
    assert all(row["times_ours"] for row in ours)


def make_job(gpu, number, model="longvision", status=None, ms=None):
    setting = {"what": f"block {number}", "size": 224, "batch": 1, "dtype": "float32", "mode": "infer", "model": model}
    return gpu.Job(setting, lambda: {"status": status or "ok"} | ({"ms_median": ms} if ms else {}))


def test_what_the_budget_leaves_out_is_named(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "run_apart", lambda measure: measure())
    rows, times = [], iter([0.0, 1.0, 9.9, 10.0, 11.0])
    gpu.run_jobs([make_job(gpu, number) for number in range(4)], rows.append, 10.0, lambda: next(times))
    assert [row["status"] for row in rows] == ["ok", "ok", "left out: 10 s are over", "left out: 10 s are over"]
    assert [row["what"] for row in rows] == [f"block {number}" for number in range(4)]


def test_what_is_most_telling_comes_first(gpu):
    settings = [job.setting for job in gpu.list_jobs(False, None)]
    firsts = {}
    for number, row in enumerate(settings):
        firsts.setdefault((row["what"].split()[0], row.get("dtype"), row["model"] == "authors' kernels"), number)
    assert sorted(firsts, key=firsts.get) == [
        ("tests", None, False),
        ("block", "bfloat16", False),
        ("model", "bfloat16", False),
        ("block", "bfloat16", True),
        ("block", "float32", False),
        ("model", "float32", False),
    ]


def test_others_are_multiples_of_ours(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "run_apart", lambda measure: measure())
    rows = []
    jobs = [make_job(gpu, 1, ms=2.0), make_job(gpu, 1, "theirs", ms=3.0), make_job(gpu, 2, "theirs", ms=3.0)]
    gpu.run_jobs(jobs, rows.append, 10.0)
    assert [row.get("times_ours") for row in rows] == [1.0, 1.5, None]


@linux
def test_a_measurement_that_crashes_costs_its_row_alone(gpu):
    assert gpu.run_apart(lambda: os.kill(os.getpid(), 9)) == {"status": "crashed: exit code -9"}
    assert gpu.run_apart(lambda: {"status": "ok"}) == {"status": "ok"}
    assert gpu.run_apart(lambda: 1 / 0) == {"status": "failed: division by zero"}


# The authors' kernels


def conv(x_BEM, weight_EK, bias_E, activation):
    assert activation == "silu" and x_BEM.stride(-1) == 1
    return causal_conv1d(x_BEM.transpose(1, 2), weight_EK, bias_E, silu=True).transpose(1, 2)


def scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
    assert all(t.stride(-1) == 1 for t in (delta, B, C, z))
    x, delta, B, C, z = (t.transpose(1, 2) for t in (u, delta, B, C, z))
    return selective_scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus).transpose(1, 2)


def norm(x, weight, bias, residual, eps, prenorm, residual_in_fp32):
    assert bias is None and prenorm and residual_in_fp32
    total = residual + x
    return torch.nn.functional.rms_norm(total, total.shape[-1:], weight.to(total.dtype), eps).to(x.dtype), total


def test_the_authors_functions_make_the_block(gpu):
    block = VimBlock(32)
    torch.nn.init.uniform_(block.norm.weight, 0.5, 1.5)
    x, branch = torch.randn(2, 2, 11, 32)
    stream, residual = x.clone().requires_grad_(), (x - branch).requires_grad_()
    expected, outputs = block(stream), gpu.authors_block(conv, scan, norm, block, branch, residual)
    torch.testing.assert_close(sum(outputs), expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected.square().sum(), [stream, *block.parameters()])
    got = torch.autograd.grad(sum(outputs).square().sum(), [residual, *block.parameters()])
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_authors_kernels_that_compute_something_else_are_not_timed(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "load_authors", lambda: (lambda x, *_, activation: x, scan, norm))
    row = gpu.measure_block((2, 5, 16), "float32", "infer", "cpu", True)
    assert row["status"].startswith("wrong: ") and "ms_median" not in row


def test_kernels_are_loaded_without_the_language_models_beside_them(gpu, tmp_path, monkeypatch):
    files = {
        "mamba_ssm/__init__.py": "raise ImportError('language models')",
        "mamba_ssm/ops/selective_scan_interface.py": "def selective_scan_fn(): pass",
        "mamba_ssm/ops/triton/layernorm.py": "def rms_norm_fn(): pass",
        "causal_conv1d/__init__.py": "def causal_conv1d_fn(): pass",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    try:
        names = [function.__name__ for function in gpu.load_authors()]
        assert names == ["causal_conv1d_fn", "selective_scan_fn", "rms_norm_fn"]
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_the_sources_are_built_for_this_device_alone(gpu, tmp_path, monkeypatch):
    flags = 'cc_flag.append(\'-gencode\')\ncc_flag.append("arch=compute_53,code=sm_53")\ncc_flag.append("-DX")\n'
    (tmp_path / "sources/mamba").mkdir(parents=True)
    (tmp_path / "sources/mamba/setup.py").write_text(flags)
    started = []
    monkeypatch.setattr(gpu.subprocess, "Popen", lambda command, env: started.append((command, env)))
    gpu.start_build(tmp_path / "sources", tmp_path / "built")
    ((command, env),) = started
    assert command[-1] == str(tmp_path / "built/mamba") and "--no-index" in command
    assert env["MAMBA_FORCE_BUILD"] == env["CAUSAL_CONV1D_FORCE_BUILD"] == "TRUE"
    assert (tmp_path / "built/mamba/setup.py").read_text() == 'pass\npass\ncc_flag.append("-DX")\n'
    assert (tmp_path / "sources/mamba/setup.py").read_text() == flags
