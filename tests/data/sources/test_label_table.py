"""Tables of images and labels: what is read, told and refused."""

from pathlib import Path

import pytest
from PIL import Image

from longvision.data.io.listing import files_below
from longvision.data.label_config import LabelTableData
from longvision.data.sources import label_table
from longvision.data.sources.base import Trained
from longvision.errors import MissingFileError, UserError

CAT, DOG = "cat", "dog"


@pytest.fixture
def root(tmp_path):
    """Images im/0.png to im/7.png, all others."""
    for number in range(8):
        path = tmp_path / f"im/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return tmp_path


def lines(label, heading="image,label", count=8, mark=","):
    rows = [mark.join([f"im/{number}.png", label(number)]) for number in range(count)]
    return "\n".join([heading, *rows]) + "\n"


def odd(number):
    return CAT if number % 2 else DOG


def source(root, text, trained=None, name="labels.csv", **options):
    (root / name).write_text(text, encoding="utf-8")
    config = LabelTableData(str(root / name), **options)
    return config.source(trained) if trained else config.source()


def found(source, *splits):
    """File number -> its class numbers."""
    items = [item for split in splits or ("train", "val") for item in source.split(split).items]
    return {int(Path(path).stem): labels for path, labels in items}


ONE = {number: (0,) if number % 2 else (1,) for number in range(8)}
SEVERAL = {number: (0, 1) if number % 2 else (1,) for number in range(8)}


@pytest.mark.parametrize(
    "heading, mark", [("image,label", ","), ("File Name;Class", ";"), ("path\tcategory", "\t"), ("a,b", ",")]
)
def test_one_label_an_image(root, heading, mark):
    table = source(root, lines(odd, heading, mark=mark))
    assert (table.classes, table.multilabel) == ([CAT, DOG], False)
    assert found(table) == ONE and len(table.split("val")) == 2
    image, label = table.split("train")[0]
    assert image.size == (8, 8) and type(label) is int
    assert [note for note in table.notes if "taken for" in note] == [
        f"{root}/labels.csv: its column {name} is taken for the {what}"
        for name, what in (("a", "images"), ("b", "labels"))
        if heading == "a,b"
    ]


@pytest.mark.parametrize("mark", ["|", ";", " | "])
def test_several_labels_an_image(root, mark):
    table = source(root, lines(lambda n: f"{DOG}{mark}{CAT}" if n % 2 else DOG))
    assert (table.classes, table.multilabel) == ([CAT, DOG], True) and found(table) == SEVERAL
    assert table.split("train")[0][1] == [0.0, 1.0]
    assert table.listed_images("train")[1].label == "cat|dog"
    assert any("separated by" in note for note in table.notes)


def test_a_column_of_0_and_1_for_each_class(root):
    table = source(root, lines(lambda n: f"{n % 2},1.0", "filename,cat,dog"))
    assert (table.classes, table.multilabel) == ([CAT, DOG], True) and found(table) == SEVERAL
    one = source(root, lines(lambda n: f"{n % 2},{1 - n % 2}", "filename,cat,dog"))
    assert not one.multilabel and found(one) == ONE
    assert any("--data.multilabel true" in note for note in one.notes)  # it could be by chance
    assert source(root, lines(lambda n: f"{n % 2},{1 - n % 2}", "image,cat,dog"), multilabel=True).multilabel
    none = source(root, lines(lambda n: f"{n % 2},0", "filename,cat,dog"))
    assert none.multilabel and found(none)[0] == ()
    assert any("no training image is of 1 class: dog" in note for note in none.notes)


def test_a_comma_within_labels_is_asked_about(root):
    text = lines(lambda n: '"dog,cat"' if n % 2 else DOG)
    with pytest.raises(UserError, match=r"line 3: 'dog,cat'.*--data.separator"):
        source(root, text)
    assert found(source(root, text, separator=",")) == SEVERAL
    assert source(root, text, separator="none").classes == [DOG, "dog,cat"]


def test_blanks_within_labels_are_told(root):
    table = source(root, lines(lambda n: "polar bear" if n % 2 else DOG))
    assert table.classes == [DOG, "polar bear"] and any("'polar bear'" in note for note in table.notes)
    assert source(root, lines(lambda n: "polar bear"), separator=" ").classes == ["bear", "polar"]


def test_splits_by_a_column(root):
    said = ["Training", "valid", "TEST", "Training"]
    table = source(root, lines(lambda n: f"{odd(n)},{said[n % 4]}", "image,label,split"))
    assert set(found(table, "train")) == {0, 3, 4, 7}
    assert set(found(table, "val")) == {1, 5} and set(found(table, "test")) == {2, 6}
    assert not table.draws_validation


