"""How the kernels in C++ come to a machine: compiled once, shared, done without; and the functions that they take."""

import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys

import pytest
import torch

from longvision.ops.causal_conv1d import cpu as conv_cpu
from longvision.ops.kernels.cpp import compiler, library, prebuilt
from longvision.ops.rms_norm import cpu as norm_cpu
from longvision.ops.selective_scan import cpu as scan_cpu
from support.forked import Forked
from support.scan_cases import needs_compiler

STEP = """
import os, sys, torch, longvision
from longvision.models import Vim
torch.manual_seed(0)
model = Vim(img_size=16, patch_size=4, embed_dim=32, depth=2, num_classes=3)
image = torch.randn(2, 3, 16, 16)
def step():
    for _ in range(2):
        model.zero_grad()
        y = model(image)
        y.square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters())]
"""
USE = STEP + "torch.save(step(), sys.argv[1])"
COMPILING = "longvision: compiling its CPU kernels for this machine, once (a few seconds)"
WITHOUT = "longvision: its CPU kernels are not available, plain torch runs instead, right but several times slower: "


def use(python, tmp_path, cache, **environment):
    """A model forth and back in a process of its own -> output and gradients, and the lines that it said."""
    file = tmp_path / "result.pt"
    file.unlink(missing_ok=True)
    done = python(USE, file, LONGVISION_CACHE=cache, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return torch.load(file), done.stderr.splitlines()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder of this module's own: filled by the first test that needs it."""
    return tmp_path_factory.mktemp("cache") / "not" / "there" / "yet"


@pytest.fixture(scope="module")
def expected():
    """What the model of USE gives in this process."""
    torch.manual_seed(0)
    from longvision.models import Vim

    model = Vim(img_size=16, patch_size=4, embed_dim=32, depth=2, num_classes=3)
    y = model(torch.randn(2, 3, 16, 16))
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters())]


def assert_same_numbers(got, truth):
    """Float32, through two blocks forth and back: another order of the sums."""
    for a, b in zip(got, truth, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.slow
@needs_compiler
def test_compiled_at_the_first_use_and_kept(python, tmp_path, cache, expected):
    first, said = use(python, tmp_path, cache)
    assert said == [COMPILING]
    file, note = sorted(cache.iterdir(), key=lambda path: path.suffix, reverse=True)  # nothing else is left behind
    assert (file.suffix, note.suffix, note.stat().st_size) == (compiler.SUFFIX, ".checked", 0)
    before = file.stat()
    second, said = use(python, tmp_path, cache)
    assert said == []
    assert set(cache.iterdir()) == {file, note}
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert_same_numbers(first, expected)


@needs_compiler
@pytest.mark.parametrize("dtype", library.DEFINITIONS, ids=str)
def test_a_library_for_each_dtype(dtype):
    """In the user's own cache, which the other tests load them from."""
    path = compiler.compiled(library.DEFINITIONS[dtype], compiler.find_compiler())
    assert path.parent == compiler.cache_folder() and path.exists()
    loaded = library.Library(dtype, path)
    assert loaded.lanes in (2, 4, 8, 16) and loaded.dtype == dtype


FALLBACKS = """
from longvision.ops.kernels.cpp import library, prebuilt
library.find_ziglang, prebuilt.FOLDER = lambda: None, prebuilt.FOLDER / "nothing"
results = []
for name, value in zip(sys.argv[2::2], sys.argv[3::2]):
    os.environ[name] = value
    library.kernels.cache_clear()
    library._say_once.cache_clear()
    print(f"{name}={value}", file=sys.stderr)
    results.append(step())
torch.save(results, sys.argv[1])
"""


def test_without_a_working_compiler_or_a_cache_plain_torch_runs(python, tmp_path, expected):
    """One process, and its state as at its start before each."""
    (tmp_path / "file").write_text("")
    unwritable = tmp_path / "file/cache"
    words = ["CXX", "/nonexistent", "CXX", "false", "LONGVISION_CACHE", unwritable]
    done = python(STEP + FALLBACKS, tmp_path / "results.pt", *words, LONGVISION_CACHE=tmp_path / "empty")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    missing, failing, unwritten = re.split(r"(?m)^(?:CXX|LONGVISION_CACHE)=.*\n", done.stderr)[1:]
    assert missing == f"{WITHOUT}no C++ compiler (/nonexistent) was found: install {compiler.INSTALL}\n"
    assert failing == f"{COMPILING}\n{WITHOUT}false failed: exit 1\n"
    line = unwritten.removeprefix(f"{COMPILING}\n")
    assert line.startswith(f"{WITHOUT}{unwritable} cannot be written (")
    assert line.endswith("): set LONGVISION_CACHE\n")
    for got in torch.load(tmp_path / "results.pt"):
        assert_same_numbers(got, expected)


def compiler_that(tmp_path, script):
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def said(monkeypatch, tmp_path, caplog):
    """Loads kernels with this compiler, as if for the first time -> what was said."""

    def load(CXX):
        monkeypatch.setenv("CXX", str(CXX))
        monkeypatch.setenv("LONGVISION_CACHE", str(tmp_path / "empty"))
        monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "nothing")
        monkeypatch.setattr(library, "find_ziglang", lambda: None)
        monkeypatch.setattr(library, "_say_once", library._say_once.__wrapped__)
        assert library.kernels.__wrapped__(torch.float32) is None
        return [record.getMessage() for record in caplog.records if record.getMessage() != COMPILING]

    return load


