"""Pascal VOC's files as programs write them: each reading of a word, a number or a name is right, told, or refused."""

import numpy as np
import pytest
from PIL import Image

from longvision.data.sources.voc import VocSource
from longvision.errors import UserError

HEIGHT, WIDTH = 40, 60
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
BOX = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
READ = [10, 10, 20, 30]


def thing(name="<name>cat</name>", box=BOX, more=""):
    return f"<object>{name}{more}{box}</object>"


def corners(xmin, ymin, xmax, ymax):
    return f"<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>"


def made(root, body=None, names=("a",), line=None, head="", encoding="utf-8", image="{}.jpg", list_encoding="utf-8"):
    """A set of images of one name, or some; all train and validate."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "JPEGImages" / image.format(name))
        xml = f"{head}<annotation>{SIZE + thing() if body is None else body}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_bytes(xml.encode(encoding))
    text = "\n".join(names) if line is None else line
    for split in ("train", "val"):
        (root / "ImageSets/Main" / f"{split}.txt").write_bytes(text.encode(list_encoding))
    return root


def read(root):
    source = VocSource(root)
    source.check("train")
    return source, [source.split("train")[row] for row in range(len(source.split("train")))]


@pytest.mark.parametrize(
    ("word", "difficult", "told"),
    [
        ("0", False, False),
        ("1", True, False),
        (" 1\n", True, False),
        ("", False, False),
        ("False", False, False),
        ("true", True, False),
        ("No", False, False),
        ("yes", True, False),
        ("Unspecified", False, True),
        ("None", False, True),
        ("unknown", False, True),
    ],
)
def test_words_for_difficult(tmp_path, word, difficult, told):
    """YOLOX#1280, PaddleDetection#5308: any word but 0 was read as yes."""
    source, [(_, target)] = read(made(tmp_path, SIZE + thing(more=f"<difficult>{word}</difficult>")))
    assert target.iscrowd.tolist() == [difficult]
    assert bool(source.notes) == told and all(word in note for note in source.notes)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        pytest.param(["my photo (1)", "my photo (2)"], None, id="blanks, efficientdet-pytorch#16"),
        pytest.param(["a", "b"], "a  1\nb -1\n", id="flags of a list of one class"),
        pytest.param(["a", "b"], "a 0\nb +1\n", id="flag 0"),
        pytest.param(["my photo", "b"], "my photo  1\nb -1\n", id="blanks and flags"),
        pytest.param(["a", "b"], "a.jpg\nb.JPG\n", id="image endings"),
        pytest.param(["a", "b"], "a.png 1\nb.jpg -1", id="image endings and flags"),
        pytest.param(["a", "b"], "a.xml\nb.xml", id="names of the annotations"),
        pytest.param(["a", "b"], "VOC2007/JPEGImages/a.jpg\r\nD:\\set\\b.jpg\r\n", id="paths"),
        pytest.param(["a", "b"], "\ufeffa\r\nb\r\n", id="mark and CRLF"),
        pytest.param(["a", "b"], "a\rb\r", id="lines of an old Mac"),
        pytest.param(["shot.v1", "b.2024.05"], None, id="dots"),
        pytest.param(["photo 1", "b"], "photo 1\nb", id="a name that ends as a flag does"),
        pytest.param(["größe", "北京"], None, id="UTF-8"),
    ],
)
def test_lists(tmp_path, names, line):
    source, images = read(made(tmp_path, names=names, line=line))
    assert [entry.file.split("/")[-1] for entry in source.split("train").items] == [f"{name}.jpg" for name in names]
    assert all(target.boxes.tolist() == [READ] for _, target in images) and source.notes == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_lists_with_a_byte_order_mark(tmp_path, encoding):
    assert len(read(made(tmp_path, names=["größe", "b"], list_encoding=encoding))[1]) == 2


@pytest.mark.parametrize(
    ("text", "encoding", "words"),
    [
        ("größe", "latin-1", ["train.txt", "größe"]),
        ("café_01", "cp1252", ["train.txt", "café_01"]),
    ],
)
def test_western_lists_are_read_and_told(tmp_path, text, encoding, words):
    source, images = read(made(tmp_path, names=[text], list_encoding=encoding))
    assert len(images) == 1 and all(word in source.notes[0] for word in words)


