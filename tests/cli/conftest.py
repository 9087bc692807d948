"""The commands, called in this process, and finished runs that many tests read."""

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import support.start  # noqa: F401 before Lightning and the commands

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
from longvision_cli.main import main

TINY = """
    --trainer.max_epochs 2 --trainer.limit_train_batches 2 --trainer.accelerator cpu --data.size 16 --data.workers 0
    --model.name vim_nano_patch4_32 --model.args.depth 1 --model.args.embed_dim 32
""".split()  # noqa: SIM905 the words as they are typed


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def run(self) -> Path:
        """The run folder that `longvision train` printed last."""
        return Path(self.out.splitlines()[-1])


def command(*words: object) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    quiet = warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with quiet[0], quiet[1], quiet[2], mock.patch.dict(os.environ):  # a training says how its threads wait
        try:
            code = main([str(word) for word in words])
        except SystemExit as exit:  # --help
            code = int(exit.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


def tiny_train(*words: object) -> Answer:
    return command("train", *TINY, *words)


@pytest.fixture(scope="session")
def hear_ctrl_c() -> Callable[[], object]:
    """For Popen's `preexec_fn`: what a shell starts in the background is deaf to Ctrl-C, and so is what it starts."""
    return functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)


FRESH = """
import contextlib, io, json, sys
from longvision_cli.main import main
err = io.StringIO()
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
    try:
        code = main({words!r})
    except SystemExit as exit:
        code = exit.code or 0
print(json.dumps([code, sorted(sys.modules), err.getvalue()]))
"""


@pytest.fixture(scope="session")
def fresh() -> Callable[[list[str]], tuple[int, set[str], str]]:
    """A command in a process of its own -> exit code, the modules that it loaded, stderr."""

    def call(words: list[str]) -> tuple[int, set[str], str]:
        program = FRESH.format(words=[str(word) for word in words])
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        code, modules, err = json.loads(done.stdout)
        return code, set(modules), err

    return call


@pytest.fixture(scope="session")
def longvision() -> Callable[..., Answer]:
    """longvision("predict", run, image) -> Answer."""
    return command


@pytest.fixture(scope="session")
def train() -> Callable[..., Answer]:
    """`longvision train` of two short epochs, the words over it."""
    return tiny_train


@pytest.fixture(autouse=True)
def _in_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)  # Lightning leaves Ctrl-C ignored after an interruption


@pytest.fixture(autouse=True)
def _no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes three quarters of so short a run. Those that many tests read were made before, with theirs."""
    from longvision.engine import report

    monkeypatch.setattr(report, "draw_artifacts", lambda *_: None)


def make_folder(root: Path, **counts: int) -> Path:
    """train, val and test of images as bright as their class, told apart at a glance; half JPEG, half PNG."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for name, brightness in {"dark": 30, "light": 200}.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = (brightness + random.integers(0, 50, (20, 24, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.{('jpg', 'png')[number % 2]}")
    return root


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of JPEG and PNG files with all three splits. Not to be written to."""
    return make_folder(tmp_path_factory.mktemp("images"), train=8, val=4, test=4)


@pytest.fixture
def own_images(tmp_path: Path) -> Path:
    """Two classes with train and val, to break at will."""
    return make_folder(tmp_path / "own", train=4, val=2)


@pytest.fixture(scope="session")
def digits_answer(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """What the default recipe printed, cut down to two short epochs."""
    return tiny_train("--runs", tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def digits_run(digits_answer: Answer) -> Path:
    """Its folder. Not to be written to."""
    assert digits_answer.code == 0, digits_answer.err
    return digits_answer.run


@pytest.fixture(scope="session")
def folder_run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run on `images`. Not to be written to."""
    answer = tiny_train("-c", "folder", "--data.path", images, "--runs", tmp_path_factory.mktemp("folder"))
    assert answer.code == 0, answer.err
    return answer.run


@pytest.fixture
def stopped_run(train: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two epochs of four steps, stopped by hand in the second, at step 6."""
    answer = stop_at(6, monkeypatch, lambda: train("--trainer.limit_train_batches", 4, "--runs", tmp_path / "stopped"))
    assert answer.code == 130, answer
    (run,) = (tmp_path / "stopped").iterdir()
    return run


def stop_at(
    step: int, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Answer], where: str = "on_train_batch_end"
) -> Answer:
    """Ctrl-C in one of the moments that Lightning calls back in, once so many steps are made."""
    from longvision.engine import trainer as training

    def stop(self, trainer, *rest):  # type: ignore[no-untyped-def]
        if trainer.global_step == step:
            raise KeyboardInterrupt

    Stopped = type("Stopped", (training.RunProgress,), {where: stop})
    with monkeypatch.context() as patched:
        patched.setattr(training, "RunProgress", Stopped)
        return call()


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    return lambda step, call, *where: stop_at(step, monkeypatch, call, *where)
