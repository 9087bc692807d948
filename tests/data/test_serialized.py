import multiprocessing
import pickle
import sys
from pathlib import Path

import pytest

from longvision.data.serialized import SerializedList
from longvision.data.sources.base import ImageSet
from longvision.data.sources.objects import ImageRecord


def test_it_gives_back_what_was_put_there():
    records = [
        ImageRecord(f"{i}.jpg", i, 4, 5, [(0.0, 0.0, 1.5, i)], [i], [False], [[[0, 0, 1, 1, 1, 0]]]) for i in range(5)
    ]
    records_again = pickle.loads(pickle.dumps(SerializedList(records)))
    assert list(records_again) == records
    assert (len(records_again), records_again[-1]) == (5, records[-1])
    with pytest.raises(IndexError):
        records_again[5]
    assert list(SerializedList([])) == []


def _own_memory():
    """Megabytes that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def _epoch(images, told):
    before = _own_memory()
    for row in range(len(images)):
        images[row]
    told.put(_own_memory() - before)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_of_a_worker_is_flat_over_an_epoch():
    """Of 30,000 files, whose names take 5 MB as Python's objects."""
    images = ImageSet([(f"/somewhere/train/a class of images/{row}.jpg", row % 9) for row in range(30_000)], tuple)
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    worker = context.Process(target=_epoch, args=(images, told))
    worker.start()
    grown = told.get(timeout=100)
    worker.join()
    assert grown < 1
