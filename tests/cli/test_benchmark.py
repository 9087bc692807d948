"""`longvision benchmark`: whole measurements, an interruption, and every mistake of a user."""

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
from longvision.benchmark.case import Round
from longvision.benchmark.plan import ModelsPlan
from longvision.benchmark.worker import run_round
from longvision_cli import benchmark_options
from longvision_cli.main import main

ONE = Round(seconds=[1.0], spent=1.0, threads=1)
OPS = ("ops", "--tokens", "5", "--channels", 8, "--budget", 1e-9, "--out", "own")


@pytest.fixture
def here(monkeypatch):
    """Cases run once and in this process, and no first call takes too long."""
    monkeypatch.setattr(models, "launch", lambda case, share, _, measure_memory: run_round(case, share, 1e6, True))
    monkeypatch.setattr(benchmark_options, "ModelsPlan", functools.partial(ModelsPlan, rounds=1))


@pytest.fixture
def answers(monkeypatch):
    """answers(Round(...), ...): what the processes of cases find out; then comes Ctrl-C."""

    def prepare(*rounds):
        left = iter(rounds)

        def launch(*_, **__):
            for done in left:
                return done
            raise KeyboardInterrupt

        monkeypatch.setattr(models, "launch", launch)

    return prepare


@pytest.fixture
def few_scans(monkeypatch):
    """few_scans("reference") measures no more backends than named, those given by name=scan too."""
    known = ops.scans()

    def choose(*names, **more):
        monkeypatch.setattr(ops, "scans", lambda: {name: known[name] for name in names} | more)

    return choose


