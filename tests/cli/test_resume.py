"""`longvision train --resume`: from which checkpoint, and with which options, a run goes on."""

import csv

import pytest

from longvision.engine.run import Run
from support.checkpoints import DAMAGES


def steps(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [(row["epoch"], row["step"]) for row in csv.DictReader(file)]


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(longvision, stopped_run):
    run = Run(stopped_run)
    DAMAGES["a-bit-of-a-tensor"](run.last)
    answer = longvision("train", "--resume", run.path)
    assert answer.code == 0, answer.err
    (told,) = [line for line in answer.out.splitlines() if "cut short" in line]
    assert str(run.last) in told and f"goes on from {run.previous}" in told
    assert steps(run.path)[-1] == ("2", "8")


@pytest.mark.slow
def test_without_a_checkpoint_that_is_whole(longvision, stopped_run):
    for checkpoint in Run(stopped_run).checkpoints.iterdir():
        DAMAGES["cut"](checkpoint)
    answer = longvision("train", "--resume", stopped_run)
    assert answer.code == 2 and "no other checkpoint" in answer.err and "Traceback" not in answer.err
