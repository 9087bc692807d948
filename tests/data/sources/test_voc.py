from pathlib import Path

import pytest
from PIL import Image

from longvision.data.sources.voc import VocSource
from longvision.errors import UserError

HEIGHT, WIDTH = 40, 60


def thing(name="cell", box=(11, 11, 20, 30), more=""):
    corners = "".join(f"<{word}>{value}</{word}>" for word, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def write_xml(root, name, *things, height=HEIGHT, width=WIDTH):
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{''.join(things)}</annotation>")


@pytest.fixture
def root(tmp_path):
    """A VOC set: images 1 and 2 train, 3 validates; 2 has no objects."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("1", "2", "3"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    write_xml(tmp_path, "1", thing(), thing("blob", (1, 1, WIDTH, HEIGHT), "<difficult>1</difficult>"))
    write_xml(tmp_path, "2")
    write_xml(tmp_path, "3", thing("cell"))
    (tmp_path / "ImageSets/Main/train.txt").write_text("1\n2\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("3 1\n")
    return tmp_path


def test_a_set(root):
    source = VocSource(root)
    assert source.classes == ["blob", "cell"]
    assert (source.has_masks, source.has_test, len(source.palette)) == (False, False, 2)
    source.check("train")
    pictures = source.split("train")
    _, target = pictures[0]
    assert (len(pictures), Path(pictures.items[1].file).name) == (2, "2.jpg")
    assert target.boxes.tolist() == [[10, 10, 20, 30], [0, 0, WIDTH, HEIGHT]]  # from 1, inclusive
    assert target.labels.tolist() == [1, 0]
    assert target.iscrowd.tolist() == [False, True]
    assert pictures[1][1].boxes.shape == (0, 4)
    assert [pictures[index][1].image_id for index in (0, 1)] == [0, 1]
    source.check("val")
    assert Path(source.split("val").items[0].file).name == "3.jpg"


def test_one_folder_below(root, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    root.rename(above / "BCCD")
    VocSource(above).check("train")


def test_test_images_need_labels(root):
    (root / "ImageSets/Main/test.txt").write_text("4\n")
    assert not VocSource(root).has_test
    write_xml(root, "4")
    assert VocSource(root).has_test


@pytest.mark.parametrize(
    "box, message",
    [
        (
            (50, 1, 62, 10),
            r"boxes in .*Annotations lie outside their images \(object 1 of 3: .* in an image 60 wide and 40 high\)",
        ),
        ((-1, 1, 9, 9), r"boxes in .*Annotations lie outside"),
        ((5, 5, 4, 9), r"1 of the 1 boxes in .* \(val\) have no area \(object 1 of 3: 5 5 4 9\)"),
        ((5, 5, 9, 4), r"1 of the 1 boxes in .* \(val\) have no area"),
        ((61, 5, 61, 9), r"1 of the 1 boxes in .* \(val\) have no area"),  # beside the image
    ],
)
def test_faults_of_boxes(root, box, message):
    write_xml(root, "3", thing("cell", box))
    source = VocSource(root)
    source.check("train")
    with pytest.raises(UserError, match=message):
        source.check("val")


def test_a_box_from_zero_is_cut(root):
    write_xml(root, "3", thing("cell", (0, 0, 10, 10)))
    source = VocSource(root)
    source.check("val")
    assert source.split("val")[0][1].boxes.tolist() == [[0, 0, 10, 10]]


@pytest.mark.parametrize(
    "box, expected",
    [((5, 5, 5, 9), [4, 4, 5, 9]), ((5, 9, 7, 9), [4, 8, 7, 9]), ((60, 40, 60, 40), [59, 39, 60, 40])],
)
def test_a_box_that_ends_in_the_pixel_where_it_begins_is_that_wide(root, box, expected):
    write_xml(root, "3", thing("cell", box))
    source = VocSource(root)
    source.check("val")
    assert source.split("val")[0][1].boxes.tolist() == [expected]


def test_one_slip_in_a_hundred_is_left_out(root):
    write_xml(root, "3", *[thing()] * 99, thing("cell", (5, 5, 4, 5)))
    source = VocSource(root)
    with pytest.warns(UserWarning, match=r"1 of the 100 boxes in .* have no area \(object 100 of 3: 5 5 4 5\)"):
        source.check("val")
    assert len(source.split("val")[0][1].boxes) == 99


def test_a_class_that_never_trains(root):
    write_xml(root, "3", thing("horse"))
    with pytest.raises(UserError, match=r"objects in .* classes that no training image has \(object 1 of 3: horse\)"):
        VocSource(root).check("val")


def test_images_that_are_missing_or_of_another_size(root):
    write_xml(root, "3", thing(), height=WIDTH, width=HEIGHT)
    with pytest.raises(UserError, match=r"\(3\.jpg is 60 wide and 40 high, not 40 wide and 60 high\)"):
        VocSource(root).check("val")
    (root / "JPEGImages/3.jpg").unlink()
    with pytest.raises(UserError, match=r"images that .*Annotations lists do not exist \(.*3\.jpg\)"):
        VocSource(root).check("val")


def test_lists_that_do_not_fit(root):
    (root / "ImageSets/Main/train.txt").write_text("1\n8\n")
    with pytest.raises(UserError, match=r"images of .*train\.txt have no XML file in .*Annotations \(8\)"):
        VocSource(root)
    (root / "ImageSets/Main/train.txt").write_text("\n")
    with pytest.raises(UserError, match=r"train\.txt is empty"):
        VocSource(root)
    (root / "ImageSets/Main/train.txt").write_text("2\n")
    with pytest.raises(UserError, match=r"train\.txt lists no image with objects"):
        VocSource(root)
    (root / "ImageSets/Main/train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt does not exist"):
        VocSource(root)


@pytest.mark.parametrize(
    "xml, message",
    [
        ("<annotations/>", "its root is annotations"),
        (
            "<annotation><size><width>6</width><height>4</height></size><object><name>a</name></object></annotation>",
            "object 1, a, has no bndbox",
        ),
    ],
)
def test_files_that_are_no_annotations(root, xml, message):
    (root / "Annotations/1.xml").write_text(xml)
    with pytest.raises(
        UserError, match=rf"1\.xml is not an annotation of VOC's \({message}.*\): expected size and objects"
    ):
        VocSource(root)


def test_a_folder_of_another_layout(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        VocSource(tmp_path / "nowhere")
    (root / "JPEGImages").rename(root / "images")
    with pytest.raises(FileNotFoundError, match="JPEGImages does not exist: expected Pascal VOC's layout"):
        VocSource(root)


@pytest.mark.shared
def test_bccd_with_its_two_boxes_of_one_pixel(shared):
    source = VocSource(shared / "data" / "bccd")
    assert source.classes == ["Platelets", "RBC", "WBC"]
    for split in ("train", "val", "test"):
        source.check(split)
    sets = [source.split(split) for split in ("train", "val", "test")]
    assert [len(pictures) for pictures in sets] == [205, 87, 72]
    assert [sum(len(record.boxes) for record in pictures.items) for pictures in sets] == [2805, 1138, 945]
    pixels = [
        (Path(pictures.items[index].file).name, box)
        for pictures in sets
        for index, record in enumerate(pictures.items)
        for box in record.boxes
        if box[2] - box[0] == box[3] - box[1] == 1
    ]
    assert [name for name, _ in pixels] == ["BloodImage_00343.jpg", "BloodImage_00338.jpg"]
    assert pixels[1][1] == (503, 336, 504, 337)
    image, target = sets[0][0]
    assert image.size == (640, 480)
    assert set(target.labels.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lists_are_utf_8_whatever_the_locale(root, mark):
    (root / "JPEGImages/1.jpg").rename(root / "JPEGImages/Größe.jpg")
    (root / "Annotations/1.xml").rename(root / "Annotations/Größe.xml")
    for split in ("train", "val"):
        (root / f"ImageSets/Main/{split}.txt").write_text(f"{mark}Größe\n", encoding="utf-8")
    assert [entry.name for entry in VocSource(root).entries["train"]] == ["Größe"]
    (root / "ImageSets/Main/train.txt").write_bytes("Größe".encode("latin-1"))
    source = VocSource(root)
    assert [entry.name for entry in source.entries["train"]] == ["Größe"]
    assert "train.txt is not UTF-8" in source.notes[0] and "Größe" in source.notes[0]