def read(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def test_models_against_each_other(longvision, here):
    words = ["--models", "vim_nano_patch4_32,test_vit", "--sizes", "32,64", "--budget", 1e-9, "--batch", 2]
    answer = longvision("benchmark", "models", *words)
    assert answer.code == 0, answer.err
    folder = Path(answer.out.splitlines()[-1])
    assert folder.name.startswith("benchmarks-2")
    assert sorted(path.name for path in folder.iterdir()) == ["models.csv", "models.png"]
    rows = read(folder / "models.csv")
    pairs = [(size, model) for size in ("32", "64") for model in ("vim_nano_patch4_32", "test_vit")]
    assert [(row["requested"], row["model"]) for row in rows] == pairs
    for row in rows:
        assert (row["status"], row["baseline"], row["batch"], row["threads"]) == ("ok", "test_vit", "2", "1")
        assert 0 < float(row["ms_q1"]) <= float(row["ms_median"]) <= float(row["ms_q3"])
        assert float(row["images_per_s"]) == pytest.approx(2e3 / float(row["ms_median"]), rel=0.01)
    assert float(rows[1]["time_ratio"]) == 1
    assert "vim_nano_patch4_32" in answer.out and "time ×" in answer.out
    assert answer.err.count("round 1 of 1: ") == 4


@pytest.mark.slow
def test_models_under_a_head(longvision, here):
    words = ["--models", "vim_nano_patch4_32", "--sizes", "32", "--budget", 1e-9, "--head", "cascade"]
    answer = longvision("benchmark", "models", *words, "--mode", "train", "--checkpoint", "--out", "own")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("train with cascade, batch 1, float32")
    assert "\nsize  model with cascade  " in answer.out and "vim_nano_patch4_32, checkpointed" in answer.out
    (row,) = read("own/models.csv")
    assert (row["status"], row["head"], row["gmacs"], row["checkpoint"]) == ("ok", "cascade", "", "yes")


def test_operators_against_each_other(longvision, few_scans):
    few_scans("reference", "chunked")
    answer = longvision("benchmark", *OPS)
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == "own"
    rows = read("own/ops.csv")
    names = ["matrix products", "reference", "chunked"]
    assert [(row["backend"], row["tokens"], row["status"]) for row in rows] == [(name, "5", "ok") for name in names]


def test_operators_in_float16(longvision, few_scans):
    """Those that take it: the kernels for the CPU do not."""
    few_scans("reference", "chunked", "cpu")
    answer = longvision("benchmark", *OPS, "--dtype", "float16")
    assert answer.code == 0, answer.err
    statuses = {row["backend"]: row["status"] for row in read("own/ops.csv")}
    assert statuses["chunked"] == statuses["reference"] == statuses["matrix products"] == "ok"
    assert statuses["cpu"].startswith("not available: ") and "float16" in statuses["cpu"]


def test_a_wrong_operator_ends_with_1(longvision, few_scans):
    few_scans(wrong=ops.Scan(lambda inputs, reverse, cu_seqlens: inputs["x"] * 2))
    answer = longvision("benchmark", *OPS)
    assert answer.code == 1
    assert "wrong: output off by" in answer.out
    assert [row["status"][:6] for row in read("own/ops.csv")] == ["ok", "wrong:"]


def test_without_matplotlib_the_rows_still_come(longvision, answers, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "longvision_cli.benchmark.find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    answers(ONE, ONE, ONE)
    answer = longvision("benchmark", "models", "--models", "test_vit", "--sizes", "32", "--out", "own")
    assert answer.code == 0
    assert [path.name for path in Path("own").iterdir()] == ["models.csv"]
    assert "matplotlib" in answer.err.splitlines()[-1]


def test_an_interruption_keeps_what_is_measured(longvision, answers):
    answers(ONE)
    answer = longvision("benchmark", "models", "--models", "test_vit,test_resnet", "--sizes", "32", "--out", "own")
    assert answer.code == 130
    assert answer.err.endswith("longvision benchmark: interrupted\n")
    assert "test_vit" in answer.out
    assert [row["model"] for row in read("own/models.csv")] == ["test_vit"]
    answers()
    assert longvision("benchmark", "models", "--models", "test_vit", "--sizes", "32", "--out", "two").code == 130
    assert not Path("two").exists()  # nothing was measured
    Path("mine").mkdir()
    assert longvision("benchmark", "models", "--models", "test_vit", "--sizes", "32", "--out", "mine").code == 130
    assert Path("mine").is_dir()


def test_the_opening_says_what_it_takes_and_where_results_go(longvision, answers, few_scans):
    answers(*[ONE] * 12)
    words = ["--models", "test_vit,test_resnet", "--sizes", "32,64", "--budget", 90, "--out", "own/new"]
    answer = longvision("benchmark", "models", *words)
    cost, results, *_, last = answer.out.splitlines()[1:]
    assert cost.startswith("4 cases × 90 s (--budget): at most 6 min; ") and "12 process starts" in cost
    assert (results, last) == ("results: own/new/models.csv", "own/new")
    few_scans("reference", "chunked")
    answer = longvision("benchmark", *OPS, "--budget", 0.05, "--out", "ops")
    assert "\n3 cases × 0.05 s (--budget): at most 0.15 s; " in answer.out
    assert "\nresults: ops/ops.csv\n" in answer.out


def test_the_opening_is_there_before_the_first_row(monkeypatch):
    """Also where the output is no terminal, which is written late: a process that is killed has said it."""

    class Output(io.StringIO):
        def flush(self):
            flushed.append(self.getvalue())

    flushed = []

    def launch(*_, **__):
        assert "results: own/models.csv\n" in flushed[-1]
        return ONE

    monkeypatch.setattr(models, "launch", launch)
    with contextlib.redirect_stdout(Output()):
        assert main(["benchmark", "models", "--models", "test_vit", "--sizes", "32", "--out", "own"]) == 0


def test_nothing_measured_is_a_failure(longvision, answers):
    answers(Round("over budget: no call in 5 s", spent=5.0))
    words = ["--models", "test_vit", "--sizes", "32", "--budget", 1, "--out", "own"]
    answer = longvision("benchmark", "models", *words)
    assert answer.code == 1
    assert answer.out.splitlines()[-1] == "own" and "--budget" in answer.err.splitlines()[-1]
    assert [path.name for path in Path("own").iterdir()] == ["models.csv"]  # no chart of nothing
    assert [row["status"][:11] for row in read("own/models.csv")] == ["over budget"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_ctrl_c_ends_the_worker_too(tmp_path, hear_ctrl_c):
    """Sent to the command alone: a terminal would send it to both. The case would take minutes."""
    words = ["--models", "vit_large_patch16_224", "--sizes", "512", "--batch", "8", "--out", "own"]
    program = [sys.executable, "-m", "longvision", "benchmark", "models", *words]
    command = subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)
    while not (workers := _children(command.pid)) and command.poll() is None:
        time.sleep(0.2)
    assert len(workers) == 1
    command.send_signal(signal.SIGINT)
    _, err = command.communicate()
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


def test_help_shows_examples_and_what_numbers_mean(longvision):
    for words in ([], ["--help"]):
        text = longvision("benchmark", *words).out
        assert text.startswith("usage: longvision benchmark")
        assert "longvision benchmark models --sizes 512,1248 --mode train" in text
        assert "longvision benchmark ops --tokens 197,6085" in text
    text = " ".join(longvision("benchmark", "models", "--help").out.split())
    for phrase in ("multiples of 16", "224:1024 is 224,384,512,768,1024", "for each case", "on top (default: 60)"):
        assert phrase in text
    text = " ".join(longvision("benchmark", "ops", "--help").out.split())
    for phrase in ("197 at 224 pixels", "Vim-Ti's is 384", "Vim's are 16", "on top (default: 20)"):
        assert phrase in text


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_the_default_models_can_be_copied_from_the_help(longvision, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    answer = longvision("benchmark", "models", "--help")
    assert f"\n  --models {benchmark_options.MODELS}\n" in answer.out


IN_WORDS = [  # mistakes, and what their messages name
    ("modles", "'modles': did you mean models?"),
    ("zzz", "'zzz': expected one of models, ops"),
    ("models --size 3", "--size: did you mean --sizes"),
    ("models --sizes 0", "'0'"),
    ("models --sizes=", "''"),
    ("models --models test_vit+fast", "'fast' of test_vit"),
    ("models --models test_vit+checkpoint --mode train", "--checkpoint"),
    ("models --checkpoint", "--mode train"),
    ("models --models ,", "--models"),
    ("models --baseline resnet18", "resnet18"),
    ("models --batch 0", "--batch: '0'"),
    ("models --batch -3", "--batch: '-3'"),
    ("models --batch x", "--batch: 'x'"),
    ("models --batch ²", "--batch: '²'"),
    ("models --budget x", "--budget: 'x'"),
    ("models --budget 0", "--budget: '0'"),
    ("models --budget nan", "--budget: 'nan'"),
    ("models --budget inf", "--budget: 'inf'"),
    ("models --mode x", "--mode: invalid choice: 'x'"),
    ("models --dtype float16", "--dtype: invalid choice: 'float16'"),
    ("models --head x", "--head: invalid choice: 'x'"),
    ("models --device x", "--device: invalid choice: 'x'"),
    ("models --out full", "--out full"),
    ("models --out file", "--out file: file"),
    ("models --out file/x/y", "--out file/x/y: file"),
    ("models 3", "'3'"),
    ("ops --tokens x", "--tokens: 'x'"),
    ("ops --tokens ²", "--tokens: '²'"),
    ("ops --tokens 5,0", "--tokens: '0'"),
    ("ops --channels 7", "--channels 7"),
    ("ops --dtype x", "--dtype: invalid choice: 'x'"),
    ("ops --out full", "--out full"),
]


@pytest.fixture
def taken():
    """A folder `full` and a file `file`."""
    Path("full").mkdir()
    Path("full/x").write_text("")
    Path("file").write_text("")


def refused(answer, named):
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("longvision benchmark: error: ") and answer.err.count("\n") == 1
    assert named in answer.err
    assert sorted(path.name for path in Path().iterdir()) == ["file", "full"]


def test_mistakes_in_words(longvision, taken):
    for words, named in IN_WORDS:
        refused(longvision("benchmark", *words.split()), named)


def test_mistakes_in_words_and_help_are_told_before_torch_is_loaded(taken):
    program = """
import sys
from longvision_cli.main import main
def code(words):
    try:
        return main(words.split())
    except SystemExit as exit:
        return exit.code
codes = [code(words) for words in sys.argv[1:]]
heavy = sorted({"torch", "timm", "numpy", "matplotlib"} & set(sys.modules))
sys.exit(f"imported {heavy}" if heavy else "" if codes == [0] * 3 + [2] * (len(codes) - 3) else f"codes {codes}")
"""
    helps = ["benchmark", "benchmark --help", "benchmark models --help"]
    words = [f"benchmark {words}" for words, _ in IN_WORDS]
    done = subprocess.run([sys.executable, "-c", program, *helps, *words], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "", done.stderr


def test_mistakes_in_names(longvision, answers, taken):
    answers()  # no process is to be started
    for words, named in {
        "vim_tinny_patch16_224": "vim_tiny_patch16_224",
        "test_resnet+materialised": "test_res",
    }.items():
        refused(longvision("benchmark", "models", "--models", words), named)
