"""Images of a large Parquet set are mapped from a file in the cache: the same images in the same order, whatever
becomes of that file."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
from longvision.data.sources import parquet_images  # noqa: E402
from longvision.data.sources.parquet import ParquetSource  # noqa: E402
from support.parquets import png, shard  # noqa: E402


def write(path, shades):
    pq.write_table(shard([shade % 2 for shade in shades], image=pa.binary(), first=shades[0]), path)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A set of two files, which counts as a large one, and an empty cache."""
    monkeypatch.setattr(parquet_images, "MOST_IN_MEMORY", 1000)
    monkeypatch.setenv("LONGVISION_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write(tmp_path / "set/train-0.parquet", range(20))
    write(tmp_path / "set/train-1.parquet", range(20, 40))
    return tmp_path / "set"


def cached(root):
    return sorted((root.parent / "cache/parquet").glob("*.arrow"))


def opened(root):
    """-> what its notes say, and the shades of its training images in order."""
    source = ParquetSource(root, channels=1)
    split = source.split("train")
    return source.notes, [split[row][0].getpixel((0, 0)) for row in range(len(split))]


def expected(root, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr(parquet_images, "MOST_IN_MEMORY", 1 << 30)
        notes, shades = opened(root)
    assert notes == [] and sorted(shades) != shades[::-1] and len(shades) == 36
    return shades


def test_images_and_digests_are_those_of_a_small_set(large, monkeypatch):
    shades = expected(large, monkeypatch)
    assert not cached(large)
    for _ in range(2):
        (note,), found = opened(large)
        assert found == shades
        assert str(cached(large)[0]) in note and "GB" in note
    with monkeypatch.context() as small:
        names = [one.name for one in ParquetSource(large).listed_images("val")]
        small.setattr(parquet_images, "MOST_IN_MEMORY", 1 << 30)
        assert [one.name for one in ParquetSource(large).listed_images("val")] == names


def test_workers_map_the_same_file(large):
    split = ParquetSource(large, channels=1).split("train")
    pickled = pickle.dumps(split)
    assert b"PNG" not in pickled
    assert np.asarray(pickle.loads(pickled)[3][0])[0, 0] == np.asarray(split[3][0])[0, 0]


def test_a_changed_set_is_written_anew_and_the_old_file_removed(large):
    opened(large)
    (before,) = cached(large)
    other = before.with_name(f"0000-{before.name}")  # of another set, not used for long
    other.touch()
    os.utime(other, (0, 0))
    write(large / "train-1.parquet", range(100, 121))
    assert 110 in opened(large)[1] + opened(large)[1]
    (after,) = cached(large)
    assert after != before


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-100]),
                                    lambda path: path.write_bytes(b"hello")], ids=["cut", "no-arrow"])  # fmt: skip
def test_a_damaged_file_is_written_anew(large, damage):
    _, shades = opened(large)
    (path,) = cached(large)
    damage(path)
    assert opened(large)[1] == shades
    assert pa.ipc.open_file(path).num_record_batches


def test_a_cache_without_room_is_told_once_and_the_images_held_in_memory(large, monkeypatch):
    shades = expected(large, monkeypatch)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for name in ("path", "home", "space"):
        with monkeypatch.context() as broken:
            if name == "path":  # cannot be made
                (large.parent / "file").touch()
                broken.setenv("LONGVISION_CACHE", str(large.parent / "file/cache"))
            elif name == "home":
                broken.setattr("longvision.cache.user_cache", lambda: None)
            else:
                broken.setattr(parquet_images, "written_beside", full)
            (note,), found = opened(large)
        assert found == shades and "LONGVISION_CACHE" in note
        assert ("No space left" in note) == (name == "space")
    assert not cached(large)


def test_a_failed_write_leaves_nothing_behind(large, monkeypatch):
    def stops(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(pa.RecordBatchFileWriter, "write_batch", stops, raising=False)
        assert "No space left" in opened(large)[0][0]
    assert not cached(large)


def test_a_damaged_set_is_not_a_full_disk(large):
    (large / "train-1.parquet").write_bytes((large / "train-1.parquet").read_bytes().replace(b"PNG", b"GNP", 1))
    content = bytearray((large / "train-1.parquet").read_bytes())
    content[4:40] = bytes(36)
    (large / "train-1.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"train-1\.parquet is damaged"):
        opened(large)
    assert not cached(large)


MEASURE = """
import sys
from pathlib import Path
from longvision.data.sources import parquet_images
from longvision.data.sources.parquet import ParquetSource

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

parquet_images.MOST_IN_MEMORY = parquet_images.AT_ONCE = 4 << 20
before = most = anonymous()
source = ParquetSource(sys.argv[1])
source.split("train"), source.listed_images("train")
most = max(most, anonymous())
images = source.split("train")
for row in range(len(images)):
    images[row]
    if row % 50 == 0:
        most = max(most, anonymous())
print(most - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
def test_a_large_set_takes_no_memory_of_its_own(tmp_path):
    random = np.random.default_rng(0)
    images = [png(row % 256) + random.bytes(200_000) for row in range(500)]  # 100 MB; what follows a PNG is not read
    table = pa.table({"image": images, "label": [row % 2 for row in range(500)]})
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set/train.parquet", row_group_size=100, use_dictionary=False)
    environment = {**os.environ, "LONGVISION_CACHE": str(tmp_path / "cache")}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / "set")], capture_output=True, text=True,
                              env=environment, check=True)  # fmt: skip
        assert float(done.stdout) < 60  # MB
