"""benchmarks/gpu.py as far as it goes without a GPU: its peers' arithmetic, its rows, its verdicts, its processes."""

import csv
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from longvision.layers import VimBlock
from longvision.ops import causal_conv1d, selective_scan

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(SCRIPTS))
import gpu  # noqa: E402
import gpu_building  # noqa: E402
import gpu_measure  # noqa: E402
import gpu_peers as peers  # noqa: E402
import gpu_processes  # noqa: E402
import gpu_rows  # noqa: E402
import gpu_targets  # noqa: E402
import gpu_timing  # noqa: E402
from gpu_processes import Job  # noqa: E402

ORIGIN = {name: f"some {name}" for name in gpu_rows.ORIGIN}
LATER = time.time() + 1000


@pytest.fixture
def table(tmp_path):
    return gpu_rows.Table(tmp_path / "results/gpu.csv", ORIGIN)


@pytest.fixture
def clock(monkeypatch):
    """Every sample takes 2 ms."""

    def stopwatch(device):
        return lambda call: call() or 0.002

    monkeypatch.setattr(gpu_timing, "stopwatch", stopwatch)


@pytest.fixture
def kernels():
    """Functions with the signatures and the layout of the authors'."""

    def conv(x_BEM, weight_EK, bias_E, activation):
        assert activation == "silu" and x_BEM.stride(-1) == 1
        return causal_conv1d(x_BEM.transpose(1, 2), weight_EK, bias_E, silu=True).transpose(1, 2)

    def scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
        assert all(t.stride(-1) == 1 for t in (delta, B, C, z))
        turned = (t.transpose(1, 2) for t in (u, delta, B, C, z))
        x, delta, B, C, z = turned
        return selective_scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus).transpose(1, 2)

    return peers.Kernels(conv, scan, peers.plain_norm, f"{peers.AUTHORS} (made up)")


# The peers compute what VimBlock computes


