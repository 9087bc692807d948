"""Launch configurations: how one is chosen, measured, written and read again."""

import importlib.util
import itertools
import json
from functools import partial

import pytest
import torch

pytest.importorskip("triton.language")

from triton.runtime.errors import OutOfResources

from longvision.benchmark import autotune
from longvision.benchmark.autotune import Shape, candidates, shapes, tune
from longvision.ops.kernels.cpp.compiler import CompilerError
from longvision.ops.kernels.triton import configurations, scan
from longvision.ops.kernels.triton.configurations import Configuration, configuration, forced, read_rows, write_rows
from longvision_cli.main import main

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="in Triton's interpreter, on the CPU")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    path = tmp_path / "launch.json"
    monkeypatch.setenv(configurations.VARIABLE, str(path))
    return path


def a_row(**changes):
    row = {"kernel": "scan_forward", "device": "any", "batch": 8, "tokens": 100, "width": 64, "states": 16}
    return row | {"channels": 32, "warps": 1, "programs": 7, "piece": 4} | changes


def chosen_for(batch, tokens, width, states=16):
    return configuration("scan_forward", torch.empty(batch, tokens, width, device="meta"), states)


def test_what_is_shipped_keeps_as_many_states_in_registers_for_every_number_of_them(measured):
    chosen = {states: chosen_for(8, 197, 384, states).channels * states for states in (4, 8, 16, 32, 64)}
    assert chosen == {4: 512, 8: 1024, 16: 1024, 32: 1024, 64: 2048}


def test_every_kernel_has_a_configuration(measured):
    for kernel in autotune.KERNELS:
        assert configuration(kernel, torch.empty(1, 1, 1, device="meta"), 16).channels >= 32


def test_without_a_home_what_is_shipped_is_taken_and_writing_says_why(monkeypatch):
    def nowhere():
        raise CompilerError("there is no home folder")

    monkeypatch.delenv(configurations.VARIABLE, raising=False)
    monkeypatch.setattr(configurations, "cache_folder", nowhere)
    configurations._rows.cache_clear()
    configurations._nearest.cache_clear()
    assert chosen_for(8, 197, 384).channels == 64
    with pytest.raises(ValueError, match=f"set {configurations.VARIABLE} to a file"):
        configurations.measured_file()


def test_the_row_measured_nearest_to_the_shape_is_taken(measured):
    write_rows(measured, [a_row(programs=1, batch=1), a_row(programs=8), a_row(programs=64, batch=64)])
    assert [chosen_for(batch, 100, 64).programs for batch in (1, 2, 3, 8, 20, 500)] == [1, 1, 8, 8, 8, 64]
    assert chosen_for(8, 100, 64, states=64).programs == 1056  # states weigh more than all else


def test_the_number_of_states_weighs_more_than_the_device(measured):
    write_rows(measured, [a_row(device="this one", channels=128)])
    shapes_of = {"this one": (16, 64, 100, 8), "any": (64, 64, 100, 8)}
    found = [configurations._nearest("scan_forward", "this one", shape, str(measured)) for shape in shapes_of.values()]
    assert [chosen.channels for chosen in found] == [128, 32]


def test_what_a_row_leaves_out_is_of_the_next_nearest_that_has_it(measured):
    near, far = a_row(channels=128), a_row(channels=64, batch=512, programs=2112)
    del near["programs"]
    write_rows(measured, [near])
    assert chosen_for(8, 100, 64) == Configuration(128, programs=1056)  # that of the shipped row
    write_rows(measured, [far])
    assert chosen_for(8, 100, 64) == Configuration(128, programs=2112)


def test_a_row_of_another_device_is_not_taken(measured):
    write_rows(measured, [a_row(device="another")])
    assert chosen_for(8, 100, 64).programs == 1056


def test_rows_of_the_same_shape_are_replaced_and_others_kept(measured):
    write_rows(measured, [a_row(), a_row(tokens=200)])
    write_rows(measured, [a_row(programs=9)])
    assert [(row["tokens"], row["programs"]) for row in read_rows(measured)] == [(100, 9), (200, 7)]
    assert [path.name for path in measured.parent.iterdir()] == ["launch.json"]


