"""A training's threads sleep soon, unless somebody said how they wait; torch is not loaded before that."""

import os

import pytest

from longvision_cli.train import parse, run
from longvision_cli.waiting import sleep_soon


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)


def test_threads_sleep_soon():
    sleep_soon()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_user_set_stays(monkeypatch, name):
    monkeypatch.setenv(name, "7")
    sleep_soon()
    assert {key: os.environ.get(key) for key in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} == {
        "GOMP_SPINCOUNT": None,
        "OMP_WAIT_POLICY": None,
        name: "7",
    }


def test_a_training_begins_with_it(monkeypatch):
    seen = {}

    def parsed(arguments):
        seen.update(os.environ)
        return parse(arguments)

    monkeypatch.setattr("longvision_cli.train.parse", parsed)
    with pytest.raises(Exception, match="nosuch"):
        run(["-c", "nosuch.yaml"])
    assert seen["GOMP_SPINCOUNT"] == "10000"