def assert_same_block(subject, block):
    x = torch.randn(2, 11, 32)
    inputs = [t.requires_grad_() for t in subject.split(x)]
    ours, theirs = gpu_measure.ours(block), subject.call(*inputs)
    stream = x.clone().requires_grad_()
    (expected,) = ours.call(stream)
    assert sum(theirs).shape == expected.shape
    torch.testing.assert_close(sum(theirs), expected, rtol=1e-5, atol=1e-5)
    leaves = list(block.parameters())
    wanted = torch.autograd.grad(expected.square().sum(), [stream, *leaves])
    got = torch.autograd.grad(sum(theirs).square().sum(), [*inputs, *leaves])
    for a, b in zip(got[-len(leaves) :], wanted[1:], strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    for gradient in got[: len(inputs)]:  # of either part of the stream it is the stream's
        assert (gradient - wanted[0]).norm() <= 1e-5 * wanted[0].norm()


def make_block():
    block = VimBlock(32)
    torch.nn.init.uniform_(block.norm.weight, 0.5, 1.5)
    return block


def test_the_launch_sequence_is_the_block():
    block = make_block()
    subject = gpu_measure.peer_of(block, "not here", torch.float32)
    assert_same_block(subject, block)
    assert subject.peer.startswith("launch sequence in torch ops, scan: longvision")
    assert peers.AUTHORS not in subject.peer and "not here" in subject.note


def test_the_authors_functions_make_the_block(kernels):
    block = make_block()
    subject = gpu_measure.peer_of(block, kernels, torch.float32)
    assert_same_block(subject, block)
    assert subject.peer.startswith(peers.AUTHORS)


# Measurements, on tiny sizes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("who", ["ours", "stand-in", "authors"])
def test_a_block_is_measured(clock, kernels, dtype, mode, who):
    found = {"ours": None, "stand-in": lambda: "none", "authors": lambda: kernels}[who]
    row = gpu_measure.measure_block(16, 5, 2, mode, dtype, "cpu", found)
    assert row["status"].startswith("ok") and row["median_us"] == 1000  # two inputs in 2 ms
    assert bool(row["peer"]) == (who != "ours")


def test_a_peer_that_computes_something_else_is_no_peer(clock, kernels, table):
    wrong = kernels._replace(conv=lambda x, *_, activation: x)
    row = gpu_measure.measure_block(16, 5, 2, "infer", "float32", "cpu", lambda: wrong)
    assert row["status"].startswith("wrong") and not gpu_rows.is_ok(row)


def test_models_and_memory_are_measured(clock, case, monkeypatch):
    monkeypatch.setattr(gpu_measure, "measure_peak", lambda call, device: (call(), 4_000_000))
    training = case(model="vim_nano_patch4_32", mode="train", dtype="bfloat16", batch=2)
    row = gpu_measure.measure_model(training)
    assert (row["status"], row["median_us"], row["peak_mb"]) == ("ok", 2000, 4.0)
    assert gpu_measure.measure_memory(training) == {"status": "ok", "peak_mb": 2.0}  # per image


def test_ceilings(clock):
    assert gpu_measure.measure_copy(2**12, "cpu")["status"] == "ok: 8.19e-06 TB/s, read and written"
    assert gpu_measure.measure_product(16, "cpu")["status"] == "ok: 1.64e-05 TFLOP/s"


def test_precision():
    errors = {mode: gpu_measure.measure_error("float32", mode, "cpu")["ratio"] for mode in ("output", "gradients")}
    assert 0 < max(errors.values()) < 1e-5 and errors["output"] != errors["gradients"]
    assert gpu_measure.measure_error("bfloat16", "output", "cpu")["ratio"] > 1e-4


def test_nan_is_the_worst_error(monkeypatch):
    nan = float("nan")
    monkeypatch.setattr(gpu_measure, "relative_errors", lambda *_: {"output": 0.0, "a": 1.0, "b": nan, "c": 2.0})
    assert str(gpu_measure.measure_error("float32", "gradients")["ratio"]) == "nan"
    monkeypatch.setattr(gpu_measure, "difference", lambda *_: nan)
    assert gpu_measure.measure_block(16, 5, 2, "infer", "float32", "cpu", lambda: "none")["status"].startswith("wrong")


def test_two_runs(monkeypatch):
    assert gpu_measure.run_twice(16, 9, 2, "float32", "cpu")["ratio"] == 0
    results = gpu_measure.results
    monkeypatch.setattr(
        gpu_measure, "results", lambda *of: {k: v + (k == "x") * torch.rand(()) for k, v in results(*of).items()}
    )
    row = gpu_measure.run_twice(16, 9, 2, "float32", "cpu")
    assert row["ratio"] == 1 and "x" in row["status"]


def test_inputs_outgrow_the_cache():
    for shape in ((128, 197, 192), (1, 6085, 192), (8, 6085, 384)):
        sets = gpu_measure.sets_of(shape)
        assert 2 <= sets <= 16 and sets * 4 * torch.Size(shape).numel() > 60e6  # an H200's L2


# Rows


def test_rows_survive_an_error(table):
    def fail():
        raise RuntimeError("this\nwent wrong")

    def exhaust():
        raise torch.OutOfMemoryError("CUDA out of memory")

    measures = [lambda: {"median_us": 5.0, "status": "ok"}, fail, exhaust, lambda: {"status": "ok"}]
    jobs = [Job({"what": str(i)}, measure) for i, measure in enumerate(measures)]
    assert gpu_processes.work(list(enumerate(jobs)), table, LATER) == 0
    with table.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok", "failed: this went wrong", "out of memory", "ok"]
    assert tuple(rows[0]) == gpu_rows.COLUMNS and rows[0]["median_us"] == "5.0" and rows[0]["device"] == "some device"


def test_a_broken_device_ends_the_process_and_keeps_the_row(table, monkeypatch):
    monkeypatch.setattr(gpu_processes, "usable", lambda: False)
    jobs = [Job({"what": str(i)}, lambda: {"status": "ok"}) for i in range(2)]
    assert gpu_processes.work(list(enumerate(jobs)), table, LATER) == gpu_processes.BROKEN
    assert [row["what"] for row in gpu_rows.read(table.path)] == ["0"]


def test_the_budget_skips(table):
    called = []
    job = Job({"what": "block"}, lambda: called.append(1) or {"status": "ok"})
    gpu_processes.work([(0, job), (1, job)], table, until=time.time() - 1)
    assert not called and [row["status"] for row in table.rows] == ["skipped: budget"] * 2


def test_what_waits_for_a_build_comes_later(table, monkeypatch):
    monkeypatch.setattr(gpu_processes, "is_building", lambda: len(table.rows) < 2)
    jobs = [Job({"what": name}, lambda: {"status": "ok"}, name == "peer") for name in ("peer", "a", "b", "c")]
    gpu_processes.work(list(enumerate(jobs)), table, LATER)
    assert [row["what"] for row in table.rows] == ["a", "b", "peer", "c"]


def test_rows_of_another_device_stay(table):
    table.add({"what": "block", "status": "ok"})
    other = gpu_rows.Table(table.path, {**ORIGIN, "device": "another"})
    other.start()
    other.add({"what": "model", "status": "ok"})
    again = gpu_rows.Table(table.path, ORIGIN)
    again.start()
    assert [row["what"] for row in gpu_rows.read(table.path)] == ["model"]


# What `gpu_processes.work` does, without the seconds that torch takes to be imported.
WORKER = """
import csv, os, sys, time
for number in sys.argv[1].split(","):
    print("=> job " + number, flush=True)
    if number == "1":
        os.abort()
    if number == "2":
        time.sleep(60)
    with open({path!r}, "a", newline="") as file:
        row = {{"what": number, "status": "ok", **{origin!r}}}
        csv.DictWriter(file, {columns!r}, lineterminator="\\n").writerow(row)
"""


def test_a_measurement_that_crashes_or_hangs_costs_its_row_alone(table, monkeypatch, tmp_path):
    assert gpu_processes.BEGINS == "=> job "
    monkeypatch.setattr(gpu_processes, "JOB_LIMIT", 2.5)
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(path=str(table.path), origin=ORIGIN, columns=gpu_rows.COLUMNS))
    jobs = [Job({"what": str(i)}, dict) for i in range(4)]
    table.start()
    gpu_processes.supervise(jobs, [sys.executable, str(script)], table, LATER)
    rows = [(row["what"], row["status"]) for row in gpu_rows.read(table.path)]
    assert rows == [("0", "ok"), ("1", "killed (signal 6)"), ("2", "killed: took too long"), ("3", "ok")]