MESSAGE = "{path} holds no launch configurations ({reason}): delete it and run `longvision autotune` again"


def refused(path, text, reason):
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        chosen_for(1, 1, 1)
    assert str(error.value) == MESSAGE.format(path=path, reason=reason)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "it is not JSON"),
        ("\0", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ('{"a": 1}', "expected a list of rows"),
        ("3", "expected a list of rows"),
        ("[1]", "row 1 has no names and values"),
        ('[{"kernel": "scan_forward"}]', "row 1 has no device"),
        ('[{"kernel": "scan_forward", "device": "any"}]', "row 1 has no channels"),
        ('[{"device": "any", "channels": 64}]', "row 1 has no kernel"),
    ],
)
def test_a_file_that_holds_something_else_is_named(measured, text, reason):
    refused(measured, text, reason)


@pytest.mark.parametrize("name", [*Configuration._fields, *configurations.SHAPE])
def test_a_number_that_is_none_is_named(measured, name):
    for value in ("64", 64.5, 64.0, 0, -5, True, None, [64], float("nan"), float("inf")):
        text = json.dumps([a_row(), a_row(**{name: value})])
        refused(measured, text, f"row 2: {name} is {json.dumps(value)}, expected a whole number of at least 1")


def test_a_kernel_or_device_that_is_none_is_named(measured):
    kernels = "scan_ends, scan_forward or scan_backward"
    for value in ("scan_forwards", 3, None, ["scan_ends"]):
        reason = f"row 1: kernel is {json.dumps(value)}, expected {kernels}"
        refused(measured, json.dumps([a_row(kernel=value)]), reason)
    refused(measured, json.dumps([a_row(device=3)]), "row 1: device is 3, expected the name of a GPU, or any")


def test_a_shape_beyond_all_floats_is_far_away(measured):
    write_rows(measured, [a_row(tokens=10**400), a_row(programs=9)])
    assert chosen_for(8, 100, 64).programs == 9


