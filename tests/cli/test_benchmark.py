"""`longvision benchmark`: two whole measurements, an interruption, and every mistake of a user."""

import contextlib
import csv
import functools
import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longvision.benchmark import models, ops
from longvision_cli import benchmark
from longvision_cli.main import main

HELP_PROGRAM = """
import sys
from longvision_cli.main import main
try:
    code = main({words!r})
except SystemExit as exit:
    code = exit.code
heavy = sorted({{"torch", "timm", "numpy", "longvision", "matplotlib"}} & set(sys.modules))
sys.exit(f"imported {{heavy}}" if heavy else code)
"""


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def one_round(monkeypatch):
    monkeypatch.setattr(models, "Plan", functools.partial(models.Plan, rounds=1))


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_models_against_each_other(longvision, one_round):
    pair = "vim_nano_patch4_32,test_vit"
    answer = longvision("benchmark", "models", "--models", pair, "--sizes", "32,64", "--budget", 0.5, "--batch", 2)
    assert answer.code == 0, answer.err
    folder = Path(answer.out.splitlines()[-1])
    assert folder.name.startswith("benchmarks-2")
    assert sorted(path.name for path in folder.iterdir()) == ["models.csv", "models.png"]
    rows = read(folder / "models.csv")
    assert [(row["asked"], row["model"]) for row in rows] == [
        ("32", "vim_nano_patch4_32"),
        ("32", "test_vit"),
        ("64", "vim_nano_patch4_32"),
        ("64", "test_vit"),
    ]
    for row in rows:
        assert row["status"] == "ok"
        assert 0 < float(row["ms_q1"]) <= float(row["ms_median"]) <= float(row["ms_q3"])
        assert float(row["images_per_s"]) == pytest.approx(2e3 / float(row["ms_median"]), rel=0.01)
        assert row["threads"] == "1" and row["baseline"] == "test_vit" and row["batch"] == "2"
    assert float(rows[1]["time_ratio"]) == 1
    assert "vim_nano_patch4_32" in answer.out and "time ×" in answer.out
    assert answer.err.count("round 1 of 1: ") == 4


def test_operators_against_each_other(longvision):
    answer = longvision("benchmark", "ops", "--tokens", "5,9", "--channels", 8, "--budget", 0.05, "--out", "own")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == "own"
    rows = read(Path("own/ops.csv"))
    assert {"matrix products", "reference", "chunked"} <= {row["backend"] for row in rows}
    assert {row["tokens"] for row in rows} == {"5", "9"}
    assert all(row["status"] == "ok" or row["status"].startswith("not available") for row in rows)


def test_operators_in_float16(longvision, monkeypatch):
    """Those that take it: the kernels for the CPU do not."""
    some = {name: ops.scans()[name] for name in ("reference", "chunked", "cpu")}
    monkeypatch.setattr(ops, "scans", lambda: some)
    words = ["--tokens", "5", "--channels", 8, "--dtype", "float16", "--budget", 0.05, "--out", "own"]
    answer = longvision("benchmark", "ops", *words)
    assert answer.code == 0, answer.err
    statuses = {row["backend"]: row["status"] for row in read(Path("own/ops.csv"))}
    assert statuses["chunked"] == statuses["reference"] == statuses["matrix products"] == "ok"
    assert "torch.float16 on cpu: it needs float32, float64 or bfloat16" in statuses["cpu"]


def test_a_wrong_operator_ends_with_1(longvision, monkeypatch):
    def wrong(inputs, reverse, cu_seqlens):
        return inputs["x"] * 2

    monkeypatch.setattr(ops, "scans", lambda: {"wrong": ops.Scan(wrong)})
    answer = longvision("benchmark", "ops", "--tokens", "5", "--channels", 8, "--budget", 0.05, "--out", "own")
    assert answer.code == 1
    assert "wrong: output off by" in answer.out
    assert [row["status"][:6] for row in read(Path("own/ops.csv"))] == ["ok", "wrong:"]


def test_without_matplotlib_the_rows_still_come(longvision, one_round, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "longvision_cli.benchmark.find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    monkeypatch.setattr(models, "launch", lambda *_, **__: models.Round(seconds=[1.0], spent=1.0))
    answer = longvision("benchmark", "models", "--models", "test_vit", "--sizes", "32", "--out", "own")
    assert answer.code == 0
    assert [path.name for path in Path("own").iterdir()] == ["models.csv"]
    assert answer.err.splitlines()[-1] == "no picture: it needs matplotlib (pip install matplotlib)"


def test_an_interruption_keeps_what_is_measured(longvision, monkeypatch):
    answers = iter([models.Round(seconds=[1.0], spent=1.0)])

    def launch(*_, **__):
        for answer in answers:
            return answer
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "launch", launch)
    answer = longvision("benchmark", "models", "--models", "test_vit,test_resnet", "--sizes", "32", "--out", "own")
    assert answer.code == 130
    assert answer.err.endswith("longvision benchmark: interrupted\n")
    assert "test_vit" in answer.out
    assert [row["model"] for row in read(Path("own/models.csv"))] == ["test_vit"]
    answer = longvision("benchmark", "models", "--models", "test_vit", "--sizes", "32", "--out", "two")
    assert answer.code == 130
    assert not Path("two").exists()  # nothing was measured
    Path("mine").mkdir()
    assert longvision("benchmark", "models", "--models", "test_vit", "--sizes", "32", "--out", "mine").code == 130
    assert Path("mine").is_dir()