def test_a_worker_that_does_not_start_is_not_asked_again(table):
    gpu_processes.supervise([Job({"what": "a"}, dict)], [sys.executable, "-c", "raise SystemExit(3)"], table, LATER)
    assert [row["status"] for row in table.rows] == ["failed before its first measurement: exit code 3"]


def test_commands_are_limited():
    code, out = gpu_processes.run([sys.executable, "-c", "print('said', flush=True); import time; time.sleep(60)"], 2.0)
    assert code is None and "said" in out
    assert gpu_processes.run([sys.executable, "-c", "raise SystemExit(9)"], 30.0)[0] == 9


# Verdicts


def of_block(peer="", median=None, status="ok", **more):
    where = {"what": "block", "model": "block Ti", "size": 224, "batch": 128, "dtype": "bfloat16", "mode": "train"}
    return {**where, "peer": peer, "median_us": median, "status": status, **more}


TARGET = next(t for t in gpu_targets.targets() if t.column == "ratio" and t.where.get("mode") == "train")


@pytest.mark.parametrize(
    "rows, word, figure",
    [
        ([of_block(median=50), of_block(peers.AUTHORS, 100)], "met", "0.5"),
        ([of_block(median=60), of_block(peers.AUTHORS, 100)], "not met", "0.6"),
        ([of_block(median=50), of_block(peers.STAND_IN, 100)], "not measured", f"0.5 of: {peers.STAND_IN}"),
        ([of_block(median=50), of_block(peers.AUTHORS, 100, "wrong: 2")], "not measured", "no peer to compare with"),
        ([of_block(median=50), of_block(peers.AUTHORS, 100, mode="infer")], "not measured", "no peer to compare with"),
        ([of_block(status="out of memory"), of_block(peers.AUTHORS, 100)], "not measured", "out of memory"),
        ([of_block(peers.AUTHORS, 100)], "not measured", "no row"),
    ],
)
def test_a_verdict_needs_the_authors_kernels(table, rows, word, figure):
    for row in rows:
        table.add(row)
    assert gpu_targets.verdict(TARGET, table.rows) == (word, figure)
    assert gpu_targets.summary(table.rows).count("\n") > len(gpu_targets.targets())