def test_a_folder_is_no_file_and_no_file_is_no_mistake(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv(configurations.VARIABLE, str(tmp_path / "none" / "launch.json"))
    assert chosen_for(8, 100, 64).programs == 1056 and not caplog.records
    monkeypatch.setenv(configurations.VARIABLE, str(tmp_path))
    with pytest.raises(ValueError) as error:
        chosen_for(8, 100, 64)
    expected = "is not a file: LONGVISION_LAUNCH or --out names the one of launch configurations"
    assert str(error.value) == f"{tmp_path} {expected}"


def test_no_half_of_a_file_stays_behind(monkeypatch, measured):
    write_rows(measured, [a_row()])
    before = measured.read_text()

    def full(path, text):
        path.open("w").write(text[:9])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_rows(measured, [a_row(programs=9)])
    assert [path.name for path in measured.parent.iterdir()] == ["launch.json"] and measured.read_text() == before


def test_forced_is_for_its_kernel_and_its_time():
    with forced("scan_ends", Configuration(96)):
        assert chosen_for(8, 197, 384).channels == 64
        assert configuration("scan_ends", torch.empty(1, 1, 1, device="meta"), 16).channels == 96
    assert configuration("scan_ends", torch.empty(1, 1, 1, device="meta"), 16).channels == 64


def test_shapes_are_combinations_that_fit():
    assert len(shapes([1, 8], [197, 1025], [384], [16])[0]) == 4
    assert shapes([1, 2**14], [197, 197], [384], [16]) == ([Shape(1, 197, 384, 16)], [Shape(2**14, 197, 384, 16)])


def test_candidates_leave_registers_for_the_states():
    every = [list(candidates(kernel, Shape(1, 10, 384, 64))) for kernel in autotune.KERNELS]
    assert all(chosen.channels == 32 for found in every for chosen in found)
    assert {chosen.channels for chosen in candidates("scan_forward", Shape(1, 10, 384, 16))} == {32, 64, 128}


def groups_of(shape, chosen):
    tiles = -(-shape.width // chosen.channels)
    return scan.grouping(shape.tokens, shape.batch * tiles, chosen.programs)


@pytest.mark.parametrize("kernel", ["scan_forward", "scan_backward"])
@pytest.mark.parametrize("batch, tokens", [(128, 197), (32, 197), (8, 197), (8, 1025), (1, 16385)])
def test_every_launch_is_tried_once(kernel, batch, tokens):
    shape = Shape(batch, tokens, 384, 16)
    launches = [(chosen.channels, chosen.piece, groups_of(shape, chosen)) for chosen in candidates(kernel, shape)]
    assert len(set(launches)) == len(launches)
    every = [Configuration(*chosen) for chosen in itertools.product((32, 64), (1,), autotune.PROGRAMS, (4,))]
    assert {(chosen.channels, 4, groups_of(shape, chosen)) for chosen in every} <= set(launches)


@pytest.mark.parametrize("kernel", ["scan_forward", "scan_backward"])
@pytest.mark.parametrize("batch", [1, 8, 128])
def test_whatever_is_chosen_splits_a_long_image(kernel, batch):
    long = Shape(1, 16385, 768, 16)
    assert all(groups_of(long, chosen)[1] > 10 for chosen in candidates(kernel, Shape(batch, 197, 768, 16)))


@pytest.fixture
def tuned(monkeypatch):
    """tuned(shape, seconds) -> rows and what was tried, where a configuration takes `seconds` of it."""

    def tune_so(shape, seconds, no_backward=False):
        one, tried = torch.ones(1), []

        def backward(*_):
            if no_backward:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return (one,) * 6

        monkeypatch.setattr(scan, "forward", lambda *_, **__: one)
        monkeypatch.setattr(scan, "backward", backward)
        monkeypatch.setattr(autotune, "_call", lambda shape, *_: (no_memory(shape), one, one))
        time = lambda call: seconds(next(iter(configurations._forced.values())))  # noqa: E731
        return tune(shape, torch.float32, "cpu", 1e-5, time, tried.append), tried

    return tune_so


def no_memory(shape):
    x = torch.empty(shape[:3], device="meta")
    return scan.Scan(x, x, None, torch.empty(shape.width, shape.states, device="meta"), *(None,) * 6)


@pytest.mark.parametrize("noise", [1, -1])
def test_a_large_batch_of_short_images_does_not_keep_a_long_image_from_being_split(measured, tuned, noise):
    """With 64 channels all values of `programs` start the same: what noise chooses says nothing of other shapes."""

    def seconds(chosen):
        return (1 if chosen.channels == 64 else 9) + 1e-6 * noise * chosen.programs

    short, long = Shape(128, 197, 384, 16), Shape(1, 16385, 384, 16)
    rows, _ = tuned(short, seconds)
    assert [row["kernel"] for row in rows] == ["scan_forward", "scan_backward"]
    assert not any("programs" in row for row in rows)
    write_rows(measured, rows)
    for kernel in ("scan_forward", "scan_backward"):
        chosen = configuration(kernel, no_memory(long).x_BME, 16)
        assert groups_of(long, chosen)[1] > 50
    # Where it makes a difference, it is written, and is one that splits a long image all the same.
    rows, _ = tuned(Shape(32, 197, 384, 16), seconds)
    assert all("programs" in row for row in rows if row["kernel"] != "scan_ends")
    write_rows(measured, rows)
    assert scan.is_split(no_memory(long))


def test_a_row_has_what_its_kernel_reads(tuned):
    rows, _ = tuned(Shape(8, 1025, 384, 16), lambda chosen: 1 / chosen.channels)
    found = {row["kernel"]: [name for name in Configuration._fields if name in row] for row in rows}
    assert found == {
        "scan_ends": ["channels", "warps"],
        "scan_forward": ["channels", "warps", "programs"],
        "scan_backward": ["channels", "warps", "programs", "piece"],
    }


@pytest.mark.parametrize(
    "error, words",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (RuntimeError("PassManager::run\nfailed"), "PassManager::run failed"),
        (OutOfResources(300, 200, "shared memory"), "out of resource: shared memory"),
    ],
)
def test_one_that_fails_is_left_out(tuned, error, words):
    def seconds(chosen):
        if chosen.channels == 128:
            raise error
        return 1 / chosen.channels

    rows, tried = tuned(Shape(128, 197, 384, 16), seconds)
    assert [(row["kernel"], row["channels"]) for row in rows] == [("scan_forward", 64), ("scan_backward", 64)]
    failed = [trial for trial in tried if trial.failed]
    assert failed and all(trial.chosen.channels == 128 and words in trial.failed for trial in failed)


def test_a_kernel_of_which_nothing_runs_gets_no_row(tuned):
    def seconds(chosen):
        raise RuntimeError("no")

    assert tuned(Shape(128, 197, 384, 16), seconds)[0] == []


def test_a_kernel_that_fails_as_it_is_does_not_end_the_others(tuned):
    rows, tried = tuned(Shape(128, 197, 384, 16), lambda chosen: 1.0, no_backward=True)
    assert [row["kernel"] for row in rows] == ["scan_forward"]
    assert [trial.failed for trial in tried if trial.kernel == "scan_backward"] == ["out of memory"]


@interpreted
def test_the_fastest_right_one_is_taken(monkeypatch):
    shape, calls = Shape(1, 5, 33, 2), []
    few = {"scan_ends": [Configuration(32)], "scan_forward": [Configuration(32), Configuration(128)]}
    few["scan_backward"] = [Configuration(32, piece=2), Configuration(64, piece=4)]
    monkeypatch.setattr(autotune, "candidates", lambda kernel, shape: iter(few[kernel]))

    def time(call):
        calls.append(call())
        forced_now = next(iter(configurations._forced.values()))
        return 1 / forced_now.channels

    rows = tune(shape, torch.float32, "cpu", 1e-5, time)
    # Five tokens are never split: nothing is said of what runs only where a sequence is.
    assert [(row["kernel"], row["channels"]) for row in rows] == [("scan_forward", 128), ("scan_backward", 64)]
    assert rows[0]["states"] == 2 and rows[0]["tokens"] == 5 and len(calls) >= 4


@interpreted
def test_one_that_is_wrong_is_not_timed(monkeypatch):
    few = partial(iter, [Configuration(32), Configuration(64)])
    monkeypatch.setattr(autotune, "candidates", lambda kernel, shape: few())
    monkeypatch.setattr(autotune, "_distance", lambda found, truth: float(len(configurations._forced) > 0))
    tried = []
    assert tune(Shape(1, 3, 33, 2), torch.float32, "cpu", 1e-5, pytest.fail, tried.append) == []
    assert tried and all(trial.seconds == float("inf") for trial in tried)


def test_the_command_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["autotune"]) == 2
    assert "there is no GPU to measure: torch sees no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--tokens", "197;1025"], ["--widths", "0"], ["--batches", ""], ["--states", "x"]])