def test_the_compiler_s_own_words_are_given(tmp_path, said):
    broken = compiler_that(tmp_path, "echo 'In file included' >&2; echo 'x.h:1: fatal error: no header' >&2; exit 4")
    assert said(broken) == [f"{WITHOUT}{broken} failed: x.h:1: fatal error: no header"]


def test_a_library_that_cannot_be_loaded(tmp_path, said):
    """A compiler that succeeds and writes something else."""
    (line,) = said(compiler_that(tmp_path, 'for last; do :; done; echo nothing > "$last"'))
    assert line.startswith(WITHOUT)


@pytest.mark.parametrize("CXX", ["'g++", "a-folder", "not-a-program"])
def test_an_odd_compiler_does_not_stop_a_model(monkeypatch, tmp_path, said, CXX):
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "not-a-program").write_text("nothing")
    (tmp_path / "not-a-program").chmod(0o755)
    (line,) = said(CXX if CXX.startswith("'") else tmp_path / CXX)
    assert line.startswith(WITHOUT)
    if CXX == "not-a-program":
        assert "cannot be written" not in line  # the cache is not to blame


def test_one_reason_is_said_once(monkeypatch, caplog):
    def fail(*_):
        raise compiler.CompilerError("there is none")

    monkeypatch.setattr(library, "compiled", fail)
    monkeypatch.setattr(library, "prebuilt", fail)
    library._say_once.cache_clear()
    assert [library.kernels.__wrapped__(dtype) for dtype in library.DEFINITIONS] == [None] * 3
    assert [record.getMessage() for record in caplog.records] == [f"{WITHOUT}there is none"]
    library._say_once.cache_clear()


