import pickle

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
from longvision.data.sources.parquet import ParquetSource  # noqa: E402
from support.parquets import STRUCT, png, shard  # noqa: E402


def write(path, labels, names=None, plain=False, **options):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(shard(labels, names, image=pa.binary() if plain else STRUCT, **options), path)


def shades(split):
    return [image.getpixel((0, 0)) for image, _ in (split[index] for index in range(len(split)))]


@pytest.mark.parametrize("below", ["", "data"])
def test_splits_and_stored_names(tmp_path, below):
    folder = tmp_path / below
    write(folder / "train-00000-of-00002.parquet", [0, 1, 1], ["cat", "dog", "emu"])
    write(folder / "train-00001-of-00002.parquet", [0, 0], ["cat", "dog", "emu"])
    write(folder / "validation.parquet", [1, 2], ["cat", "dog", "emu"])
    write(folder / "test-0.parquet", [0], ["cat", "dog", "emu"])
    source = ParquetSource(tmp_path, channels=1)
    assert source.classes == ["cat", "dog", "emu"]
    assert source.has_test
    train = source.split("train")
    assert [train[row][1] for row in range(5)] == [0, 1, 1, 0, 0]
    assert shades(train) == [0, 1, 2, 0, 1]
    assert [source.split("val")[row][1] for row in range(2)] == [1, 2]
    assert len(source.split("test")) == 1


@pytest.mark.parametrize("plain", [True, False])
def test_a_tenth_validates_where_no_file_does(tmp_path, plain):
    write(tmp_path / "train.parquet", [0, 1] * 30, plain=plain)
    source = ParquetSource(tmp_path, channels=1, seed=1)
    train, val = source.split("train"), source.split("val")
    assert source.classes == ["0", "1"]
    assert not source.has_test
    assert (len(train), len(val)) == (54, 6)
    assert sorted(shades(train) + shades(val)) == list(range(60))
    assert all(label == shade % 2 for shade, (_, label) in zip(shades(val), val.items.tolist()))
    assert shades(ParquetSource(tmp_path, channels=1, seed=1).split("val")) == shades(val)
    assert shades(ParquetSource(tmp_path, channels=1, seed=2).split("val")) != shades(val)


@pytest.mark.parametrize("categories", [False, True])
def test_names_as_labels(tmp_path, categories):
    labels = pa.array(["dog", "cat"] * 10)
    write(tmp_path / "train.parquet", labels.dictionary_encode() if categories else labels)
    source = ParquetSource(tmp_path)
    assert source.classes == ["cat", "dog"]
    assert source.split("train")[0][1] == 1


def test_workers_get_no_copy_of_the_images(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 30)
    split = ParquetSource(tmp_path, channels=1).split("train")
    pickled = pickle.dumps(split)
    assert b"PNG" not in pickled
    assert shades(pickle.loads(pickled)) == shades(split)


def test_a_source_of_another_process_opens_its_files_before_it_has_workers(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 30)
    source = ParquetSource(tmp_path, channels=1)
    shown = shades(source.split("train"))
    received = pickle.loads(pickle.dumps(source))
    images = received.split("train")
    assert "table" in vars(received._shards["train"])
    assert shades(images) == shown


def test_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        ParquetSource(tmp_path / "nowhere")
    write(tmp_path / "deep" / "train.parquet", [0, 1])
    with pytest.raises(FileNotFoundError, match=r"no train\*\.parquet in .*there are .parquet files in .*deep"):
        ParquetSource(tmp_path)
    with pytest.raises(ValueError, match="is a file: give the folder"):
        ParquetSource(tmp_path / "deep" / "train.parquet")


def test_not_parquet(tmp_path):
    (tmp_path / "train.parquet").write_text("hello")
    with pytest.raises(ValueError, match=r"train\.parquet is not a readable Parquet file"):
        ParquetSource(tmp_path)


def test_other_columns(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 10, columns=("img", "fine_label"))
    with pytest.raises(ValueError, match="no column image and no column label, only img, fine_label"):
        ParquetSource(tmp_path)
    source = ParquetSource(tmp_path, image_column="img", label_column="fine_label")
    assert len(source.split("train")) == 18


def test_columns_of_another_kind(tmp_path):
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="has string in the column image: expected encoded images"):
        ParquetSource(tmp_path)
    pq.write_table(pa.table({"image": [b"a"], "label": [0.5]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="has double in the column label"):
        ParquetSource(tmp_path)


@pytest.mark.parametrize("label", [-1, 2])
def test_label_out_of_range(tmp_path, label):
    write(tmp_path / "train.parquet", [0, 1, 1, label], ["cat", "dog"])
    with pytest.raises(ValueError, match=rf"row 3 of .*train.parquet has the label {label}, outside the 2 classes"):
        ParquetSource(tmp_path).split("train")


def test_a_name_that_training_has_not(tmp_path):
    write(tmp_path / "train.parquet", ["cat", "dog"])
    write(tmp_path / "val.parquet", ["cat", "emu"])
    with pytest.raises(ValueError, match=r"row 1 of .*val\.parquet has the label 'emu'"):
        ParquetSource(tmp_path).split("val")


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 0, 0], "1 classes: two are needed"),
        ([0, 123456789], "label 123456789 in 2 rows"),
        ([0, None], "1 rows without a label"),
        (np.array([], dtype=np.int64), "no rows"),
    ],
)
def test_labels_that_make_no_classes(tmp_path, labels, message):
    write(tmp_path / "train.parquet", labels)
    with pytest.raises(ValueError, match=message):
        ParquetSource(tmp_path)


def test_two_orders_of_the_classes(tmp_path):
    write(tmp_path / "train.parquet", [0, 1], ["cat", "dog"])
    write(tmp_path / "test.parquet", [0, 1], ["dog", "cat"])
    with pytest.raises(ValueError, match=r"numbers its classes dog, cat, but .* cat, dog"):
        ParquetSource(tmp_path)


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "a.png"}])
def test_null_images(tmp_path, image):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": png(0), "path": None}, image] * 2, kind)
    pq.write_table(pa.table({"image": images, "label": [0, 0, 1, 1]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="2 rows without image bytes"):
        ParquetSource(tmp_path).split("train")


def test_cifar10(shared_data):
    source = ParquetSource(shared_data / "cifar10")
    assert source.classes[:2] == ["airplane", "automobile"]
    sizes = [len(source.split(split)) for split in ("train", "val", "test")]
    assert sizes == [45000, 5000, 10000]
    assert source.split("test")[9999][0].size == (32, 32)