def test_the_command_s_numbers(words, capsys):
    assert main(["autotune", *words]) == 2
    assert f"{words[0]} {words[1]}: expected whole numbers above 0" in capsys.readouterr().err


@pytest.fixture
def on_a_gpu(monkeypatch):
    """autotune(words) -> exit code, on a machine whose every shape is measured at once."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(autotune, "tune", lambda shape, *_: [a_row(**shape._asdict())])
    return lambda *words: main(["autotune", "--widths", "64", *map(str, words)])


def unmeasured(monkeypatch):
    monkeypatch.setattr(autotune, "tune", lambda *_: pytest.fail("something was measured"))


def test_the_command_writes_and_says_where(on_a_gpu, capsys, measured):
    assert on_a_gpu("--tokens", "17,33", "--batches", "2") == 0
    assert [row["tokens"] for row in json.loads(measured.read_text())] == [17, 33]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "batch 2, tokens 17, width 64, states 16",
        "batch 2, tokens 33, width 64, states 16",
        str(measured),
    ]


def test_the_command_without_triton(on_a_gpu, monkeypatch, capsys, measured):
    unmeasured(monkeypatch)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "triton" else found(name))
    assert on_a_gpu("--tokens", "17", "--batches", "2") == 2
    assert capsys.readouterr() == (
        "",
        "longvision autotune: error: there are no kernels to measure: the package triton is not installed (pip install "
        "triton)\n",
    )


@pytest.mark.parametrize(
    "out, words",
    [
        ("folder", "folder is not a file"),
        ("file/launch.json", "file/launch.json cannot be written (file is not a folder): name another file"),
        ("file/deeper/launch.json", "file/deeper/launch.json cannot be written (file is not a folder): name another"),
        ("x" * 254, "cannot be written (File name too long): name another file"),
    ],
)
def test_the_command_says_first_that_it_cannot_write(on_a_gpu, monkeypatch, capsys, tmp_path, out, words):
    unmeasured(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    assert on_a_gpu("--tokens", "17", "--batches", "2", "--out", out) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and words in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_the_command_leaves_no_file_where_nothing_was_measured(on_a_gpu, monkeypatch, capsys, measured):
    monkeypatch.setattr(autotune, "tune", lambda *_: [])
    assert on_a_gpu("--tokens", "17", "--batches", "2") == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["batch 2, tokens 17, width 64, states 16"]
    assert "nothing could be measured" in printed.err and not list(measured.parent.iterdir())


def test_the_command_says_what_it_leaves_out(on_a_gpu, capsys, measured):
    assert on_a_gpu("--tokens", "17,16385", "--batches", "128") == 0
    assert capsys.readouterr().out.splitlines() == [
        "batch 128, tokens 16385, width 64, states 16: left out, more than 1048576 tokens at once",
        "batch 128, tokens 17, width 64, states 16",
        str(measured),
    ]


def test_the_command_with_nothing_left_to_measure(on_a_gpu, monkeypatch, capsys, measured):
    unmeasured(monkeypatch)
    assert on_a_gpu("--tokens", "99999999") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and not measured.exists()
    assert printed.err == (
        "longvision autotune: error: --batches 1,8,128 of --tokens 99999999 are all more than 1048576 tokens at once: "
        "give smaller ones\n"
    )


def test_the_command_goes_on_after_a_shape_that_does_not_fit(on_a_gpu, monkeypatch, capsys, measured):
    def tune(shape, *_):
        if shape.batch == 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [a_row(**shape._asdict())]

    monkeypatch.setattr(autotune, "tune", tune)
    assert on_a_gpu("--tokens", "17", "--batches", "2,8,9") == 0
    assert [row["batch"] for row in read_rows(measured)] == [2, 9]
    assert "  left out: out of memory" in capsys.readouterr().out.splitlines()


def test_the_command_says_of_each_how_it_went(on_a_gpu, monkeypatch, capsys, measured):
    chosen = Configuration(64, programs=528, piece=2)

    def tune(shape, dtype, device, tolerance, time, say):
        say(autotune.Tried("scan_backward", chosen, 1e-5, 0.0))
        say(autotune.Tried("scan_forward", chosen, float("inf"), 0.25))
        say(autotune.Tried("scan_ends", chosen, float("inf"), float("inf"), "out of memory"))
        return [a_row(**shape._asdict())]

    monkeypatch.setattr(autotune, "tune", tune)
    assert on_a_gpu("--tokens", "17", "--batches", "2") == 0
    assert capsys.readouterr().out.splitlines()[1:-1] == [
        "  scan_backward  channels 64, warps 1, programs 528, piece 2: 10 µs",
        "  scan_forward   channels 64, warps 1, programs 528: wrong by 0.2: not timed",
        "  scan_ends      channels 64, warps 1: failed: out of memory",
    ]