@needs_compiler
def test_no_home_does_not_stop_a_model(monkeypatch):
    """A container may run as a user who has neither a name nor a home."""
    import pwd

    def unknown(uid):
        raise KeyError(uid)

    for name in ("HOME", "LONGVISION_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    try:
        assert compiler.cache_folder()
    except compiler.CompilerError as error:
        assert "LONGVISION_CACHE" in str(error)


@pytest.mark.parametrize("variables, folder", [
    ({"LONGVISION_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
    ({"XDG_CACHE_HOME": "/c"}, "/c/longvision"),
    ({"HOME": "/home/someone"}, "/home/someone/.cache/longvision"),
])  # fmt: skip
@pytest.mark.skipif(sys.platform != "linux", reason="where another system keeps caches is its own")
def test_where_the_library_is_kept(monkeypatch, variables, folder):
    for name in ("LONGVISION_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(compiler.cache_folder()) == folder


@pytest.mark.slow
@needs_compiler
def test_two_processes_at_once(tmp_path):
    files = [tmp_path / name for name in "ab"]
    both = [Forked(tmp_path, USE, file, LONGVISION_CACHE=tmp_path / "cache") for file in files]
    assert [process.wait().returncode for process in both] == [0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the library, and that it was checked
    a, b = map(torch.load, files)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@needs_compiler
def test_another_source_or_compiler_is_another_library(monkeypatch, tmp_path):
    """The name of the file says what it was made from."""
    command = ["g++", "-O3"]
    names = {compiler._fingerprint(command), compiler._fingerprint([*command, "-DREAL_DOUBLE"])}
    monkeypatch.setattr(compiler, "_processor_features", lambda: "another")
    names.add(compiler._fingerprint(command))
    copy = tmp_path / "native"
    shutil.copytree(compiler.SOURCES, copy)
    monkeypatch.setattr(compiler, "SOURCES", copy)
    assert compiler._fingerprint(command) in names  # the same text elsewhere
    for name in ("scan.h", "kernels.cpp"):
        (copy / name).write_text((copy / name).read_text() + "\n")
        names.add(compiler._fingerprint(command))
    assert len(names) == 5


@pytest.mark.slow
@needs_compiler
def test_threads_of_their_own_where_there_is_no_openmp(python, tmp_path, cache):
    """The same bits with torch's pool and with threads that the kernels start; twice."""
    done = python(STEP + OWN_THREADS, tmp_path / "results.pt", LONGVISION_CACHE=cache)
    assert done.returncode == 0, done.stderr
    first, *others = torch.load(tmp_path / "results.pt")
    assert len(others) == 2
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


OWN_THREADS = """
from longvision.ops.kernels.cpp import library
torch.set_num_threads(2)
results = [step()]
library._torch_fork = lambda: None
library.kernels.cache_clear()  # the same library is told anew who starts threads
results += [step(), step()]
torch.save(results, sys.argv[1])
"""


@needs_compiler
def test_calls_from_several_python_threads():
    """As DataParallel or a server makes them: a call has no state but its own."""
    from concurrent.futures import ThreadPoolExecutor

    from longvision.ops import selective_scan

    def scan(seed):
        generator = torch.Generator().manual_seed(seed)
        x, delta = (torch.randn(1, 300, 40, generator=generator) for _ in range(2))
        B = torch.randn(1, 300, 8, generator=generator)
        return selective_scan(x, delta, -torch.ones(40, 8), B, B, delta_softplus=True, backend="cpu")

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(scan, range(16)))
    assert all(torch.equal(y, scan(seed)) for seed, y in enumerate(together))


NO_MEMORY = """
import resource, torch
from longvision.ops import selective_scan
states = 2**18
x, A, B = torch.ones(1, 2, 128), -torch.ones(128, states), torch.ones(1, 2, states)

def scan(states):
    return selective_scan(x, x, A[:, :states], B[..., :states], B[..., :states], backend="cpu")

torch.set_num_threads(2)
before = scan(4)  # loads the kernels, starts the threads
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))  # a task works in twice as much
for threads in (2, 1):
    torch.set_num_threads(threads)
    try:
        scan(states)
    except MemoryError as error:
        assert "memory" in str(error)
        print("refused")
    assert torch.equal(scan(4), before)
"""


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are the system's own")
def test_no_memory_is_an_error_and_not_the_end_of_the_process(python):
    """Neither on the calling thread nor on another of the pool."""
    done = python(NO_MEMORY)
    assert (done.returncode, done.stdout) == (0, "refused\n" * 2), done.stderr[-500:]


# The same sources for other processors

on_x86 = platform.machine() in ("x86_64", "AMD64")
NATIVE = compiler._this_processor()


def runs_here(processor):
    """Whether this machine has the instructions."""
    if processor == NATIVE:
        return True
    flags = compiler._processor_features()
    return on_x86 and (processor == "-march=x86-64" or ("avx2" in flags and "fma" in flags))


SLOW = [pytest.mark.slow]
PROCESSORS = [
    pytest.param(processor, marks=[pytest.mark.skipif(not runs_here(processor), reason=f"not for {processor}"), *marks])
    for processor, marks in ((NATIVE, []), ("-march=haswell", SLOW), ("-march=x86-64", SLOW))
]


@needs_compiler
@pytest.mark.parametrize("processor", [p for p in PROCESSORS if p.values[0] != NATIVE])
def test_another_vector_width_gives_the_same_numbers(python, tmp_path, cache, expected, processor):
    """AVX2 has vectors of 8 channels, SSE2 of 4, and no fused multiplication."""
    patch = f"from longvision.ops.kernels.cpp import compiler\ncompiler._this_processor = lambda: {processor!r}\n"
    done = python(patch + USE, tmp_path / "result.pt", LONGVISION_CACHE=cache)
    assert done.returncode == 0 and WITHOUT not in done.stderr, done.stderr
    assert_same_numbers(torch.load(tmp_path / "result.pt"), expected)


def compile_main(tmp_path, code, *options):
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text(code)
    flags = [flag for flag in compiler.FLAGS if flag not in ("-shared", "-w")]
    subprocess.run(
        [*compiler.find_compiler(), *flags, f"-I{compiler.SOURCES}", *options, str(source), "-o", str(program)],
        check=True,
    )
    return program


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("processor", [NATIVE, "-march=x86-64", "-march=haswell"])
@pytest.mark.parametrize("dtype", library.DEFINITIONS, ids=str)
def test_no_warnings(tmp_path, dtype, processor):
    if processor != NATIVE and not on_x86:
        pytest.skip(f"{processor} is not for {platform.machine()}")
    flags = [flag for flag in compiler.FLAGS if flag not in ("-w", "-O3")]
    warnings = ["-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option", "-O1"]
    names = [f"-D{name}" for name in library.DEFINITIONS[dtype]]
    command = [*compiler.find_compiler(), *flags, *warnings, processor, *names, str(compiler.SOURCES / "kernels.cpp")]
    done = subprocess.run([*command, "-o", str(tmp_path / "out.so")], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


FUNCTIONS = r"""
#include <cmath>
#include <cstdio>
#include <limits>
#include "lanes.h"

static double worst;
static bool failed = false;

// The largest relative error of f, from low to high, against long double; values below `floor` count as `floor`.
template <class F, class Truth>
static void check(const char* name, F f, Truth truth, double low, double high, double tolerance, double floor = 0) {
  worst = 0;
  double at = 0;
  const int64_t count = 200000 / LANES * LANES;
  for (int64_t i = 0; i < count; i += LANES) {
    Vec x;
    for (int lane = 0; lane < LANES; lane++) x[lane] = Real(low + (high - low) * (i + lane) / (count - 1));
    Vec y = f(x);
    for (int lane = 0; lane < LANES; lane++) {
      long double t = truth((long double)x[lane]);
      double error = double(std::fabs(y[lane] - t) / std::fmax(std::fabs(t), (long double)floor));
      if (!(error <= worst)) worst = error, at = x[lane];
    }
  }
  bool wrong = !(worst <= tolerance);
  failed |= wrong;
  std::printf("%s%s: %.2e of at most %.0e, at %g\n", wrong ? "WRONG " : "", name, worst, tolerance, at);
}

static Vec power_of_two(Vec x) { return exp2(x, splat(1)); }

static void expect(const char* name, bool right) {
  failed |= !right;
  std::printf("%s%s\n", right ? "" : "WRONG ", name);
}

int main() {
  const Real infinity = std::numeric_limits<Real>::infinity(), nan = std::numeric_limits<Real>::quiet_NaN();
  const double unit = std::numeric_limits<Real>::epsilon() / 2, smallest = std::numeric_limits<Real>::min();
  const bool wide = sizeof(Real) == 8;
  const double far = wide ? 700 : 87;  // e^far is near the largest and the smallest number
  auto exp2l_ = [](long double x) { return std::exp2(x); };
  auto expl_ = [](long double x) { return std::exp(x); };
  auto sigmoidl = [](long double x) { return 1 / (1 + std::exp(-x)); };
  auto silul = [](long double x) { return x / (1 + std::exp(-x)); };
  auto softplusl = [](long double x) { return std::fmax(x, 0.0L) + std::log1p(std::exp(-std::fabs(x))); };
  auto slopel = [](long double x) { long double s = 1 / (1 + std::exp(-x)); return s * (1 + x * (1 - s)); };
  auto slope = [](Vec x) { return silu_slope(x, sigmoid(x)); };

  // 2^x is a polynomial of degree 5 in float32, good to 3e-7; near 0, where decays are close to 1, to rounding.
  check("exp2", power_of_two, exp2l_, wide ? -1000 : -120, wide ? 1000 : 120, wide ? 4 * unit : 4e-7);
  check("exp2 near 0", power_of_two, exp2l_, -0.01, 0, 2 * unit);
  check("exp2 below the range", power_of_two, exp2l_, wide ? -1100 : -160, 0, 1, smallest);
  // The rest is right to a few roundings.
  check("exp", [](Vec x) { return exp(x); }, expl_, -far, far, 6 * unit);
  check("sigmoid", [](Vec x) { return sigmoid(x); }, sigmoidl, -far, 100, 8 * unit);
  check("silu", [](Vec x) { return silu(x); }, silul, -far, 100, 10 * unit);
  check("softplus", [](Vec x) { return softplus(x); }, softplusl, -far, 100, 12 * unit);
  check("softplus near 0", [](Vec x) { return softplus(x); }, softplusl, -2, 2, 8 * unit);
  check("slope of silu", slope, slopel, -far, 100, 40 * unit, 0.05);  // x (1 - sigmoid) cancels

  expect("2^0 = 1", power_of_two(splat(0))[0] == 1);
  expect("e^0 = 1", exp(splat(0))[0] == 1);
  expect("2^-inf = 0", power_of_two(splat(-infinity))[0] == 0);
  expect("2^-10000 = 0", power_of_two(splat(-10000))[0] == 0);
  expect("2^10000 = inf", power_of_two(splat(10000))[0] == infinity);
  expect("powers of two are exact", power_of_two(splat(10))[0] == 1024 && power_of_two(splat(-3))[0] == Real(0.125));
  expect("silu(-1000) is nothing", std::fabs(silu(splat(-1000))[0]) < 1e-30);
  expect("silu(1000) = 1000", silu(splat(1000))[0] == 1000);
  expect("softplus(1000) = 1000", softplus(splat(1000))[0] == 1000);
  expect("softplus(-1000) is nothing", softplus(splat(-1000))[0] >= 0 && softplus(splat(-1000))[0] < 1e-30);
  Vec step = splat(Real(0.3)), rate = splat(-7);
  expect("inside the range the same bits", exp2(step, rate)[0] == exp2_inside(step, rate)[0]);
  expect("silu(-inf) is NaN", std::isnan(silu(splat(-infinity))[0]));
  expect("silu(inf) = inf", silu(splat(infinity))[0] == infinity);
  expect("softplus(inf) = inf", softplus(splat(infinity))[0] == infinity);
  expect("softplus(-inf) is nothing", softplus(splat(-infinity))[0] >= 0 && softplus(splat(-infinity))[0] < 1e-30);
  expect("exp2(NaN)", std::isnan(power_of_two(splat(nan))[0]));
  expect("exp(NaN)", std::isnan(exp(splat(nan))[0]));
  expect("sigmoid(NaN)", std::isnan(sigmoid(splat(nan))[0]));
  expect("silu(NaN)", std::isnan(silu(splat(nan))[0]));
  expect("softplus(NaN)", std::isnan(softplus(splat(nan))[0]));

  Vec rows[LANES];
  for (int i = 0; i < LANES; i++)
    for (int lane = 0; lane < LANES; lane++) rows[i][lane] = Real(100 * i + lane * lane);
  Vec sums = sum_lanes(rows);
  for (int i = 0; i < LANES; i++) {
    Real truth = 0;
    for (int lane = 0; lane < LANES; lane++) truth += rows[i][lane];  // whole numbers: exact in any order
    expect("sum_lanes", sums[i] == truth);
  }

  Real numbers[LANES], copy[LANES + 1];
  for (int i = 0; i < LANES; i++) numbers[i] = Real(i + 1);
  for (int count = 0; count <= LANES; count++) {
    Vec v = load_real(numbers, count);
    for (Real& value : copy) value = -1;
    store_real(copy, splat(7), count);
    for (int i = 0; i < LANES; i++) expect("load_real", v[i] == (i < count ? i + 1 : 0));
    for (int i = 0; i <= LANES; i++) expect("store_real", copy[i] == (i < count ? 7 : -1));
  }
#ifdef STORED_BF16
  // All bit patterns survive; what lies between two goes to the nearest, and to the even one from the middle.
  for (uint32_t bits = 0; bits < 65536; bits++) {
    IO from[LANES], to[LANES];
    for (IO& value : from) value = IO(bits);
    store(to, load(from, LANES), LANES);
    bool number = (bits & 0x7fff) <= 0x7f80;
    expect("bf16", number ? to[0] == bits : (to[0] & 0x7fff) > 0x7f80);
  }
  auto rounded = [](float value) { IO to[LANES]; store(to, splat(value), LANES); return read(to); };
  expect("1 + 2^-8 to even", rounded(1.00390625f) == 1.0f);
  expect("1 + 3 * 2^-8 to even", rounded(1.01171875f) == 1.015625f);
  expect("just above the middle", rounded(1.00390637f) == 1.0078125f);
  expect("too large", rounded(3.4e38f) == infinity);
#endif
  return failed;
}
"""


@needs_compiler
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("dtype", library.DEFINITIONS, ids=str)
def test_the_functions_of_vector_h(tmp_path, processor, dtype):
    """exp2, exp, sigmoid, SiLU, softplus against the C library in long double; sums, loads and stores exactly."""
    names = [f"-D{name}" for name in library.DEFINITIONS[dtype]]
    program = compile_main(tmp_path, FUNCTIONS, processor, *names)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    wrong = sorted({line for line in done.stdout.splitlines() if line.startswith("WRONG")})
    assert done.returncode == 0 and not wrong, wrong


@needs_compiler
def test_a_command_with_options_is_a_compiler(monkeypatch):
    command = compiler.find_compiler()
    monkeypatch.setenv("CXX", shlex.join([*command, "-DHELLO=1"]))
    assert compiler.find_compiler() == [*command, "-DHELLO=1"]


@pytest.mark.parametrize(
    ("header", "name", "here"),
    [
        ("sequences.h", "CHUNK", scan_cpu.CHUNK),
        ("scan.h", "GROUP", scan_cpu.GROUP),
        ("conv.h", "TILE", conv_cpu.TILE),
        ("conv.h", "MOST_TAPS", conv_cpu.MOST_TAPS),
        ("norm.h", "ROWS", norm_cpu.ROWS),
    ],
)
def test_both_sides_know_the_same_numbers(header, name, here):
    """Python makes the memory that C++ writes to."""
    (there,) = re.findall(rf"constexpr int64_t {name} = (\d+);", (compiler.SOURCES / header).read_text())
    assert int(there) == here