@pytest.mark.parametrize(
    ("text", "encoding"), [("дорога", "cp1251"), ("道路", "gbk"), ("道路", "shift-jis"), ("도로길", "euc-kr")]
)
def test_other_encodings_are_refused_by_name(tmp_path, text, encoding):
    with pytest.raises(UserError, match=r"ImageSets/Main/train\.txt, line 1: the byte 0x"):
        read(made(tmp_path, names=[text], list_encoding=encoding))


@pytest.mark.parametrize(
    ("head", "encoding", "told"),
    [
        ("", "utf-8", False),
        ("", "utf-16", False),
        ("\ufeff", "utf-8", False),
        ('<?xml version="1.0" encoding="ISO-8859-1"?>', "latin-1", False),
        ('<?xml version="1.0" encoding="gbk"?>', "gbk", False),
        ('<?xml version="1.0" encoding="utf-16"?>', "utf-8", False),  # as .NET writes of its strings
        ('\n <?xml version="1.0"?>', "utf-8", False),
        ('<?xml version="1.0" encoding="utf-8"?>', "latin-1", True),
        ("", "latin-1", True),
    ],
)
def test_encodings_of_xml(tmp_path, head, encoding, told):
    name = "猫" if encoding == "gbk" else "Löwe"
    root = made(tmp_path, SIZE + thing(f"<name>{name}</name>"), head=head, encoding=encoding)
    source, _ = read(root)
    assert source.classes == [name]
    assert bool(source.notes) == told


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((11, 11, 20, 30), READ),
        ((11.5, 11.25, 20.5, 30), [10.5, 10.25, 20.5, 30]),
        (("1e1", " 11 ", "20.0", "30"), [9, 10, 20, 30]),
    ],
)
def test_numbers(tmp_path, box, expected):
    source, [(_, target)] = read(made(tmp_path, SIZE + thing(box=corners(*box))))
    assert np.allclose(target.boxes, [expected]) and source.notes == []


def test_boxes_from_zero_are_told(tmp_path):
    source, [(_, target)] = read(made(tmp_path, SIZE + thing(box=corners(0, 5, 10, 20))))
    assert target.boxes.tolist() == [[0, 4, 10, 20]]
    assert "begin at 0" in source.notes[0] and "object 1 of a.xml" in source.notes[0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (SIZE + thing(box=corners("12,5", 1, 9, 9)), ["object 1", "xmin", "'12,5'"]),
        (SIZE + thing(box=corners("", 1, 9, 9)), ["no object 1: bndbox/xmin"]),
        (SIZE + thing(box=corners(1, 1, "nan", 9)), ["xmax", "'nan'"]),
        (SIZE + thing(box=corners(1, 1, 9, "inf")), ["ymax", "'inf'"]),
        (SIZE + thing(box=corners(1, 1, "1_0", 9)), ["xmax", "'1_0'"]),
        (SIZE + thing(box=corners(1, 1, 9, 9) + corners(1, 1, 8, 8)), ["object 1 has 2 of bndbox/xmin"]),
        (SIZE + thing(box="<bndbox><xmin>1</xmin><ymin>1</ymin><ymax>9</ymax></bndbox>"), ["no object 1", "xmax"]),
        (SIZE + thing(box="<polygon><x1>1</x1></polygon>"), ["object 1, cat, has no bndbox, but polygon"]),
        (SIZE + thing(box="<robndbox><cx>1</cx></robndbox>"), ["no bndbox, but robndbox"]),
        (SIZE + thing(name=""), ["object 1 has no name"]),
        (SIZE + thing(name="<name> </name>"), ["object 1 has no name"]),
        (SIZE + thing(name="<name>a</name><name>b</name>"), ["object 1 has 2 of name"]),
        (SIZE + thing(more="<difficult>maybe</difficult>"), ["object 1", "difficult 'maybe'"]),
        (SIZE + thing(more="<difficult>2</difficult>"), ["difficult '2'"]),
        ("<size><width>60.5</width><height>40</height></size>" + thing(), ["40 high and 60.5 wide"]),
        ("<size><width>wide</width><height>40</height></size>" + thing(), ["size/width is 'wide'"]),
        ("<size><width>-60</width><height>40</height></size>" + thing(), ["40 high and -60 wide"]),
    ],
)
def test_what_is_no_number_or_word(tmp_path, body, words):
    with pytest.raises(UserError) as caught:
        read(made(tmp_path, body))
    assert all(word in str(caught.value) for word in ["a.xml", *words]) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>", "<size/>"])
def test_a_missing_size_is_the_images(tmp_path, size):
    source, [(_, target)] = read(made(tmp_path, size + thing()))
    assert target.boxes.tolist() == [READ]
    assert "have no size" in source.notes[0] and "a.xml" in source.notes[0]


