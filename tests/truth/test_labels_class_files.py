"""Class files as annotation programs write them: read right, or refused with what was seen and what is expected."""

import json

import pytest

from longvision.data.io.class_files import ClassFile, read_classes
from longvision.errors import UserError

ROAD, TREE, SKY = (128, 64, 128), (128, 128, 0), (0, 0, 255)


def read(folder, text, name="classes.txt", encoding="utf-8"):
    path = folder / name
    path.write_bytes((text if isinstance(text, str) else json.dumps(text)).encode(encoding))
    return read_classes(path)


def row(text, what, name="classes.txt", classes=("road", "tree"), colours=None, values=(), numbered=True, told=""):
    """An input, and what it must become."""
    return pytest.param(text, name, list(classes), colours, values, numbered, told, id=what)


BOTH = [ROAD, TREE]
CVAT = "# label:color_rgb:parts:actions\nroad:128,64,128::\ntree:128,128,0:crown,stem:\n"
ADE = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.16\t11664\t1172\t1\twall\n2\t0.12\t6046\t612\t1\tbuilding, edifice\n"
SUPERVISELY = {
    "classes": [
        {"title": "road", "shape": "polygon", "color": "#804080", "geometry_config": {}, "id": 71, "hotkey": ""},
        {"title": "tree", "shape": "bitmap", "color": "#808000", "geometry_config": {}, "id": 70, "hotkey": ""},
    ],
    "tags": [],
    "projectType": "images",
}
PANOPTIC = [
    {"supercategory": "way", "color": [128, 64, 128], "isthing": 0, "id": 1, "name": "road"},
    {"supercategory": "plant", "color": [128, 128, 0], "isthing": 0, "id": 7, "name": "tree"},
]
QUPATH = [{"name": "road", "color": [128, 64, 128]}, {"name": "tree", "color": [128, 128, 0]}]
QUPATH_INTS = {"pathClasses": [{"name": "road", "colorRGB": -8372096}, {"name": "tree", "colorRGB": -8355840}]}
MAPILLARY = {"version": "1.2", "labels": [{**one, "readable": one["name"], "instances": True} for one in QUPATH]}
CSS = [{"name": "road", "color": "rgba(128, 64, 128, 1.0)"}, {"name": "tree", "color": "rgb(128,128,0)"}]
ID2LABEL = {"id2label": {"0": "road", "1": "tree"}, "label2id": {"road": 0, "tree": 1}}
SYNSETS = ["tench, Tinca tinca", "goldfish, Carassius auratus"]
YOLO = "train: images/train\nval: images/val\nnc: 2\nnames: ['road', 'tree']\n"


