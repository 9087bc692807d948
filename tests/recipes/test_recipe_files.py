"""Every YAML that comes with the package is one that `longvision train` takes."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import timm
import yaml

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
import longvision
from longvision.data.module import both_sides
from longvision.inference.config import InferenceConfig
from longvision_cli.configuration import TASKS, _load, read_configuration
from longvision_cli.main import main

RECIPES = sorted((Path(longvision.__file__).parent / "recipes").glob("*.yaml"))
every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def read(path, *words):
    embedded = yaml.safe_load(path.read_text())["source"] in ("digits", "scattered")
    needed = [] if embedded else ["--data.path", "somewhere"]
    return read_configuration(["-c", path.stem, *needed, *words], default="digits")


def test_the_default_recipe_is_there():
    assert "digits" in [path.stem for path in RECIPES]


@every_recipe
def test_it_parses_to_what_it_says(path):
    values = read(path).values
    for section, content in yaml.safe_load(path.read_text()).items():
        if not isinstance(content, dict):
            assert values[section] == content
            continue
        for key, value in content.items():
            parsed = values[section][key]
            if isinstance(value, dict):
                for inner, wanted in value.items():
                    got = parsed[inner]
                    assert (list(got) if isinstance(got, tuple) else got) == wanted
            else:
                assert (list(parsed) if isinstance(parsed, tuple) else parsed) == value


@every_recipe
def test_its_first_lines_say_what_it_is_and_its_command(path):
    lines = path.read_text().splitlines()
    comments = [line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]
    assert len(comments) >= 2
    assert len(comments[0]) > 30
    (command,) = [line.lstrip("# ") for line in comments if line.startswith("# longvision train")]
    words = command.split()[2:]
    named = words[words.index("-c") + 1] if "-c" in words else "digits"
    assert named == path.stem
    # the command itself is one that parses
    read_configuration(words, default="digits")


def build(values):
    """The task of a dense recipe at its own size, four blocks deep."""
    pytest.importorskip("segmentation_models_pytorch")
    pytest.importorskip("faster_coco_eval")
    pytest.importorskip("transformers")
    options = values.model.as_dict() | {"pretrained": False, "args": {**(values.model.args or {}), "depth": 4}}
    if "asking" in options:
        options["asking"] = InferenceConfig(**options["asking"])
    known = {"classes": ["a", "b"], "size": both_sides(values.data.size), "channels": values.data.channels}
    if values.task != "segmentation":
        known["masks"] = values.source != "voc"
    _load(TASKS[values.task])(**options, **known)


@every_recipe
def test_its_model_exists_and_takes_the_data_s_size(path):
    values = read(path).values
    assert timm.is_model(values.model.name)
    if values.task != "classification":
        build(values)
        return
    size = values.data.size if isinstance(values.data.size, int) else max(values.data.size)
    patch = re.search(r"patch(\d+)", values.model.name)
    assert patch and size % int(patch[1]) == 0


@every_recipe
def test_it_is_listed(path):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["recipes"]) == 0
    assert path.stem in out.getvalue().splitlines()
