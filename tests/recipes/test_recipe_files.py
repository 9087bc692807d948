"""Every YAML that comes with the package is one that `longvision train` takes."""

import contextlib
import io
import re
from dataclasses import is_dataclass, replace
from pathlib import Path

import pytest
import timm
import yaml

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
import longvision
from longvision.types import DataInfo
from longvision_cli.main import main
from longvision_cli.train import parse

RECIPES = sorted((Path(longvision.__file__).parent / "recipes").glob("*.yaml"))
every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def read(path, *words):
    embedded = yaml.safe_load(path.read_text())["source"] in ("digits", "mixed_digits", "scattered")
    needed = [] if embedded else ["--data.path", "somewhere"]
    return parse(["-c", path.stem, *needed, *words])[0]


def test_the_default_recipe_is_there():
    assert "digits" in [path.stem for path in RECIPES]


def holds(options, content):
    """Whether a dataclass has the values that a recipe gives."""
    for name, wanted in content.items():
        got = getattr(options, name)
        assert holds(got, wanted) if is_dataclass(got) else got == (tuple(wanted) if type(got) is tuple else wanted)
    return True


@every_recipe
def test_it_parses_to_what_it_says(path):
    configuration = read(path)
    for section, content in yaml.safe_load(path.read_text()).items():
        got = getattr(configuration, section)
        assert holds(got, content) if isinstance(content, dict) else got == content


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
    parse(words)


def build(configuration):
    """The task of a dense recipe at its own size, four blocks deep."""
    pytest.importorskip("segmentation_models_pytorch")
    pytest.importorskip("faster_coco_eval")
    pytest.importorskip("transformers")
    model = configuration.model
    shallow = {"depth": 4} if "patch" in model.name else {}
    model = replace(model, pretrained=False, args={**(model.args or {}), **shallow})
    masks = configuration.task != "segmentation" and configuration.source != "voc"
    size = configuration.data.size
    size = (size, size) if isinstance(size, int) else size
    info = DataInfo("a set", ["a", "b"], size, configuration.data.channels, masks)
    replace(configuration, model=model).build_task(info)


@every_recipe
def test_its_model_exists_and_takes_the_data_s_size(path):
    configuration = read(path)
    name, size = configuration.model.name, configuration.data.size
    assert timm.is_model(name)
    if configuration.task != "classification":
        build(configuration)
        return
    patch = re.search(r"(?:patch|_s)(\d+)", name)
    cell = int(patch[1]) if patch else {"mobilevit_s": 64}[name]
    assert (size if isinstance(size, int) else max(size)) % cell == 0


@every_recipe
def test_it_is_listed(path):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["recipes"]) == 0
    assert path.stem in out.getvalue().splitlines()


DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"


@every_recipe
def test_it_stands_on_the_recipes_page_with_its_command(path):
    (command,) = [line[2:] for line in path.read_text().splitlines() if line.startswith("# longvision train")]
    (row,) = [line for line in DOCS.read_text("utf-8").splitlines() if line.startswith(f"| `{path.stem}` |")]
    assert f"| `{command}` |" in row
    assert all(cell.strip() for cell in row.strip("|").split("|"))


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_a_twin_is_one_word_apart(size):
    vim, deit = (
        [
            line
            for line in (RECIPES[0].parent / f"imagenet_{kind}_{size}.yaml").read_text().splitlines()
            if line[0] != "#"
        ]
        for kind in ("vim", "deit")
    )
    assert [(one, other) for one, other in zip(vim, deit, strict=True) if one != other] == [
        (f"  name: vim_{size}_patch16_224", f"  name: deit_{size}_patch16_224")
    ]
