"""One process measures, the other starts it again where a measurement has broken it; each has a limit in time."""

import gc
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_building import is_building
from gpu_rows import Table, line, read

from longvision.benchmark.case import OUT_OF_MEMORY, sentence
from longvision.benchmark.memory import is_out_of_memory
from longvision.benchmark.worker import after

ROOT = Path(__file__).resolve().parent.parent
JOB_LIMIT = 150.0  # seconds after which a measurement is ended with its process
GRACE = 30.0  # seconds beyond the budget for the measurement under way
SKIPPED = "skipped: budget"
BROKEN = 70  # exit code of a worker whose CUDA context has failed
BEGINS = "=> job "


class Job(NamedTuple):
    """A row to be: the columns that say what it is, and the measurement that gives the others."""

    columns: dict[str, Any]
    measure: Callable[[], dict[str, Any]]
    waits: bool = False  # for the authors' kernels to be built


def work(jobs: list[tuple[int, Job]], table: Table, until: float) -> int:
    """Measures one after the other; -> exit code."""
    left = list(jobs)
    while left:
        # What waits for a build lets what does not go first.
        number, job = next((pair for pair in left if not pair[1].waits or not is_building()), left[0])
        left.remove((number, job))
        print(f"{BEGINS}{number}", flush=True)
        row = one_row(job, until)
        table.add(row)
        print(line(table.rows[-1]), flush=True)
        if not usable():
            return BROKEN
    return 0


def one_row(job: Job, until: float) -> dict[str, Any]:
    """Whatever goes wrong is in its status."""
    if time.time() >= until:
        return {**job.columns, "status": SKIPPED}
    try:
        return {**job.columns, **job.measure()}
    except Exception as error:
        status = OUT_OF_MEMORY if is_out_of_memory(error) else f"failed: {sentence(error)}"
    return {**job.columns, "status": status}


def usable() -> bool:
    """Whether the device still answers; what a measurement held is free afterwards."""
    if not torch.cuda.is_available():
        return True
    gc.collect()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def supervise(jobs: list[Job], command: list[str], table: Table, until: float) -> None:
    """Has them all done, by as many workers as it takes."""
    left = list(range(len(jobs)))
    while left:
        begun, reason = watch([*command, ",".join(map(str, left))], until)
        written = read(table.path)
        table.rows = [row for row in written if row["device"] == table.origin["device"]]
        if not begun:
            table.add({"what": "worker", "status": f"failed before its first measurement: {reason}"})
            return
        if reason not in ("", f"exit code {BROKEN}"):  # which has written its row
            table.add({**jobs[begun[-1]].columns, "status": reason})
            print(line(table.rows[-1]), flush=True)
        left = [number for number in left if number not in begun] if reason else []


def watch(command: list[str], until: float) -> tuple[list[int], str]:
    """-> the jobs that the worker began, and why it ended before it was through ("" if it was)."""
    begun: list[int] = []
    too_long = threading.Event()
    pipes = {"stdout": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        text = BEGINS
        while text:
            limit = max(1.0, min(JOB_LIMIT, until + GRACE - time.time()))
            with after(limit, lambda: (too_long.set(), end(process))):
                for text in lines:
                    if text.startswith(BEGINS):
                        begun.append(int(text.removeprefix(BEGINS)))
                        break  # the clock starts again
                    print(text, end="", flush=True)
                else:
                    text = ""
        code = process.wait()
    if too_long.is_set():
        return begun, "killed: took too long"
    return begun, "" if code == 0 else f"killed (signal {-code})" if code < 0 else f"exit code {code}"


def run(command: Sequence[str], limit: float, **environment: str) -> tuple[int | None, str]:
    """-> exit code, None if it was ended, and what it wrote; the tail is printed."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path, **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True, **pipes) as process:
        ended = threading.Event()
        with after(limit, lambda: (ended.set(), end(process))):
            out = process.communicate()[0]
    print("\n".join(out.splitlines()[-12:]), flush=True)
    return (None if ended.is_set() else process.returncode), out


def end(process: subprocess.Popen) -> None:
    """With all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
