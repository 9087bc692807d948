"""Code in a process of its own, forked from one that has imported PyTorch and done nothing with it."""

import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["longvision"])


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Forked:
    """`code` as `python -c` runs it, started at once; its output goes to files in `folder`."""

    def __init__(self, folder: Path, code: str, *arguments: object, **environment: object):
        self.files = [folder / f"{name}-{id(self)}" for name in ("stdout", "stderr")]
        variables = {name: str(value) for name, value in environment.items()}
        self.process = CONTEXT.Process(target=_run, args=(code, [*map(str, arguments)], variables, self.files))
        self.process.start()

    def wait(self) -> Done:
        self.process.join(600)
        self.process.kill()  # where it did not end
        self.process.join()
        return Done(self.process.exitcode, *(file.read_text() if file.exists() else "" for file in self.files))


def _run(code: str, arguments: list[str], variables: dict[str, str], files: list[Path]) -> None:
    for descriptor, file in zip((1, 2), files):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(variables)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})