def test_the_opening_says_what_it_takes_and_where_results_go(longvision, monkeypatch):
    monkeypatch.setattr(models, "launch", lambda *_, **__: models.Round(seconds=[1.0], spent=1.0))
    words = ["--models", "test_vit,test_resnet", "--sizes", "32,64", "--budget", 90, "--out", "own/new"]
    answer = longvision("benchmark", "models", *words)
    assert answer.out.splitlines()[1:3] == [
        "4 cases × 90 s (--budget): at most 6 min; on top come 12 process starts of a few seconds each, and calls that "
        "alone take longer than a budget",
        "results: own/new/models.csv",
    ]
    assert answer.out.splitlines()[-1] == "own/new"
    some = {name: ops.scans()[name] for name in ("reference", "chunked")}
    monkeypatch.setattr(ops, "scans", lambda: some)
    answer = longvision("benchmark", "ops", "--tokens", 5, "--channels", 8, "--budget", 0.05, "--out", "ops")
    cases = 1 + len(ops.scans())
    assert (
        f"\n{cases} cases × 0.05 s (--budget): at most {0.05 * cases:.3g} s; on top come the checks of the backends"
        in answer.out
    )
    assert "\nresults: ops/ops.csv\n" in answer.out


def test_models_under_a_head(longvision, one_round):
    words = [
        "--models",
        "deit_tiny_patch16_224",
        "--sizes",
        "32",
        "--budget",
        0.5,
        "--head",
        "cascade",
        "--mode",
        "train",
    ]
    answer = longvision("benchmark", "models", *words, "--out", "own")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("train with cascade, batch 1, float32")
    assert "\nsize  model with cascade  " in answer.out
    (row,) = read(Path("own/models.csv"))
    assert (row["status"], row["head"], row["gmacs"], row["attention"]) == ("ok", "cascade", "", "sdpa")


def test_the_opening_is_there_before_the_first_row(longvision, monkeypatch):
    """Also where the output is no terminal, which is written late: a process that is killed has said it."""

    class Output(io.StringIO):
        def flush(self):
            flushed.append(self.getvalue())

    flushed = []

    def launch(*_, **__):
        assert "results: own/models.csv\n" in flushed[-1]
        return models.Round(seconds=[1.0], spent=1.0)

    monkeypatch.setattr(models, "launch", launch)
    with contextlib.redirect_stdout(Output()):
        assert main(["benchmark", "models", "--models", "test_vit", "--sizes", "32", "--out", "own"]) == 0


def test_nothing_measured_is_a_failure(longvision, monkeypatch):
    monkeypatch.setattr(models, "launch", lambda *_, **__: models.Round("over budget: no call in 5 s", spent=5.0))
    words = ["--models", "test_vit", "--sizes", "32", "--budget", 1, "--out", "own"]
    answer = longvision("benchmark", "models", *words)
    assert answer.code == 1
    assert answer.out.splitlines()[1].startswith("1 case × 1 s (--budget): at most 1 s; ")
    assert answer.out.splitlines()[-1] == "own"
    assert answer.err.splitlines()[1:] == [
        "nothing was measured, the table says why: raise --budget, or measure something smaller"
    ]
    assert [path.name for path in Path("own").iterdir()] == ["models.csv"]  # no picture of nothing
    assert [row["status"][:11] for row in read(Path("own/models.csv"))] == ["over budget"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_ctrl_c_ends_the_worker_too(tmp_path, hear_ctrl_c):
    """Sent to the command alone: a terminal would send it to both."""
    words = ["--models", "vit_large_patch16_224", "--sizes", "512", "--batch", "8", "--out", "own"]
    program = [sys.executable, "-m", "longvision", "benchmark", "models", *words]
    command = subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)
    deadline = time.monotonic() + 60
    while not (workers := _children(command.pid)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(workers) == 1
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=30)
    assert command.returncode == 130
    assert err.endswith("longvision benchmark: interrupted\n")
    assert "Traceback" not in err
    assert not Path(f"/proc/{workers[0]}").exists()
    assert not (tmp_path / "own").exists()


