"""Parquet files whose labels, names and types differ from file to file: cast where that is safe, or refused by name."""

import decimal

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
from longvision.data.sources.parquet import ParquetSource  # noqa: E402
from longvision.errors import UserError  # noqa: E402
from support.parquets import STRUCT, png, shard  # noqa: E402

CATS = ["cat", "dog"]


def source(root, **files):
    for name, table in files.items():
        pq.write_table(table, root / f"{name.replace('_', '-')}.parquet")
    return ParquetSource(root, channels=1)


def seen(source, split="train"):
    """Shade -> class name."""
    images = source.split(split)
    rows = [images[row] for row in range(len(images))]
    return {image.getpixel((0, 0)): source.classes[label] for image, label in rows}


NUMBERS = pa.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(NUMBERS, id="int64"),
        pytest.param(NUMBERS.cast(pa.int8()), id="int8"),
        pytest.param(NUMBERS.cast(pa.uint64()), id="uint64"),
        pytest.param(NUMBERS.cast(pa.float64()), id="whole floats"),
        pytest.param(NUMBERS.cast(pa.float32()), id="whole float32"),
        pytest.param(NUMBERS.cast(pa.bool_()), id="truth values"),
        pytest.param(pa.array([decimal.Decimal(n) for n in (0, 1, 1, 0)]), id="decimals"),
        pytest.param(NUMBERS.dictionary_encode(), id="categories of numbers"),
        pytest.param(pa.array(["cat", "dog", "dog", "cat"]), id="names"),
        pytest.param(pa.array(["cat", "dog", "dog", "cat"]).dictionary_encode(), id="categories"),
        pytest.param(pa.array(["dog", "cat"]).dictionary_encode().take([1, 0, 0, 1]), id="categories in another order"),
        pytest.param(pa.array(["cat", "dog", "dog", "cat"], pa.large_string()), id="large strings"),
        pytest.param(pa.array([b"cat", b"dog", b"dog", b"cat"]), id="names as bytes"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_labels_that_are_cast(tmp_path, second, named):
    made = source(
        tmp_path,
        train_0=shard([1, 0], CATS),
        train_1=shard(second, CATS if named else None, first=2),
        val=shard(second, first=9),
    )
    assert made.classes == CATS
    assert seen(made) == {0: "dog", 1: "cat", 2: "cat", 3: "dog", 4: "dog", 5: "cat"}
    assert seen(made, "val") == {9: "cat", 10: "dog", 11: "dog", 12: "cat"}


@pytest.mark.parametrize("image", [pa.binary(), pa.large_binary(), STRUCT, pa.struct([("bytes", pa.large_binary())])])
def test_files_that_store_images_in_different_ways(tmp_path, image):
    if image == pa.struct([("bytes", pa.large_binary())]):
        second = shard([1, 0], CATS, first=2)
        images = pa.array([{"bytes": png(2)}, {"bytes": png(3)}], image)
        second = second.set_column(0, "image", images)
    else:
        second = shard([1, 0], CATS, image=image, first=2)
    made = source(tmp_path, train_0=shard([0, 1], CATS), train_1=second, val=shard([0], CATS))
    assert seen(made) == {0: "cat", 1: "dog", 2: "dog", 3: "cat"}


def test_a_file_without_names_is_told(tmp_path):
    made = source(tmp_path, train_0=shard([0, 1], CATS), train_1=shard([1, 0]), val=shard([0], CATS))
    assert made.notes and "train-1.parquet" in made.notes[0]
    assert source(tmp_path, train_1=shard([1, 0], CATS)).notes == []


def test_names_come_from_whichever_file_stores_them(tmp_path):
    made = source(tmp_path, train_0=shard([0, 1]), train_1=shard([1, 0], CATS), val=shard([0]))
    assert made.classes == CATS


@pytest.mark.parametrize(
    ("files", "words"),
    [
        pytest.param(
            {"train_1": shard([1, 0], ["dog", "cat"])},
            ["train-1.parquet numbers its classes dog, cat", "cat, dog"],
            id="names in another order, tfds#797",
        ),
        pytest.param({"train_1": shard([0], ["cat", "dog", "emu"])}, ["train-1.parquet", "emu"], id="more names"),
        pytest.param({"val": shard([0], ["dog", "cat"])}, ["val.parquet numbers its classes"], id="order of val"),
        pytest.param({"train_1": shard([0, 2], CATS)}, ["row 1", "train-1.parquet", "label 2"], id="beyond the names"),
        pytest.param({"train_1": shard([0, -1], CATS)}, ["row 1", "train-1.parquet", "label -1"], id="-1"),
        pytest.param({"val": shard(["cat", "emu"])}, ["row 1", "val.parquet", "'emu'"], id="an unknown name"),
        pytest.param({"val": shard(["0", "1"])}, ["row 0", "val.parquet", "'0'"], id="numbers as text"),
        pytest.param({"train_1": shard([0, None], CATS)}, ["train-1.parquet", "1 rows", "row 1"], id="null"),
        pytest.param({"train_1": shard([0.0, np.nan], CATS)}, ["train-1.parquet", "1 rows without a label"], id="NaN"),
        pytest.param({"train_1": shard([0, 0.5], CATS)}, ["train-1.parquet", "double", "label"], id="a fraction"),
        pytest.param({"train_1": shard([0, 1e30], CATS)}, ["train-1.parquet", "double"], id="a huge float"),
        pytest.param({"train_1": shard([[0], [1]], CATS)}, ["train-1.parquet", "list"], id="lists"),
        pytest.param({"train_1": shard([{"a": 1}], CATS)}, ["train-1.parquet", "struct"], id="structs"),
        pytest.param({"train_1": shard([b"\xff", b"a"])}, ["train-1.parquet", "binary"], id="bytes that are no text"),
        pytest.param({"train_0": shard([0, 1], ["a", "a"])}, ["train-0.parquet", "a more than once"], id="twice"),
        pytest.param({"train_0": shard([0, 1], meta="{")}, ["train-0.parquet", "metadata"], id="broken metadata"),
        pytest.param({"train_0": shard([0, 1], meta="[]")}, ["train-0.parquet", "metadata"], id="a list for metadata"),
        pytest.param({"train_0": shard([0, 1], "ab")}, ["train-0.parquet", "'ab'"[1:3]], id="names that are no list"),
    ],
)  # fmt: skip
def test_labels_that_are_refused(tmp_path, files, words):
    with pytest.raises(UserError) as caught:
        source(tmp_path, **{"train_0": shard([0, 1], CATS), "val": shard([0], CATS)} | files)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_names_in_one_file_and_numbers_in_another(tmp_path):
    with pytest.raises(UserError, match=r"train-1\.parquet has class names .*train-0\.parquet class numbers"):
        source(tmp_path, train_0=shard([0, 1]), train_1=shard(["cat", "dog"]))


@pytest.mark.parametrize(
    "labels", [pa.array([-1, -1]), pa.array([None, None]), pa.array([None, None], pa.string()), pa.array([np.nan] * 2)]
)
def test_a_test_without_labels_is_not_used(tmp_path, labels):
    made = source(tmp_path, train=shard([0, 1], CATS), val=shard([0], CATS), test=shard(labels, CATS))
    assert not made.has_test and "test.parquet has no labels" in made.notes[0]


def test_a_test_without_the_column_of_labels(tmp_path):
    made = source(tmp_path, train=shard([0, 1], CATS), val=shard([0], CATS), test=shard([0]).drop_columns("label"))
    assert not made.has_test and "test.parquet" in made.notes[0]


def test_a_test_with_some_labels_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"row 1 of .*test\.parquet has the label -1"):
        source(tmp_path, train=shard([0, 1], CATS), val=shard([0], CATS), test=shard([0, -1], CATS))