def test_models_are_held_against_the_faster_attention(table):
    shape = {"what": "model", "size": 2048, "batch": 1, "dtype": "bfloat16", "mode": "train", "status": "ok"}
    table.add({**shape, "model": gpu_rows.VIM, "median_us": 30})
    for peer, median in (("sdpa: default", 90), ("sdpa: cudnn", 60)):
        table.add({**shape, "model": gpu_rows.DEIT, "peer": peer, "median_us": median})
    assert table.rows[0]["ratio"] == "0.5" and table.rows[0]["baseline"] == f"{gpu_rows.DEIT}, sdpa: cudnn"
    target = next(t for t in gpu_targets.targets() if t.where.get("mode") == "train" and t.where["what"] == "model")
    assert gpu_targets.verdict(target, table.rows) == ("not met", "0.5")


def test_every_target_has_a_row_to_read():
    """A target that asks for what no job measures would never be met."""
    jobs = gpu.list_jobs(gpu.parse([]))
    for target in gpu_targets.targets():
        matches = [
            job for job in jobs if not job.columns.get("peer") and target.where.items() <= {**job.columns}.items()
        ]
        assert len(matches) == 1, target.text


# Beside the measurements


def test_without_a_gpu_it_says_so_and_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "no CUDA device" in err
    assert not (tmp_path / "out").exists()


def test_the_worker_gets_what_it_was_given(tmp_path):
    options = gpu.parse(["--out", str(tmp_path), "--peers", str(tmp_path), "--commit", "abc"])
    again = gpu.parse([*gpu.worker_command(options)[2:], "3,5"])
    assert again.jobs == [3, 5]
    assert vars(again) | {"jobs": None} == vars(options) | {"budget": again.budget}


def test_kernels_are_loaded_without_the_language_models_beside_them(tmp_path, monkeypatch):
    files = {
        "mamba_ssm/__init__.py": "raise ImportError('language models')",
        "mamba_ssm/ops/selective_scan_interface.py": "def selective_scan_fn(): pass",
        "mamba_ssm/ops/triton/layernorm.py": "def rms_norm_fn(*of, **more): return of, more",
        "causal_conv1d/__init__.py": "def causal_conv1d_fn(): pass",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(peers, "BUILT", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    try:
        kernels = gpu_building.find_kernels(built=False)
        assert kernels.label.startswith(peers.AUTHORS) and kernels.scan.__name__ == "selective_scan_fn"
        assert kernels.norm("x", "w", "r", 1e-5)[1]["residual"] == "r"
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_no_kernels_are_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "BUILT", tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "site-packages" not in place])
    monkeypatch.setattr(peers, "_skip_init", lambda package: None)
    assert gpu_building.find_kernels(built=False) == "not installed"
    (tmp_path / "outcome").write_text("mamba_ssm: error: no such architecture")
    assert gpu_building.find_kernels(built=True) == "mamba_ssm: error: no such architecture"


def test_sources_are_found_and_built_for_this_device(tmp_path):
    assert "causal_conv1d and mamba_ssm" in peers.build(tmp_path, tmp_path / "built", 1.0)
    source = tmp_path / "mamba_ssm-2.2.4"
    source.mkdir()
    flags = 'cc_flag.append("-gencode")\ncc_flag.append("arch=compute_53,code=sm_53")\ncc_flag.append("-DX")\n'
    (source / "setup.py").write_text(flags)
    with tarfile.open(tmp_path / "mamba_ssm-2.2.4.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    for found in (peers.find_source(tmp_path, "mamba*ssm*"), source):
        copy = peers._prepare(found, tmp_path / f"copy of {found.name}")
        assert (copy / "setup.py").read_text() == 'pass\npass\ncc_flag.append("-DX")\n'
    assert (source / "setup.py").read_text() == flags
