"""Damaged files of every format: a result or `UnreadableImage`, never another exception, nor another image's pixels."""

import warnings

import numpy as np
import pytest

from longvision.data.io.images import read_image
from longvision.errors import UnreadableImage
from support.mutations import COSTLY, mutations, seeds

SEEDS = seeds()
COUNT, CHUNKS = 5000, 4


def outcome(content, channels, name):
    """Its size and bytes, or None where it cannot be read."""
    try:
        image = read_image(content, channels, name)
    except UnreadableImage as error:
        assert name in str(error) and "\n" not in str(error)
        return None
    return image.size, np.asarray(image).tobytes()


@pytest.fixture(autouse=True)
def _small_and_quiet(monkeypatch):
    monkeypatch.setenv("LONGVISION_MAX_PIXELS", "100000")  # a changed byte may ask for gigabytes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("chunk", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, CHUNKS))])
def test_a_result_or_one_sentence(chunk):
    cheap = {name: content for name, content in SEEDS.items() if name.upper() not in COSTLY}
    read = 0
    for number, (name, content) in enumerate(mutations(COUNT // CHUNKS, chunk, cheap)):
        channels = (3, 1)[number % 2]
        found = outcome(content, channels, name)
        read += found is not None
        if number % 20 == 0:  # what lay in memory before has no part in it
            outcome(SEEDS["png"], 3, "another")
            assert outcome(content, channels, name) == found, name
    assert COUNT // CHUNKS // 10 < read < COUNT // CHUNKS  # or this changes too much or too little


@pytest.mark.parametrize("name", SEEDS)
def test_every_format_whole(name, monkeypatch):
    monkeypatch.setenv("LONGVISION_MAX_PIXELS", "2000000")  # an icon has a size of its own
    assert (found := outcome(SEEDS[name], 3, name)) and found == outcome(SEEDS[name], 3, name)