def test_classes_that_no_training_image_has_are_told(tmp_path):
    made = source(tmp_path, train=shard([1, 3, 1, 3]), val=shard([1]))
    assert made.classes == ["0", "1", "2", "3"] and "2 classes: 0, 2" in made.notes[0]


def test_empty_files_are_no_reason_to_refuse_the_others(tmp_path):
    made = source(tmp_path, train_0=shard([], kind=pa.int64()), train_1=shard([0, 1, 1], CATS), val=shard([0]))
    assert len(made.split("train")) == 3


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (pa.array(["a.png", "b.png"]), ["string", "expected encoded images"]),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.uint8())), ["list", "expected encoded images"]),
        (pa.array([{"path": "a.png"}] * 2), ["struct<path", "expected encoded images"]),
        (pa.array([{"bytes": "text"}] * 2), ["struct<bytes: string>", "expected encoded images"]),
        (pa.array([[{"bytes": b"a"}]] * 2), ["list", "expected encoded images"]),
        (pa.array([{"bytes": None, "path": "a.png"}, None], STRUCT), ["train-1.parquet", "2 rows without image bytes"]),
    ],
)
def test_images_that_are_refused(tmp_path, images, words):
    second = shard([0, 1], CATS).set_column(0, "image", images)
    with pytest.raises(UserError) as caught:
        source(tmp_path, train_0=shard([0, 1], CATS), train_1=second, val=shard([0], CATS)).split("train")
    assert all(word in str(caught.value) for word in words)


def test_a_damaged_file_is_named(tmp_path):
    pq.write_table(shard([0, 1] * 50, CATS), tmp_path / "train-0.parquet", compression="none")
    content = bytearray((tmp_path / "train-0.parquet").read_bytes())
    content[4:400] = b"\xff" * 396
    (tmp_path / "train-0.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"train-0\.parquet is damaged"):
        ParquetSource(tmp_path).split("train")


def test_a_column_twice_is_refused(tmp_path):
    table = shard([0, 1], CATS)
    with pytest.raises(UserError, match="several columns label"):
        source(tmp_path, train=table.append_column("label", pa.array([1, 0])))


def test_class_names_that_look_alike_are_told(tmp_path):
    notes = source(tmp_path, train=shard(["cat", "Cat ", "dog", "cat", "Cat ", "dog"])).notes
    assert any("'Cat '" in note and "'cat'" in note for note in notes)


def test_a_single_file_without_a_split_is_read(tmp_path):
    found = source(tmp_path, data=shard(["cat", "dog"] * 10))
    assert (len(found.split("train")), len(found.split("val")), found.has_test) == (18, 2, False)
    assert found.draws_validation and "no split" in found.notes[0]
