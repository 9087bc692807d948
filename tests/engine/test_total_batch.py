"""One recipe on one device and on sixty-four."""

from types import SimpleNamespace

import pytest

from longvision.engine.total_batch import keep_total_batch
from longvision.errors import UserError


def chosen(total, batch, devices, accumulate=1, count=5000):
    trainer = SimpleNamespace(world_size=devices, accumulate_grad_batches=accumulate)
    data = SimpleNamespace(total_batch=total, batch_size=batch, count=count)
    words = keep_total_batch(trainer, data)
    assert keep_total_batch(trainer, data) == words  # said twice it is the same
    return data.batch_size, trainer.accumulate_grad_batches, words


@pytest.mark.parametrize(
    "total, batch, devices, size, batches",
    [
        (1024, 128, 8, 128, 1),
        (1024, 128, 1, 128, 8),
        (1024, 128, 64, 16, 1),
        (1024, 96, 8, 64, 2),
        (1024, 2000, 1, 1024, 1),
        (10, 4, 1, 2, 5),
        (7, 4, 1, 1, 7),
    ],
)
def test_batches_times_devices_is_the_total(total, batch, devices, size, batches):
    assert size * batches * devices == total
    assert chosen(total, batch, devices)[:2] == (size, batches)


def test_what_was_chosen_is_said():
    assert chosen(1024, 128, 1)[2] == ["1024 images a step: 1 device, 8 batches of 128 on each"]
    assert chosen(1024, 128, 8, count=1024)[2] == ["1024 images a step: 8 devices, 1 batch of 128 on each"]


def test_a_total_above_the_training_images_is_told():
    _, (_, told) = chosen(1024, 128, 1, count=1023)[1:]
    assert "total_batch 1024" in told and "1023 training images" in told


@pytest.mark.parametrize(
    "count, devices, batches, images",
    [(500, 1, 3, 384), (1023, 1, 7, 896), (500, 2, 1, 256), (100, 1, 1, 100), (500, 8, 1, 500)],
)
def test_a_gradient_is_divided_by_the_batches_that_there_are(count, devices, batches, images):
    """Of 500 images in batches of 128 an epoch has 3, which were divided by 8."""
    _, accumulated, (said, _) = chosen(1024, 128, devices, count=count)
    assert accumulated == batches and said.startswith(f"{images} images a step")


def test_without_one_nothing_is_chosen():
    assert chosen(None, 64, 8, accumulate=3) == (64, 3, [])


@pytest.mark.parametrize("devices, accumulate, words", [(3, 1, "multiple of 3"), (1, 5, "accumulate_grad_batches 5")])
def test_what_cannot_be(devices, accumulate, words):
    with pytest.raises(UserError, match=words):
        chosen(1024, 128, devices, accumulate)