def test_splits_by_folders(root):
    for number, split in enumerate(["train", "train", "val", "test"]):
        path = root / split / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        (root / f"im/{number}.png").rename(path)
    text = "image,label\ntrain/0.png,a\ntrain/1.png,b\nval/2.png,a\ntest/3.png,b\n"
    table = source(root, text)
    assert [set(found(table, split)) for split in ("train", "val", "test")] == [{0, 1}, {2}, {3}]
    assert any("images' folders" in note for note in table.notes)
    with pytest.raises(UserError, match=r"line 6: im/4.png is in no split"):
        source(root, f"{text}im/4.png,a\n")


def test_splits_by_tables(root):
    for name, numbers in {"train.csv": (0, 1), "valid.csv": (2, 3)}.items():
        (root / name).write_text("image,label\n" + "".join(f"im/{n}.png,{odd(n)}\n" for n in numbers))
    table = LabelTableData(str(root)).source()
    assert set(found(table, "train")) == {0, 1} and set(found(table, "val")) == {2, 3}
    (root / "other.csv").write_text("")
    with pytest.raises(UserError, match=r"other\.csv.*--data.path"):
        LabelTableData(str(root)).source()


def test_a_test_without_labels_is_not_used(root):
    table = source(root, lines(lambda n: f"{odd(n)},train" if n < 6 else ",test", "image,label,split"))
    assert not table.has_test and any("no test image" in note for note in table.notes)


def test_images_are_found_by_their_names_where_one_file_has_it(root):
    table = source(root, "image_id,label\n" + "".join(f"{n},{odd(n)}\n" for n in range(8)))
    assert found(table) == ONE and any("8 images" in note for note in table.notes)
    (root / "again").mkdir()
    Image.new("RGB", (8, 8)).save(root / "again/3.png")
    with pytest.raises(UserError, match=r"line 5: 3 may be"):
        found(source(root, "image_id,label\n" + "".join(f"{n},{odd(n)}\n" for n in range(8))))


@pytest.mark.parametrize("again", ["./im/2.png", "im/../im/2.png", "2", "same/2.png", r"im\2.png"])
def test_an_image_under_two_names_is_refused(root, again):
    """Else it would train, and validate with another label."""
    (root / "same").symlink_to(root / "im")
    (root / "train.csv").write_text("image,label\nim/1.png,cat\nim/2.png,dog\n")
    (root / "val.csv").write_text(f"image,label\nim/0.png,dog\n{again},cat\n")
    for split in ("train", "val"):
        with pytest.raises(UserError) as refused:
            LabelTableData(str(root)).source().split(split)
        places = f"{root}/val.csv, line 3: {again} ", f"{root}/train.csv, line 3 calls im/2.png"
        assert all(place in str(refused.value) for place in places)


def test_links_to_one_file_are_images_of_their_own(root):
    """As stores that keep each content once lay out a set."""
    for name in ("a.png", "b.png"):
        (root / name).symlink_to(root / "im/0.png")
    assert len(source(root, "image,label\na.png,cat\nb.png,dog\nim/1.png,cat\nim/2.png,dog\n").split("train")) == 2


def test_files_are_looked_for_once(root, monkeypatch):
    looked = []
    monkeypatch.setattr(label_table, "files_below", lambda folder: looked.append(folder) or files_below(folder))
    table = source(root, "image,label\n" + "".join(f"{n},{odd(n)}\n" for n in range(8)))
    assert len(found(table)) == 8 and len(looked) == 1


def test_images_elsewhere(root):
    (root / "tables").mkdir()
    table = source(root / "tables", lines(odd), images=str(root))
    assert found(table) == ONE
    assert table.listed_images("train")[0].name == "im/0.png"


