import json

import pytest

from longvision.data.io.class_files import ClassFile, read_classes

ROAD, TREE = (128, 64, 128), (128, 128, 0)


def written(folder, text: str, name: str = "classes.json"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.json",
            '{"classes": [{"name": "road", "color": [128, 64, 128]}, {"name": "tree", "color": [128, 128, 0]}]}',
        ),
        ("a.json", '{"classes": {"road": [128, 64, 128], "tree": [128, 128, 0]}}'),
        ("a.json", '{\n\t"road": [128, 64, 128],\n\t"tree": [128, 128, 0]\n}'),
        ("a.yaml", "classes:\n- {name: road, colour: [128, 64, 128]}\n- {name: tree, colour: [128, 128, 0]}\n"),
        ("a.yml", "road: [128, 64, 128]\ntree: [128, 128, 0]\n"),
        ("a.txt", "128 64 128\troad\n\n# a comment\n128 128 0\t\ttree\n"),
        ("a.txt", "\ufeffroad 128 64 128\r\ntree 128 128 0\r\n"),
    ],
)
def test_every_way_to_write_it(tmp_path, name, text):
    assert read_classes(written(tmp_path, text, name)) == ClassFile(["road", "tree"], [ROAD, TREE], coloured=True)


def test_names_alone_get_colours(tmp_path):
    named = read_classes(written(tmp_path, "traffic light\nclass 1\nroad 128 64 128", "names.txt"))
    assert named.classes == ["traffic light", "class 1", "road"]
    assert named.palette[2] == ROAD and len(set(named.palette)) == 3
    assert not named.coloured
    assert read_classes(written(tmp_path, '["a", "b"]')).classes == ["a", "b"]


def test_chosen_colours_are_none_of_those_given(tmp_path):
    chosen = read_classes(written(tmp_path, "a\nb\nc\nd", "a.txt")).palette
    first = "{} {} {}".format(*chosen[0])
    palette = read_classes(written(tmp_path, f"a\nb\nc\nd {first}", "a.txt")).palette
    assert palette[3] == chosen[0] and len(set(palette)) == 4


def test_names_that_yaml_takes_for_something_else(tmp_path):
    named = read_classes(written(tmp_path, "classes: [on, null, 7, 2026-11-22]", "a.yaml"))
    assert named.classes == ["on", "null", "7", "2026-11-22"]


@pytest.mark.parametrize(
    ("written_so", "read_so"),
    [("255", (255,)), ("[0, 11]", (0, 11)), ("[7, [0, 0, 0]]", (7, (0, 0, 0))), ("null", ())],
)
def test_what_is_ignored(tmp_path, written_so, read_so):
    assert read_classes(written(tmp_path, f'{{"classes": ["a", "b"], "ignore": {written_so}}}')).ignore == read_so


def test_binary(tmp_path):
    assert read_classes(written(tmp_path, '{"classes": ["a", "b"], "binary": true}')).binary
    assert not read_classes(written(tmp_path, '{"classes": ["a", "b"], "binary": false}')).binary


def test_classes_of_that_very_name(tmp_path):
    """{name: colour} may have a class called classes, or ignore."""
    named = read_classes(written(tmp_path, '{"classes": [{"name": "ignore"}, {"name": "classes"}]}'))
    assert named.classes == ["ignore", "classes"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "road\n1 2 3\n", 'line 2: "1 2 3" has no name'),
        ("a.txt", "road\ntree 0 0 256", "line 2: the colour 0 0 256 is not three numbers"),
        ("a.txt", "-1 0 0 road\ntree", "line 1: the colour -1 0 0"),
        ("a.txt", "road\n\ntree\nroad", "line 4: the name road is line 1's too"),
        ("a.txt", "road 1 2 3\ntree 1 2 3", "line 2: the colour .1, 2, 3. is line 1's too"),
        ("a.txt", "road", "has 1 class: expected 2 to 255"),
        ("a.txt", "", "has 0 classes"),
        ("a.json", '{"classes": [\n{"name": "a"},\n{"heading": "b"}]}', "line 3: a class has heading"),
        ("a.json", '{"classes": [\n{"name": "a"},\n[1]]}', "line 3: expected the name of a class"),
        ("a.json", '{"a": [1, 2, 3],\n"b": [1, 2]}', "line 2: the colour 1 2 is not"),
        ("a.json", '{"a": [1, 2, 3],\n"b": "red"}', "line 2: the colour red is not"),
        ("a.json", '{"classes": ["a", "b"],\n "ignore": -1}', "line 2: ignore is a value"),
        ("a.json", '{"classes": ["a", "b"],\n "binary": 1}', "line 2: binary is true or false"),
        ("a.json", '{"classes": ["a", "b", "c"], "binary": true}', "3 classes: binary masks show 2"),
        ("a.json", '{"classes": ["a", "b"], "names": []}', "has names beside the classes"),
        ("a.json", '{"classes": ["a",\n "b"', "line 2: .*expected JSON or YAML"),
        ("a.yaml", "just words", "holds no classes"),
        ("a.yaml", "", "holds no classes"),
    ],
)
def test_mistakes_are_one_sentence_with_their_line(tmp_path, name, text, words):
    path = written(tmp_path, text, name)
    with pytest.raises(ValueError, match=words) as caught:
        read_classes(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00road")
    with pytest.raises(ValueError, match="begins as utf-16"):
        read_classes(tmp_path / "a.txt")


def test_a_missing_file_names_those_that_come_with_the_package():
    with pytest.raises(FileNotFoundError, match=r"nothing.json is no file: .* one of ade20k, camvid, chasedb1"):
        read_classes("nothing.json")


def test_the_packaged_files():
    camvid = read_classes("camvid")
    words = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"
    assert camvid.classes == words.split() and camvid.coloured and camvid.ignore == (11,)
    assert camvid == read_classes("camvid.json")
    chase = read_classes("chasedb1")
    assert chase.classes == ["background", "vessel"] and chase.binary


def test_a_file_of_yours_comes_before_a_packaged_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, json.dumps(["mine", "yours"]), "camvid.json")
    assert read_classes("camvid.json").classes == ["mine", "yours"]
