"""The tests on a GPU and the memory check, which say whether the rest can be believed."""

import importlib.util
import shutil
import sys
from typing import Any

from gpu_processes import run

TEST_LIMIT, SANITIZER_LIMIT = 200, 120  # most of it for compiling the kernels, on a fresh machine


def run_tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/ops", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):  # kernels are then compiled side by side
        command += ["-n", "6"]
    code, out = run(command, TEST_LIMIT)
    words = {0: "ok", 5: "no test is marked gpu", None: f"ended after {TEST_LIMIT} s"}
    last = (out.strip().splitlines() or ["no output"])[-1]
    return {"status": f"{words.get(code, 'failed')}: {last}"[:200]}


SMALL_BLOCK = """
import torch
from longvision.layers import VimBlock
for dtype in (torch.float32, torch.bfloat16):
    block = VimBlock(32).cuda()
    x = torch.randn(2, 67, 32, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        block(x).square().sum().backward()
    torch.cuda.synchronize()
"""


def run_sanitizer() -> dict[str, Any]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"status": "skipped: no compute-sanitizer here"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", SMALL_BLOCK]
    run([sys.executable, "-c", SMALL_BLOCK], SANITIZER_LIMIT)  # compiles the kernels
    # Without the caching allocator a tensor's end is the end of its memory.
    code, out = run(command, SANITIZER_LIMIT, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    words = {0: "ok", 9: "errors found", None: f"ended after {SANITIZER_LIMIT} s"}
    lines = [line for line in out.splitlines() if line.startswith("=========")] or out.strip().splitlines() or [""]
    return {"status": f"{words.get(code, 'failed')}: {lines[-1].strip('= ')}"[:200]}