@pytest.mark.parametrize(
    ("text", "name", "classes", "colours", "values", "numbered", "told"),
    [
        row(CVAT, "CVAT labelmap.txt", colours=BOTH),
        row(CVAT.replace("128,64,128", "").replace("128,128,0", ""), "CVAT labelmap.txt without colours"),
        row(CVAT.split("\n", 1)[1], "CVAT labelmap.txt without its heading", colours=BOTH),
        row("__ignore__\n_background_\nroad\n", "Labelme", classes=["_background_", "road"], told="__ignore__"),
        row(SUPERVISELY, "Supervisely meta.json", "meta.json", colours=BOTH, numbered=False),
        row("Pixel Value, Class\n0, road\n1, tree\n", "Roboflow _classes.csv", "_classes.csv"),
        row(YOLO, "YOLO list", "data.yaml"),
        row("path: ../set\nnames:\n  0: road\n  1: tree\n", "YOLO mapping", "data.yaml"),
        row("names:\n  1: tree\n  0: road\n", "YOLO mapping in another order", "data.yaml"),
        row({"categories": [{"id": 2, "name": "tree"}, {"id": 1, "name": "road"}]}, "COCO", "c.json", values=(1, 2)),
        row(PANOPTIC, "COCO panoptic", "panoptic.json", colours=BOTH, values=(1, 7)),
        row({"images": [], "categories": PANOPTIC}, "COCO file", "c.json", colours=BOTH, values=(1, 7)),
        row(ADE, "ADE20K objectInfo150.txt", classes=["wall", "building, edifice"], values=(1, 2), told="Ratio, Train"),
        row("name,r,g,b\nroad,128,64,128\ntree,128,128,0\n", "CamVid class_dict.csv", "class_dict.csv", colours=BOTH),
        row("name, r, g, b\nroad, 128, 64, 128\n\ntree, 128, 128, 0", "with blanks", "class_dict.csv", colours=BOTH),
        row('"name";"red";"green";"blue"\r\n"road";128;64;128\r\n"tree";128;128;0\r\n', "semicolons", colours=BOTH),
        row("128 64 128\troad\n128 128 0\t\ttree\n", "CamVid label_colors.txt", colours=BOTH),
        row(QUPATH, "QuPath classes.json", "c.json", colours=BOTH),
        row(QUPATH_INTS, "QuPath colour ints", "c.json", colours=BOTH, numbered=False),
        row(MAPILLARY, "Mapillary", "config.json", colours=BOTH),
        row(ID2LABEL, "Hugging Face config", "config.json"),
        row({"0": "road", "1": "tree"}, "Hugging Face id2label.json", "id2label.json"),
        row({"road": 3, "tree": 1}, "names to numbers", "ids.json", classes=["tree", "road"], values=(1, 3)),
        row({"road": "#804080", "tree": "#808000"}, "names to hex", "colours.json", colours=BOTH),
        row(CSS, "CSS colours", "c.json", colours=BOTH),
        row("0: road\n1: tree", "numbers and colons"),
        row("0 road\n1 tree", "numbers and blanks"),
        row("0\troad\n1\ttree", "numbers and tabs"),
        row("0,road\n1,tree", "numbers and commas"),
        row("0. road\n1. tree", "numbers and dots"),
        row("7 road\n11 tree", "numbers that are not in a row", values=(7, 11)),
        row("road: 1\ntree: 0", "names, colons, numbers", classes=["tree", "road"]),
        row("tree,1\nroad,0", "names, commas, numbers"),
        row("0 road 128 64 128\n1 tree 128 128 0", "number, name, colour", colours=BOTH),
        row("0,road,128,64,128\n1,tree,128,128,0", "number, name, colour with commas", colours=BOTH),
        row("0   road   128 64 128 0\n1   tree   128 128 0 0", "FreeSurfer and Slicer", colours=BOTH),
        row("#804080 road\n#808000 tree", "hex first", colours=BOTH),
        row("road #804080\ntree #808000", "hex last", colours=BOTH),
        row("road,#804080\ntree,#808000", "hex with commas", colours=BOTH),
        row("id,name,color\n0,road,#804080\n1,tree,#808000", "a heading with hex", "c.csv", colours=BOTH),
        row("Class_ID\tClass_Name\n1\ttree\n0\troad", "a heading with underscores", "c.tsv"),
        row("class 1\nclass 2", "names that end in numbers", classes=["class 1", "class 2"]),
        row("3 wheeler\n4 wheeler", "names that begin with numbers", classes=["3 wheeler", "4 wheeler"]),
        row("3 wheeler\nroad", "one name that begins with a number", classes=["3 wheeler", "road"]),
        row("\n".join(SYNSETS), "commas in names", classes=SYNSETS),
        row("title page\ncar park", "a first name that could begin a heading", classes=["title page", "car park"]),
        row('["road", "tree"]', "JSON in a text file"),
        row("road: 128, 64, 128\ntree: 128, 128, 0", "names, colons, colours with commas", colours=BOTH),
        row("road 128,64,128\ntree 128,128,0", "names and colours with commas", colours=BOTH),
        row("road = [128, 64, 128]\ntree = [128, 128, 0]", "names and lists", colours=BOTH),
        row("road|128|64|128\ntree|128|128|0", "bars", colours=BOTH),
        row("car (parked)\nman-made", "marks in names", classes=["car (parked)", "man-made"]),
        row("# made by hand\nroad\n# more\ntree", "comments"),
        row("0 road\n1 tree\n255 void", "255 that does not count", told="void"),
        row("0 road\n255 tree", "255 that is a class", values=(0, 255)),
        row('{"classes": ["\\ud83d\\ude97", "tree"]}', "emoji in JSON", "c.json", classes=["🚗", "tree"]),
        row("классы\nдорога", "Cyrillic", classes=["классы", "дорога"]),
        row("on\nnull", "words of YAML", classes=["on", "null"]),
    ],
)  # fmt: skip
def test_forms(tmp_path, text, name, classes, colours, values, numbered, told):
    found = read(tmp_path, text, name)
    assert (found.classes, found.values, found.numbered) == (classes, values, numbered)
    assert found.coloured == (colours is not None) and (colours is None or found.palette == colours)
    assert bool(found.notes) == bool(told) and told in "".join(found.notes)


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ({"shapes": [], "imagePath": "a.jpg"}, "a.json", ["Labelme's labels of one image", '"shapes"']),
        ({"_via_settings": {}, "_via_img_metadata": {}}, "via.json", ["a project of VIA"]),
        ({"a.jpg123": {"filename": "a.jpg", "regions": []}}, "via.json", ["annotations of VIA"]),
        ({"type": "FeatureCollection", "features": [{"type": "Feature"}]}, "a.geojson", ["GeoJSON"]),
        ([{"type": "Feature", "geometry": {}, "properties": {}}], "a.json", ["GeoJSON"]),
        ([{"id": 1, "annotations": [], "file_upload": "a"}], "a.json", ["Label Studio"]),
        ('<View><BrushLabels><Label value="a"/></BrushLabels></View>', "config.xml", ["is XML", "Label Studio"]),
        ("from collections import namedtuple\nlabels = []", "labels.py", ["is a program"]),
        ({"tools": [{"name": "a"}]}, "labelbox.json", ["Labelbox"]),
        ({"classes": [{"title": "a", "shape": "polygon"}, {"title": "b"}]}, "meta.json", ["neither the values"]),
        ({"classes": ["a", "b"], "licence": "x"}, "a.json", ["licence beside the classes"]),
        ({"names": ["a", "b"], "nc": 3}, "data.yaml", ["has 2 names", "nc: 3"]),
        ([{"name": "a", "trainId": 0}, {"name": "b", "trainId": 1}], "a.json", ["line 1", "a class has name, trainId"]),
        ([{"name": "a", "id": 1}, {"name": "b"}], "a.json", ["b has no number"]),
        ([{"name": "a", "label": "x"}, {"name": "b"}], "a.json", ["name and label: keep one"]),
        ([{"name": "a", "id": -1}, {"name": "b", "id": 0}], "a.json", ["-1 is no value of a mask"]),
        ([{"name": "a", "id": 1}, {"name": "b", "id": 1}], "a.json", ["the value 1 is line 1's too"]),
        ({"a": "#ff0000ff", "b": "#00ff00ff"}, "a.json", ["the colour #ff0000ff"]),
        ({"a": [0.5, 0.5, 0.5], "b": [0, 0, 1]}, "a.json", ["the colour 0.5 0.5 0.5"]),
        ({"0": [1, 2, 3], "1": [4, 5, 6]}, "a.json", ["numbers where names are expected"]),
        ('{"classes": ["\\ud83d", "b"]}', "a.json", ["half a character"]),
        ("[" * 500 + "]" * 500, "a.json", ["nested deeper"]),
        ("a: &x [*x]\nb: *x\n", "a.yaml", ["colour"]),
        ("filename, cat, dog\na.jpg, 1, 0\n", "_classes.csv", ["line 1", "expected a class a line"]),
        ("name,r,g\nroad,128,64\ntree,1,2", "a.csv", ["expected all of r, g and b"]),
        ("name,r,g,b\nroad,128,64,128\ntree,1,2\n", "a.csv", ["line 3", "has 3 columns, the heading 4"]),
        ("name,r,g,b\nroad,128,64,300\ntree,1,2,3\n", "a.csv", ["line 2", "the colour 128 64 300"]),
        ("name,label\na,b\nc,d", "a.csv", ["several columns for name"]),
        ("id,name\n0.5,road\n1,tree", "a.csv", ["line 2", "'0.5' is no value"]),
        ("id,name\n0,road\n1,", "a.csv", ["line 3", "has no name"]),
        ("0,road\ntree\n1,sky,x", "a.csv", []),
        ("0,road\n1,tree,x", "a.csv", ["line 2", "1, tree, x"]),
        ("0,128,64,128,road\n1,128,128,0,tree", "a.csv", ["line 1"]),
        ("0 128 64 128 road\n1 128 128 0 tree", "a.txt", ["line 1", "in several ways"]),
        ("road 0 128 64 128\ntree 1 128 128 0", "a.txt", ["line 1", "in several ways"]),
        ("road 0\ntree 1", "a.txt", ["line 1", "in several ways"]),
        ("0 road\n1 tree\nsky", "a.txt", ["line 3", '"sky" has no number in front']),
        ("name\nroad\ntree", "a.txt", ["line 1", "heading or a class"]),
        ("road\n__ignore__\ntree", "a.txt", ["__ignore__", "first line"]),
        (CVAT + "sky\n", "labelmap.txt", ["line 4", '"sky"', "label:r,g,b:parts:actions"]),
        (CVAT + "sky:1,2:::\n", "labelmap.txt", ["line 4"]),
        ("- road\n- tree", "a.txt", ["line 1", '"- road" cannot be the whole name']),
        ('"road"\n"tree"', "a.txt", ["line 1", "cannot be the whole name"]),
        ("'road',\n'tree',", "a.txt", ["line 1", "cannot be the whole name"]),
        ("road\ttree\nsky\tsea", "a.txt", ["line 1", "cannot be the whole name"]),
        ("item {\n  id: 1\n  name: 'cat'\n}", "labels.pbtxt", ["line 1", "cannot be the whole name"]),
        ("road 0.5 0.25 0.5\ntree 0 1 0", "a.txt", ["line 1", "cannot be the whole name"]),
        ("road 128 64\ntree 128 128", "a.txt", ["line 1", "cannot be the whole name"]),
        ("1 0.1 wall\n2 0.2 floor", "a.txt", ["line 1", "in several ways"]),
        ("7: 128,64,128\n8: 1,2,3", "a.txt", ["line 1", "cannot be the whole name"]),
        ('["a\\nb", "c"]', "a.json", ["cannot be printed"]),
        ('{"a\\nb": 5, "c": ""}', "a.json", ["is no value of a mask"]),
        ("0 road\n70000 tree", "a.txt", ["70000 is none of a mask"]),
        ("road #12345\ntree #123456", "a.txt", ["line 1", "the colour #12345"]),
        ("#ff0000ff road\n#00ff00ff tree", "a.txt", ["line 1", "#ff0000ff"]),
        ('"a,0\nb,1', "a.csv", ["expected a class a line"]),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, text, name, words):
    with pytest.raises(UserError) as caught:
        found = read(tmp_path, text, name)
        if not words:  # names with commas, as they stand
            assert found.classes == ["0,road", "tree", "1,sky,x"]
            raise UserError(name)
    said = str(caught.value)
    assert all(word in said for word in [name, *words]) and "\n" not in said


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings(tmp_path, encoding):
    found = read(tmp_path, "Straße\nБаум\n道路", encoding=encoding)
    assert (found.classes, found.notes) == (["Straße", "Баум", "道路"], ())


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize("name", ["classes.txt", "classes.yaml"])
def test_western_names_are_read_and_told(tmp_path, encoding, name):
    text = "Straße\nGehölz" if name.endswith("txt") else "[Straße, Gehölz]"
    found = read(tmp_path, text, name, encoding)
    assert found.classes == ["Straße", "Gehölz"]
    assert "is not UTF-8" in found.notes[0] and "Straße, Gehölz" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("дорога\nдерево", "cp1251"), ("道路\n树木", "gbk"), ("道路\n木", "shift-jis"), ("δρόμος\nδέντρο", "cp1253")],
)
def test_other_encodings_are_refused(tmp_path, text, encoding):
    with pytest.raises(UserError, match=r"classes\.txt, line 1: the byte 0x.* save the file as UTF-8"):
        read(tmp_path, text, encoding=encoding)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00", b"r\x00o\x00a\x00d\x00", b"\xff\xfea", b"a\x01\nb"])
def test_bytes_that_are_no_text(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.txt"):
        read_classes(tmp_path / "a.txt")


def test_a_large_file_of_labels_is_read_by_its_categories(tmp_path):
    """YAML took hours for it."""
    things = [{"id": number, "bbox": [1, 2, 3, 4], "category_id": 1} for number in range(3_000)]
    found = read(tmp_path, {"annotations": things, "categories": PANOPTIC}, "c.json")
    assert (found.classes, found.values) == (["road", "tree"], (1, 7))
    with pytest.raises(UserError, match="more than a list of classes"):
        read(tmp_path, ["x" * 200] * 1_000, "c.json")


def test_a_file_beyond_any_list_of_classes_is_not_read(tmp_path):
    path = tmp_path / "classes.txt"
    with open(path, "wb") as file:
        file.truncate(450 << 20)
    with pytest.raises(UserError, match=r"classes\.txt has 450 MB"):
        read_classes(path)


def test_a_file_that_is_read_plainly_says_nothing_more(tmp_path):
    assert read(tmp_path, "road\ntree") == ClassFile(["road", "tree"], read(tmp_path, "road\ntree").palette)
