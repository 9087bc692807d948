"""The Triton kernels compiled ahead of time: nothing spilled at the usual shapes, few instructions a state."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = {
    *("norm_forward", "project", "scan_forward", "gate_backward", "scan_backward", "convolution_backward"),
    "norm_backward",
}
SPLIT = {"scan_ends", "scan_starts"}


MAIN = "Vim-Ti, 224 px, batch 128, training"
LONG = "Vim-Ti, 1248 px, batch 1, inference"


def compiled(out, *words):
    """-> rows of benchmarks/compiled.py, by a process that does not interpret kernels."""
    command = [sys.executable, ROOT / "benchmarks/compiled.py", "--out", out, *words]
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def every_row(tmp_path_factory):
    """Of several cases: a process takes seconds to start."""
    pytest.importorskip("triton")
    out = tmp_path_factory.mktemp("compiled") / "compiled.csv"
    return compiled(out, "--case", MAIN, LONG, "causal_conv1d", "rms_norm")


@pytest.fixture
def rows_of(every_row):
    """rows_of(name): those of the cases with it in their names."""

    def choose(name):
        found = [row for row in every_row if name in row["case"]]
        assert found, f"no case with {name}"
        return found

    return choose


@pytest.fixture
def main_rows(rows_of):
    return rows_of(MAIN)


def of(rows, kernel, architecture="sm_90"):
    found = [row for row in rows if row["kernel"] == kernel and row["architecture"] == architecture]
    assert found, f"no {kernel} for {architecture}"
    return found


def spilled(rows):
    return {(row["kernel"], row["architecture"]): row["spills"] for row in rows if row["spills"] != "0"}


def test_every_kernel_has_a_case(monkeypatch):
    pytest.importorskip("triton.language")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from compiled import launches, tokens_of_loops
    from compiled_cases import CASES

    sources = [path.read_text() for path in (ROOT / "src/longvision/ops/kernels/triton").glob("*.py")]
    started = {name for source in sources for name in re.findall(r"\blaunch\(\s*(\w+),", source)}
    every = [launch for case in CASES for launch in launches(case)]
    assert started == {launch.name for launch in every}
    assert all(0 not in (tokens_of_loops(launch) or ()) for launch in every)  # what instructions are divided by


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_90", "sm_80"])
def test_a_block_spills_nothing(main_rows, architecture):
    assert {row["kernel"] for row in main_rows if row["architecture"] == architecture} >= KERNELS
    assert spilled(main_rows) == {}


@pytest.mark.slow
def test_instructions_of_the_forward(main_rows):
    """An exponential, and some seven instructions beside it; no lane waits for another in the time loop."""
    for row in of(main_rows, "scan_forward"):
        assert 5 < float(row["per_state"]) <= 8.5 and 1 <= float(row["mufu"]) <= 1.1
        assert row["waits"] == "0" and row["shared_bytes"] == "0"


@pytest.mark.slow
def test_instructions_of_the_backward(main_rows):
    for row in of(main_rows, "scan_backward"):
        assert 15 < float(row["per_state"]) <= 32 and 2 <= float(row["mufu"]) <= 2.2


@pytest.mark.slow
def test_a_long_image_alone_is_split(rows_of):
    rows = rows_of(LONG)
    assert {row["kernel"] for row in rows} >= SPLIT
    assert spilled(rows) == {}
    for row in of(rows, "scan_ends"):
        assert float(row["per_state"]) <= 8 and row["waits"] == "0"


@pytest.mark.slow
def test_the_convolution_by_itself_spills_nothing(rows_of):
    rows = rows_of("causal_conv1d")
    assert {row["kernel"] for row in rows} == {"convolution_forward", "convolution_backward"}
    assert spilled(rows) == {}


@pytest.mark.slow
def test_norms_of_usual_widths_spill_nothing(rows_of):
    """With the residual sum, and without; at the most channels that it takes, the backward does."""
    rows = [row for row in rows_of("rms_norm") if "16384 channels" not in row["case"]]
    assert {row["kernel"] for row in rows} == {"norm_forward", "norm_backward"}
    assert spilled(rows) == {}


@pytest.mark.slow
def test_the_scan_by_itself_spills_nothing(tmp_path):
    """For one architecture: its backward takes 14 s to compile."""
    pytest.importorskip("triton")
    rows = compiled(tmp_path / "compiled.csv", "--case", "selective_scan, bfloat16", "--architecture", "90")
    assert {row["kernel"] for row in rows} == {"scan_forward", "gate_backward", "scan_backward"}
    assert spilled(rows) == {}
