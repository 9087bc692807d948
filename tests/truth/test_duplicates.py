"""The same image in two splits or under two classes is told, whatever it is called there."""

import json
import shutil

import pytest

from longvision.data.duplicates import duplicates
from longvision.data.sources.coco import CocoSource
from longvision.data.sources.folder import FolderSource
from longvision.data.sources.mask_folder import MaskFolderSource
from longvision_cli.main import main
from support.trees import image, plant

CLEAN = ["train/cat/4", "train/dog/4", "val/cat/2", "val/dog/2", "test/cat/1", "test/dog/1"]


def copied(root, *pairs):
    plant(root, *CLEAN)
    for one, other in pairs:
        shutil.copy(root / one, root / other)
    return FolderSource(root)


# (a file, its copy) -> words of the lines
FOUND = {
    "none": ([], []),
    "train and val": ([("train/cat/0.png", "val/cat/9.png")], [["1 image", "train/cat/0.png", "val/cat/9.png"]]),
    "train and test under another class": (
        [("train/cat/0.png", "test/dog/other name.png")],
        [["1 image", "train/cat/0.png (training)", "test/dog/other name.png (test)"]],
    ),
    "val and test": ([("val/dog/0.png", "test/dog/7.png")], [["validation", "test/dog/7.png"]]),
    "all three": (
        [("train/cat/0.png", "val/cat/8.png"), ("train/cat/0.png", "test/cat/8.png")],
        [["1 image", "val/cat/8.png", "test/cat/8.png"]],
    ),
    "two classes of one split": (
        [("train/cat/0.png", "train/dog/x.png")],
        [["two classes", "train/cat/0.png", "train/dog/x.png"]],
    ),
    "one class of one split": ([("train/cat/0.png", "train/cat/x.png")], []),
    "another ending": ([("train/cat/0.png", "val/cat/x.jpg")], [["val/cat/x.jpg"]]),
    "many": ([(f"train/cat/{n}.png", f"val/dog/c{n}.png") for n in range(4)], [["4 images"]]),
}


@pytest.mark.parametrize(("pairs", "words"), FOUND.values(), ids=FOUND)
def test_folders(tmp_path, pairs, words):
    lines = duplicates(copied(tmp_path, *pairs))
    assert len(lines) == len(words)
    assert all(word in line for line, said in zip(lines, words) for word in said)


def test_images_that_are_held_out_too(tmp_path):
    plant(tmp_path, "cat/10", "dog/10")
    for number in range(10):
        shutil.copy(tmp_path / f"cat/{number}.png", tmp_path / f"cat/again{number}.png")
        shutil.copy(tmp_path / f"dog/{number}.png", tmp_path / f"dog/again{number}.png")
    (line,) = duplicates(FolderSource(tmp_path))
    assert "again" in line and "validation" in line


def test_links_and_files_that_vanish(tmp_path):
    plant(tmp_path, *CLEAN)
    (tmp_path / "val/cat/link.png").symlink_to("../../train/dog/1.png")
    source = FolderSource(tmp_path)
    source.split("train"), source.split("val"), source.split("test")
    (tmp_path / "train/cat/2.png").unlink()
    (line,) = duplicates(source)
    assert "train/dog/1.png" in line and "val/cat/link.png" in line


def test_masks(tmp_path):
    plant(tmp_path, "images/train/4", "masks/train/4", "images/val/2", "masks/val/2")
    shutil.copy(tmp_path / "images/train/3.png", tmp_path / "images/val/1.png")
    (tmp_path / "classes.txt").write_text("a\nb")
    (line,) = duplicates(MaskFolderSource(tmp_path, classes_file=str(tmp_path / "classes.txt")))
    assert "images/train/3.png" in line and "images/val/1.png" in line


def test_coco(tmp_path):
    plant(tmp_path, "train/2", "val/2", "annotations/")
    for split in ("train", "val"):
        content = {
            "images": [{"id": n, "file_name": f"{n}.png", "height": 4, "width": 4} for n in range(2)],
            "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [0, 0, 2, 2]} for n in range(2)],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    shutil.copy(tmp_path / "train/0.png", tmp_path / "val/1.png")
    (line,) = duplicates(CocoSource(tmp_path))
    assert "train/0.png" in line and "val/1.png" in line


def test_rows_of_parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from longvision.data.sources.parquet import ParquetSource

    for split, shades in {"train": [1, 2, 3, 4], "val": [5, 3]}.items():
        table = pa.table({"image": [image(shade) for shade in shades], "label": [shade % 2 for shade in shades]})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    (line,) = duplicates(ParquetSource(tmp_path))
    assert "image 2 (training) = image 1 (validation)" in line


def test_check_data_tells_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    copied(tmp_path / "set", ("train/cat/0.png", "val/cat/9.png"))
    assert main(["check-data", "-c", "folder", "--data.path", "set", "--data.workers", "0"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "split" in line]
    assert line.startswith("note: 1 image") and "train/cat/0.png" in line and "val/cat/9.png" in line


def test_large_files_are_read_whole_only_where_parts_are_equal(tmp_path, monkeypatch):
    """One differs at the end, one between the parts."""
    from longvision.data import duplicates as module

    plant(tmp_path, *CLEAN)
    read, digest = [], module._digest
    monkeypatch.setattr(module, "_digest", lambda file: read.append(file) or digest(file))
    content = (tmp_path / "train/cat/0.png").read_bytes() + bytes(200_000)
    inside = content[:50_000] + b"x" + content[50_001:]
    for name, held in (("train/cat/a", content), ("val/cat/b", content[:-1] + b"x"), ("val/cat/c", inside)):
        (tmp_path / f"{name}.png").write_bytes(held)
    assert duplicates(FolderSource(tmp_path)) == []
    assert [file[len(str(tmp_path)) :] for file in read] == ["/train/cat/a.png", "/val/cat/c.png"]


def test_a_file_that_is_there_hundreds_of_times_makes_a_short_line(tmp_path):
    plant(tmp_path, *CLEAN)
    for number in range(300):
        shutil.copy(tmp_path / "train/cat/0.png", tmp_path / f"val/cat/copy{number}.png")
    (line,) = duplicates(FolderSource(tmp_path))
    assert "1 image of the same bytes" in line and len(line) < 1000