@pytest.mark.parametrize(
    "text, said",
    [
        (lines(lambda n: "" if n == 3 else CAT), r"line 5: im/3.png has no label"),
        (lines(lambda n: CAT) + "im/3.png,dog\n", r"line 10: im/3.png is in .*line 5"),
        (lines(lambda n: CAT) + "x\n", r"line 10: it has 1 cells, the heading 2"),
        (lines(lambda n: CAT) + ",cat\n", r"line 10: it names no image"),
        (lines(lambda n: f"{n % 2},-1", "image,cat,dog"), r"line 2: its dog is '-1'"),
        (lines(lambda n: "[1]"), r"line 2: .*expected labels as"),
        (lines(lambda n: f"{CAT},fold{n}", "image,label,split"), r"line 2: its split is 'fold0'"),
        (lines(lambda n: f"{CAT},", "image,label,split"), r"line 2: its split is empty"),
        (lines(lambda n: f"{odd(n)},{'val' if n % 2 else 'train'}", "image,label,split"), r"no training image .*'cat'"),
        (lines(lambda n: f"{CAT},val", "image,label,split"), r"none to train on"),
        (lines(lambda n: CAT, "x,label", 0) + "x,cat\n", r"columns x, label.*image_column"),
        (lines(lambda n: f"{CAT},1", "image,label,class"), r"columns label, class.*label_column"),
        (lines(lambda n: CAT, "image,image"), r"several columns image"),
        ("image,label\n", r"no line below"),
        ("im/0.png\n", r"heading of two columns"),
        (",,,\n,,,\n", r"labels\.csv has empty cells alone: expected a heading"),
        (lines(lambda n: f'{n % 2},1,"by me,\nin June"', "image,cat,dog,comment"), r"its comment .*label_column"),
        (lines(lambda n: '"cat'), r"line 2: it is no CSV .*quotation mark"),
        (lines(odd, count=9), r"1 of 9 images .*line 10: im/8.png"),
        ("\n" + lines(lambda n: '"' * (n == 3) + odd(n)), r"line 6: it is no CSV .*quotation mark"),
        (lines(lambda n: f'"{odd(n)}"s' if n == 3 else odd(n)), r"line 5: it is no CSV .*quotation mark"),
        (lines(lambda n: {3: '"cat', 5: 'cat"'}.get(n, odd(n))), r"line 5: its label 'cat\\nim/4.* end of a line"),
        (lines(lambda n: {3: '"1', 5: '0",0'}.get(n, "0,0"), "image,cat,dog"), r"line 5: its cat '1\\nim/4.*mark"),
        (lines(odd).partition("\n")[2], r"begins with the image im/0\.png: put a heading"),
        (lines(lambda n: "0,1").partition("\n")[2], r"begins with the image im/0\.png: put a heading"),
        (lines(lambda n: CAT), r"the one class 'cat'.*--data\.multilabel true"),
    ],
    ids=range(26),
)
def test_what_is_refused(root, text, said):
    with pytest.raises(UserError, match=said) as refused:
        found(source(root, text))
    assert str(root / "labels.csv") in str(refused.value)


def test_text_with_line_ends_in_a_column_that_is_not_read_is_let_be(root):
    table = source(root, lines(lambda n: f'{odd(n)},"by me,\nin ""June"""', "image,label,comment"))
    assert found(table) == ONE
    with pytest.raises(UserError, match=r"line 18: im/3.png is in .*line 8"):
        source(root, lines(lambda n: f'{odd(n)},"by me,\nin June"', "image,label,comment") + "im/3.png,dog,\n")


def test_labels_with_quotation_marks_are_told(root):
    table = source(root, lines(lambda n: '"24"" wide"' if n % 2 else '27" wide'))
    assert table.classes == ['24" wide', '27" wide']
    assert any("quotation marks" in note and "'27\" wide'" in note for note in table.notes)


def test_one_class_that_images_may_be_of_or_not(root):
    assert source(root, lines(lambda n: CAT * (n % 2)), multilabel=True).classes == [CAT]


def test_one_label_was_asked_for(root):
    with pytest.raises(UserError, match=r"line 3: im/1.png has 2 labels.*multilabel false"):
        source(root, lines(lambda n: "a|b" if n % 2 else "a"), multilabel=False)
    with pytest.raises(UserError, match=r"label_column nosuch"):
        source(root, lines(odd), label_column="nosuch")
    with pytest.raises(MissingFileError, match="nosuch"):
        LabelTableData(str(root / "nosuch.csv")).source()


def test_a_few_images_that_are_not_there_are_left_out(root):
    text = lines(odd) + "".join(f"im/{n}.png,cat\n" for n in (9, 10))
    with pytest.warns(UserWarning, match=r"2 of 10 images.*left out"):
        assert found(source(root, text, unreadable=0.5)) == ONE


def test_of_a_trained_model_its_classes_are_taken(root):
    trained = Trained(["ape", DOG, CAT], multilabel=True)
    table = source(root, lines(odd), trained)
    assert table.classes == trained.classes and table.multilabel and not table.draws_validation
    assert found(table, "train") == {number: (2,) if number % 2 else (1,) for number in range(8)}
    with pytest.raises(UserError, match="bee"):
        source(root, lines(lambda n: "bee"), trained)
    with pytest.raises(UserError, match="one class an image"):
        source(root, lines(lambda n: "cat|dog"), Trained([CAT, DOG]))


def test_small_classes_validate_too(root):
    """One image in ten would be one of the large class."""
    table = source(root, lines(lambda n: "rare|common" if n < 2 else "common"))
    assert any(0 < number < 2 or number == 0 for number in found(table, "val"))


def test_columns_that_are_not_read_are_told(root):
    table = source(root, lines(lambda n: f"{odd(n)},{n}", "image,label,age"))
    assert any("not read: age" in note for note in table.notes)
