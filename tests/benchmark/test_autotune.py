"""Launch configurations: how one is chosen, measured, written and read again."""

import json
from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from longvision.benchmark import autotune
from longvision.benchmark.autotune import Shape, candidates, shapes, tune
from longvision.ops.triton import configurations
from longvision.ops.triton.configurations import Configuration, configuration, forced, read_rows, write_rows
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


def test_the_row_measured_nearest_to_the_shape_is_taken(measured):
    write_rows(measured, [a_row(programs=1, batch=1), a_row(programs=8), a_row(programs=64, batch=64)])
    assert [chosen_for(batch, 100, 64).programs for batch in (1, 2, 3, 8, 20, 500)] == [1, 1, 8, 8, 8, 64]
    assert chosen_for(8, 100, 64, states=64).programs == 1056  # states weigh more than all else


def test_the_number_of_states_weighs_more_than_the_device(measured):
    write_rows(measured, [a_row(device="this one", channels=128)])
    shapes_of = {"this one": (16, 64, 100, 8), "any": (64, 64, 100, 8)}
    found = [configurations._nearest("scan_forward", "this one", shape, str(measured)) for shape in shapes_of.values()]
    assert [chosen.channels for chosen in found] == [128, 32]


def test_a_row_of_another_device_is_not_taken(measured):
    write_rows(measured, [a_row(device="another")])
    assert chosen_for(8, 100, 64).programs == 1056


def test_rows_of_the_same_shape_are_replaced_and_others_kept(measured):
    write_rows(measured, [a_row(), a_row(tokens=200)])
    write_rows(measured, [a_row(programs=9)])
    assert [(row["tokens"], row["programs"]) for row in read_rows(measured)] == [(100, 9), (200, 7)]
    assert [path.name for path in measured.parent.iterdir()] == ["launch.json"]


@pytest.mark.parametrize("text", ["{", "[1]", '[{"kernel": "scan_forward"}]', '[{"channels": "many"}]', '{"a": 1}'])
def test_a_file_that_holds_something_else_is_named(measured, text):
    measured.write_text(text)
    with pytest.raises(
        ValueError, match=r"launch.json holds no launch configurations \(.*\): run `longvision autotune"
    ):
        chosen_for(1, 1, 1)


def test_forced_is_for_its_kernel_and_its_time():
    with forced("scan_ends", Configuration(96)):
        assert chosen_for(8, 197, 384).channels == 64
        assert configuration("scan_ends", torch.empty(1, 1, 1, device="meta"), 16).channels == 96
    assert configuration("scan_ends", torch.empty(1, 1, 1, device="meta"), 16).channels == 64


def test_shapes_are_combinations_that_fit():
    assert len(shapes([1, 8], [197, 1025], [384], [16])) == 4
    assert shapes([1, 2**14], [197], [384], [16]) == [Shape(1, 197, 384, 16)]


def test_candidates_leave_registers_for_the_states():
    every = [list(candidates(kernel, Shape(1, 10, 384, 64))) for kernel in autotune.KERNELS]
    assert all(chosen.channels == 32 for found in every for chosen in found)
    assert {chosen.channels for chosen in candidates("scan_forward", Shape(1, 10, 384, 16))} == {32, 64, 128}


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
    tune(Shape(1, 3, 33, 2), torch.float32, "cpu", 1e-5, pytest.fail, tried.append)
    assert tried and all(trial.seconds == float("inf") for trial in tried)


def test_the_command_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["autotune"]) == 2
    assert "there is no GPU to measure: torch sees no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--tokens", "197;1025"], ["--widths", "0"], ["--batches", ""], ["--states", "x"]])
def test_the_command_s_numbers(words, capsys):
    assert main(["autotune", *words]) == 2
    assert f"{words[0]} {words[1]}: expected whole numbers above 0" in capsys.readouterr().err


def test_the_command_writes_and_says_where(monkeypatch, capsys, measured):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(autotune, "tune", lambda shape, *_: [a_row(**shape._asdict())])
    assert main(["autotune", "--tokens", "17,33", "--batches", "2", "--widths", "64"]) == 0
    assert [row["tokens"] for row in json.loads(measured.read_text())] == [17, 33]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "batch 2, tokens 17, width 64, states 16" and printed[-1] == str(measured)