def test_parts_with_boxes_of_their_own_are_no_objects(tmp_path):
    part = f"<part><name>head</name>{corners(1, 1, 5, 5)}</part>"
    source, [(_, target)] = read(made(tmp_path, SIZE + thing(more=part)))
    assert source.classes == ["cat"] and target.boxes.tolist() == [READ]


@pytest.mark.parametrize(
    ("filename", "told"),
    [("a.jpg", False), ("a.png", False), ("C:\\photos\\a.jpeg", False), ("a", False), ("b.jpg", True), ("", False)],
)
def test_the_file_name_in_the_xml(tmp_path, filename, told):
    source, _ = read(made(tmp_path, f"<filename>{filename}</filename>{SIZE}{thing()}"))
    assert source.split("train").items[0].file.endswith("JPEGImages/a.jpg")
    assert bool(source.notes) == told and all(filename in note for note in source.notes)


def test_an_image_called_as_the_xml_says(tmp_path):
    made(tmp_path, f"<filename>IMG 7.png</filename>{SIZE}{thing()}")
    (tmp_path / "JPEGImages/a.jpg").rename(tmp_path / "JPEGImages/IMG 7.png")
    assert read(tmp_path)[0].split("train").items[0].file.endswith("IMG 7.png")


def test_two_images_of_one_name(tmp_path):
    made(tmp_path)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "JPEGImages/a.png")
    with pytest.raises(UserError, match=r"images beside a\.jpg have its name \(a\.png\)"):
        read(tmp_path)
    made(tmp_path, f"<filename>a.png</filename>{SIZE}{thing()}")
    assert read(tmp_path)[0].split("train").items[0].file.endswith("a.png")


def test_labels_that_lie_beside_the_images_are_none(tmp_path):
    made(tmp_path)
    for name in ("a.txt", "a.xml", "a.json"):
        (tmp_path / "JPEGImages" / name).write_text("labels")
    assert read(tmp_path)[0].split("train").items[0].file.endswith("a.jpg")


def test_class_names_that_look_alike_are_told(tmp_path):
    source, _ = read(made(tmp_path, SIZE + thing() + thing("<name>Cat</name>")))
    assert source.classes == ["Cat", "cat"] and any("'Cat' and 'cat'" in note for note in source.notes)


def test_a_test_list_without_labels_is_told(tmp_path):
    """As VOC2012 comes: the test split was not there, and nobody said so."""
    made(tmp_path)
    (tmp_path / "ImageSets/Main/test.txt").write_text("b\nc\n")
    source = VocSource(tmp_path)
    (note,) = source.notes
    assert not source.has_test and "2 images" in note and "test.txt" in note


def test_labels_that_no_list_names_are_told(tmp_path):
    source, images = read(made(tmp_path, names=["a", "b", "c"], line="b"))
    (note,) = source.notes
    assert len(images) == 1 and "2 XML files" in note and "(a, c)" in note and "train, val" in note


def test_each_split_tells_its_own(tmp_path):
    source, _ = read(made(tmp_path, SIZE + thing(more="<difficult>None</difficult>")))
    source.check("val")
    assert ["(train)" in note for note in source.notes] == [True, False]


def test_a_line_that_may_mean_two(tmp_path):
    with pytest.raises(UserError, match=r"the line 'a 1' may mean a or a 1"):
        read(made(tmp_path, names=["a", "a 1"], line="a 1\n"))


def test_a_name_twice_in_a_list_is_told(tmp_path):
    source, images = read(made(tmp_path, names=["a", "b"], line="a\nb\na.jpg\n"))
    assert len(images) == 2 and "(a)" in source.notes[0]


@pytest.mark.parametrize("box", [(20, 11, 11, 30), (11, 30, 20, 11)])
def test_corners_that_are_exchanged_are_named(tmp_path, box):
    with pytest.raises(UserError, match=rf"object 1 of a: {' '.join(map(str, box))}"):
        read(made(tmp_path, SIZE + thing(box=corners(*box))))


@pytest.mark.parametrize(
    "text", ["<annotations><image/></annotations>", '<annotation xmlns="http://a"/>', "<a>", "{}", "<!DOCTYPE a>"]
)
def test_other_xml_is_refused_by_name(tmp_path, text):
    made(tmp_path)
    (tmp_path / "Annotations/a.xml").write_text(text)
    with pytest.raises(UserError, match=r"a\.xml is not"):
        read(tmp_path)
