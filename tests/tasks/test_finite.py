"""A loss that is no number stops a training, on a GPU a step later and before anything is saved."""

import pytest
import torch

from longvision.errors import DivergedError
from longvision.tasks import finite
from longvision.tasks.finite import FiniteCheck

NAN = torch.tensor(float("nan"))


class Event:
    """A device whose copies are there once somebody waited for them."""

    waited = 0

    def synchronize(self):
        Event.waited += 1


@pytest.fixture
def on_gpu(monkeypatch):
    Event.waited = 0
    monkeypatch.setattr(finite, "_recorded", lambda loss: Event())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_on_a_cpu_it_is_told_at_once(value):
    check = FiniteCheck("do this")
    check.add(torch.tensor(1.0), 3)
    with pytest.raises(DivergedError, match="step 4: do this"):
        check.add(torch.tensor(float(value)), 4)


def test_on_a_gpu_a_step_is_looked_at_in_the_next_one(on_gpu):
    check = FiniteCheck("do this")
    check.add(torch.tensor(1.0), 0)
    assert Event.waited == 0
    check.add(NAN, 1)
    assert Event.waited == 1  # for the step before, whose copy is there by now
    with pytest.raises(DivergedError, match="step 1"):
        check.add(torch.tensor(1.0), 2)


def test_nothing_is_saved_before_the_last_step_was_looked_at(on_gpu):
    check = FiniteCheck("do this")
    check.add(NAN, 5)
    with pytest.raises(DivergedError, match="step 5"):
        check.settle()
    check.settle()  # and it is said once
