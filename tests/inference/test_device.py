"""A device is a word that is checked before torch is loaded, and a thing that is there or not."""

import pytest
import torch

from longvision.errors import UserError
from longvision.inference.device import check_device, find_device


@pytest.mark.parametrize("word", ["cpu", "mps", "cuda", "cuda:0", "cuda:11"])
def test_devices_have_names(word):
    check_device(word)


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "CPU", "", "cpu:0", "cuda:1 "])
def test_other_words_are_refused(word):
    with pytest.raises(UserError, match=f"{word!r}.*cuda:N"):
        check_device(word)


@pytest.mark.parametrize("count, expected", [(0, "cpu"), (2, "cuda")])
def test_the_first_gpu_where_there_is_one(monkeypatch, count, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    assert find_device().type == expected


def test_what_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("cuda:0") == torch.device("cuda:0") and find_device("cuda") == torch.device("cuda")
    for word in ("cuda:1", "mps"):
        with pytest.raises(UserError, match=word):
            find_device(word)
    assert find_device(torch.device("cpu")) == torch.device("cpu")