def _children(process):
    """Of a process, those that run a worker."""
    found = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
            words = Path(f"/proc/{number}/cmdline").read_text()
        except OSError:  # gone meanwhile
            continue
        if parent == process and "longvision.benchmark.worker" in words:
            found.append(number)
    return found


@pytest.mark.parametrize("words", [["benchmark"], ["benchmark", "--help"], ["benchmark", "models", "--help"]])
def test_help_is_quick_and_shows_examples(words):
    program = [sys.executable, "-c", HELP_PROGRAM.format(words=words)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: longvision benchmark")
    if len(words) < 3:
        assert "longvision benchmark models --sizes 512,1248 --mode train" in done.stdout
        assert "longvision benchmark ops --tokens 197,6085" in done.stdout


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_the_default_models_can_be_copied_from_the_help(longvision, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    answer = longvision("benchmark", "models", "--help")
    assert f"\n  --models {benchmark.MODELS}\n" in answer.out


@pytest.mark.parametrize(
    "part, phrases",
    [
        ("models", ["multiples of 16", "224:1024 is 224,384,512,768,1024", "for each case", "on top (default: 60)"]),
        ("ops", ["197 at 224 pixels", "Vim-Ti's is 384", "Vim's are 16", "sequences a call", "on top (default: 20)"]),
    ],
)
def test_the_help_says_what_numbers_mean(longvision, part, phrases):
    text = " ".join(longvision("benchmark", part, "--help").out.split())
    assert [phrase for phrase in phrases if phrase not in text] == []


@pytest.mark.parametrize("words", ["models --batch 0", "models --budget 0", "ops --tokens x", "ops --states ²"])
def test_numbers_are_refused_before_anything_heavy_is_imported(words):
    program = [sys.executable, "-c", HELP_PROGRAM.format(words=["benchmark", *words.split()])]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr


@pytest.mark.parametrize(
    "words, expected",
    [
        ("modles", "there is no benchmark 'modles': did you mean models?"),
        ("zzz", "there is no benchmark 'zzz': choose one of models, ops"),
        ("models --size 3", "unknown option --size: did you mean --sizes"),
        ("models --sizes 0", "--sizes '0': expected image sides in pixels, above 0, such as 224,512,1248, or a range"),
        ("models --sizes=", "--sizes '': expected image sides in pixels"),
        ("models --models vim_tinny_patch16_224", "did you mean vim_tiny_patch16_224"),
        ("models --models test_vit+fast", "unknown variant 'fast' of test_vit"),
        ("models --models ,", "--models is empty"),
        ("models --batch 0", "argument --batch: '0' is not a whole number above 0"),
        ("models --batch -3", "argument --batch: '-3' is not a whole number above 0"),
        ("models --batch x", "argument --batch: 'x' is not a whole number above 0"),
        ("models --batch ²", "argument --batch: '²' is not a whole number above 0"),
        ("models --budget x", "argument --budget: 'x' is not a number of seconds above 0, such as 60"),
        ("models --budget 0", "argument --budget: '0' is not a number of seconds above 0"),
        ("models --budget nan", "argument --budget: 'nan' is not a number of seconds above 0"),
        ("models --budget inf", "argument --budget: 'inf' is not a number of seconds above 0"),
        ("models --mode x", "--mode 'x' is unknown"),
        ("models --dtype x", "--dtype 'x' is unknown"),
        ("models --head x", "--head 'x' is unknown: expected one of fpn, cascade"),
        ("models --device x", "--device 'x' is unknown"),
        ("models --out full", "--out full is not empty"),
        ("models --out file", "--out file: file is a file, not a folder: give a new folder"),
        ("models --out file/x/y", "--out file/x/y: file is a file, not a folder: give a new folder"),
        ("models 3", "'3' is one argument too many"),
        ("ops --tokens x", "--tokens 'x': expected whole numbers above 0, separated by commas, such as 197,1025"),
        ("ops --tokens ²", "--tokens '²': expected whole numbers above 0"),
        ("ops --tokens 5,0", "--tokens '5,0': expected whole numbers above 0"),
        ("ops --channels 7", "--channels 7: expected an even number"),
        ("ops --dtype x", "--dtype 'x' is unknown: expected one of float32, float64, bfloat16, float16"),
        ("ops --out full", "--out full is not empty"),
    ],
)
def test_mistakes(longvision, monkeypatch, words, expected):
    def launch(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(models, "launch", launch)
    Path("full").mkdir()
    Path("full/x").write_text("")
    Path("file").write_text("")
    answer = longvision("benchmark", *words.split())
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("longvision benchmark: error: ") and answer.err.count("\n") == 1
    assert expected in answer.err
    assert sorted(path.name for path in Path().iterdir()) == ["file", "full"]
